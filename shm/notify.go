package shm

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
	"golang.org/x/sys/unix"
)

// probe looks, as a receive would, whether f lets a message through; it claims nothing.
func (q *Queue) probe(ctx context.Context, f *driver.Filter, c *claimed) (bool, error) {
	if err := q.enter(); err != nil {
		return false, err
	}
	defer q.exit()
	if !q.lk.lock(ctx, q.closing) {
		return false, q.sentAway(ctx)
	}
	defer q.lk.unlock()
	for {
		if err := q.usable(); err != nil {
			return false, err
		}
		if err := q.acquire(ctx); err != nil {
			return false, err
		}
		_, s, err := q.find(f)
		if err == nil {
			if s == noSlot {
				err = q.sawNothing(c)
			}
			q.unlock()
			if err == errNothing {
				return false, nil
			}
			return err == nil, err
		}
		if err = q.abandon(err); err != nil {
			return false, err
		}
	}
}

// Ready reports whether a receive with f would find something; if not, wake is called when it is worth asking again. See
// driver.Readier.
func (q *Queue) Ready(f driver.Filter, wake func()) (ready bool, stop func(), err error) {
	stop = func() {}
	if err := q.enter(); err != nil {
		return false, stop, err
	}
	defer q.exit()
	defer q.guard(debug.SetPanicOnFault(true), &err)
	var c claimed
	found, err := q.probe(context.Background(), &f, &c)
	if found || err != nil {
		return found, stop, err
	}
	var once sync.Once
	fire := func() { once.Do(wake) }
	w := hubWait(q, q.recvWait, specialSleeper, func(slice bool) bool {
		return q.hasNews(c.seen, c.back) || slice && q.leasesMayBack()
	}, fire)
	stop = w.stop
	if c.due != 0 {
		// At most a slice of it, so that a clock step does not matter.
		t := time.AfterFunc(min(max(time.Duration(c.due-time.Now().UnixNano()), 0), 250*time.Millisecond), fire)
		stop = func() { t.Stop(); w.stop() }
	}
	return false, stop, nil
}

// descriptor is the handle's eventfd: readable when a receive is worth trying.
type descriptor struct {
	mu   sync.Mutex
	on   atomic.Bool
	fd   int
	stop func()
}

// FD returns a descriptor for poll, select and epoll. See driver.Descriptor.
func (q *Queue) FD() (_ int, err error) {
	if err := q.enter(); err != nil {
		return -1, err
	}
	defer q.exit()
	defer q.guard(debug.SetPanicOnFault(true), &err)
	d := &q.fd
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := q.usable(); err != nil {
		return -1, err
	}
	if d.on.Load() {
		return d.fd, nil
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, q.driver.sysError("eventfd for", q.path, err)
	}
	d.fd = fd
	d.on.Store(true)
	return fd, d.arm(q)
}

// arm makes the descriptor readable now, or when something comes. d.mu is held.
func (d *descriptor) arm(q *Queue) error {
	ready, stop, err := q.Ready(driver.Filter{}, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.signal()
	})
	d.stop = stop
	if ready || err != nil {
		d.signal() // an error is worth a look too
	}
	return err
}

