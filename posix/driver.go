package posix

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
	"github.com/kumquat-mq/kumquat/envelope"
)

// Driver returns the driver of "posix:/name" queues.
//
// What differs from the engine, because the kernel has it so:
//   - Bare bodies and priorities travel, so that C programs interoperate: no metadata, types, filters, delays, expiry, batches,
//     peeking. A message or an option that needs one of them is ErrUnsupported. With Options.Envelope metadata and types travel in
//     an envelope (docs/envelope.md), for which 4,096 bytes of each message are set aside: a queue is made so much longer than
//     MaxSize, and one that takes no longer messages is ErrUnsupported. Bare bodies are received all the same. A damaged envelope is
//     an *envelope.Error with its bytes: the kernel cannot leave the message where it is.
//   - Receiving into a buffer shorter than the queue's MaxSize is ErrUnsupported, even if the message would fit.
//   - Options.MaxMessages and MaxSize of 0 mean fs.mqueue.msg_default and msgsize_default, MaxHandles means nothing, and Overflow
//     Reject holds for the handle it was opened with, since the kernel cannot store it.
//   - Sending and receiving need both read and write permission; an observer needs read permission.
//   - A removed queue lives on for those who have it open, without its name.
//   - Purge takes as many messages as there were when it began, in the order of receiving: while others send, a newer, more urgent
//     message may go in place of an older one.
//   - Notify may give values for nothing while several receive, and a message that another receiver took at once may go untold.
func Driver() driver.Driver { return theDriver{} }

type theDriver struct{}

// handle is a Queue as package driver wants it.
type handle struct {
	q        *Queue
	readOnly bool
	envelope bool
	overflow driver.Overflow
	buffers  sync.Pool // of *[]byte, MaxSize long: the kernel wants that much room whatever comes
}

var (
	_ driver.Queue      = (*handle)(nil)
	_ driver.Purger     = (*handle)(nil)
	_ driver.Notifier   = (*handle)(nil)
	_ driver.Descriptor = (*handle)(nil)
	_ driver.Abler      = (*handle)(nil)
)

// Able says which of the abilities that are not methods there are.
func (h *handle) Able(a driver.Ability) bool {
	switch a {
	case driver.Purging, driver.Notifying, driver.Descriptors, driver.Priorities, driver.Modes:
		return true
	case driver.Metadata:
		return h.envelope
	}
	return false
}

// Open implements driver.Driver.
func (theDriver) Open(_ context.Context, name string, o *driver.Options) (driver.Queue, error) {
	if o == nil {
		o = &driver.Options{}
	}
	if _, err := kernelName(name); err != nil {
		return nil, err
	}
	if err := refuse(o); err != nil {
		return nil, err
	}
	flags, attr, mode := ReadWrite, (*Attr)(nil), fs.FileMode(0)
	if o.ReadOnly {
		flags = ReadOnly
	}
	if o.Create {
		flags |= CreateFlag
		if o.Exclusive {
			flags |= ExclusiveFlag
		}
		attr, mode = shape(o)
	}
	foreign := o.Create && o.Owner != nil && *o.Owner != os.Geteuid()
	if foreign {
		flags &^= CreateFlag | ExclusiveFlag // what this user makes, this user owns: it could only be there already
	}
	q, err := Open(name, flags, mode, attr)
	if foreign && o.Exclusive && (err == nil || errors.Is(err, unix.EACCES)) { // also one that its mode closes to this user is there
		if err == nil {
			_ = q.Close()
		}
		return nil, openError(unix.EEXIST, name, flags, attr)
	}
	if errors.Is(err, driver.ErrNotFound) && foreign {
		return nil, fmt.Errorf("%w: user %d cannot make a queue that user %d owns", driver.ErrPermission, os.Geteuid(), *o.Owner)
	}
	if err != nil {
		return nil, err
	}
	if o.Owner != nil {
		if err := q.ownedBy(*o.Owner); err != nil {
			_ = q.Close()
			return nil, err
		}
	}
	if o.Envelope && q.size <= envelope.Overhead {
		_ = q.Close()
		return nil, fmt.Errorf("%w: the queue takes messages of %d bytes, and an envelope may need %d: make one with a larger MaxSize", driver.ErrUnsupported,
			q.size, envelope.Overhead)
	}
	h := &handle{q: q, readOnly: o.ReadOnly, envelope: o.Envelope, overflow: o.Overflow}
	h.buffers.New = func() any {
		b := make([]byte, q.size)
		return &b
	}
	return h, nil
}

