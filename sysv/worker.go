package sysv

import (
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// MaxThreads is how many threads at most this package keeps in the kernel to wait, in the whole process.
const MaxThreads = 16

// idleTime is how long a thread stays for the next group to come.
const idleTime = 200 * time.Millisecond

// worker is a goroutine that sleeps in the kernel, and a thread with it, for one group at a time.
type worker struct {
	tid   int // of the thread, while asleep
	g     *group
	kick  chan struct{} // g was set, or the last queue is closed
	sends *waiter       // whose message it sends
	evict bool          // another group shall have the thread

	// asleep is set, under the lock, before the thread goes into the kernel, and cleared after. Only then it is interrupted. The
	// signal may come before the system call has begun and is lost then, so it is sent again until the thread is back: naps tells
	// which of its sleeps was meant.
	asleep      bool
	interrupted bool
	naps        uint64
}

func (w *worker) poke() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

func (w *worker) serves(g *group) {
	g.unpark()
	w.g, g.worker, g.since = g, w, time.Now()
}

func (w *worker) run() {
	pool.mu.Lock()
	defer pool.mu.Unlock()
	for w.g != nil || w.next() {
		g := w.g
		switch {
		case len(g.line) == 0 || g.busy != nil || w.evict:
			w.release()
		case g.sel.send:
			w.send(g)
		default:
			w.look(g)
		}
	}
	pool.workers = slices.DeleteFunc(pool.workers, func(x *worker) bool { return x == w })
}

// release gives the group back: it waits for a thread again if somebody is in line.
func (w *worker) release() {
	g := w.g
	w.g, g.worker = nil, nil
	evicted := w.evict
	w.evict = false
	if evicted && len(g.line) > 0 && g.busy == nil {
		g.park(false)
		return
	}
	g.schedule()
}

// next finds a group to serve, and reports false when the thread shall end.
func (w *worker) next() bool {
	for _, g := range pool.parked {
		if !g.count {
			w.serves(g)
			return true
		}
	}
	if len(pool.queues) == 0 {
		return false
	}
	pool.idle = append(pool.idle, w)
	pool.mu.Unlock()
	t := time.NewTimer(idleTime)
	select {
	case <-w.kick:
	case <-t.C:
	}
	t.Stop()
	pool.mu.Lock()
	pool.idle = slices.DeleteFunc(pool.idle, func(x *worker) bool { return x == w })
	return w.g != nil
}

// look sleeps until a message is there.
func (w *worker) look(g *group) {
	id, sel := g.s.id, g.sel
	w.enter()
	mtype, e := look(id, sel, true)
	w.left()
	wakes := g.heard(mtype, e)
	g.out()
	if len(wakes) > 0 {
		pool.mu.Unlock()
		call(wakes)
		pool.mu.Lock()
	}
}

// send sleeps until the shortest message is sent.
func (w *worker) send(g *group) {
	x := g.shortest()
	x.sending, w.sends = true, x
	w.enter()
	e := g.s.send(x.m)
	w.left()
	x.sending, w.sends = false, nil
	switch e {
	case unix.EINTR, unix.EAGAIN: // not sent
		if x.gone {
			x.errno = unix.ECANCELED
			x.fire()
		}
		if e == unix.EAGAIN && len(g.line) > 0 {
			w.g, g.worker = nil, nil
			w.evict = false
			g.count = true
			g.park(false)
		}
	case unix.EIDRM:
		g.fail(e)
	default: // sent, or an error that concerns this message alone
		x.errno = e
		x.fire()
		g.flush()
	}
}

// enter ties the goroutine to its thread, for which the signal is. (Tied all the time it would be woken at a higher price.)
func (w *worker) enter() {
	runtime.LockOSThread()
	w.tid = unix.Gettid()
	w.asleep = true
	pool.mu.Unlock()
}

func (w *worker) left() {
	pool.mu.Lock()
	runtime.UnlockOSThread()
	w.asleep, w.interrupted = false, false
	w.naps++
}

// interrupt gets the thread out of the kernel. It returns at once; the thread comes within microseconds.
func (w *worker) interrupt() {
	if w.asleep && !w.interrupted {
		w.interrupted = true
		w.signal(w.naps, 0)
	}
}

// signal sends the signal and comes back to see whether it has done its work. SIGURG is what the runtime preempts with: its handler
// does nothing else, and nobody who gets it by os/signal may take it as a message. Only a program that ignores SIGURG altogether is
// not reached by it; so SIGWINCH, whose default is to be ignored too, takes turns with it after a while.
func (w *worker) signal(nap uint64, tries int) {
	if !w.asleep || w.naps != nap {
		return
	}
	sig := syscall.SIGURG
	if tries >= 8 && tries%2 == 1 {
		sig = syscall.SIGWINCH
	}
	_ = unix.Tgkill(unix.Getpid(), w.tid, sig) // it is that thread: to leave it the goroutine needs the lock
	time.AfterFunc(50*time.Microsecond<<min(tries, 5), func() {
		pool.mu.Lock()
		defer pool.mu.Unlock()
		w.signal(nap, tries+1)
	})
}

// How often the sweeper asks: every shortSweep after something happened, then ever more seldom.
const (
	shortSweep = time.Millisecond
	longSweep  = 5 * time.Millisecond
)

// sweep asks for the parked groups, as long as there are some.
func sweep() {
	pause := shortSweep
	for {
		time.Sleep(pause)
		pause = min(pause+pause/2, longSweep)
		var wakes []func()
		pool.mu.Lock()
		for _, g := range slices.Clone(pool.parked) {
			if !g.parked {
				continue // somebody before it in this sweep took it along
			}
			before := len(g.line)
			if g.sel.send {
				g.flush()
				if x := g.shortest(); x != nil && g.count && !g.s.countFull(x.m) {
					g.unpark() // now the kernel's queue is full as well, and a thread can sleep for that
					g.schedule()
				}
			} else {
				mtype, e := look(g.s.id, g.sel, false)
				wakes = append(wakes, g.heard(mtype, e)...)
			}
			if len(g.line) < before {
				pause = shortSweep
			}
		}
		over := len(pool.parked) == 0
		if over {
			pool.sweeping = false
		}
		pool.mu.Unlock()
		call(wakes)
		if over {
			return
		}
	}
}