func (d *descriptor) signal() {
	if d.on.Load() {
		_, _ = unix.Write(d.fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

// clear is called by a receive that found nothing.
func (d *descriptor) clear(q *Queue) {
	if !d.on.Load() {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.on.Load() {
		return
	}
	d.stop()
	var b [8]byte
	_, _ = unix.Read(d.fd, b[:])
	_ = d.arm(q)
}

func (d *descriptor) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.on.CompareAndSwap(true, false) {
		_ = unix.Close(d.fd)
	}
}

// Edges. A subscriber sets countEdges in the edge word, for good. From then on a sender that has published into a queue whose every
// older message was consumed counts an edge and wakes the subscribers. consumed is read after the publish, so an edge is never
// missed; one may be counted that was none, when the last older message went in between.
const countEdges = specialSleeper

func (q *Queue) edges() *uint64 { return p64(q.base, offEdges) }

// tellEdge is called by a sender after its publish; before is the seq of the message that was the newest before it.
func (q *Queue) tellEdge(before uint64) {
	if seqDiff(before, load(q.areas[lockArea(load(q.lockw))].consumed)) > 0 {
		return
	}
	q.countEdge()
}

func (q *Queue) countEdge() {
	add(q.edges(), 1)
	for {
		w := load32(q.edge)
		if w&plainSleeper == 0 {
			return
		}
		if cas32(q.edge, w, (w+sleepStep)&^plainSleeper) {
			futexWake(q.edge, allSleepers)
			return
		}
	}
}

// Notify tells when the queue was empty and is no longer. See driver.Notifier.
func (q *Queue) Notify(ctx context.Context) (ch <-chan struct{}, err error) {
	if err := q.enter(); err != nil {
		return nil, err
	}
	defer q.exit()
	defer q.guard(debug.SetPanicOnFault(true), &err)
	if err := q.usable(); err != nil {
		return nil, err
	}
	var c claimed
	found, err := q.probe(ctx, &driver.Filter{}, &c)
	if err != nil {
		return nil, err
	}
	for {
		w := load32(q.edge)
		if w&countEdges != 0 || cas32(q.edge, w, w|countEdges) {
			break
		}
	}
	out := make(chan struct{}, 1)
	told := load(q.edges())
	empty := !found && headSeq(load(q.head)) == c.seen
	if !found && !empty { // it came between our look and our subscription
		out <- struct{}{}
	}
	q.ops.Add(1) // for the goroutine: Close waits for it
	go q.tellSubscriber(ctx, out, told, empty)
	return out, nil
}

func (q *Queue) tellSubscriber(ctx context.Context, out chan<- struct{}, told uint64, empty bool) {
	defer q.exit()
	defer close(out)
	var err error
	defer q.guard(debug.SetPanicOnFault(true), &err)
	seen := headSeq(load(q.head))
	for {
		ch := make(chan struct{}, 1)
		w := hubWait(q, q.edge, plainSleeper, func(slice bool) bool {
			// The last: a sender published and died before it told.
			return load(q.edges()) != told || load(q.removed) != 0 || slice && empty && headSeq(load(q.head)) != seen
		}, func() { ch <- struct{}{} })
		var due <-chan time.Time
		if at := q.nextDue(); at != 0 {
			due = time.After(min(max(time.Duration(at-time.Now().UnixNano()), time.Millisecond), 250*time.Millisecond))
		}
		select {
		case <-ch:
		case <-due:
		case <-ctx.Done():
		case <-q.closing:
		}
		w.stop()
		if ctx.Err() != nil || q.usable() != nil {
			return
		}
		n, head := load(q.edges()), headSeq(load(q.head))
		var c claimed
		found, err := q.probe(ctx, &driver.Filter{}, &c)
		if err != nil {
			return
		}
		// A delayed message that has become due is an edge that no sender tells.
		if n != told || empty && (found || head != seen) {
			select {
			case out <- struct{}{}:
			default:
			}
		}
		told, seen, empty = n, head, !found
	}
}

// Reserve returns a buffer inside the queue. See driver.Reserver.
func (q *Queue) Reserve(ctx context.Context, size int) (r driver.Reservation, err error) {
	defer q.guard(debug.SetPanicOnFault(true), &err)
	if size < 0 || uint64(size) > q.maxSize {
		return nil, q.tooLarge(size)
	}
	var pos [1]uint64
	if err := q.takePositions(ctx, 1, pos[:], false); err != nil {
		return nil, err
	}
	s, err := q.reserveBody(ctx, pos[0], uint64(size))
	if err != nil {
		q.givePosition(pos[0])
		return nil, err
	}
	q.loans.Add(1)
	return &reservation{q: q, slot: s, pos: pos[0], size: uint64(size)}, nil
}

func (q *Queue) reserveBody(ctx context.Context, pos, size uint64) (uint64, error) {
	l, _, err := q.takeLane(ctx)
	if err != nil {
		return 0, err
	}
	defer l.unlock()
	if err := q.usable(); err != nil {
		return 0, err
	}
	s, err := q.reserve(l, pos, true)
	if err != nil {
		return 0, err
	}
	if err := q.backBody(s, size); err != nil {
		q.putBack(s)
		return 0, err
	}
	return s, nil
}

type reservation struct {
	q               *Queue
	slot, pos, size uint64
	done            bool
}

var errDone = fmt.Errorf("it was committed, aborted or released before: %w", driver.ErrInvalid)

// Bytes is the buffer.
func (r *reservation) Bytes() []byte {
	if r.done {
		return nil
	}
	return view(r.q.base, r.q.bodiesAt+r.slot*r.q.stride, r.size)[:r.size:r.size]
}

// Commit sends the buffer as the body of m.
func (r *reservation) Commit(ctx context.Context, m driver.Message, try bool) (err error) {
	q := r.q
	if r.done {
		return errDone
	}
	defer q.guard(debug.SetPanicOnFault(true), &err)
	var meta []byte
	if meta, err = encodeMeta(nil, &m); err != nil {
		return err
	}
	p := parcel{place: true, size: r.size, meta: meta, prio: uint64(m.Priority), mtype: m.Type, notBefore: nanos(m.NotBefore), expires: nanos(m.Expires)}
	p.plan(q)
	if err := q.backSend(p.prio, p.timed()); err != nil {
		return err
	}
	if err := q.fill(r.slot, &p); err != nil {
		return err
	}
	for {
		l, _, err := q.takeLane(ctx)
		if err != nil {
			return err
		}
		if err = q.usable(); err == nil {
			s, link := [1]uint64{r.slot}, [1]uint64{p.link}
			err = q.publish(l, s[:], link[:], p.prio, p.prio)
		}
		l.unlock()
		switch err {
		case nil:
			q.count(pSent, 1)
			r.end()
			return nil
		case errNoRoom:
			if err := q.whenFull(ctx, p.prio, 1, try); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

// Abort gives the buffer back.
func (r *reservation) Abort() (err error) {
	if r.done {
		return errDone
	}
	defer r.q.guard(debug.SetPanicOnFault(true), &err)
	r.q.punch(r.slot)
	r.q.putBack(r.slot)
	r.end()
	return nil
}

func (r *reservation) end() {
	r.done = true
	r.q.loans.Add(-1)
	r.q.givePosition(r.pos)
}

// Borrow takes a message whose body stays inside the queue. See driver.Borrower.
func (q *Queue) Borrow(ctx context.Context, f driver.Filter, try bool) (l driver.Loan, err error) {
	defer q.guard(debug.SetPanicOnFault(true), &err)
	c := claimed{lend: true}
	if err := q.claim(ctx, chosen(&f), -1, try, &c); err != nil {
		return nil, err
	}
	n := &loan{q: q, slot: c.slot, pos: c.pos}
	q.loans.Add(1)
	var body []byte
	if err := q.read(&c, &n.m, &body); err != nil {
		_ = n.Release()
		return nil, err
	}
	n.m.Body = body[:len(body):len(body)]
	return n, nil
}

type loan struct {
	q         *Queue
	m         driver.Message
	slot, pos uint64
	done      bool
}

// Message returns the message.
func (l *loan) Message() driver.Message { return l.m }

// Release gives the message's place back.
func (l *loan) Release() (err error) {
	if l.done {
		return errDone
	}
	defer l.q.guard(debug.SetPanicOnFault(true), &err)
	l.done = true
	l.m.Body = nil
	l.q.freeBig(l.slot)
	l.q.count(pReceived, 1)
	l.q.loans.Add(-1)
	l.q.givePosition(l.pos)
	return nil
}
