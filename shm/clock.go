package shm

import (
	"sync"
	"sync/atomic"
	"time"
)

// Time stamps of messages are coarse, and must cost nothing: reading the clock takes as long as half a send, and the processor's
// counter a sixth. So while a process sends fast, a goroutine of it notes the time at every tick, and sends use what it noted. Where
// they are rarer, a stamp is used again while the counter says that less than a million ticks passed: under a millisecond on any
// processor faster than 1 GHz, and no calibration is needed.
//
// A process that is stopped in the midst of fast sending may, until its next tick, stamp with the time when it was stopped.
type coarseClock struct {
	noted atomic.Int64  // CLOCK_REALTIME in ns at the last tick; 0: nobody notes it
	used  atomic.Uint32 // since the last tick

	at   atomic.Uint64 // ticks of the counter at the last look
	ns   atomic.Int64  // CLOCK_REALTIME then
	uses atomic.Uint32 // since

	mu      sync.Mutex
	handles int
	stop    chan struct{}
	stopped chan struct{}
}

const (
	coarseTicks = 1_000_000
	coarseLate  = 8 * coarseTicks // the tick is late
	coarseTick  = 2 * time.Millisecond
	fastUses    = 512 // stamps between two looks: the ticks are worth it
)

// stamps is the clock of all queues of this process.
var stamps coarseClock

func (c *coarseClock) now() int64 {
	if n := c.noted.Load(); n != 0 {
		if c.used.Load() == 0 {
			c.used.Store(1)
		}
		return n
	}
	return c.look()
}

func (c *coarseClock) look() int64 {
	if !haveTicks {
		return time.Now().UnixNano()
	}
	t := ticks()
	if t-c.at.Load() < coarseTicks {
		if c.uses.Add(1) == fastUses && multiCPU && !simulated {
			c.start()
		}
		return c.ns.Load()
	}
	n := time.Now().UnixNano()
	c.ns.Store(n)
	c.at.Store(t)
	c.uses.Store(0)
	return n
}

// check looks whether the noted time is still that of a tick: the goroutine that notes it may have no processor, or the process may
// have been stopped. Every sender asks now and then.
func (c *coarseClock) check() {
	if c.noted.Load() == 0 || ticks()-c.at.Load() < coarseLate {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.noted.Load() != 0 {
		c.renote()
	}
}

// renote notes the time. The caller holds mu.
func (c *coarseClock) renote() {
	n := time.Now().UnixNano()
	c.noted.Store(n)
	c.ns.Store(n)
	c.at.Store(ticks())
}

// start begins to note the time, until nobody has used it for a while or the last handle is closed.
func (c *coarseClock) start() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stop != nil || c.handles == 0 {
		return
	}
	c.stop, c.stopped = make(chan struct{}), make(chan struct{})
	go c.run(c.stop, c.stopped)
}

func (c *coarseClock) run(stop, stopped chan struct{}) {
	defer close(stopped)
	tick := time.NewTicker(coarseTick)
	defer tick.Stop()
	for idle := 0; c.note(stop, idle); idle++ {
		select {
		case <-tick.C:
		case <-stop:
			return
		}
		if c.used.Load() != 0 {
			c.used.Store(0)
			idle = 0
		}
	}
}

// note notes the time, unless stop is not the channel of who notes any more. After some ticks that nobody used it ends.
func (c *coarseClock) note(stop chan struct{}, idle int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.stop != stop:
		return false
	case idle >= 5:
		c.noted.Store(0)
		c.stop = nil
		return false
	}
	c.renote()
	return true
}

// open and close count the handles of this process.
func (c *coarseClock) open() {
	c.mu.Lock()
	c.handles++
	c.mu.Unlock()
}

func (c *coarseClock) close() {
	c.mu.Lock()
	c.handles--
	var stopped chan struct{}
	if c.handles == 0 && c.stop != nil {
		close(c.stop)
		c.noted.Store(0)
		c.stop, stopped = nil, c.stopped
	}
	c.mu.Unlock()
	if stopped != nil {
		<-stopped
	}
}
