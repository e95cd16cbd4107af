package shm

import (
	"sync/atomic"
	"time"
)

// Time stamps of messages are exact to a millisecond, and must cost nothing: reading the clock takes as long as half a send.
// A stamp is reused while the processor's counter says that less than a million ticks passed: under a millisecond on any
// processor faster than 1 GHz, and no calibration is needed.
type coarseClock struct {
	at atomic.Uint64 // ticks of the last look
	ns atomic.Int64  // CLOCK_REALTIME then
}

const coarseTicks = 1_000_000

func (c *coarseClock) now() int64 {
	if haveTicks {
		t := ticks()
		if t-c.at.Load() < coarseTicks {
			return c.ns.Load()
		}
		n := time.Now().UnixNano()
		c.ns.Store(n)
		c.at.Store(t)
		return n
	}
	return time.Now().UnixNano()
}
