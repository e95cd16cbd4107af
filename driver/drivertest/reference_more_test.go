package drivertest

import (
	"context"
	"iter"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

func (h *refHandle) SendBytes(ctx context.Context, body []byte, priority int, try bool) error {
	return h.Send(ctx, driver.Message{Body: body, Priority: priority, Type: 1}, try)
}

func (h *refHandle) ReceiveInto(ctx context.Context, buf []byte, try bool) (n, priority int, err error) {
	ms, err := h.take(ctx, driver.Filter{}, 1, try, func(m *driver.Message) bool { return len(m.Body) <= len(buf) })
	if err != nil {
		return 0, 0, err
	}
	return copy(buf, ms[0].Body), ms[0].Priority, nil
}

func (h *refHandle) hold(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held += n
}

type refReservation struct {
	h    *refHandle
	b    []byte
	over bool
}

func (h *refHandle) Reserve(_ context.Context, size int) (driver.Reservation, error) {
	if size > h.o.MaxSize {
		return nil, driver.ErrTooLarge
	}
	h.hold(1)
	return &refReservation{h: h, b: make([]byte, size)}, nil
}

func (r *refReservation) Bytes() []byte { return r.b }

func (r *refReservation) Commit(ctx context.Context, m driver.Message, try bool) error {
	if r.over {
		return driver.ErrInvalid
	}
	m.Body = r.b
	if err := r.h.Send(ctx, m, try); err != nil {
		return err
	}
	return r.Abort()
}

func (r *refReservation) Abort() error {
	if r.over {
		return driver.ErrInvalid
	}
	r.over = true
	r.h.hold(-1)
	return nil
}

type refLoan struct {
	h    *refHandle
	m    driver.Message
	over bool
}

func (h *refHandle) Borrow(ctx context.Context, f driver.Filter, try bool) (driver.Loan, error) {
	m, err := h.Receive(ctx, f, try)
	if err != nil {
		return nil, err
	}
	h.hold(1)
	return &refLoan{h: h, m: m}, nil
}

func (l *refLoan) Message() driver.Message { return l.m }

func (l *refLoan) Release() error {
	if l.over {
		return driver.ErrInvalid
	}
	l.over = true
	l.h.hold(-1)
	return nil
}

func (h *refHandle) Notify(ctx context.Context) (<-chan struct{}, error) {
	c := make(chan struct{}, 1)
	h.mu.Lock()
	seen := h.edges
	h.mu.Unlock()
	go func() {
		defer close(c)
		for {
			h.mu.Lock()
			if h.usable() != nil {
				h.mu.Unlock()
				return
			}
			if h.edges != seen {
				seen = h.edges
				select {
				case c <- struct{}{}:
				default:
				}
			}
			changed := h.changed
			h.mu.Unlock()
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return c, nil
}

func (h *refHandle) Ready(f driver.Filter, wake func()) (bool, func(), error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.usable(); err != nil {
		return false, func() {}, err
	}
	if len(h.due(f, 1)) > 0 {
		return true, func() {}, nil
	}
	stopped := make(chan struct{}, 1)
	changed := h.changed
	go func() {
		select {
		case <-changed:
			wake()
		case <-stopped:
		}
	}()
	return false, func() {
		select {
		case stopped <- struct{}{}:
		default:
		}
	}, nil
}

func (h *refHandle) FD() (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.usable(); err != nil {
		return -1, err
	}
	if h.efd < 0 {
		n, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			return -1, err
		}
		h.efd = n
		h.change()
	}
	return h.efd, nil
}

func (h *refHandle) Watch(ctx context.Context) iter.Seq2[driver.Event, error] {
	return func(yield func(driver.Event, error) bool) {
		type counts struct{ sent, received, dropped, expired, opened, closed uint64 }
		now := func() counts {
			h.expire()
			return counts{h.s.Sent, h.s.Received, h.s.Dropped, h.s.Expired, h.opened, h.closed}
		}
		h.mu.Lock()
		last := now()
		for {
			n, changed, removed, left := now(), h.changed, h.s.Removed, len(h.ms)
			h.mu.Unlock()
			for _, e := range []driver.Event{
				{Kind: driver.EventSent, N: n.sent - last.sent}, {Kind: driver.EventReceived, N: n.received - last.received},
				{Kind: driver.EventDropped, N: n.dropped - last.dropped}, {Kind: driver.EventExpired, N: n.expired - last.expired},
				{Kind: driver.EventOpened, N: n.opened - last.opened}, {Kind: driver.EventClosed, N: n.closed - last.closed},
			} {
				e.Time, e.Messages = time.Now(), left
				if e.N > 0 && !yield(e, nil) {
					return
				}
			}
			if removed {
				yield(driver.Event{Time: time.Now(), Kind: driver.EventRemoved}, nil)
				return
			}
			last = n
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
			h.mu.Lock()
		}
	}
}

func (h *refHandle) Who(context.Context) (ps []driver.Participant, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for x := range h.handles {
		ps = append(ps, driver.Participant{Number: x.number, PID: os.Getpid(), UID: os.Geteuid(), Alive: true, Command: "test", Sent: x.sent, Received: x.received})
	}
	return ps, nil
}

func (h *refHandle) Check(context.Context) (driver.Report, error) {
	return driver.Report{Checked: 1}, nil
}
