// Package shm is Kumquat's own engine: a priority queue in shared memory for the processes of one machine.
//
// A queue is one sparse file in /dev/shm that every user maps. There is no server: whoever needs something done does it.
//
//	Send     reserves a slot, fills it and publishes it with one CAS on head: no lock                           (send.go, slots.go)
//	Receive  takes the queue's lock, moves what was published since into the index (drain), claims the first
//	         message of the highest priority with a CAS on its slot, unlocks, and copies the body out          (receive.go, index.go)
//	Takeover whoever finds the lock stuck raises the epoch, builds a fresh index from the slots in another
//	         area, and goes on; what the old holder still does falls on a dead area                            (lock.go, takeover.go)
//
// Slots are the truth, the index is a cache. So a process that is killed or stopped at any instruction costs the others some tens
// of milliseconds, and nothing is lost, doubled or reordered. Why every step stands where it stands is told there in three lines:
// who may run it, what order is relied on, what a death or a stop before and after it leaves. The words that processes share are
// described in words.go, the file in layout.go and docs/format.md, the protocol's checked model in docs/model.
//
// Programs use it through package kumquat.
package shm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/kumquat-mq/kumquat/driver"
	"golang.org/x/sys/unix"
)

// Driver opens queues in shared memory. The zero value uses the folder named by the environment variable KUMQUAT_SHM, else
// /dev/shm.
type Driver struct {
	Dir string // folder of the files; it should be a tmpfs
}

// Queue is an open queue: one participant of it. Its methods are those of the interfaces of package driver.
type Queue struct {
	observer
	driver Driver

	base unsafe.Pointer // of the mapping; nil for an observer

	// the hot words, in the mapping
	head, lockw, cur   *uint64
	recvWait, sendWait *uint32
	edge, wanted       *uint32
	high, backed       *uint64
	removed            *uint64
	dropped, expired   *uint64
	timed              *uint64
	returns, acks      *uint64
	recordsUp          *uint64
	areas              [areaCount]area
	slots0, links0     unsafe.Pointer
	limit              [2]uint64 // below headroom's priority, and at or above it
	headroomPriority   uint64

	// who we are
	me, gen  uint64
	entry    unsafe.Pointer
	mark     *uint64
	ledger   unsafe.Pointer
	reserved uint64 // our RESERVED word
	taken    uint64 // our TAKEN word
	pid      uint32

	// inside this process
	lanes      [laneCount]lane
	lanePick   atomic.Uint32
	positions  atomic.Uint64 // free ledger positions of the pool
	poolFreed  chan struct{} // somebody gave one back
	lk         turn          // the one goroutine that seeks or holds the queue's lock
	gather     gather        // of looks, under lk
	gatherIdle gather        // of the one plain receiver that waits, under recvTurn
	filters    filterIndex
	hold       holder
	recvTurn   turn // the one plain receiver that sleeps
	sendTurn   turn // likewise for senders
	loans      atomic.Int32
	backedSeen atomic.Uint64
	listsSeen  atomic.Uint64 // pages of list heads that areas 0 and 1 have
	spins      atomic.Uint32 // adaptive
	spinFails  atomic.Uint32
	deadAsked  atomic.Int64 // when a sleeper asked last whether who has leases lives (ns)

	ops     atomic.Int64  // operations that may touch the mapping without a lane or lk
	state   atomic.Int32  // stateOpen, …
	closing chan struct{} // closed by Close and by a fault
	once    sync.Once
	faulted chan struct{} // closed by a fault
	broken  sync.Once
	fault   atomic.Pointer[error]

	fd descriptor
}

const (
	stateOpen = iota
	stateClosed
	stateBroken
)

var (
	_ driver.Driver     = Driver{}
	_ driver.Queue      = (*Queue)(nil)
	_ driver.Batcher    = (*Queue)(nil)
	_ driver.ByteQueue  = (*Queue)(nil)
	_ driver.Reserver   = (*Queue)(nil)
	_ driver.Borrower   = (*Queue)(nil)
	_ driver.Peeker     = (*Queue)(nil)
	_ driver.Purger     = (*Queue)(nil)
	_ driver.Notifier   = (*Queue)(nil)
	_ driver.Readier    = (*Queue)(nil)
	_ driver.Descriptor = (*Queue)(nil)
	_ driver.Watcher    = (*Queue)(nil)
	_ driver.Inspector  = (*Queue)(nil)
	_ driver.Leaser     = (*Queue)(nil)
)

