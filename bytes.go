package kumquat

import (
	"context"
	"fmt"
)

// SendBytes sends a message with only a body and a priority. On the engine it allocates nothing. On drivers without a path of
// their own for it it is Send.
//
// The errors are those of Send.
func (q *Queue) SendBytes(ctx context.Context, body []byte, priority int) error {
	if ctx == nil {
		return q.fail("send", errNilContext)
	}
	if err := q.sendBytes(ctx, body, priority, false); err != nil {
		return q.fail("send", err)
	}
	return nil
}

// TrySendBytes is SendBytes that never waits: it returns ErrFull.
func (q *Queue) TrySendBytes(body []byte, priority int) error {
	if err := q.sendBytes(context.Background(), body, priority, true); err != nil {
		return q.fail("send", err)
	}
	return nil
}

func (q *Queue) sendBytes(ctx context.Context, body []byte, priority int, try bool) error {
	if uint(priority) > MaxPriority {
		return checkPriority(priority)
	}
	if q.engine != nil {
		return q.engine.SendBytes(ctx, body, priority, try)
	}
	if q.bytes != nil {
		return q.bytes.SendBytes(ctx, body, priority, try)
	}
	return q.d.Send(ctx, Message{Body: body, Priority: priority, Type: 1}, try)
}

// ReceiveInto takes the first message, copies its body into buf and returns its length and priority; what else the message has is
// lost. On the engine it allocates nothing. If the first message is longer than buf, ReceiveInto returns ErrTooLarge and the
// message stays. Drivers without a path of their own for it need a buffer of the queue's MaxSize; a shorter one is ErrUnsupported.
//
// The other errors are those of Receive.
func (q *Queue) ReceiveInto(ctx context.Context, buf []byte) (n, priority int, err error) {
	if ctx == nil {
		return 0, 0, q.fail("receive", errNilContext)
	}
	n, priority, err = q.receiveInto(ctx, buf, false)
	if err != nil {
		return 0, 0, q.fail("receive", err)
	}
	return n, priority, nil
}

// TryReceiveInto is ReceiveInto that never waits: it returns ErrEmpty.
func (q *Queue) TryReceiveInto(buf []byte) (n, priority int, err error) {
	n, priority, err = q.receiveInto(context.Background(), buf, true)
	if err != nil {
		return 0, 0, q.fail("receive", err)
	}
	return n, priority, nil
}

func (q *Queue) receiveInto(ctx context.Context, buf []byte, try bool) (n, priority int, err error) {
	if q.engine != nil {
		return q.engine.ReceiveInto(ctx, buf, try)
	}
	if q.bytes != nil {
		return q.bytes.ReceiveInto(ctx, buf, try)
	}
	// Without a ByteQueue a message cannot be put back, so the buffer must be long enough for any.
	size := q.maxSize.Load()
	if size == 0 {
		s, err := q.d.Stat(ctx)
		if err != nil {
			return 0, 0, err
		}
		size = int64(s.MaxSize)
		q.maxSize.Store(size)
	}
	if size <= 0 || int64(len(buf)) < size {
		return 0, 0, fmt.Errorf("%w: the driver of %q queues needs a buffer for the longest message, %d bytes", ErrUnsupported, q.scheme, size)
	}
	m, err := q.d.Receive(ctx, Filter{}, try)
	if err != nil {
		return 0, 0, err
	}
	if n := len(m.Body); n > len(buf) {
		return 0, 0, fmt.Errorf("%w: a message of %d bytes came, though the queue's longest is %d by its own account; it is lost", ErrTooLarge, n, size)
	}
	return copy(buf, m.Body), m.Priority, nil
}
