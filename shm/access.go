//go:build !kumquat_step

package shm

import "sync/atomic"

// Every access to a shared word goes through one of these. A build with the tag kumquat_step replaces them by others that stop
// before each step (access_step.go); here they are the bare instructions.

func load(p *uint64) uint64                 { return atomic.LoadUint64(p) }
func load32(p *uint32) uint32               { return atomic.LoadUint32(p) }
func cas(p *uint64, old, new uint64) bool   { return atomic.CompareAndSwapUint64(p, old, new) }
func cas32(p *uint32, old, new uint32) bool { return atomic.CompareAndSwapUint32(p, old, new) }
func add(p *uint64, n uint64)               { atomic.AddUint64(p, n) }
func or(p *uint64, bits uint64)             { atomic.OrUint64(p, bits) }
func and(p *uint64, bits uint64)            { atomic.AndUint64(p, bits) }
func swap(p *uint64, v uint64) uint64       { return atomic.SwapUint64(p, v) }
func storeSync(p *uint64, v uint64)         { atomic.StoreUint64(p, v) } // seen by all before the next load
func storeSync32(p *uint32, v uint32)       { atomic.StoreUint32(p, v) }

// lookAgain is how often in a row the best message may lie below cur before cur is lowered: a lower cur makes senders alert.
const lookAgain = 32

// simulated: a scheduler, not the clock, says when a holder counts as stuck. Never in this build.
const simulated = false

func simulatedStuck(*Queue, uint64) bool { return false }

// step names the place that comes next, for the builds that stop there.
func step(string) {}

// looks comes before every read of an observer, which goes past the mapping.
func looks() {}
