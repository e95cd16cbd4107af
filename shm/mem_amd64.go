//go:build amd64 && !race

package shm

import "unsafe"

// pause executes n PAUSE instructions.
//
//go:noescape
func pause(n uint32)

// prefetchWrite asks for the cache line at p, to be written.
//
//go:noescape
func prefetchWrite(p *uint64)

// prefetch asks for the cache line at p.
//
//go:noescape
func prefetch(p *uint64)

// ticks reads the time stamp counter.
//
//go:noescape
func ticks() uint64

const haveTicks = true

// release gives a turn back. On amd64 a plain store comes after all that the holder did.
func release(p *uint32) { *p = 0 }

// copyForward copies n bytes by REP MOVSB, for which the processor need not read the lines that it overwrites.
//
//go:noescape
func copyForward(dst, src unsafe.Pointer, n uint64)

func copyBody(dst, src []byte) int {
	n := min(len(dst), len(src))
	if n < 4096 {
		return copy(dst, src)
	}
	copyForward(unsafe.Pointer(unsafe.SliceData(dst)), unsafe.Pointer(unsafe.SliceData(src)), uint64(n))
	return n
}