// Open opens the queue called name ("/orders", "/images/input"). See driver.Driver for the errors.
func (d Driver) Open(ctx context.Context, name string, o *driver.Options) (driver.Queue, error) {
	q, err := d.OpenQueue(ctx, name, o)
	if err != nil {
		return nil, err
	}
	return q, nil
}

// OpenQueue is Open with the concrete type.
func (d Driver) OpenQueue(ctx context.Context, name string, o *driver.Options) (*Queue, error) {
	if o == nil {
		o = &driver.Options{}
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	if o.Durability != driver.Memory {
		return nil, fmt.Errorf("queues in memory only survive processes, not a reboot: %w", driver.ErrUnsupported)
	}
	if o.ReadOnly && o.Create {
		return nil, fmt.Errorf("an observer cannot create a queue: %w", driver.ErrInvalid)
	}
	// Others may create and remove the name at the same time: each round met one of them.
	for range 1000 {
		f, l, err := d.openFile(name, o)
		switch {
		case err == nil && isRemoved(f):
			err := d.unlinkRemoved(f, name)
			_ = f.Close()
			if err != nil && o.Create {
				return nil, err
			}
			if !o.Create {
				return nil, driver.ErrNotFound
			}
			continue
		case err == nil && o.Create && o.Exclusive:
			_ = f.Close()
			return nil, driver.ErrExists
		case errors.Is(err, driver.ErrPermission) && o.Create && o.Exclusive && d.exists(name):
			return nil, driver.ErrExists // as open(2) with O_EXCL, which asks for the name alone
		case errors.Is(err, driver.ErrNotFound) && o.Create:
			if o.Owner != nil && *o.Owner != os.Geteuid() {
				return nil, fmt.Errorf("the queue is not there, and one that we create would not be of user %d: %w", *o.Owner, driver.ErrPermission)
			}
			if f, l, err = d.createFile(name, o); errors.Is(err, driver.ErrExists) {
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		q, err := d.attach(f, l, name, o.ReadOnly)
		if err != nil {
			_ = f.Close()
			if errors.Is(err, driver.ErrRemoved) {
				continue
			}
			return nil, err
		}
		return q, nil
	}
	return nil, fmt.Errorf("the queue is created and removed all the time: %w", driver.ErrRemoved)
}

// attach maps the file and registers a participant.
func (d Driver) attach(f *os.File, l layout, name string, readOnly bool) (_ *Queue, err error) {
	q := &Queue{observer: observer{f: f, layout: l, name: name, path: f.Name(), self: -1}, driver: d, closing: make(chan struct{}),
		faulted: make(chan struct{}), poolFreed: make(chan struct{}, 1)}
	if readOnly {
		return q, nil
	}
	q.base, err = unix.MmapPtr(int(f.Fd()), 0, nil, uintptr(l.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, d.sysError("map", f.Name(), err)
	}
	q.locate()
	defer func() {
		if err != nil {
			_ = unix.MunmapPtr(q.base, uintptr(l.size))
		}
	}()
	defer q.guard(debug.SetPanicOnFault(true), &err)
	if err := q.register(); err != nil {
		return nil, err
	}
	stamps.open()
	return q, nil
}

// locate computes the addresses of the hot words.
func (q *Queue) locate() {
	b := q.base
	q.head, q.lockw, q.cur = p64(b, offHead), p64(b, offLock), p64(b, offCur)
	q.recvWait, q.sendWait, q.edge = p32(b, offRecvWait), p32(b, offSendWait), p32(b, offEdge)
	q.wanted = p32(b, offWanted)
	q.high, q.backed, q.removed = p64(b, offHigh), p64(b, offBacked), p64(b, offRemoved)
	q.dropped, q.expired, q.timed = p64(b, offDropped), p64(b, offExpired), p64(b, offTimed)
	q.returns, q.acks, q.recordsUp = p64(b, offReturns), p64(b, offAcks), p64(b, offRecords)
	q.slots0, q.links0 = unsafe.Add(b, q.slotsAt), unsafe.Add(b, q.linksAt)
	q.limit = [2]uint64{q.limitFor(0), q.max}
	if q.headroom.Percent > 0 {
		q.headroomPriority = uint64(q.headroom.Priority)
	}
	for k := range q.areas {
		q.areas[k].locate(q, uint64(k))
	}
	q.pid = uint32(os.Getpid())
	for p := uint64(0); p < q.pool; p++ {
		q.positions.Store(q.positions.Load() | 1<<p)
	}
}

func (q *Queue) slot(i uint64) unsafe.Pointer { return unsafe.Add(q.slots0, i*slotSize) }
func (q *Queue) stateOf(i uint64) *uint64     { return (*uint64)(unsafe.Add(q.slots0, i*slotSize)) }
func (q *Queue) linkOf(i uint64) *uint64      { return (*uint64)(unsafe.Add(q.links0, i*8)) }

// guard ends an operation that touches the mapping: a fault there (the file was truncated, or its file system lost a page) becomes
// ErrCorrupt and breaks the handle. Use: defer q.guard(debug.SetPanicOnFault(true), &err).
func (q *Queue) guard(old bool, err *error) {
	debug.SetPanicOnFault(old)
	r := recover()
	if r == nil {
		return
	}
	f, ok := r.(interface{ Addr() uintptr })
	if !ok || f.Addr()-uintptr(q.base) >= uintptr(q.size) {
		panic(r)
	}
	e := fmt.Errorf("the queue's memory at byte %d cannot be read or written: its file was truncated or its file system is full; close and remove the queue: %w",
		f.Addr()-uintptr(q.base), driver.ErrCorrupt)
	q.breakWith(e)
	*err = e
}

// breakWith makes the handle useless: what its goroutines hold in this process stays held, so all are sent away.
func (q *Queue) breakWith(e error) {
	q.fault.CompareAndSwap(nil, &e)
	q.broken.Do(func() { close(q.faulted) })
	if q.state.CompareAndSwap(stateOpen, stateBroken) {
		q.once.Do(func() { close(q.closing) })
	}
}

// usable says why an operation must not begin, or end waiting.
func (q *Queue) usable() error {
	switch q.state.Load() {
	case stateClosed:
		return driver.ErrClosed
	case stateBroken:
		return *q.fault.Load()
	}
	if q.base == nil {
		return fmt.Errorf("the handle was opened to observe: %w", driver.ErrPermission)
	}
	if load(q.removed) != 0 {
		return driver.ErrRemoved
	}
	return nil
}

// Close ends the handle's participation. It fails with ErrInvalid while reservations or loans are open.
func (q *Queue) Close() error {
	if n := q.loans.Load(); n > 0 && q.state.Load() == stateOpen {
		return fmt.Errorf("%d reservations or loans are open, commit, abort or release them first: %w", n, driver.ErrInvalid)
	}
	if q.base != nil && q.state.Load() == stateOpen {
		_ = q.releaseAll() // if it cannot, others find them without an owner
	}
	for {
		s := q.state.Load()
		if s == stateClosed {
			return driver.ErrClosed
		}
		if q.state.CompareAndSwap(s, stateClosed) {
			q.once.Do(func() { close(q.closing) })
			if q.base != nil {
				q.leave(s == stateBroken)
			}
			break
		}
	}
	q.fd.close()
	return q.f.Close()
}

// enter announces an operation that touches the mapping without holding a lane or lk, as all do that wait: Close unmaps only when
// they are gone. Every successful enter is followed by exit.
func (q *Queue) enter() error {
	q.ops.Add(1)
	if q.state.Load() == stateOpen && q.base != nil {
		return nil
	}
	q.exit()
	return q.usable()
}

func (q *Queue) exit() {
	if q.ops.Add(-1) == 0 && q.state.Load() != stateOpen {
		select {
		case q.poolFreed <- struct{}{}:
		default:
		}
	}
}

// leave waits until no goroutine of this process touches the mapping, signs off and unmaps.
func (q *Queue) leave(broken bool) {
	broken = !q.settle() || broken
	hubForget(q)
	stamps.close()
	if broken {
		// A goroutine may have been sent away in the middle of anything, another may still be inside: the addresses stay taken,
		// only the memory behind them goes.
		_, _ = unix.MmapPtr(-1, 0, q.base, uintptr(q.size), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED|unix.MAP_NORESERVE)
		return
	}
	func() {
		var err error
		defer q.guard(debug.SetPanicOnFault(true), &err)
		q.unregister()
	}()
	_ = unix.MunmapPtr(q.base, uintptr(q.size))
}

// settle waits until no operation is under way. false: one met a fault, and what it held stays held.
func (q *Queue) settle() bool {
	wait := func(done func() bool) bool {
		for !done() {
			select {
			case <-q.poolFreed:
			case <-q.faulted:
				return false
			}
		}
		return true
	}
	if !wait(func() bool { return q.ops.Load() == 0 }) {
		return false
	}
	for i := range q.lanes {
		if !q.lanes[i].lock(context.Background(), q.faulted) {
			return false
		}
	}
	return q.lk.lock(context.Background(), q.faulted) && wait(func() bool { return q.positions.Load() == 1<<q.pool-1 })
}

// Remove removes the queue: the flag first, so that everybody who has it open gets ErrRemoved, then the name.
func (d Driver) Remove(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	f, l, err := d.openFile(name, &driver.Options{})
	if errors.Is(err, driver.ErrCorrupt) || errors.Is(err, driver.ErrPermission) {
		return d.removeForeign(name, err)
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := d.mayUnlink(f); err != nil {
		return err
	}
	was := isRemoved(f)
	if err := d.flagRemoved(f, l); err != nil {
		return err
	}
	if err := d.unlinkRemoved(f, name); err != nil {
		return err
	}
	if was {
		return driver.ErrNotFound
	}
	return nil
}

// flagRemoved sets the flag and wakes all who sleep. Without the wakes they would find it at the end of their slice.
func (d Driver) flagRemoved(f *os.File, l layout) (err error) {
	base, err := unix.MmapPtr(int(f.Fd()), 0, nil, hotEnd, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return d.sysError("map", f.Name(), err)
	}
	defer func() { _ = unix.MunmapPtr(base, hotEnd) }()
	q := &Queue{base: base, observer: observer{layout: l, f: f, name: f.Name()}, closing: make(chan struct{}), faulted: make(chan struct{})}
	q.size = hotEnd
	defer q.guard(debug.SetPanicOnFault(true), &err)
	storeSync(p64(base, offRemoved), 1)
	for _, off := range []uint64{offRecvWait, offSendWait, offEdge} {
		wakeAll(p32(base, off))
	}
	return nil
}

// removeForeign removes a file that cannot be opened as a queue but has a queue's name: a damaged one, or one that this user may
// remove but not read.
func (d Driver) removeForeign(name string, why error) error {
	fd, err := unix.Open(d.path(name), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return d.sysError("open", d.path(name), err)
	}
	f := os.NewFile(uintptr(fd), d.path(name))
	defer func() { _ = f.Close() }()
	if err := d.mayUnlink(f); err != nil {
		return err
	}
	if !errors.Is(why, driver.ErrCorrupt) {
		return why
	}
	if err := unix.Unlink(d.path(name)); err != nil {
		return d.sysError("unlink", d.path(name), err)
	}
	return nil
}

// List returns the queues whose name matches pattern, sorted by name.
func (d Driver) List(ctx context.Context, pattern string) ([]driver.Info, error) {
	entries, err := os.ReadDir(d.dir())
	if err != nil {
		return nil, d.sysError("list", d.dir(), err)
	}
	var out []driver.Info
	for _, e := range entries {
		name := nameOf(e.Name())
		if name == "" {
			continue
		}
		if ok, err := matchName(pattern, name); err != nil {
			return nil, fmt.Errorf("pattern %q: %w: %w", pattern, err, driver.ErrInvalid)
		} else if !ok {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, driver.ContextError(ctx)
		}
		info := driver.Info{Name: name}
		q, err := d.OpenQueue(ctx, name, &driver.Options{ReadOnly: true})
		if err == nil {
			info.Stats, err = q.Stat(ctx)
			_ = q.Close()
		}
		if errors.Is(err, driver.ErrNotFound) || errors.Is(err, driver.ErrRemoved) {
			continue // it went while we listed
		}
		info.Err = err
		out = append(out, info)
	}
	slices.SortFunc(out, func(a, b driver.Info) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// matchName is path.Match component by component, where ** stands for any number of components. An empty pattern matches all.
func matchName(pattern, name string) (bool, error) {
	if pattern == "" {
		return true, nil
	}
	var match func(p, n []string) (bool, error)
	match = func(p, n []string) (bool, error) {
		for len(p) > 0 {
			if p[0] == "**" {
				for i := 0; i <= len(n); i++ {
					if ok, err := match(p[1:], n[i:]); ok || err != nil {
						return ok, err
					}
				}
				return false, nil
			}
			if len(n) == 0 {
				return false, nil
			}
			if ok, err := path.Match(p[0], n[0]); !ok || err != nil {
				return false, err
			}
			p, n = p[1:], n[1:]
		}
		return len(n) == 0, nil
	}
	if _, err := path.Match(pattern, ""); err != nil {
		return false, err
	}
	return match(strings.Split(strings.TrimPrefix(pattern, "/"), "/"), strings.Split(name[1:], "/"))
}
