package shm

import (
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// The hub sleeps for this process's goroutines. A shard is one goroutine that waits on up to 127 words at once by futex_waitv(2), so
// ten thousand blocked goroutines hold a handful of threads. All who wait on one word stand in its group. Shards come and go with
// those who wait.
//
// A waiter is one-shot: the shard announces it on its word, looks once more (ready), and when the word changes looks again; if there
// is something, it calls fire and forgets the waiter. One more goroutine, the ticker, does so for all at the end of every slice: the
// shards' sleep on their many words costs too much to be broken ten times a second.
type waiter struct {
	bit   uint32
	ready func(slice bool) bool
	fire  func() // called without hub.mu
	group *group
	gone  bool
}

type group struct {
	q       *Queue
	word    *uint32
	v       uint32 // the word as announced
	waiters []*waiter
	shard   *shard
	asked   bool   // every waiter was asked since it came, …
	head    uint64 // … when head was this
}

type shard struct {
	groups  []*group
	control uint32 // its own futex word: changed to interrupt the sleep
}

var hub struct {
	mu     sync.Mutex
	shards []*shard
	groups map[*uint32]*group
	noMany bool          // futex_waitv is not there: every word needs a shard of its own
	done   chan struct{} // of the ticker, nil if none runs: closed with the last group
}

const (
	shardSize  = 127 // 128 words a call, one of them the shard's own
	shardSleep = 10 * time.Second
)

// hubWait registers a waiter. fire may be called at once, on another goroutine.
func hubWait(q *Queue, word *uint32, bit uint32, ready func(bool) bool, fire func()) *waiter {
	w := &waiter{bit: bit, ready: ready, fire: fire}
	hub.mu.Lock()
	defer hub.mu.Unlock()
	g := hub.groups[word]
	if g == nil {
		g = &group{q: q, word: word}
		if hub.groups == nil {
			hub.groups = map[*uint32]*group{}
		}
		hub.groups[word] = g
		g.join()
		if hub.done == nil {
			hub.done = make(chan struct{})
			go tick(hub.done)
		}
	} else {
		g.shard.poke()
	}
	w.group = g
	g.asked = false
	g.waiters = append(g.waiters, w)
	return w
}

// join finds a shard for the group, or starts one. hub.mu is held.
func (g *group) join() {
	size := shardSize
	if hub.noMany {
		size = 1
	}
	for _, s := range hub.shards {
		if len(s.groups) < size {
			g.shard = s
			s.groups = append(s.groups, g)
			s.poke()
			return
		}
	}
	g.shard = &shard{groups: []*group{g}}
	hub.shards = append(hub.shards, g.shard)
	go g.shard.run()
}

// stop takes the waiter back. fire may just be under way.
func (w *waiter) stop() {
	hub.mu.Lock()
	defer hub.mu.Unlock()
	if !w.gone {
		s := w.group.shard
		w.remove()
		s.poke() // it still sleeps on the word, and would take wakes that are meant for others
	}
}

// remove takes the waiter out, and its group if it was the last. hub.mu is held.
func (w *waiter) remove() {
	w.gone = true
	g := w.group
	g.waiters = without(g.waiters, w)
	if len(g.waiters) == 0 {
		g.leave()
	}
}

func (g *group) leave() {
	delete(hub.groups, g.word)
	g.shard.groups = without(g.shard.groups, g)
	if len(g.shard.groups) == 0 {
		g.shard.poke()
	}
	if len(hub.groups) == 0 {
		close(hub.done)
		hub.done = nil
	}
}

// tick looks after all groups once a slice, until done.
func tick(done <-chan struct{}) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	t := time.NewTicker(hubSlice)
	defer t.Stop()
	for {
		select {
		case <-done:
			return
		case <-t.C:
		}
		var fired []*waiter
		hub.mu.Lock()
		for _, g := range hub.groups {
			if !g.idle() {
				fired = g.poll(true, fired)
			}
		}
		for _, w := range fired {
			w.remove()
		}
		hub.mu.Unlock()
		for _, w := range fired {
			w.fire()
		}
	}
}

// without removes x from s; the order does not matter.
func without[T comparable](s []T, x T) []T {
	i := slices.Index(s, x)
	var zero T
	last := len(s) - 1
	s[i], s[last] = s[last], zero
	return s[:last]
}

// hubForget removes all waiters of a handle that closes. After it the hub does not touch the handle's memory.
func hubForget(q *Queue) {
	hub.mu.Lock()
	defer hub.mu.Unlock()
	for _, word := range []*uint32{q.recvWait, q.sendWait, q.edge} {
		if g := hub.groups[word]; g != nil {
			for _, w := range g.waiters {
				w.gone = true
			}
			g.waiters = nil
			g.leave()
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
	for {
		hub.mu.Lock()
		for i := len(s.groups) - 1; i >= 0; i-- {
			fired = s.groups[i].poll(hub.noMany, fired)
		}
		for _, w := range fired {
			w.remove()
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
		if len(s.groups) == 0 {
			hub.shards = without(hub.shards, s)
			hub.mu.Unlock()
			return
		}
		ws = append(ws[:0], waitv{val: uint64(s.control), addr: uint64(uintptr(unsafe.Pointer(&s.control))), flags: futex32})
		for _, g := range s.groups {
			ws = append(ws, waitv{val: uint64(g.v), addr: uint64(uintptr(unsafe.Pointer(g.word))), flags: futex32})
		}
		first, alone := s.groups[0], hub.noMany
		word, v := first.word, first.v
		hub.mu.Unlock()

		var e syscall.Errno
		if alone {
			// The sleep is on the word itself; it is short because nothing can interrupt it.
			e = futexWait(word, v, hubSlice/4)
		} else {
			if e = futexWaitMany(ws, shardSleep); e == syscall.ENOSYS || e == syscall.EPERM {
				hub.mu.Lock()
				hub.noMany = true
				s.split()
				hub.mu.Unlock()
				continue
			}
		}
		if e == syscall.EFAULT { // a handle closed between our list and the call
			time.Sleep(time.Millisecond)
		}
	}
}

// split gives every group but the first a shard of its own. hub.mu is held.
func (s *shard) split() {
	if len(s.groups) < 2 {
		return
	}
	for _, g := range s.groups[1:] {
		g.shard = &shard{groups: []*group{g}}
		hub.shards = append(hub.shards, g.shard)
		go g.shard.run()
	}
	s.groups = s.groups[:1]
}

// poll announces the group if its word moved on, and appends those of its waiters that should fire. A fault counts as a reason: the
// goroutine will meet it too.
func (g *group) poll(slice bool, fired []*waiter) (out []*waiter) {
	n := len(fired)
	defer func() {
		if recover() != nil {
			out = append(fired[:n], g.waiters...)
		}
	}()
	head := load(g.q.head)
	var bits uint32
	for _, w := range g.waiters {
		bits |= w.bit
	}
	if now := load32(g.word); now != g.v || now&bits != bits {
		g.v = announce(g.word, bits)
	}
	for _, w := range g.waiters {
		if w.ready(slice) {
			fired = append(fired, w)
		}
	}
	g.asked, g.head = true, head
	return fired
}

// idle reports that nothing has happened that receivers wait for: then thousands of them need not be asked one by one.
func (g *group) idle() (yes bool) {
	defer func() {
		if recover() != nil {
			yes = false
		}
	}()
	return g.asked && g.word == g.q.recvWait && load32(g.word) == g.v && load(g.q.head) == g.head && load(g.q.removed) == 0 && load(g.q.timed)&someLeases == 0
}
