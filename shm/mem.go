package shm

import (
	"sync/atomic"
	"unsafe"
)

// The mapping is reached only through these. Loads that pair with another process's store are atomic; on amd64 an atomic load is
// a plain one, and a plain store is a release (store and the two files mem_*.go say when that may be used). A port to weaker
// hardware keeps the atomic store of mem_other.go.

func p64(base unsafe.Pointer, off uint64) *uint64 { return (*uint64)(unsafe.Add(base, off)) }
func p32(base unsafe.Pointer, off uint64) *uint32 { return (*uint32)(unsafe.Add(base, off)) }
func p16(base unsafe.Pointer, off uint64) *uint16 { return (*uint16)(unsafe.Add(base, off)) }

func load(p *uint64) uint64               { return atomic.LoadUint64(p) }
func load32(p *uint32) uint32             { return atomic.LoadUint32(p) }
func cas(p *uint64, old, new uint64) bool { return atomic.CompareAndSwapUint64(p, old, new) }
func cas32(p *uint32, old, new uint32) bool {
	return atomic.CompareAndSwapUint32(p, old, new)
}

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
