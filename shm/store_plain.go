//go:build amd64 && !race && !kumquat_step

package shm

// store publishes v: on amd64 stores become visible in program order, and the compiler keeps their order too. It does not wait for
// the store to be seen, which atomic.StoreUint64 does, for 17 ns. So it is for where the next step is a CAS, or where nothing is
// read afterwards that depends on the other side having seen it.
func store(p *uint64, v uint64)   { *p = v }
func store32(p *uint32, v uint32) { *p = v }
