package sysv

import (
	"cmp"
	"context"
	"iter"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

var errReadOnly = failure(driver.ErrPermission, unix.EACCES, "the handle was opened with ReadOnly")

// Able reports what a System V queue can do.
func (h *handle) Able(a driver.Ability) bool {
	switch a {
	case driver.Purging, driver.Selecting, driver.Descriptors, driver.Modes, driver.Revoking:
		return true
	case driver.Bytes:
		return !h.envelope // a message whose body is too long for a buffer could not be left in the queue
	case driver.Metadata:
		return h.envelope
	case driver.Peeking:
		return canCopy()
	case driver.Priorities:
		return h.priorities
	}
	return false
}

// typeOf returns the mtype of m.
func (h *handle) typeOf(m *driver.Message) (int64, error) {
	switch {
	case !h.envelope && (m.ID != "" || m.Key != "" || m.Group != "" || m.CorrelationID != "" || m.ReplyTo != "" || m.ContentType != "" || len(m.Headers) > 0):
		return 0, unsupported("a message of a System V queue has a body and a type, and other metadata only in an envelope: Options.Envelope")
	case !m.NotBefore.IsZero():
		return 0, unsupported("a System V queue cannot delay messages: NotBefore")
	case !m.Expires.IsZero():
		return 0, unsupported("messages of a System V queue do not expire: Expires")
	case !h.priorities && m.Priority == 0:
		return m.Type, nil
	case !h.priorities:
		return 0, unsupported("a System V queue has types and no priorities; as sysv+priority:… it has priorities and no types")
	case !h.envelope && m.Type > 1:
		return 0, unsupported("the types of a sysv+priority queue are its priorities: Type")
	}
	return lowestType - int64(m.Priority), nil
}

// selects turns a filter into the typ and flags of msgrcv.
func (h *handle) selects(f *driver.Filter) (typ int64, flags int, err error) {
	if f.Key != "" {
		return 0, 0, unsupported("messages of a System V queue have no Key")
	}
	if h.priorities {
		if f.Type > 1 || f.NotType == 1 || h.envelope && (f.Type > 0 || f.TypeAtMost > 0 || f.NotType > 0) {
			return 0, 0, unsupported("the types of a sysv+priority queue are its priorities: Type, TypeAtMost, Not")
		}
		return int64(f.MinPriority) - lowestType, 0, nil // every message is of type 1, so the other fields say nothing
	}
	switch {
	case f.MinPriority > 0:
		return 0, 0, unsupported("messages of a System V queue have no priority: MinPriority")
	case f.Type > 0 && (f.TypeAtMost > 0 && f.Type > f.TypeAtMost || f.Type == f.NotType):
		return 0, 0, failure(driver.ErrInvalid, unix.EINVAL, "no message can match this filter")
	case f.Type > 0:
		return f.Type, 0, nil
	case f.TypeAtMost > 0 && (f.NotType == 0 || f.NotType > f.TypeAtMost):
		return -f.TypeAtMost, 0, nil
	case f.TypeAtMost > 1 && f.NotType == f.TypeAtMost:
		return 1 - f.TypeAtMost, 0, nil
	case f.TypeAtMost > 0:
		return 0, 0, unsupported("msgrcv cannot leave out type %d of those up to %d", f.NotType, f.TypeAtMost)
	case f.NotType > 0:
		return f.NotType, Except, nil
	}
	return 0, 0, nil
}

func (h *handle) received(m *driver.Message, mtype int64) {
	if h.priorities {
		m.Type, m.Priority = max(m.Type, 1), int(lowestType-mtype)
	} else {
		m.Type = mtype
	}
}

func (h *handle) Send(ctx context.Context, m driver.Message, try bool) error {
	typ, err := h.typeOf(&m)
	if err != nil {
		return err
	}
	if h.envelope {
		return h.sendSealed(ctx, typ, &m, try)
	}
	return h.send(ctx, typ, m.Body, try)
}

func (h *handle) SendBytes(ctx context.Context, body []byte, priority int, try bool) error {
	if h.envelope {
		return h.Send(ctx, driver.Message{Body: body, Priority: priority, Type: 1}, try)
	}
	typ := int64(1)
	if h.priorities {
		typ = lowestType - int64(priority)
	} else if priority != 0 {
		return h.noPriority()
	}
	return h.send(ctx, typ, body, try)
}

func (h *handle) noPriority() error {
	_, err := h.typeOf(&driver.Message{Type: 1, Priority: 1})
	return err
}

func (h *handle) send(ctx context.Context, typ int64, body []byte, try bool) error {
	if err := h.mayPut(len(body)); err != nil {
		return err
	}
	return h.put(ctx, typ, body, try)
}

// mayPut says what there is against a body of n bytes before the kernel is asked.
func (h *handle) mayPut(n int) error {
	if h.q.closed.Load() {
		return driver.ErrClosed
	}
	if h.readOnly {
		return errReadOnly
	}
	if sh := h.q.s.shape.Load(); sh != nil && sh.size > 0 && n > sh.size {
		return failure(driver.ErrTooLarge, unix.EMSGSIZE, "%d bytes, and the queue was made for %d at most", n, sh.size)
	}
	return nil
}

func (h *handle) put(ctx context.Context, typ int64, body []byte, try bool) error {
	if sh := h.q.s.shape.Load(); sh != nil {
		try = try || sh.overflow == driver.Reject
	}
	err := h.q.Send(ctx, typ, body, NoWait)
	if err != errFull {
		return err
	}
	if err := h.fits(len(body)); err != nil || try {
		return cmp.Or(err, errFull)
	}
	return h.q.Send(ctx, typ, body, 0)
}

// fits says whether a body can ever fit. Send alone would wait for ever.
func (h *handle) fits(n int) error {
	if sh := h.q.s.shape.Load(); n == 0 || sh != nil && sh.size >= n {
		return nil
	}
	var k kernelQueue
	if _, e := msgctlStat(h.q.s.id, ipcStat, &k); e == 0 && k.qbytes < uint64(n) {
		return failure(driver.ErrTooLarge, unix.EMSGSIZE, "%d bytes, and the queue has room for %d at most (msg_qbytes)", n, k.qbytes)
	}
	return nil
}

func (h *handle) Receive(ctx context.Context, f driver.Filter, try bool) (m driver.Message, err error) {
	if err := h.mayTake(); err != nil {
		return m, err
	}
	typ, flags, err := h.selects(&f)
	if err != nil {
		return m, err
	}
	if try {
		flags |= NoWait
	}
	if h.envelope {
		return h.receiveSealed(ctx, typ, flags)
	}
	m, _, err = h.receive(ctx, typ, flags)
	return m, err
}

// receive takes a message. live is false for one that has expired.
func (h *handle) receive(ctx context.Context, typ int64, flags int) (m driver.Message, live bool, err error) {
	for room := 4096; ; room *= 8 { // a message that is longer stays where it is, and the next buffer is longer
		b := h.q.take(room)
		n, mtype, err := h.q.Receive(ctx, b.b, typ, flags)
		if err == nil {
			m, live, err = h.message(b.b[:n], mtype)
		}
		h.q.put(b)
		if e, ok := err.(*callError); !ok || e.errno != unix.E2BIG || room >= 1<<31-1 {
			return m, live, err
		}
	}
}

func (h *handle) ReceiveInto(ctx context.Context, buf []byte, try bool) (n, priority int, err error) {
	if h.envelope {
		return 0, 0, unsupported("an enveloped message cannot be left in the queue if the buffer proves too short: ReceiveInto")
	}
	if err := h.mayTake(); err != nil {
		return 0, 0, err
	}
	typ, flags := int64(0), 0
	if h.priorities {
		typ = -lowestType
	}
	if try {
		flags = NoWait
	}
	n, mtype, err := h.q.Receive(ctx, buf, typ, flags)
	if err == nil && h.priorities {
		priority = int(lowestType - mtype)
	}
	return n, priority, err
}

func (h *handle) mayTake() error {
	if h.q.closed.Load() {
		return driver.ErrClosed
	}
	if h.readOnly {
		return errReadOnly
	}
	return nil
}

func (h *handle) Stat(context.Context) (driver.Stats, error) {
	st, err := h.q.Stat()
	if err != nil {
		return driver.Stats{}, err
	}
	s := stats(&st, h.q.s.shape.Load(), int(h.q.s.held.Load()))
	if h.envelope {
		h.sealedStats(&s)
	}
	return s, nil
}

func (h *handle) Close() error { return h.q.Close() }

// Purge takes as many messages as were there when it began, without their bodies: the first ones, so nothing that is sent meanwhile,
// unless other receivers take some of the old ones at the same time, or with a filter that goes by type or priority.
func (h *handle) Purge(ctx context.Context, f driver.Filter) (n int, err error) {
	if err := h.mayTake(); err != nil {
		return 0, err
	}
	typ, flags, err := h.selects(&f)
	if err != nil {
		return 0, err
	}
	if f.Any() {
		typ = 0 // in the order of sends
	}
	st, err := h.Stat(ctx)
	for n < st.Messages && err == nil {
		if _, _, err = h.q.Receive(ctx, nil, typ, flags|NoWait|NoError); err == nil {
			n++
		}
	}
	if err == errEmpty {
		err = nil
	}
	return n, err
}

func (h *handle) Ready(f driver.Filter, wake func()) (bool, func(), error) {
	if err := h.mayTake(); err != nil {
		return false, func() {}, err
	}
	typ, flags, err := h.selects(&f)
	if err != nil {
		return false, func() {}, err
	}
	return h.q.Ready(typ, flags, wake)
}

func (h *handle) FD() (int, error) { return h.q.FD() }

// Peek copies the messages one by one (MSG_COPY) and then puts them in order. Those that are taken meanwhile may make it leave one
// out.
func (h *handle) Peek(ctx context.Context, o driver.PeekOptions) iter.Seq2[driver.Message, error] {
	return func(yield func(driver.Message, error) bool) {
		typ, flags, err := h.selects(&o.Filter)
		if err != nil {
			yield(driver.Message{}, err)
			return
		}
		sel := newSelector(typ, flags)
		ms, err := h.copyAll(ctx, sel)
		if sel.typ < 0 {
			slices.SortStableFunc(ms, func(a, b copied) int { return int(min(1, max(-1, a.mtype-b.mtype))) }) // both are above 0
		}
		skip, left := o.Skip, o.Limit
		for _, c := range ms {
			m, live, err := h.message(c.body, c.mtype)
			if err != nil { // a damaged envelope is shown as it lies there
				m, live = driver.Message{Body: c.body}, true
				h.received(&m, c.mtype)
			}
			if !live || o.Match != nil && !o.Match(m.Body) {
				continue
			}
			if skip > 0 {
				skip--
				continue
			}
			if o.NoBody {
				m.Body = nil
			}
			if !yield(m, nil) {
				return
			}
			if left--; left == 0 {
				return
			}
		}
		if err != nil {
			yield(driver.Message{}, err)
		}
	}
}

type copied struct {
	mtype int64
	body  []byte
}

// copyAll returns what sel lets through, in the order of sends.
func (h *handle) copyAll(ctx context.Context, sel selector) (all []copied, err error) {
	for _, t := range heldOnes(h.q.s, sel) {
		all = append(all, copied{t, []byte{}})
	}
	buf := make([]byte, 4096)
	for i := int64(0); ; {
		n, mtype, err := h.q.Receive(ctx, buf, i, NoWait|Copy)
		switch e, _ := err.(*callError); {
		case err == nil:
			if i++; sel.match(mtype) {
				all = append(all, copied{mtype, slices.Clone(buf[:n])})
			}
		case err == errEmpty:
			return all, nil
		case e != nil && e.errno == unix.E2BIG && len(buf) < 1<<30:
			buf = make([]byte, 8*len(buf))
		default:
			return all, err
		}
	}
}
