//go:build kumquat_step

package shm

import "sync/atomic"

// A build with the tag kumquat_step: before every access to a shared word the hook is called, so that a test can let a client die
// or stop there, or another go first. Only one client runs at a time, so nothing is lost by making every store atomic.

// stepHook is called before every step; nil lets all pass. place is the last name that step gave.
var stepHook func(place string)

var stepPlace string

// stuckHook says, in place of the clock, whether the holder of lock word l counts as stuck for q. nil: the clock does.
var stuckHook func(q *Queue, l uint64) bool

// The schedules are short: cur goes down at once, so that alerts matter.
const lookAgain = 1

var simulated = false

func simulatedStuck(q *Queue, l uint64) bool { return stuckHook(q, l) }

func at() {
	if stepHook != nil {
		stepHook(stepPlace)
	}
}

func step(place string) { stepPlace = place }

func load(p *uint64) uint64                 { at(); return atomic.LoadUint64(p) }
func load32(p *uint32) uint32               { at(); return atomic.LoadUint32(p) }
func cas(p *uint64, old, new uint64) bool   { at(); return atomic.CompareAndSwapUint64(p, old, new) }
func cas32(p *uint32, old, new uint32) bool { at(); return atomic.CompareAndSwapUint32(p, old, new) }
func add(p *uint64, n uint64)               { at(); atomic.AddUint64(p, n) }
func or(p *uint64, bits uint64)             { at(); atomic.OrUint64(p, bits) }
func and(p *uint64, bits uint64)            { at(); atomic.AndUint64(p, bits) }
func swap(p *uint64, v uint64) uint64       { at(); return atomic.SwapUint64(p, v) }
func storeSync(p *uint64, v uint64)         { at(); atomic.StoreUint64(p, v) }
func storeSync32(p *uint32, v uint32)       { at(); atomic.StoreUint32(p, v) }
func store(p *uint64, v uint64)             { at(); atomic.StoreUint64(p, v) }
func store32(p *uint32, v uint32)           { at(); atomic.StoreUint32(p, v) }

func looks() { at() }
