//go:build kumquat_step

package shm

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
	"golang.org/x/sys/unix"
)

// These tests run clients step by step. A client is a handle and a goroutine that does operations (steps_ops_test.go); before every
// access to a shared word it stops and hands control back. So a test can let it die there, stop there while others go on
// (steps_enum_test.go), or interleave clients in any order (steps_schedule_test.go), and all of it is repeatable: only one goroutine
// runs at a time, and the clock is that of a synctest bubble, which moves only when the test says so.
//
// Two oracles judge. The ledger (steps_ledger_test.go) looks at the shared words after every single step. The judge
// (steps_judge_test.go) looks at what the operations returned, as a user would.

// A world is one queue and its clients, with a logical clock: one tick a step.
type world struct {
	t       *testing.T
	d       Driver
	name    string
	o       driver.Options
	tick    int
	clients []*client
	running *client
	waiting bool // the client that ran last waits for the lock: it had better not be asked again at once
	log     []*event
	what    string // how to repeat it
	seen    *Queue // of a bystander, for looking
	fillers []*Queue
	spares  []*Queue // opened before the queue is removed, for clients that come later
	ledger  ledger
	others  func(*world)
	timed   bool   // some message has a time
	nextID  uint64 // of messages; of the world, so that a schedule repeats to the byte
	trace   func(c *client, place string)
}

