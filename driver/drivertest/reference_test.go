package drivertest

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// refDriver keeps its queues in this process: the least that passes the suite, to test the suite with. fault names one rule that
// it breaks.
type refDriver struct {
	mu    sync.Mutex
	m     map[string]*refQueue
	fault string
}

func (d *refDriver) Open(_ context.Context, name string, o *driver.Options) (driver.Queue, error) {
	if !strings.HasPrefix(name, "/") || strings.Contains(name, "..") {
		return nil, fmt.Errorf("%w: name", driver.ErrInvalid)
	}
	if o.Durability != driver.Memory {
		return nil, fmt.Errorf("%w: durability", driver.ErrUnsupported)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	q := d.m[name]
	switch {
	case q == nil && !o.Create:
		return nil, driver.ErrNotFound
	case q != nil && o.Exclusive:
		return nil, driver.ErrExists
	case q == nil:
		q = &refQueue{d: d, o: *o, changed: make(chan struct{}), handles: map[*refHandle]bool{}}
		q.o.MaxMessages = cmp.Or(o.MaxMessages, 65_536)
		q.o.MaxSize = cmp.Or(o.MaxSize, 64<<10)
		q.o.MaxHandles = cmp.Or(o.MaxHandles, 256)
		q.s.Created = time.Now()
		d.m[name] = q
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.handles) == q.o.MaxHandles {
		return nil, driver.ErrLimit
	}
	q.opened++
	h := &refHandle{refQueue: q, number: int(q.opened), efd: -1}
	q.handles[h] = true
	q.change()
	return h, nil
}

func (d *refDriver) Remove(_ context.Context, name string) error {
	if !strings.HasPrefix(name, "/") || strings.Contains(name, "..") {
		return driver.ErrInvalid
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	q := d.m[name]
	if q == nil {
		return driver.ErrNotFound
	}
	delete(d.m, name)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.s.Removed = true
	q.change()
	return nil
}

func (d *refDriver) List(_ context.Context, pattern string) (l []driver.Info, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(d.m)) {
		if ok, err := path.Match(pattern, name); err != nil || !ok {
			continue
		}
		q := d.m[name]
		q.mu.Lock()
		l = append(l, driver.Info{Name: name, Stats: q.stat()})
		q.mu.Unlock()
	}
	return l, nil
}

type refQueue struct {
	d       *refDriver
	mu      sync.Mutex
	o       driver.Options
	ms      []driver.Message // in the order of sends
	s       driver.Stats
	seq     uint64
	taken   uint64
	opened  uint64
	closed  uint64
	edges   uint64 // changes from empty to not empty
	timed   bool   // some message had a time
	changed chan struct{}
	handles map[*refHandle]bool
}

type refHandle struct {
	*refQueue
	number         int
	gone           bool
	held           int
	efd            int
	sent, received uint64
}

// change wakes all who wait. The lock is held.
func (q *refQueue) change() {
	close(q.changed)
	q.changed = make(chan struct{})
	for h := range q.handles {
		if h.efd < 0 {
			continue
		}
		var b [8]byte
		_, _ = unix.Read(h.efd, b[:]) // readable exactly when there is something, as kernel queues are
		if len(q.ms) > 0 || q.s.Removed {
			_, _ = unix.Write(h.efd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		}
	}
}

// wait gives the lock back until something changes or next comes.
func (h *refHandle) wait(ctx context.Context, next time.Time, counter *int) error {
	c := h.changed
	*counter++
	h.mu.Unlock()
	var at <-chan time.Time
	if !next.IsZero() {
		t := time.NewTimer(time.Until(next) + time.Microsecond)
		defer t.Stop()
		at = t.C
	}
	var err error
	select {
	case <-c:
	case <-at:
	case <-ctx.Done():
		err = driver.ContextError(ctx)
	}
	h.mu.Lock()
	*counter--
	return err
}

func (h *refHandle) usable() error {
	switch {
	case h.gone:
		return driver.ErrClosed
	case h.s.Removed:
		return driver.ErrRemoved
	}
	return nil
}

func over(m *driver.Message, now time.Time) bool {
	return !m.Expires.IsZero() && !now.Before(m.Expires)
}

// expire removes what is over and returns when to look again: the next message that falls due or expires.
func (q *refQueue) expire() (next time.Time) {
	if !q.timed {
		return next
	}
	now := time.Now()
	if q.d.fault != "expiry" {
		n := len(q.ms)
		q.ms = slices.DeleteFunc(q.ms, func(m driver.Message) bool { return over(&m, now) })
		q.s.Expired += uint64(n - len(q.ms))
	}
	for i := range q.ms {
		for _, t := range []time.Time{q.ms[i].NotBefore, q.ms[i].Expires} {
			if t.After(now) && (next.IsZero() || t.Before(next)) {
				next = t
			}
		}
	}
	return next
}

// due returns the messages that f lets through and that are due, in the order of receiving.
func (q *refQueue) due(f driver.Filter, most int) []int {
	now := time.Now()
	if most == 1 && f.TypeAtMost == 0 && q.d.fault != "order" { // the usual case, without sorting
		first := -1
		for i := range q.ms {
			m := &q.ms[i]
			if (first < 0 || m.Priority > q.ms[first].Priority) && f.Match(m) && (!q.timed || !m.NotBefore.After(now)) {
				first = i
			}
		}
		if first < 0 {
			return nil
		}
		return []int{first}
	}
	o := &oracle{ms: q.ms}
	is := slices.DeleteFunc(o.order(f), func(i int) bool { return q.ms[i].NotBefore.After(now) })
	if q.d.fault == "order" && len(is) > 1 {
		is[0], is[1] = is[1], is[0]
	}
	return is
}

func (h *refHandle) Send(ctx context.Context, m driver.Message, try bool) error {
	return h.SendBatch(ctx, []driver.Message{m}, try)
}

func (h *refHandle) SendBatch(ctx context.Context, ms []driver.Message, try bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.usable(); err != nil {
		return err
	}
	if len(ms) > h.o.MaxMessages {
		return driver.ErrTooLarge
	}
	for i := range ms {
		m := &ms[i]
		meta := len(m.ID) + len(m.Key) + len(m.Group) + len(m.CorrelationID) + len(m.ReplyTo) + len(m.ContentType)
		for k, v := range m.Headers {
			meta += len(k) + len(v)
		}
		if len(m.Body) > h.o.MaxSize || meta > 4000 {
			return driver.ErrTooLarge
		}
	}
	for {
		if err := h.usable(); err != nil {
			return err
		}
		next := h.expire()
		w := oracle{max: h.o.MaxMessages, overflow: h.o.Overflow, headroom: h.o.Headroom, ms: h.ms}
		if len(ms) > 1 { // all or none
			w.ms = slices.Clone(h.ms)
		}
		if h.d.fault == "capacity" {
			w.max++
		}
		var err error
		for _, m := range ms {
			m.Body, m.Headers = slices.Clone(m.Body), maps.Clone(m.Headers)
			m.Enqueued, m.Attempt, m.Sender, m.Taken = time.Now(), 0, os.Getpid(), 0
			h.seq++
			m.Seq = h.seq
			h.timed = h.timed || !m.Expires.IsZero() || !m.NotBefore.IsZero()
			if err = w.send(m); err != nil {
				break
			}
		}
		if err == nil {
			if len(h.ms) == 0 {
				h.edges++
			}
			h.ms = w.ms
			h.s.Sent += uint64(len(ms))
			h.s.Dropped += uint64(w.dropped)
			h.sent += uint64(len(ms))
			h.change()
			return nil
		}
		if try || h.o.Overflow != driver.Block {
			return driver.ErrFull
		}
		if err := h.wait(ctx, next, &h.s.Senders); err != nil {
			return err
		}
	}
}

func (h *refHandle) take(ctx context.Context, f driver.Filter, most int, try bool, fits func(*driver.Message) bool) ([]driver.Message, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		if err := h.usable(); err != nil {
			return nil, err
		}
		next := h.expire()
		if is := h.due(f, most); len(is) > 0 {
			if fits != nil && !fits(&h.ms[is[0]]) {
				return nil, driver.ErrTooLarge
			}
			is = is[:min(len(is), most)]
			var ms []driver.Message
			for _, i := range is {
				h.taken++
				m := h.ms[i]
				m.Taken = h.taken
				ms = append(ms, m)
			}
			for _, i := range slices.Backward(slices.Sorted(slices.Values(is))) {
				if h.d.fault != "twice" || h.taken%100 != 0 {
					h.ms = slices.Delete(h.ms, i, i+1)
				}
			}
			h.s.Received += uint64(len(ms))
			h.received += uint64(len(ms))
			h.change()
			return ms, nil
		}
		if try {
			return nil, driver.ErrEmpty
		}
		if err := h.wait(ctx, next, &h.s.Receivers); err != nil {
			return nil, err
		}
	}
}

func (h *refHandle) Receive(ctx context.Context, f driver.Filter, try bool) (driver.Message, error) {
	ms, err := h.take(ctx, f, 1, try, nil)
	if err != nil {
		return driver.Message{}, err
	}
	return ms[0], nil
}

func (h *refHandle) ReceiveBatch(ctx context.Context, dst []driver.Message, f driver.Filter, most int, try bool) ([]driver.Message, error) {
	ms, err := h.take(ctx, f, most, try, nil)
	return append(dst, ms...), err
}

func (h *refHandle) MaxBatch() int { return h.o.MaxMessages }

func (q *refQueue) stat() driver.Stats {
	q.expire()
	s := q.s
	s.Messages, s.MaxMessages, s.MaxSize, s.MaxHandles, s.MaxBatch = len(q.ms), q.o.MaxMessages, q.o.MaxSize, q.o.MaxHandles, q.o.MaxMessages
	s.Overflow, s.Headroom, s.Handles, s.UID, s.GID, s.Mode = q.o.Overflow, q.o.Headroom, len(q.handles), os.Geteuid(), os.Getegid(), fs.FileMode(0o600)
	s.LowestPriority = -1
	for i, m := range q.ms {
		s.Bytes += int64(len(m.Body))
		if m.NotBefore.After(time.Now()) {
			s.Delayed++
		}
		if i == 0 || m.Priority < s.LowestPriority {
			s.LowestPriority = m.Priority
		}
		if i == 0 || m.Enqueued.Before(s.OldestEnqueued) {
			s.OldestEnqueued = m.Enqueued
		}
		s.HighestPriority = max(s.HighestPriority, m.Priority)
	}
	return s
}

func (h *refHandle) Stat(context.Context) (driver.Stats, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gone {
		return driver.Stats{}, driver.ErrClosed
	}
	return h.stat(), nil
}

func (h *refHandle) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gone {
		return driver.ErrClosed
	}
	if h.held > 0 {
		return fmt.Errorf("%w: %d reservations or loans are open", driver.ErrInvalid, h.held)
	}
	h.gone = true
	h.closed++
	delete(h.handles, h)
	if h.efd >= 0 {
		unix.Close(h.efd)
	}
	h.change()
	return nil
}

