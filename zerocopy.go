package kumquat

import (
	"context"

	"github.com/kumquat-mq/kumquat/driver"
)

// Reservation is a buffer inside a queue, to write a message in place. It belongs to one goroutine. It ends by a Commit that
// succeeds or by Abort; until then the queue cannot be closed.
type Reservation struct {
	r driver.Reservation
	q *Queue
}

// Reserve returns a buffer of size bytes inside the queue, from 0 to the queue's MaxSize. It takes no capacity until it is
// committed, but each handle can hold only some: it waits until ctx is done for one of them to end. The buffer's content is
// undefined.
//
// Errors: ErrUnsupported, ErrInvalid, ErrTooLarge, ErrLimit, ErrTimeout, ErrRemoved, ErrClosed, ErrNoSpace, ErrCorrupt,
// ErrPermission, context.Canceled.
func (q *Queue) Reserve(ctx context.Context, size int) (*Reservation, error) {
	const op = "reserve"
	if ctx == nil {
		return nil, q.fail(op, errNilContext)
	}
	if size < 0 {
		return nil, q.fail(op, invalid("size %d is below 0", size))
	}
	if q.reserve == nil {
		return nil, q.unsupported(op, ZeroCopy)
	}
	r, err := q.reserve.Reserve(ctx, size)
	if err != nil {
		return nil, q.fail(op, err)
	}
	return &Reservation{r, q}, nil
}

// Bytes is the buffer. It must not be used after the reservation has ended.
func (r *Reservation) Bytes() []byte { return r.r.Bytes() }

// Commit sends the buffer as the body of m, as Send does; m.Body is ignored. If it fails the reservation goes on: Commit may be
// tried again, or Abort called. After the end of the reservation it is ErrInvalid.
func (r *Reservation) Commit(ctx context.Context, m Message) error {
	if ctx == nil {
		return r.q.fail("commit", errNilContext)
	}
	return r.commit(ctx, m, false)
}

// TryCommit is Commit that never waits: it returns ErrFull.
func (r *Reservation) TryCommit(m Message) error { return r.commit(context.Background(), m, true) }

func (r *Reservation) commit(ctx context.Context, m Message, try bool) error {
	err := checkMessage(&m)
	if err == nil {
		err = r.r.Commit(ctx, m, try)
	}
	if err != nil {
		return r.q.fail("commit", err)
	}
	return nil
}

// Abort ends the reservation without sending. After the end of the reservation it is ErrInvalid.
func (r *Reservation) Abort() error {
	if err := r.r.Abort(); err != nil {
		return r.q.fail("abort", err)
	}
	return nil
}

// Loan is a message that was taken from a queue but is still read in place. It belongs to one goroutine. Until Release the queue
// cannot be closed.
type Loan struct {
	l driver.Loan
	q *Queue
}

// Borrow takes a message like Receive, without copying its body. The message is taken: if this process dies, it is gone.
//
// Errors: ErrUnsupported, ErrLimit (too many loans of this handle are open), and those of Receive.
func (q *Queue) Borrow(ctx context.Context, filters ...Filter) (*Loan, error) {
	if ctx == nil {
		return nil, q.fail("borrow", errNilContext)
	}
	return q.lend(ctx, filters, false)
}

// TryBorrow is Borrow that never waits: it returns ErrEmpty.
func (q *Queue) TryBorrow(filters ...Filter) (*Loan, error) {
	return q.lend(context.Background(), filters, true)
}

func (q *Queue) lend(ctx context.Context, filters []Filter, try bool) (*Loan, error) {
	const op = "borrow"
	f, err := merge(filters)
	if err != nil {
		return nil, q.fail(op, err)
	}
	if q.borrow == nil {
		return nil, q.unsupported(op, ZeroCopy)
	}
	l, err := q.borrow.Borrow(ctx, f, try)
	if err != nil {
		return nil, q.fail(op, err)
	}
	return &Loan{l, q}, nil
}

// Message returns the message. Its Body must not be changed, nor used after Release; the other fields are the caller's.
func (l *Loan) Message() Message { return l.l.Message() }

// Release gives the message's place back. A second Release is ErrInvalid.
func (l *Loan) Release() error {
	if err := l.l.Release(); err != nil {
		return l.q.fail("release", err)
	}
	return nil
}
