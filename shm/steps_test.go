//go:build kumquat_step

package shm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"testing"

	"github.com/kumquat-mq/kumquat/driver"
	"golang.org/x/sys/unix"
)

// These tests run clients step by step. A client is a handle and a goroutine that does operations; before every access to a shared
// word it stops and hands control back. So a test can let it die there, stop there while others go on, or interleave clients in any
// order, and all of it is repeatable: only one goroutine runs at a time.

// A world is one queue and its clients, with a logical clock: one tick a step.
type world struct {
	t       *testing.T
	d       Driver
	name    string
	o       driver.Options
	tick    int
	clients []*client
	running *client
	log     []*event
	what    string // how to repeat it
	seen    *Queue // of a bystander, for looking
}

// An event is one operation of a client.
type event struct {
	c           *client
	kind        string
	began, done int // ticks; done 0: it never returned
	err         error
	prio        []int // what it sent
	ids         []uint64
	got         []driver.Message
	max         int // of a batch receive
}

type client struct {
	w      *world
	n      int
	q      *Queue
	resume chan bool // false: die here
	yield  chan bool // true: at a step; false: all done
	dead   bool
	ended  bool
	steps  int // passed
	ops    []func(*client)
}

const (
	opsSend  = "send"
	opsTake  = "receive"
	opsOther = "other"
)

func newWorld(t *testing.T, o driver.Options, what string) *world {
	w := &world{t: t, d: stepDriver, o: o, what: what}
	worlds++
	w.name = fmt.Sprintf("/w%d", worlds)
	o.Create = true
	q, err := w.d.OpenQueue(context.Background(), w.name, &o)
	if err != nil {
		t.Fatal(err)
	}
	w.seen = q
	simulated = true
	stepHook = func(string) {
		if c := w.running; c != nil {
			c.stop()
		}
	}
	// A held lock: the others get to run first; when nobody but the holder could, or the scheduler wants it, it is stuck.
	stuckHook = func(q *Queue, l uint64) bool {
		if c := w.running; c != nil && c.q == q {
			return w.stuck(c, l)
		}
		return true
	}
	return w
}

var (
	worlds     int
	stepDriver Driver
	eager      = func(*world, *client) bool { return true }
	stuckRule  = eager
)

func (w *world) stuck(c *client, l uint64) bool {
	c.stop()
	return stuckRule(w, c)
}

// stop is where a client waits for its next step.
func (c *client) stop() {
	if c.dead {
		runtime.Goexit()
	}
	c.yield <- true
	if !<-c.resume {
		c.dead = true
		runtime.Goexit()
	}
	c.steps++
}

// add makes a client that does ops, one after the other. It stands before its first step.
func (w *world) add(ops ...func(*client)) *client {
	q, err := w.d.OpenQueue(context.Background(), w.name, nil)
	if err != nil {
		w.t.Fatalf("%s: open: %v", w.what, err)
	}
	c := &client{w: w, n: len(w.clients), q: q, resume: make(chan bool), yield: make(chan bool), ops: ops}
	w.clients = append(w.clients, c)
	go func() {
		defer func() {
			c.ended = true
			c.yield <- false
		}()
		if !<-c.resume {
			c.dead = true
			return
		}
		for _, op := range c.ops {
			op(c)
		}
	}()
	return c
}

// run lets c do one step, or die before it. It reports whether c goes on.
func (w *world) run(c *client, live bool) bool {
	if c.ended {
		return false
	}
	w.tick++
	w.running = c
	c.resume <- live
	more := <-c.yield
	w.running = nil
	if c.dead && c.q != nil {
		// Its descriptor goes as at the death of a process, and with it the lock that says it lives. The mapping stays: as for a
		// process that was stopped in between, nobody touches it any more.
		// (Here, not there, the mapping would keep the lock.)
		_ = byteLock(c.q.f, lockBase+int64(c.q.me), unix.F_UNLCK)
		_ = c.q.f.Close()
		w.unlockStrangers()
	}
	return more
}