// refuse returns ErrUnsupported for what the kernel has not.
func refuse(o *driver.Options) error {
	no := func(what string) error {
		return fmt.Errorf("%w: POSIX queues have no %s; an engine queue (a name without \"posix:\") has", driver.ErrUnsupported, what)
	}
	switch {
	case o.ReadOnly && o.Create:
		return fmt.Errorf("%w: an observer cannot create a queue", driver.ErrInvalid)
	case !o.Create:
		return nil
	case o.Overflow > driver.Reject:
		return no("overflow policy but Block and Reject")
	case o.Headroom.Percent > 0:
		return no("headroom")
	case o.Durability != driver.Memory:
		return no("durability: they live in the kernel's memory until the machine stops")
	}
	return nil
}

// shape is how a new queue is made.
func shape(o *driver.Options) (*Attr, fs.FileMode) {
	mode := o.Mode
	if mode == 0 {
		mode = 0o600
	}
	if o.MaxMessages == 0 && o.MaxSize == 0 && !o.Envelope {
		return nil, mode
	}
	a := Attr{MaxMessages: o.MaxMessages, MaxSize: o.MaxSize}
	if a.MaxMessages == 0 {
		a.MaxMessages = sysctl("msg_default")
	}
	if a.MaxSize == 0 {
		a.MaxSize = sysctl("msgsize_default")
	}
	if o.Envelope && (o.MaxSize > 0 || a.MaxSize <= envelope.Overhead) {
		a.MaxSize += envelope.Overhead // of a longer default size, the envelope takes its part
	}
	return &a, mode
}

func (q *Queue) ownedBy(uid int) error {
	var st unix.Stat_t
	if err := unix.Fstat(q.fd, &st); err != nil {
		return err
	}
	if int(st.Uid) != uid {
		return fmt.Errorf("%w: the queue belongs to user %d, not %d", driver.ErrPermission, st.Uid, uid)
	}
	return nil
}

// Remove implements driver.Driver.
func (theDriver) Remove(_ context.Context, name string) error { return Unlink(name) }

