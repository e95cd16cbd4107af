package shm

import (
	"runtime/debug"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// The hub sleeps for this process's goroutines: a shard is one goroutine that waits on up to 127 words at once by futex_waitv(2), so
// ten thousand blocked goroutines hold a handful of threads. Shards come and go with those who wait.
//
// A waiter is one-shot: the shard announces it on its word, looks once more (ready), and when the word changes or a slice is over
// looks again; if there is something, it calls fire and forgets the waiter.
type waiter struct {
	q     *Queue
	word  *uint32
	bit   uint32
	v     uint32 // the word as announced
	ready func(slice bool) bool
	fire  func() // called without hub.mu
	shard *shard
	gone  bool
}

type shard struct {
	waiters []*waiter
	control uint32 // its own futex word: changed to interrupt the sleep
	running bool
}

var hub struct {
	mu     sync.Mutex
	shards []*shard
	noMany bool // futex_waitv is not there
}

const shardSize = 127 // 128 words a call, one of them the shard's own

// hubWait registers a waiter. fire may be called at once, on another goroutine.
func hubWait(q *Queue, word *uint32, bit uint32, ready func(bool) bool, fire func()) *waiter {
	w := &waiter{q: q, word: word, bit: bit, ready: ready, fire: fire}
	hub.mu.Lock()
	defer hub.mu.Unlock()
	size := shardSize
	if hub.noMany {
		size = 1
	}
	var s *shard
	for _, x := range hub.shards {
		if len(x.waiters) < size {
			s = x
			break
		}
	}
	if s == nil {
		s = &shard{}
		hub.shards = append(hub.shards, s)
	}
	w.shard = s
	s.waiters = append(s.waiters, w)
	if !s.running {
		s.running = true
		go s.run()
	} else {
		s.poke()
	}
	return w
}

// stop takes the waiter back. fire may just be under way.
func (w *waiter) stop() {
	hub.mu.Lock()
	defer hub.mu.Unlock()
	if !w.gone {
		w.remove()
		w.shard.poke() // it still sleeps on the word, and would take wakes that are meant for others
	}
}

func (w *waiter) remove() {
	if w.gone {
		return
	}
	w.gone = true
	s := w.shard
	for i, x := range s.waiters {
		if x == w {
			last := len(s.waiters) - 1
			s.waiters[i] = s.waiters[last]
			s.waiters[last] = nil
			s.waiters = s.waiters[:last]
			break
		}
	}
	if len(s.waiters) == 0 {
		s.poke()
	}
}

// hubForget removes all waiters of a handle that closes. After it the hub does not touch the handle's memory.
func hubForget(q *Queue) {
	hub.mu.Lock()
	defer hub.mu.Unlock()
	for _, s := range hub.shards {
		for i := len(s.waiters) - 1; i >= 0; i-- {
			if i < len(s.waiters) && s.waiters[i].q == q {
				s.waiters[i].remove()
			}
		}
	}
}

// poke makes the shard look at its list again. hub.mu is held.
func (s *shard) poke() {
	s.control++
	futexWake(&s.control, 1)
}

func (s *shard) run() {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	var ws []waitv
	var fired []*waiter
	fallback := false
	slice := false
	for {
		hub.mu.Lock()
		for i := len(s.waiters) - 1; i >= 0; i-- {
			if w := s.waiters[i]; w.poll(slice) {
				w.remove()
				fired = append(fired, w)
			}
		}
		if len(fired) > 0 {
			hub.mu.Unlock()
			for i, w := range fired {
				w.fire()
				fired[i] = nil
			}
			fired = fired[:0]
			continue
		}
		if len(s.waiters) == 0 {
			s.running = false
			for i, x := range hub.shards {
				if x == s {
					hub.shards = append(hub.shards[:i], hub.shards[i+1:]...)
					break
				}
			}
			hub.mu.Unlock()
			return
		}
		ws = append(ws[:0], waitv{val: uint64(s.control), addr: uint64(uintptr(unsafe.Pointer(&s.control))), flags: futex32})
		for _, w := range s.waiters {
			ws = append(ws, waitv{val: uint64(w.v), addr: uint64(uintptr(unsafe.Pointer(w.word))), flags: futex32})
		}
		first, v := s.waiters[0].word, s.waiters[0].v
		fallback = hub.noMany
		hub.mu.Unlock()

		var e syscall.Errno
		if fallback {
			// One word a shard, so that a sleep can be on the word itself; it is short because nothing can interrupt it.
			e = futexWait(first, v, hubSlice/4)
		} else if e = futexWaitMany(ws, hubSlice); e == syscall.ENOSYS || e == syscall.EPERM {
			hub.mu.Lock()
			hub.noMany = true
			s.split()
			hub.mu.Unlock()
			continue
		}
		slice = e == syscall.ETIMEDOUT
		if e == syscall.EFAULT { // a handle closed between our list and the call
			time.Sleep(time.Millisecond)
		}
	}
}

// split gives every waiter but the first a shard of its own. hub.mu is held.
func (s *shard) split() {
	for _, w := range s.waiters[1:] {
		n := &shard{waiters: []*waiter{w}, running: true}
		w.shard = n
		hub.shards = append(hub.shards, n)
		go n.run()
	}
	s.waiters = s.waiters[:1]
}

// poll announces the waiter if its word moved on, and reports whether it should fire. A fault counts as a reason: the goroutine
// will meet it too.
func (w *waiter) poll(slice bool) (fire bool) {
	defer func() {
		if recover() != nil {
			fire = true
		}
	}()
	if now := load32(w.word); now != w.v || now&w.bit == 0 {
		w.v = announce(w.word, w.bit)
	}
	return w.ready(slice)
}
