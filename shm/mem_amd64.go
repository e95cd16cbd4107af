//go:build amd64 && !race

package shm

// store publishes v: on amd64 stores become visible in program order, and the compiler keeps stores in order too. It does not
// wait for the store to be seen (atomic.StoreUint64 would, for 17 ns): use it where the next step is a CAS, or where nothing is
// read afterwards that depends on the other side having seen it.
func store(p *uint64, v uint64)   { *p = v }
func store32(p *uint32, v uint32) { *p = v }

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