// unlockStrangers drops the locks of handles that a dead client was just opening: nobody knows them but their descriptors.
func (w *world) unlockStrangers() {
	known := map[int]bool{int(w.seen.f.Fd()): true}
	for _, c := range w.clients {
		if !c.dead && c.q.state.Load() == stateOpen {
			known[int(c.q.f.Fd())] = true
		}
	}
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, e := range fds {
		fd, _ := strconv.Atoi(e.Name())
		if p, _ := os.Readlink("/proc/self/fd/" + e.Name()); p == w.seen.path && !known[fd] {
			lk := unix.Flock_t{Type: unix.F_UNLCK, Start: lockBase, Len: maxParts}
			_ = unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lk)
		}
	}
}

// finish lets c run to its end.
func (w *world) finish(c *client) {
	for n := 0; w.run(c, true); n++ {
		if n > 200_000 {
			w.fail("client %d does not come to an end, at %q", c.n, stepPlace)
		}
	}
}

func (w *world) fail(format string, a ...any) {
	w.t.Helper()
	for _, e := range w.log {
		w.t.Logf("client %d %s began %d done %d err %v sent %v %v got %s", e.c.n, e.kind, e.began, e.done, e.err, e.ids, e.prio, short(e.got))
	}
	w.t.Fatalf("%s: %s", w.what, fmt.Sprintf(format, a...))
}

func short(ms []driver.Message) (s []string) {
	for _, m := range ms {
		s = append(s, fmt.Sprintf("%s/p%d seq %d taken %d", m.ID, m.Priority, m.Seq, m.Taken))
	}
	return
}

// begin and end put an operation into the log.
func (c *client) begin(kind string) *event {
	e := &event{c: c, kind: kind, began: c.w.tick}
	c.w.log = append(c.w.log, e)
	return e
}

func (e *event) end(err error) {
	e.err = err
	e.done = e.c.w.tick
}

var nextID uint64

func stepMessage(prio, size int) (driver.Message, uint64) {
	nextID++
	return driver.Message{ID: strconv.FormatUint(nextID, 10), Body: make([]byte, size), Priority: prio, Type: 1 + int64(prio%2)}, nextID
}

func opSendOne(prio, size int) func(*client) {
	return func(c *client) {
		m, id := stepMessage(prio, size)
		e := c.begin(opsSend)
		e.ids, e.prio = []uint64{id}, []int{prio}
		e.end(c.q.Send(context.Background(), m, true))
	}
}

func opSendMany(prios ...int) func(*client) {
	return func(c *client) {
		e := c.begin(opsSend)
		var ms []driver.Message
		for _, p := range prios {
			m, id := stepMessage(p, 8)
			ms, e.ids, e.prio = append(ms, m), append(e.ids, id), append(e.prio, p)
		}
		e.end(c.q.SendBatch(context.Background(), ms, true))
	}
}

func opReserveCommit(prio int, abort bool) func(*client) {
	return func(c *client) {
		e := c.begin(opsSend)
		m, id := stepMessage(prio, 0)
		r, err := c.q.Reserve(context.Background(), 16)
		if err != nil || abort {
			if err == nil {
				err = r.Abort()
			}
			if err == nil {
				err = errAborted
			}
			e.kind = opsOther
			e.end(err)
			return
		}
		e.ids, e.prio = []uint64{id}, []int{prio}
		if err = r.Commit(context.Background(), m, true); err != nil {
			_ = r.Abort()
		}
		e.end(err)
	}
}

var errAborted = errors.New("aborted")

func opTakeOne(c *client) {
	e := c.begin(opsTake)
	e.max = 1
	m, err := c.q.Receive(context.Background(), driver.Filter{}, true)
	if err == nil {
		e.got = []driver.Message{m}
	}
	e.end(err)
}

func opTakeMany(n int) func(*client) {
	return func(c *client) {
		e := c.begin(opsTake)
		e.max = n
		var err error
		e.got, err = c.q.ReceiveBatch(context.Background(), nil, driver.Filter{}, n, true)
		e.end(err)
	}
}

// opTakeOdd receives by filter; it is judged by less (order among all does not hold for it).
func opTakeOdd(c *client) {
	e := c.begin("filtered")
	e.max = 1
	m, err := c.q.Receive(context.Background(), driver.Filter{Type: 2}, true)
	if err == nil {
		e.got = []driver.Message{m}
	}
	e.end(err)
}

func opBorrowOne(c *client) {
	e := c.begin(opsTake)
	e.max = 1
	l, err := c.q.Borrow(context.Background(), driver.Filter{}, true)
	if err == nil {
		e.got = []driver.Message{l.Message()}
		e.got[0].Body = nil
		err = l.Release()
	}
	e.end(err)
}