type client struct {
	w       *world
	n       int
	q       *Queue
	resume  chan bool // false: die here
	yield   chan bool // true: at a step; false: all done
	dead    bool
	ended   bool
	quit    bool // it could not open again
	steps   int  // passed, since its operation of interest began
	ops     []func(*client)
	opening bool         // another handle,
	strays  map[int]bool // with duplicates of these descriptors;
	before  map[int]bool // those were there when it began
	inside  bool         // it has held the lock, and its mark still says so,
	area    uint64
	leases  []driver.Lease
}

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
	w.ledger.begin(w)
	simulated, stepPlace = true, ""
	stepHook = func(string) {
		if c := w.running; c != nil {
			c.stop()
		}
	}
	// A held lock: the others get to run first; when nobody but the holder could, or the scheduler wants it, it is stuck.
	stuckHook = func(q *Queue, l uint64) bool {
		if c := w.running; c != nil {
			w.waiting = true
			c.stop()
			return stuckRule(w, c)
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

// stop is where a client waits for its next step.
func (c *client) stop() {
	if c.dead {
		runtime.Goexit()
	}
	if c.opening && c.strays == nil {
		c.strays = map[int]bool{}
		for fd := range c.w.descriptors() {
			if !c.before[fd] {
				// A duplicate: once c is dead its own may be closed by the garbage collector, and the mapping would keep the lock.
				if d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
					c.strays[d] = true
				}
			}
		}
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
	w.t.Helper()
	q, err := w.d.OpenQueue(context.Background(), w.name, nil)
	if isGone(err) && w.removedBy() != nil && len(w.spares) > 0 {
		q, w.spares, err = w.spares[0], w.spares[1:], nil
	}
	if err != nil {
		w.fail("open: %v", err)
	}
	w.ledger.look(nil)
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
			if !c.quit {
				op(c)
			}
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
	w.running, w.waiting = c, false
	c.resume <- live
	more := <-c.yield
	w.running = nil
	if w.trace != nil {
		w.trace(c, stepPlace)
	}
	if c.dead {
		// Its descriptors go as at the death of a process, and with them the locks that say it lives. The mapping stays: as for a
		// process that was stopped in between, nobody touches it any more.
		// (Here, not there, the mapping would keep the lock.)
		_ = byteLock(c.q.f, lockBase+int64(c.q.me), unix.F_UNLCK)
		_ = c.q.f.Close()
		for fd := range c.strays {
			lk := unix.Flock_t{Type: unix.F_UNLCK, Start: lockBase, Len: maxParts}
			_ = unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lk)
		}
		c.forgetStrays()
	}
	w.ledger.look(c)
	return more
}

// runTo lets c run until the step that comes next is the one called place. false: it ended before.
func (w *world) runTo(c *client, place string) bool {
	for stepPlace = ""; stepPlace != place; {
		if !w.run(c, true) {
			return false
		}
	}
	return true
}

// opens does f, in which c opens a handle that nobody knows yet: if c dies meanwhile its lock must go with it. The descriptors that
// are new when c stops for the first time are its own, since nobody else ran in between.
func (c *client) opens(f func()) {
	c.opening, c.strays, c.before = true, nil, c.w.descriptors()
	f()
	c.opening = false
	c.forgetStrays()
}

func (c *client) forgetStrays() {
	for fd := range c.strays {
		_ = unix.Close(fd)
	}
	c.strays = nil
}

// descriptors are those of the queue's file.
func (w *world) descriptors() map[int]bool {
	out := map[int]bool{}
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, e := range fds {
		fd, _ := strconv.Atoi(e.Name())
		if p, _ := os.Readlink("/proc/self/fd/" + e.Name()); strings.TrimSuffix(p, " (deleted)") == w.seen.path {
			out[fd] = true
		}
	}
	return out
}

// finish lets c run to its end.
func (w *world) finish(c *client) {
	w.t.Helper()
	for n := 0; w.run(c, true); n++ {
		if n > 200_000 {
			w.fail("client %d does not come to an end, at %q", c.n, stepPlace)
		}
	}
}

// did makes a client that does ops and closes, all at once.
func (w *world) did(ops ...func(*client)) {
	w.t.Helper()
	c := w.add(ops...)
	w.finish(c)
	w.close(c)
}

func (w *world) close(c *client) {
	w.t.Helper()
	if !c.dead && c.q.state.Load() == stateOpen {
		if err := c.q.Close(); err != nil {
			w.fail("close: %v", err)
		}
	}
}

// pass lets time pass for everybody.
func (w *world) pass(d time.Duration) { time.Sleep(d) }

// fill opens handles until no entry is free, so that who opens next uses a dead one's; unfill closes them.
func (w *world) fill() {
	for w.free() > 0 {
		q, err := w.d.OpenQueue(context.Background(), w.name, nil)
		if err != nil {
			w.fail("fill: %v", err)
		}
		w.fillers = append(w.fillers, q)
	}
	w.ledger.look(nil)
}

func (w *world) unfill() {
	for _, q := range w.fillers {
		_ = q.Close()
	}
	w.fillers = nil
	w.ledger.look(nil)
}

// spare opens handles for clients that come when the queue is gone.
func (w *world) spare() {
	for range 3 {
		q, err := w.d.OpenQueue(context.Background(), w.name, nil)
		if err != nil {
			w.fail("open: %v", err)
		}
		w.spares = append(w.spares, q)
	}
}

// free is how many entries are not live.
func (w *world) free() (n int) {
	for p := range w.seen.parts {
		if p >= w.seen.partsUp() || partState(load(p64(w.seen.entryOf(p), pWord))) != partLive {
			n++
		}
	}
	return
}

func (w *world) fail(format string, a ...any) {
	w.t.Helper()
	for _, e := range w.log {
		w.t.Log(e.String())
	}
	stepHook, w.running = nil, nil
	for _, c := range w.clients { // nobody may be left in the bubble
		if !c.ended {
			c.resume <- false
			<-c.yield
		}
	}
	w.t.Fatalf("%s, tick %d: %s", w.what, w.tick, fmt.Sprintf(format, a...))
}

// settle ends a world: who is stopped goes on, the queue is drained by a new client, and everything is accounted for.
func (w *world) settle() {
	w.t.Helper()
	stuckRule = eager
	w.unfill()
	for _, c := range w.clients {
		w.finish(c)
	}
	for _, c := range w.clients {
		w.close(c)
	}
	for _, q := range w.spares {
		_ = q.Close()
	}
	w.spares = nil
	if w.removedBy() != nil {
		w.settleRemoved()
		return
	}
	w.drainAll()
	if w.timed {
		w.pass(2 * time.Hour)
		w.drainAll()
	}
	w.judge()
	w.closeAll()
}

func (w *world) drainAll() {
	w.did(func(c *client) {
		for n := 0; ; n++ {
			opTakeOne(c)
			if e := w.log[len(w.log)-1]; e.err != nil || n > 10_000 {
				return
			}
		}
	})
}

func (w *world) closeAll() {
	w.t.Helper()
	w.running, simulated = nil, false
	stepHook = nil
	w.ledger.end()
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
	for w.deaths() > 0 && len(again) < w.o.MaxHandles-1 {
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
	if w.o.Overflow < driver.DropOldest { // else it is never full
		for i := range w.o.MaxMessages + 1 {
			err := w.seen.SendBytes(context.Background(), nil, 0, true)
			if full := isFull(err); err != nil && !full || full != (i == w.o.MaxMessages) {
				w.fail("message %d of %d at the end: %v", i+1, w.o.MaxMessages, err)
			}
		}
	}
	for _, q := range append(again, w.seen) {
		_ = q.Close()
	}
	w.unmapDead()
	if err := w.d.Remove(context.Background(), w.name); err != nil {
		w.fail("remove: %v", err)
	}
}

func (w *world) deaths() (n int) {
	for _, c := range w.clients {
		if c.dead {
			n++
		}
	}
	return
}

// unmapDead takes away the mappings that the dead left, which a kernel would have.
func (w *world) unmapDead() {
	strays := false
	for _, c := range w.clients {
		if c.dead && c.q.state.Load() == stateOpen {
			_ = unix.MunmapPtr(c.q.base, uintptr(c.q.size))
		}
		if c.dead { // it may have had another, or have been just closing it
			e := c.last()
			strays = strays || e != nil && e.kind == opsOther && e.done == 0
		}
	}
	if !strays {
		return
	}
	maps, _ := os.ReadFile("/proc/self/maps")
	for line := range strings.Lines(string(maps)) {
		if !strings.Contains(line, w.seen.path) {
			continue
		}
		var from, to uintptr
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err == nil {
			_, _, _ = unix.RawSyscall(unix.SYS_MUNMAP, from, to-from, 0)
		}
	}
}

// last is the operation that c began last.
func (c *client) last() *event {
	for i := len(c.w.log) - 1; i >= 0; i-- {
		if c.w.log[i].c == c {
			return c.w.log[i]
		}
	}
	return nil
}

// settleRemoved ends a world in which somebody removed the queue or died at it.
func (w *world) settleRemoved() {
	w.t.Helper()
	if w.removedBy().done == 0 && load(w.seen.removed) == 0 { // the remover died before it did anything: then it is as it was
		w.drainAll()
		w.judge()
		w.closeAll()
		return
	}
	w.judge()
	w.running, simulated = nil, false
	stepHook = nil
	// Whoever meets the flag finishes what the remover left.
	if q, err := w.d.OpenQueue(context.Background(), w.name, nil); !isGone(err) {
		w.fail("a removed queue opens: %v %v", q, err)
	}
	if _, err := os.Lstat(w.seen.path); !os.IsNotExist(err) {
		w.fail("the name of a removed queue is still there: %v", err)
	}
	if err := w.seen.SendBytes(context.Background(), nil, 0, true); !isGone(err) {
		w.fail("a removed queue takes a message: %v", err)
	}
	_ = w.seen.Close()
	w.unmapDead()
	o := w.o
	o.Create, o.Exclusive = true, true
	q, err := w.d.OpenQueue(context.Background(), w.name, &o)
	if err != nil {
		w.fail("the name of a removed queue is not free: %v", err)
	}
	_ = q.Close()
	_ = w.d.Remove(context.Background(), w.name)
}

// bubble prepares the folder of the queues and runs f with a clock of its own.
func bubble(t *testing.T, f func(t *testing.T)) {
	dir, err := os.MkdirTemp(defaultDir, "kumquat-steps-")
	if err != nil {
		t.Skipf("needs room in %s: %v", defaultDir, err)
	}
	stepDriver = Driver{Dir: dir}
	procs := runtime.GOMAXPROCS(1) // one goroutine runs at a time: handing over is cheaper on one processor
	defer func() {
		runtime.GOMAXPROCS(procs)
		_ = os.RemoveAll(dir)
		stepHook, simulated, stuckRule = nil, false, eager
	}()
	synctest.Test(t, f)
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

// fromEnv returns a number from the environment, or n.
func fromEnv(name string, n int) int {
	if v, err := strconv.Atoi(os.Getenv(name)); err == nil && v > 0 {
		return v
	}
	return n
}
