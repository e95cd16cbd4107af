package kumquat

import (
	"context"
	"iter"
)

// Stat returns a snapshot of the queue.
//
// Errors: ErrClosed, ErrCorrupt.
func (q *Queue) Stat(ctx context.Context) (Stats, error) {
	const op = "stat"
	if ctx == nil {
		return Stats{}, q.fail(op, errNilContext)
	}
	s, err := q.d.Stat(ctx)
	if err != nil {
		return Stats{}, q.fail(op, err)
	}
	return s, nil
}

// Peek yields messages without taking them, in the order in which they would be received; delayed ones come after those due, by
// their time. It shows one moment as nearly as the driver can: messages that come and go meanwhile may be seen or not. Read
// permission is enough. An error is yielded once, with a zero Message, and ends it; breaking off is free.
func (q *Queue) Peek(ctx context.Context, o PeekOptions) iter.Seq2[Message, error] {
	const op = "peek"
	switch {
	case ctx == nil:
		return failing[Message](q.fail(op, errNilContext))
	case o.Skip < 0 || o.Limit < 0:
		return failing[Message](q.fail(op, invalid("Skip %d or Limit %d is below 0", o.Skip, o.Limit)))
	case q.peek == nil:
		return failing[Message](q.unsupported(op, Peeking))
	}
	f, err := merge([]Filter{o.Filter})
	if err != nil {
		return failing[Message](q.fail(op, err))
	}
	o.Filter = f
	return wrapped(q, op, q.peek.Peek(ctx, o))
}

// Watch yields what happens to the queue until ctx is done or the queue is removed. Messages are counted, not told one by one.
// Read permission is enough. The end of ctx ends it without an error; any other error is yielded once and ends it.
func (q *Queue) Watch(ctx context.Context) iter.Seq2[Event, error] {
	const op = "watch"
	switch {
	case ctx == nil:
		return failing[Event](q.fail(op, errNilContext))
	case q.watch == nil:
		return failing[Event](q.unsupported(op, Watching))
	}
	return wrapped(q, op, q.watch.Watch(ctx))
}

func failing[T any](err error) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		yield(zero, err)
	}
}

func wrapped[T any](q *Queue, op string, s iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for v, err := range s {
			if err != nil {
				var zero T
				yield(zero, q.fail(op, err))
				return
			}
			if !yield(v, nil) {
				return
			}
		}
	}
}

// Notify returns a channel on which a value arrives after the queue went from empty to not empty. Several such changes may be told
// by one value, but after the last one a value is always still to come: drain the queue with TryReceive, then wait for the next
// value, and nothing is missed. A queue that is not empty when Notify is called gives no value for that. Any number of subscribers
// may be there, in any processes. The channel is closed when ctx is done, the handle is closed or the queue removed.
//
// Errors: ErrUnsupported, ErrRemoved, ErrClosed, ErrPermission.
func (q *Queue) Notify(ctx context.Context) (<-chan struct{}, error) {
	const op = "notify"
	if ctx == nil {
		return nil, q.fail(op, errNilContext)
	}
	if q.notify == nil {
		return nil, q.unsupported(op, Notifying)
	}
	c, err := q.notify.Notify(ctx)
	if err != nil {
		return nil, q.fail(op, err)
	}
	return c, nil
}

// FD returns a file descriptor for poll(2), select(2) and epoll(7). It is readable when it is worth trying to receive; it may be so
// for nothing, and is cleared by a TryReceive that finds nothing. So: when it is readable, call TryReceive until ErrEmpty. The
// descriptor belongs to the queue: do not read or close it. Close closes it.
//
// Errors: ErrUnsupported, ErrRemoved, ErrClosed, ErrLimit.
func (q *Queue) FD() (int, error) {
	const op = "fd"
	if q.fd == nil {
		return -1, q.unsupported(op, Descriptors)
	}
	n, err := q.fd.FD()
	if err != nil {
		return -1, q.fail(op, err)
	}
	return n, nil
}

// Who returns those that have the queue open, by their number. Read permission is enough. What they say of themselves is not
// verified.
//
// Errors: ErrUnsupported, ErrClosed, ErrCorrupt.
func (q *Queue) Who(ctx context.Context) ([]Participant, error) {
	const op = "who"
	if ctx == nil {
		return nil, q.fail(op, errNilContext)
	}
	if q.inspect == nil {
		return nil, q.unsupported(op, Inspecting)
	}
	ps, err := q.inspect.Who(ctx)
	if err != nil {
		return nil, q.fail(op, err)
	}
	return ps, nil
}

// Check examines every invariant of the queue and changes nothing. A queue that is unsound is not an error but a Report with
// problems. Read permission is enough.
//
// Errors: ErrUnsupported, ErrClosed, ErrCorrupt (nothing could be examined).
func (q *Queue) Check(ctx context.Context) (Report, error) {
	const op = "check"
	if ctx == nil {
		return Report{}, q.fail(op, errNilContext)
	}
	if q.inspect == nil {
		return Report{}, q.unsupported(op, Inspecting)
	}
	r, err := q.inspect.Check(ctx)
	if err != nil {
		return Report{}, q.fail(op, err)
	}
	if r.Name == "" {
		r.Name = q.name
	}
	return r, nil
}
