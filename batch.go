package kumquat

import (
	"context"
	"errors"
	"sync"
)

// MaxBatch is the largest batch that SendBatch takes, 1 or more; 1 if the driver has no batches.
func (q *Queue) MaxBatch() int {
	if q.batch == nil {
		return 1
	}
	return q.batch.MaxBatch()
}

// SendBatch sends all of ms, with neighbouring places in the order of sends, or none of them. It waits as Send does until there is
// room for all. An empty batch does nothing. More than MaxBatch messages are ErrTooLarge; otherwise the errors are those of Send,
// and ErrUnsupported.
func (q *Queue) SendBatch(ctx context.Context, ms []Message) error {
	if ctx == nil {
		return q.fail("send batch", errNilContext)
	}
	return q.sendBatch(ctx, ms, false)
}

// TrySendBatch is SendBatch that never waits: it returns ErrFull and has sent nothing.
func (q *Queue) TrySendBatch(ms []Message) error {
	return q.sendBatch(context.Background(), ms, true)
}

func (q *Queue) sendBatch(ctx context.Context, ms []Message, try bool) error {
	const op = "send batch"
	untyped := false
	for i := range ms {
		if ms[i].Type < 0 {
			return q.fail(op, invalid("message %d: type %d is below 1", i, ms[i].Type))
		}
		if uint(ms[i].Priority) > MaxPriority {
			return q.fail(op, invalid("message %d: priority %d is not from 0 to %d", i, ms[i].Priority, MaxPriority))
		}
		untyped = untyped || ms[i].Type == 0
	}
	if len(ms) == 0 {
		return nil
	}
	if q.batch == nil {
		return q.unsupported(op, Batches)
	}
	if untyped {
		// The caller's slice stays as it is: another goroutine may be sending it too.
		p := typed.Get().(*[]Message)
		defer func() {
			clear(*p) // keep no bodies alive
			typed.Put(p)
		}()
		*p = append((*p)[:0], ms...)
		ms = *p
		for i := range ms {
			if ms[i].Type == 0 {
				ms[i].Type = 1
			}
		}
	}
	if err := q.batch.SendBatch(ctx, ms, try); err != nil {
		return q.fail(op, err)
	}
	return nil
}

// typed has scratch copies of batches whose types were filled in.
var typed = sync.Pool{New: func() any { return new([]Message) }}

// ReceiveBatch takes at most max messages that match all filters, as many as are there, in the order in which Receive would take
// them. It waits only for the first. It returns messages or an error, never both. A max of 0 does nothing. On drivers without
// batches it is a Receive followed by TryReceives.
//
// The errors are those of Receive.
func (q *Queue) ReceiveBatch(ctx context.Context, max int, filters ...Filter) ([]Message, error) {
	if ctx == nil {
		return nil, q.fail("receive batch", errNilContext)
	}
	return q.receiveBatch(ctx, max, filters, false)
}

// TryReceiveBatch is ReceiveBatch that never waits: it returns ErrEmpty.
func (q *Queue) TryReceiveBatch(max int, filters ...Filter) ([]Message, error) {
	return q.receiveBatch(context.Background(), max, filters, true)
}

// ReceiveBatchInto is ReceiveBatch into ms, at most len(ms) messages; it returns how many. What ms[:n] was is overwritten, its Bodies
// included: where they are long enough, nothing is allocated on the engine. An empty ms does nothing.
func (q *Queue) ReceiveBatchInto(ctx context.Context, ms []Message, filters ...Filter) (n int, err error) {
	const op = "receive batch"
	if ctx == nil {
		return 0, q.fail(op, errNilContext)
	}
	if len(ms) == 0 {
		return 0, nil
	}
	if q.engine == nil {
		got, err := q.receiveBatch(ctx, len(ms), filters, false)
		return copy(ms, got), err
	}
	f, err := merge(filters)
	if err != nil {
		return 0, q.fail(op, err)
	}
	if n, err = q.engine.ReceiveBatchInto(ctx, ms, f, false); n == 0 && err != nil {
		return 0, q.fail(op, err)
	}
	return n, nil
}

func (q *Queue) receiveBatch(ctx context.Context, max int, filters []Filter, try bool) ([]Message, error) {
	const op = "receive batch"
	f, err := merge(filters)
	if err != nil {
		return nil, q.fail(op, err)
	}
	if max < 0 {
		return nil, q.fail(op, invalid("max %d is below 0", max))
	}
	if max == 0 {
		return nil, nil
	}
	var ms []Message
	if q.batch != nil {
		ms, err = q.batch.ReceiveBatch(ctx, nil, f, max, try)
	} else {
		if late := q.late.Swap(nil); late != nil {
			return nil, q.fail(op, *late)
		}
		for len(ms) < max && err == nil {
			var m Message
			if m, err = q.d.Receive(ctx, f, try || len(ms) > 0); err == nil {
				ms = append(ms, m)
			}
		}
		if len(ms) > 0 && err != nil && !errors.Is(err, ErrEmpty) {
			q.late.Store(&err) // it may tell of a message that is gone, as a damaged envelope does: it comes with the next call
		}
	}
	if len(ms) == 0 && err != nil {
		return nil, q.fail(op, err)
	}
	return ms, nil // what stopped a batch that is not empty comes back on the next call
}
