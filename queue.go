package kumquat

import (
	"context"
	"iter"
	"sync/atomic"

	"github.com/kumquat-mq/kumquat/driver"
)

// Queue is an open queue. Open makes one; the zero value is not usable. Its methods may be called from many goroutines at once.
type Queue struct {
	// engine is d if the queue is one of the engine, else nil. Calls on it are static: the compiler sees what happens to the
	// arguments, and nothing moves to the heap.
	engine *engineQueue
	d      driver.Queue
	abilities
	name    string
	scheme  string
	maxSize atomic.Int64          // what Stat said, for ReceiveInto without a ByteQueue; 0: not asked yet
	late    atomic.Pointer[error] // what ended the last batch that was not empty, on drivers without batches
	closed  chan struct{}         // closed by Close, for those who wait on a descriptor
}

func newQueue(d driver.Queue, a address) *Queue {
	q := &Queue{d: d, name: a.prefix + a.name, scheme: a.scheme, closed: make(chan struct{})}
	q.engine, _ = d.(*engineQueue)
	q.abilities = findAbilities(d)
	return q
}

// Name returns the queue's name as Open takes it.
func (q *Queue) Name() string { return q.name }

// Close gives the handle back; the queue and its messages stay. Blocked calls return ErrClosed, and so does every later call but
// Name and Can. While a reservation or a loan is open Close fails and does nothing.
func (q *Queue) Close() error {
	if err := q.d.Close(); err != nil {
		return q.fail("close", err)
	}
	close(q.closed) // once only: the driver answers ErrClosed to a second Close
	return nil
}

// Send puts m into the queue. If the queue is full it waits until ctx is done (Overflow Block), or returns ErrFull, or makes room,
// as the queue's Overflow says. The queue keeps nothing of m. The fields that the queue sets are ignored, and a Type of 0 means 1.
//
// Errors: ErrInvalid, ErrFull, ErrTooLarge, ErrTimeout, ErrRemoved, ErrClosed, ErrNoSpace, ErrCorrupt, ErrPermission,
// ErrUnsupported (metadata that the driver cannot carry), context.Canceled.
func (q *Queue) Send(ctx context.Context, m Message) error {
	if ctx == nil {
		return q.fail("send", errNilContext)
	}
	if err := q.send(ctx, &m, false); err != nil {
		return q.fail("send", err)
	}
	return nil
}

// TrySend is Send that never waits: it returns ErrFull.
func (q *Queue) TrySend(m Message) error {
	if err := q.send(context.Background(), &m, true); err != nil {
		return q.fail("send", err)
	}
	return nil
}

func (q *Queue) send(ctx context.Context, m *Message, try bool) error {
	if err := checkMessage(m); err != nil {
		return err
	}
	if q.engine != nil {
		return q.engine.SendMessage(ctx, m, try) // by its address: a Message is too large to be copied for every layer
	}
	return q.d.Send(ctx, *m, try)
}

// Receive takes the first message that matches all filters: the highest priority, then the one sent first. It waits for one until
// ctx is done. The message is the caller's.
//
// Errors: ErrInvalid, ErrTimeout, ErrRemoved, ErrClosed, ErrCorrupt, ErrPermission, ErrUnsupported (a filter that the driver does
// not have), context.Canceled.
func (q *Queue) Receive(ctx context.Context, filters ...Filter) (m Message, err error) {
	if ctx == nil {
		return m, q.fail("receive", errNilContext)
	}
	if err = q.receive(ctx, filters, false, &m); err != nil {
		return Message{}, q.fail("receive", err)
	}
	return m, nil
}

// TryReceive is Receive that never waits: it returns ErrEmpty.
func (q *Queue) TryReceive(filters ...Filter) (m Message, err error) {
	if err = q.receive(context.Background(), filters, true, &m); err != nil {
		return Message{}, q.fail("receive", err)
	}
	return m, nil
}

// receive fills *m, which is zero.
func (q *Queue) receive(ctx context.Context, filters []Filter, try bool, m *Message) error {
	if len(filters) == 0 && q.engine != nil {
		return q.engine.ReceiveMessage(ctx, nil, try, m)
	}
	f, err := merge(filters)
	if err != nil {
		return err
	}
	if q.engine != nil {
		return q.engine.ReceiveMessage(ctx, &f, try, m)
	}
	got, err := q.d.Receive(ctx, f, try)
	if err == nil {
		*m = got
	}
	return err
}

// Messages receives for ever: each step of the loop waits for a message as Receive does and takes it. When a receive fails, be it
// that ctx is done, the iterator yields that error once, with a zero Message, and ends. A loop that is left by break has taken only
// the messages that it saw.
func (q *Queue) Messages(ctx context.Context, filters ...Filter) iter.Seq2[Message, error] {
	return func(yield func(Message, error) bool) {
		for {
			m, err := q.Receive(ctx, filters...)
			if !yield(m, err) || err != nil {
				return
			}
		}
	}
}

// Purge removes the messages that were sent before it began and match all filters, delayed ones included, and returns their number.
// Those are counted as dropped.
//
// Errors: ErrUnsupported, ErrInvalid, ErrRemoved, ErrClosed, ErrCorrupt, ErrPermission.
func (q *Queue) Purge(ctx context.Context, filters ...Filter) (int, error) {
	const op = "purge"
	if ctx == nil {
		return 0, q.fail(op, errNilContext)
	}
	f, err := merge(filters)
	if err != nil {
		return 0, q.fail(op, err)
	}
	if q.purge == nil {
		return 0, q.unsupported(op, Purging)
	}
	n, err := q.purge.Purge(ctx, f)
	if err != nil {
		return n, q.fail(op, err)
	}
	return n, nil
}
