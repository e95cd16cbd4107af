package shm

import "unsafe"

// The mapping is reached only through these and the functions of access.go, store_*.go and mem_*.go. The words that decide anything
// are loaded atomically and changed by CAS, or by a store whose one writer is named where it stands. On amd64 an atomic load is a
// plain one and a plain store is a release; elsewhere store is atomic.

func p64(base unsafe.Pointer, off uint64) *uint64 { return (*uint64)(unsafe.Add(base, off)) }
func p32(base unsafe.Pointer, off uint64) *uint32 { return (*uint32)(unsafe.Add(base, off)) }
func p16(base unsafe.Pointer, off uint64) *uint16 { return (*uint16)(unsafe.Add(base, off)) }

// view returns n bytes of the mapping from off on. The caller has checked that they lie inside.
func view(base unsafe.Pointer, off, n uint64) []byte {
	return unsafe.Slice((*byte)(unsafe.Add(base, off)), n)
}

// raise makes *p at least v.
func raise(p *uint64, v uint64) {
	for {
		old := load(p)
		if old >= v || cas(p, old, v) {
			return
		}
	}
}
