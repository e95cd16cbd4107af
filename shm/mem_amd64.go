//go:build amd64 && !race

package shm

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