func opPurgeAll(c *client) {
	e := c.begin("purge")
	_, err := c.q.Purge(context.Background(), driver.Filter{})
	e.end(err)
}

func opCloseIt(c *client) {
	e := c.begin(opsOther)
	e.end(c.q.Close())
}

func opOpenAnother(c *client) {
	e := c.begin(opsOther)
	q, err := c.w.d.OpenQueue(context.Background(), c.w.name, nil)
	if err == nil {
		err = q.Close()
	}
	e.end(err)
}

// settle ends a world: who is stopped goes on, the queue is drained by a new client, and everything is accounted for.
func (w *world) settle() {
	w.t.Helper()
	for _, c := range w.clients {
		w.finish(c)
	}
	for _, c := range w.clients {
		if !c.dead && c.q.state.Load() == stateOpen {
			if err := c.q.Close(); err != nil {
				w.fail("close: %v", err)
			}
		}
	}
	rest := w.add(func(c *client) {
		for n := 0; ; n++ {
			opTakeOne(c)
			if e := w.log[len(w.log)-1]; e.err != nil || n > 10_000 {
				return
			}
		}
	})
	w.finish(rest)
	w.judge()
	w.closeAll()
}

func (w *world) closeAll() {
	w.running, simulated = nil, false
	stepHook = nil
	rep, err := w.seen.Check(context.Background())
	if err != nil {
		w.fail("check: %v", err)
	}
	for _, p := range rep.Problems {
		if p.Broken {
			w.fail("check: %s: %s", p.Where, p.Text)
		}
	}
	// Registering again on the entries of the dead takes back what they held: then every slot is free, and the capacity is whole.
	var again []*Queue
	for _, c := range w.clients {
		if !c.dead && c.q.state.Load() == stateOpen {
			if err := c.q.Close(); err != nil {
				w.fail("close: %v", err)
			}
		}
	}
	for range w.o.MaxHandles - 1 {
		q, err := w.d.OpenQueue(context.Background(), w.name, nil)
		if err != nil {
			w.fail("open again: %v", err)
		}
		again = append(again, q)
	}
	for s := uint64(0); s < load(w.seen.high); s++ {
		if x := load(w.seen.stateOf(s)); x != kindFree {
			w.fail("slot %d is left in state %#x (kind %d owner %d)", s, x, kindOf(x), ownerOf(x))
		}
	}
	for i := range w.o.MaxMessages + 1 {
		if w.o.Overflow >= driver.DropOldest {
			break // it is never full
		}
		err := w.seen.SendBytes(context.Background(), nil, 0, true)
		if full := errors.Is(err, driver.ErrFull); err != nil && !full || full != (i == w.o.MaxMessages) {
			w.fail("message %d of %d at the end: %v", i+1, w.o.MaxMessages, err)
		}
	}
	for _, q := range append(again, w.seen) {
		_ = q.Close()
	}
	for _, c := range w.clients {
		if c.dead {
			unmap(c.q)
		}
	}
	_ = w.d.Remove(context.Background(), w.name)
}

