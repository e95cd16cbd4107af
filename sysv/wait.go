package sysv

import (
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Waiting. What the handles of one queue have in common is a shared. Those who wait there for the same thing stand in line in a
// group: one group for each choice of messages, one for all sends. A group is served by a thread of the pool that sleeps in the
// kernel (worker.go), or, where there are none to spare, it is parked and the sweeper asks for it from time to time.
//
// A receive, from the empty queue on:
//  1. it joins its group; the group has a thread, or gets one, or is parked
//  2. the thread looks, sleeping until a message is there (E2BIG) that it has not taken
//  3. the first in line is fired, and everybody who only looks; the group is busy and nobody looks for it
//  4. the one that was fired tries without waiting. If it finds nothing, another process was faster: it joins again, at the front
//  5. when it has tried the group is not busy any more and goes on with 2, as long as somebody is in line
//
// Who leaves a line empty while the group's thread is in the kernel interrupts it and does not return to its caller before it is out:
// until then it may still take a message of no bytes, which after the return would be in nobody's hands. What it has taken by then
// goes to the one who leaves, as if it had come a moment earlier.
//
// No message that comes between the try before 1 and the sleep in 2 is missed, because looking does not sleep over what is there.
//
// A send, from the full queue on: it joins the group of sends, whose thread sleeps in msgsnd with the shortest message of the line.
// It is that thread that sends it. A sender that goes away takes its message out of the line; if the thread is in the kernel with it,
// it is interrupted, and only what it then says (sent, or EINTR) decides what the call returns.
//
// All of it, the fields of the types below included, is guarded by pool.mu; nobody sleeps with it held, and the calls into the
// kernel that are made with it do not wait.
var pool struct {
	mu       sync.Mutex
	queues   map[int]*shared
	workers  []*worker
	idle     []*worker
	parked   []*group // in the order in which they get the next free thread
	sweeping bool
}

// shared is what the handles of one queue have in common.
type shared struct {
	id      int
	handles int
	groups  map[selector]*group
	zeros   []int64      // types of the messages of no bytes that looking has taken
	held    atomic.Int64 // their number, for those who do not want to lock for nothing
	senders atomic.Int64 // how many sends wait: receives that take something look at it
	shape   atomic.Pointer[shape]
	admit   sync.Mutex // of sends, where there is a shape; taken after pool.mu, if both
	inside  int        // guarded by admit: sends that sleep in the kernel and have their place already
}

// selector says what a group waits for.
type selector struct {
	typ    int64 // as for msgrcv
	except bool
	send   bool // room, not messages
}

func newSelector(typ int64, flags int) selector {
	return selector{typ: typ, except: flags&Except != 0 && typ > 0}
}

func (s selector) flags() int {
	if s.except {
		return Except
	}
	return 0
}

func (s selector) match(mtype int64) bool {
	switch {
	case s.typ == 0:
		return true
	case s.except:
		return mtype != s.typ
	case s.typ > 0:
		return mtype == s.typ
	}
	return s.typ == -1<<63 || mtype <= -s.typ
}

type group struct {
	s      *shared
	sel    selector
	line   []*waiter
	ending []*waiter // have left, and wait for the thread to leave the kernel
	busy   *waiter   // was told of a message and tries to take it
	worker *worker
	since  time.Time // when it got its worker
	parked bool
	count  bool // parked because the shape is full though the kernel's queue is not: no thread can sleep for that
}

// waiter is one call that waits, or one who wants to be told (wake).
type waiter struct {
	h     *Queue
	g     *group
	wake  func() // called once, without the lock
	m     []byte // what to send
	fired chan struct{}

	in      bool // in the line
	sending bool // its message is in the kernel with the group's worker
	gone    bool // while sending: its caller does not want it any more

	left    chan struct{} // not nil: it is or was in ending; closed when the thread is out of the kernel
	willing bool          // while in ending: it would still take a message of no bytes

	// What it gets. Its caller reads them after fired or withdraw.
	errno syscall.Errno
	taken bool // a message of no bytes, of this type
	mtype int64
}

func acquireShared(id int) *shared {
	pool.mu.Lock()
	defer pool.mu.Unlock()
	s := pool.queues[id]
	if s == nil {
		s = &shared{id: id, groups: map[selector]*group{}}
		if pool.queues == nil {
			pool.queues = map[int]*shared{}
		}
		pool.queues[id] = s
	}
	s.handles++
	return s
}

// releaseShared is called when a handle is closed. With the last one, messages that were taken by looking go back; they have
// lost their place, and if there is no room for them they are lost as if their receiver had died.
func releaseShared(s *shared) {
	pool.mu.Lock()
	defer pool.mu.Unlock()
	if s.handles--; s.handles > 0 {
		return
	}
	delete(pool.queues, s.id)
	for _, typ := range s.zeros {
		s.putBack(typ)
	}
	s.zeros = nil
	s.held.Store(0)
	if len(pool.queues) == 0 {
		for _, w := range pool.idle {
			w.poke()
		}
	}
}

func (s *shared) putBack(mtype int64) {
	var m [header]byte
	setMessageType(m[:], mtype)
	trySend(s.id, m[:])
}

// join puts w in line, at the front if it was first before. It reports false if the handle is closed.
func join(s *shared, sel selector, w *waiter, front bool) bool {
	pool.mu.Lock()
	defer pool.mu.Unlock()
	if w.h.closed.Load() {
		w.leave()
		return false
	}
	g := s.groups[sel]
	if g == nil {
		g = &group{s: s, sel: sel}
		s.groups[sel] = g
	}
	if g.busy == w {
		g.busy = nil
	}
	if w.left != nil { // it is back before the thread was out
		g.ending = slices.DeleteFunc(g.ending, func(x *waiter) bool { return x == w })
		w.left = nil
	}
	w.g, w.in = g, true
	if front {
		g.line = slices.Insert(g.line, 0, w)
	} else {
		g.line = append(g.line, w)
	}
	if sel.send {
		s.senders.Add(1)
		if k := g.worker; k != nil && k.sends != nil && len(w.m) < len(k.sends.m) {
			k.interrupt() // the shortest is the one to sleep with
		}
	} else if i := slices.IndexFunc(s.zeros, sel.match); i >= 0 { // held since the caller has looked
		if w.wake == nil {
			w.taken, w.mtype = true, s.zeros[i]
			s.unhold(i)
		}
		if f := w.fire(); f != nil {
			go f() // the caller may hold what it locks
		}
		return true
	}
	g.schedule()
	return true
}

// withdraw takes w out of line, for a caller whose time is over. If something was for it already, or comes before its thread is out
// of the kernel, it stays so; else its errno is ECANCELED.
func withdraw(w *waiter) {
	pool.mu.Lock()
	if w.sending {
		w.gone = true
		w.g.worker.interrupt()
		pool.mu.Unlock()
		<-w.fired
		return
	}
	if w.in {
		w.errno = unix.ECANCELED
		w.leave()
		w.willing = w.wake == nil
	}
	left := w.left
	pool.mu.Unlock()
	await(left)
}

// tried is called when a receive that was fired has done without another join. It is willing if it has found nothing.
func tried(w *waiter, willing bool) {
	pool.mu.Lock()
	w.leave()
	w.willing = willing
	left := w.left
	pool.mu.Unlock()
	await(left)
}

// await waits for a thread that was interrupted, some microseconds.
func await(left chan struct{}) {
	if left != nil {
		<-left
	}
}

// leave takes w out of its group, wherever it stands there.
func (w *waiter) leave() {
	g := w.g
	if g == nil {
		return
	}
	if w.in {
		w.in = false
		g.line = slices.DeleteFunc(g.line, func(x *waiter) bool { return x == w })
		if g.sel.send {
			g.s.senders.Add(-1)
		}
		if k := g.worker; len(g.line) == 0 && k != nil {
			k.interrupt()
			if k.asleep && !g.sel.send {
				w.left, w.willing = make(chan struct{}), false
				g.ending = append(g.ending, w)
			}
		}
	}
	if g.busy == w {
		g.busy = nil
	}
	w.g = nil
	g.schedule()
}

// fire ends the wait of w with what its fields say. The wake of one who only looks is returned, to be called without the lock.
func (w *waiter) fire() (wake func()) {
	w.leave()
	if w.wake != nil {
		return w.wake
	}
	w.fired <- struct{}{}
	return nil
}

// schedule sees to it that a group with somebody in line is served, and that one without takes no place.
func (g *group) schedule() {
	if len(g.line) == 0 || g.busy != nil {
		g.unpark()
		if len(g.line) == 0 && g.busy == nil && g.worker == nil && g.s.groups[g.sel] == g {
			delete(g.s.groups, g.sel)
		}
		return
	}
	if g.worker != nil || g.parked {
		return
	}
	if n := len(pool.idle); n > 0 {
		w := pool.idle[n-1] // the one that worked last: it is warm, and the others may end
		pool.idle = pool.idle[:n-1]
		w.serves(g)
		w.poke()
		return
	}
	if len(pool.workers) < MaxThreads {
		w := &worker{kick: make(chan struct{}, 1)}
		pool.workers = append(pool.workers, w)
		w.serves(g)
		go w.run()
		return
	}
	g.park(true)
	oldest := pool.workers[0]
	for _, w := range pool.workers[1:] {
		if w.g != nil && (oldest.g == nil || w.g.since.Before(oldest.g.since)) {
			oldest = w
		}
	}
	if oldest.g != nil && !oldest.evict && time.Since(oldest.g.since) > patience {
		oldest.evict = true
		oldest.interrupt()
	}
}

// patience is how long a group keeps its thread before one that comes later may have it.
const patience = 10 * time.Millisecond

func (g *group) park(front bool) {
	g.parked = true
	if front {
		pool.parked = slices.Insert(pool.parked, 0, g)
	} else {
		pool.parked = append(pool.parked, g)
	}
	if !pool.sweeping {
		pool.sweeping = true
		go sweep()
	}
}

func (g *group) unpark() {
	if g.parked {
		g.parked, g.count = false, false
		pool.parked = slices.DeleteFunc(pool.parked, func(x *group) bool { return x == g })
	}
}

// heard deals with what looking has told. It returns whom to wake when the lock is given back.
func (g *group) heard(mtype int64, e syscall.Errno) (wakes []func()) {
	switch e {
	case 0:
		return g.s.give(g, mtype)
	case unix.E2BIG:
		return g.announce()
	case unix.EINTR, unix.ENOMSG:
		return nil
	}
	return g.fail(e)
}

// announce fires all who only look and the first of the others.
func (g *group) announce() (wakes []func()) {
	var first *waiter
	for _, w := range slices.Clone(g.line) {
		if w.wake != nil {
			wakes = append(wakes, w.fire())
		} else if first == nil {
			first = w
		}
	}
	if first != nil {
		first.fire()
		first.g, g.busy = g, first
		g.schedule() // it may be parked
	}
	return wakes
}

// fail fires all with an errno.
func (g *group) fail(e syscall.Errno) (wakes []func()) {
	for _, w := range slices.Clone(g.line) {
		if w.sending {
			continue // its worker tells
		}
		w.errno = e
		if f := w.fire(); f != nil {
			wakes = append(wakes, f)
		}
	}
	return wakes
}

// out lets those go who waited for the thread to leave the kernel.
func (g *group) out() {
	for _, w := range g.ending {
		close(w.left)
	}
	g.ending = nil
}

// give is for a message of no bytes that looking took: it is the first of g that wants it, or the first of another group, or of one
// who is just leaving g, or nobody's, and then it is held until somebody receives.
func (s *shared) give(g *group, mtype int64) (wakes []func()) {
	for _, g := range append([]*group{g}, s.lookers(mtype)...) {
		for _, w := range g.line {
			if w.wake == nil {
				w.taken, w.mtype = true, mtype
				w.fire()
				return nil
			}
		}
	}
	for _, w := range g.ending {
		if w.willing {
			w.taken, w.mtype, w.willing = true, mtype, false
			return nil
		}
	}
	return s.hold(mtype)
}

func (s *shared) hold(mtype int64) (wakes []func()) {
	if s.handles == 0 { // the thread was on its way back when the last handle was closed
		s.putBack(mtype)
		return nil
	}
	s.zeros = append(s.zeros, mtype)
	s.held.Add(1)
	for _, g := range s.lookers(mtype) {
		wakes = append(wakes, g.announce()...)
	}
	return wakes
}

// lookers are the groups that wait for messages of this type.
func (s *shared) lookers(mtype int64) (gs []*group) {
	for sel, g := range s.groups {
		if !sel.send && sel.match(mtype) {
			gs = append(gs, g)
		}
	}
	return gs
}

func takeHeld(s *shared, sel selector) (mtype int64, ok bool) {
	pool.mu.Lock()
	defer pool.mu.Unlock()
	i := slices.IndexFunc(s.zeros, sel.match)
	if i < 0 {
		return 0, false
	}
	mtype = s.zeros[i]
	s.unhold(i)
	return mtype, true
}

func (s *shared) unhold(i int) {
	s.zeros = slices.Delete(s.zeros, i, i+1)
	s.held.Add(-1)
}

// heldOnes returns the types of the held messages.
func heldOnes(s *shared, sel selector) (types []int64) {
	if s.held.Load() == 0 {
		return nil
	}
	pool.mu.Lock()
	defer pool.mu.Unlock()
	for _, t := range s.zeros {
		if sel.match(t) {
			types = append(types, t)
		}
	}
	return types
}

// flush sends what fits of those in line. A few that do not fit are enough: the shortest is tried by the thread or the next sweep.
func (g *group) flush() {
	misses := 0
	for _, w := range slices.Clone(g.line) {
		if w.sending {
			continue
		}
		e := g.s.trySend(w.m)
		if e == unix.EAGAIN {
			if misses++; misses == 16 {
				break
			}
			continue
		}
		w.errno = e
		w.fire()
	}
}

// shortest returns the waiter to sleep with, nil if the line is empty.
func (g *group) shortest() (w *waiter) {
	for _, x := range g.line {
		if w == nil || len(x.m) < len(w.m) {
			w = x
		}
	}
	return w
}

// kickSenders is called when there may be room: where no thread sleeps for it, the one who made it looks.
func kickSenders(s *shared) {
	pool.mu.Lock()
	defer pool.mu.Unlock()
	if g := s.groups[selector{send: true}]; g != nil && g.parked {
		g.flush()
	}
}

// wakeRemoved tells those who are parked that a queue was removed. Threads hear it from the kernel.
func wakeRemoved(id int) {
	pool.mu.Lock()
	var wakes []func()
	if s := pool.queues[id]; s != nil {
		for _, g := range s.groups {
			if g.parked {
				wakes = append(wakes, g.fail(unix.EIDRM)...)
			}
		}
	}
	pool.mu.Unlock()
	call(wakes)
}

// wakeLookers wakes those who look by way of a handle that is being closed.
func wakeLookers(q *Queue) {
	pool.mu.Lock()
	var wakes []func()
	var lefts []chan struct{}
	for _, g := range q.s.groups {
		for _, w := range slices.Clone(g.line) {
			if w.h == q && w.wake != nil {
				wakes = append(wakes, w.fire())
				lefts = append(lefts, w.left)
			}
		}
	}
	pool.mu.Unlock()
	call(wakes)
	for _, left := range lefts {
		await(left)
	}
}

func call(fs []func()) {
	for _, f := range fs {
		f()
	}
}