// List implements driver.Driver. One queue that is named in full needs no mount.
func (theDriver) List(_ context.Context, pattern string) ([]driver.Info, error) {
	if pattern != "" && !strings.ContainsAny(pattern, `*?[\`) {
		if _, err := kernelName(pattern); err != nil {
			return nil, err
		}
		x, err := Stat(pattern)
		switch {
		case errors.Is(err, driver.ErrNotFound):
			return nil, nil
		case errors.Is(err, driver.ErrPermission):
			return []driver.Info{{Name: pattern, Err: err}}, nil
		case err != nil:
			return nil, err
		}
		return []driver.Info{{Name: pattern, Stats: x.stats()}}, nil
	}
	pattern = strings.ReplaceAll(pattern, "**", "*") // there are no folders
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, fmt.Errorf("%w: the pattern %q: %w", driver.ErrInvalid, pattern, err)
	}
	all, err := List()
	if err != nil {
		return nil, err
	}
	var list []driver.Info
	for _, x := range all {
		if ok, _ := path.Match(pattern, x.Name); !ok && pattern != "" {
			continue
		}
		i := driver.Info{Name: x.Name, Stats: x.stats(), Err: x.Err}
		if x.Err != nil {
			i.Stats = driver.Stats{UID: x.UID, GID: x.GID, Mode: x.Mode, Bytes: -1}
		}
		list = append(list, i)
	}
	return list, nil
}

func (x *Info) stats() driver.Stats {
	return driver.Stats{
		Messages: x.Messages, Bytes: x.Bytes, MaxMessages: x.MaxMessages, MaxSize: x.MaxSize, MaxBatch: 1,
		Mode: x.Mode, UID: x.UID, GID: x.GID, LowestPriority: -1, HighestPriority: -1, Removed: x.Unlinked,
		Resident: max(x.Bytes, 0) + int64(x.Messages)*Footprint(1, 1),
	}
}

// mayUse tells what the handle refuses: as with a descriptor, that it is closed comes before what it was opened for, and before what
// is wrong with the message.
func (h *handle) mayUse() error {
	switch {
	case h.q.users.Load() >= closedBit:
		return driver.ErrClosed
	case h.readOnly:
		return errObserver
	}
	return nil
}

// Send implements driver.Queue.
func (h *handle) Send(ctx context.Context, m driver.Message, try bool) error {
	if err := h.mayUse(); err != nil {
		return err
	}
	if h.envelope {
		return h.sendSealed(ctx, &m, try)
	}
	if m.Type > 1 || m.ID != "" || m.Key != "" || m.Group != "" || m.CorrelationID != "" || m.ReplyTo != "" || m.ContentType != "" ||
		len(m.Headers) > 0 || !m.NotBefore.IsZero() || !m.Expires.IsZero() {
		return errBare
	}
	return h.send(ctx, m.Body, m.Priority, try)
}

func (h *handle) send(ctx context.Context, body []byte, priority int, try bool) error {
	if try || h.overflow == driver.Reject {
		return h.q.TrySend(body, priority)
	}
	return h.q.SendContext(ctx, body, priority)
}

func (h *handle) sendSealed(ctx context.Context, m *driver.Message, try bool) error {
	if !m.NotBefore.IsZero() || !m.Expires.IsZero() {
		return errTimes
	}
	if most := h.q.size - envelope.Overhead; len(m.Body) > most {
		return failure(driver.ErrTooLarge, unix.EMSGSIZE, "%d bytes, and beside its envelope the queue takes %d", len(m.Body), most)
	}
	b := h.buffers.Get().(*[]byte)
	defer h.buffers.Put(b)
	sealed, err := envelope.Seal((*b)[:0], m, envelope.HasPriority)
	if err != nil {
		return err
	}
	return h.send(ctx, sealed, m.Priority, try)
}

var (
	errTimes    = fmt.Errorf("%w: a POSIX queue neither delays messages nor drops those that expire", driver.ErrUnsupported)
	errObserver = fmt.Errorf("%w: the handle was opened with ReadOnly, to observe", driver.ErrPermission)
	errBare     = fmt.Errorf("%w: a POSIX queue carries a body and a priority, no type, metadata, delay or expiry", driver.ErrUnsupported)
	errFilter   = fmt.Errorf("%w: a POSIX queue gives out its first message only, no filter can be applied", driver.ErrUnsupported)
)

// Receive implements driver.Queue.
func (h *handle) Receive(ctx context.Context, f driver.Filter, try bool) (driver.Message, error) {
	if err := h.mayUse(); err != nil {
		return driver.Message{}, err
	}
	if !f.Any() {
		return driver.Message{}, errFilter
	}
	b := h.buffers.Get().(*[]byte)
	defer h.buffers.Put(b)
	for range expiredAtOnce {
		var n, priority int
		var err error
		if try {
			n, priority, err = h.q.TryReceive(*b)
		} else {
			n, priority, err = h.q.ReceiveContext(ctx, *b)
		}
		if err != nil {
			return driver.Message{}, err
		}
		if !h.envelope {
			m := driver.Message{Priority: priority, Type: 1, Body: make([]byte, n)}
			copy(m.Body, *b)
			return m, nil
		}
		m, live, err := envelope.Unseal((*b)[:n])
		if err != nil {
			return driver.Message{}, err
		}
		if live {
			m.Priority, m.Type = priority, max(m.Type, 1)
			return m, nil
		}
	}
	return driver.Message{}, fmt.Errorf("%w: nothing but messages that have expired came", driver.ErrCorrupt)
}

// expiredAtOnce bounds what one receive discards. Queues are shorter (65,536 at most), so only somebody who sends expired messages
// without end gets there.
const expiredAtOnce = 1 << 17

// Stat implements driver.Queue.
func (h *handle) Stat(context.Context) (driver.Stats, error) {
	x, err := h.q.Stat()
	if err != nil {
		return driver.Stats{}, err
	}
	s := x.stats()
	s.Overflow = h.overflow
	if h.envelope {
		s.MaxSize -= envelope.Overhead
		s.Bytes = -1 // the kernel counts envelopes and bodies together
	}
	return s, nil
}

// Close implements driver.Queue.
func (h *handle) Close() error { return h.q.Close() }

// FD implements driver.Descriptor.
func (h *handle) FD() (int, error) { return h.q.FD() }

// Notify implements driver.Notifier, without mq_notify: its one registration stays free for others.
func (h *handle) Notify(ctx context.Context) (<-chan struct{}, error) {
	return h.q.watch.subscribe(ctx, h.q)
}

// Purge implements driver.Purger. It never waits, so the context says nothing.
func (h *handle) Purge(_ context.Context, f driver.Filter) (int, error) {
	if err := h.mayUse(); err != nil {
		return 0, err
	}
	if !f.Any() {
		return 0, errFilter
	}
	a, err := h.q.Attr()
	if err != nil {
		return 0, err
	}
	b := h.buffers.Get().(*[]byte)
	defer h.buffers.Put(b)
	for n := range a.Messages {
		if _, _, err := h.q.TryReceive(*b); errors.Is(err, driver.ErrEmpty) {
			return n, nil
		} else if err != nil {
			return n, err
		}
	}
	return a.Messages, nil
}