// judge is the oracle. It draws only conclusions that hold whatever the interleaving was.
func (w *world) judge() {
	w.t.Helper()
	type sent struct {
		e    *event
		prio int
	}
	type taken struct {
		e *event
		m driver.Message
	}
	sends := map[string]sent{}
	takes := map[string]taken{}
	var all []taken
	hands, purges := 0, false
	for _, e := range w.log {
		for i, id := range e.ids {
			sends[strconv.FormatUint(id, 10)] = sent{e, e.prio[i]}
		}
		if (e.kind == opsTake || e.kind == "filtered") && e.done == 0 {
			hands += e.max
		}
		purges = purges || e.kind == "purge"
		if e.err != nil && !errors.Is(e.err, driver.ErrFull) && !errors.Is(e.err, driver.ErrEmpty) && e.err != errAborted &&
			!errors.Is(e.err, driver.ErrLimit) {
			w.fail("client %d: %s: %v", e.c.n, e.kind, e.err)
		}
	}
	for _, e := range w.log {
		for _, m := range e.got {
			s, ok := sends[m.ID]
			if !ok || s.prio != m.Priority || s.e.done != 0 && s.e.err != nil {
				w.fail("client %d received %q of priority %d, which nobody sent so", e.c.n, m.ID, m.Priority)
			}
			if _, twice := takes[m.ID]; twice {
				w.fail("message %s was received twice", m.ID)
			}
			takes[m.ID] = taken{e, m}
			all = append(all, taken{e, m})
		}
	}
	drops := w.o.Overflow >= driver.DropOldest
	missing := 0
	for id, s := range sends {
		if _, got := takes[id]; !got && s.e.done != 0 && s.e.err == nil {
			missing++
			if hands == 0 && !purges && !drops {
				w.fail("message %s is lost", id)
			}
		}
	}
	if !purges && !drops && missing > hands {
		w.fail("%d messages are lost, receivers that died had at most %d in hand", missing, hands)
	}
	slices.SortFunc(all, func(a, b taken) int { return int(a.m.Taken) - int(b.m.Taken) })
	last := map[int]uint64{}
	for i, x := range all {
		if i > 0 && all[i-1].m.Taken == x.m.Taken {
			w.fail("messages %s and %s were taken as number %d both", all[i-1].m.ID, x.m.ID, x.m.Taken)
		}
		if x.e.kind == "filtered" { // among those of the type that it wants the order holds too
			for _, y := range all[i+1:] {
				if y.m.Priority%2 == 1 && (y.m.Priority == x.m.Priority && y.m.Seq < x.m.Seq ||
					y.m.Priority > x.m.Priority && sends[y.m.ID].e.done != 0 && sends[y.m.ID].e.done < x.e.began) {
					w.fail("message %s of priority %d was taken by filter before %s of priority %d", x.m.ID, x.m.Priority, y.m.ID, y.m.Priority)
				}
			}
			continue
		}
		if x.m.Seq <= last[x.m.Priority] {
			w.fail("message %s (seq %d) of priority %d was taken after seq %d", x.m.ID, x.m.Seq, x.m.Priority, last[x.m.Priority])
		}
		last[x.m.Priority] = x.m.Seq
		for _, y := range all[i+1:] {
			if y.m.Priority > x.m.Priority && sends[y.m.ID].e.done != 0 && sends[y.m.ID].e.done < x.e.began {
				w.fail("message %s of priority %d was taken before %s of priority %d, which had been sent before that receive began",
					x.m.ID, x.m.Priority, y.m.ID, y.m.Priority)
			}
		}
	}
	for _, e := range w.log {
		if (e.kind == opsTake || e.kind == "filtered") && errors.Is(e.err, driver.ErrEmpty) {
			for id, s := range sends {
				x, got := takes[id]
				if e.kind == "filtered" && s.prio%2 == 0 {
					continue // not of the type that it wants
				}
				if s.e.done != 0 && s.e.err == nil && s.e.done < e.began && got && x.e.began > e.done {
					w.fail("client %d found nothing, but message %s was there from %d to %d", e.c.n, id, s.e.done, x.e.began)
				}
			}
		}
		if e.kind == opsSend && e.done != 0 && !drops {
			// The most that can have been there, and the least.
			most, least := 0, 0
			for id, s := range sends {
				x, got := takes[id]
				if s.e == e {
					continue
				}
				if s.e.began < e.done && (s.e.done == 0 || s.e.err == nil) && !(got && x.e.done != 0 && x.e.done < e.began) {
					most++
				}
				if s.e.done != 0 && s.e.err == nil && s.e.done < e.began && got && x.e.began > e.done {
					least++
				}
			}
			if errors.Is(e.err, driver.ErrFull) && most+len(e.ids) <= w.o.MaxMessages {
				w.fail("client %d found the queue full, but at most %d were there", e.c.n, most)
			}
			if e.err == nil && least+len(e.ids) > w.o.MaxMessages {
				w.fail("client %d sent although %d were there", e.c.n, least)
			}
		}
	}
}

func stepSetup(t *testing.T) {
	dir, err := os.MkdirTemp(defaultDir, "kumquat-steps-")
	if err != nil {
		t.Skipf("needs room in %s: %v", defaultDir, err)
	}
	stepDriver = Driver{Dir: dir}
	t.Cleanup(func() { _ = os.RemoveAll(dir); stepHook, simulated = nil, false })
}

// repeatable returns a seed, from the environment if it is there.
func repeatable(t *testing.T) uint64 {
	if s := os.Getenv("KUMQUAT_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return rand.Uint64() >> 1
}