func (h *refHandle) Purge(_ context.Context, f driver.Filter) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.expire()
	w := oracle{ms: h.ms}
	n := w.purge(f)
	h.ms = w.ms
	h.s.Dropped += uint64(n)
	h.change()
	return n, nil
}

func (h *refHandle) Peek(_ context.Context, o driver.PeekOptions) iter.Seq2[driver.Message, error] {
	return func(yield func(driver.Message, error) bool) {
		h.mu.Lock()
		h.expire()
		is := h.due(o.Filter, len(h.ms))
		var late []driver.Message
		var ms []driver.Message
		for _, i := range is {
			ms = append(ms, h.ms[i])
		}
		for i, m := range h.ms {
			if o.Filter.Match(&m) && !slices.Contains(is, i) {
				late = append(late, m)
			}
		}
		h.mu.Unlock()
		slices.SortStableFunc(late, func(a, b driver.Message) int { return a.NotBefore.Compare(b.NotBefore) })
		n, skip := 0, o.Skip
		for _, m := range append(ms, late...) {
			if o.Match != nil && !o.Match(m.Body) {
				continue
			}
			if skip > 0 {
				skip--
				continue
			}
			if n++; o.Limit > 0 && n > o.Limit {
				return
			}
			if o.NoBody {
				m.Body = nil
			}
			if !yield(m, nil) {
				return
			}
		}
	}
}
