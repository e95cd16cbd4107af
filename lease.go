package kumquat

import (
	"context"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

const defaultLease = 30 * time.Second

// LeaseOptions says what Lease takes and for how long. The zero value leases any message for 30 seconds.
type LeaseOptions struct {
	For    time.Duration // how long the message is this receiver's, rounded up to a millisecond; 0: 30 s
	Filter Filter
}

// Delivery is a leased message. Until it is acknowledged the message takes its place in the queue, and it is delivered again when the
// lease ends: at Until; within 250 ms of the death of this process; or when the handle is closed (then it does not count as failed).
// Message.Attempt says how many deliveries failed before this one: those whose lease ended by its time or by a death, and those ended
// by Retry. A process that was stopped beyond Until has lost the lease: every method returns ErrLeaseLost then and changes nothing.
//
// The methods may be called from any goroutine, but not at the same time. Each of Ack, Retry and Release ends the lease; what is
// called after it returns ErrLeaseLost.
type Delivery struct {
	Message
	q *Queue
	l driver.Lease
}

// Until is when the lease ends (CLOCK_REALTIME).
func (d *Delivery) Until() time.Time { return d.l.Until }

// Lease takes a message like Receive, but only for a time. It waits for one until ctx is done. Errors: those of Receive, and
// ErrUnsupported where Can(Leases) is false.
func (q *Queue) Lease(ctx context.Context, o LeaseOptions) (*Delivery, error) {
	return q.lease(ctx, o, false)
}

// TryLease is Lease that does not wait: ErrEmpty if no message is there.
func (q *Queue) TryLease(ctx context.Context, o LeaseOptions) (*Delivery, error) {
	return q.lease(ctx, o, true)
}

func (q *Queue) lease(ctx context.Context, o LeaseOptions, try bool) (*Delivery, error) {
	const op = "lease"
	if err := q.checkLease(ctx, &o, op); err != nil {
		return nil, err
	}
	l, err := q.leaser.Lease(ctx, o.Filter, o.For, try)
	if err != nil {
		return nil, q.fail(op, err)
	}
	return &Delivery{Message: l.Message, q: q, l: l}, nil
}

// LeaseBatch leases what is there, at most max messages; it waits only for the first. Errors: those of Lease.
func (q *Queue) LeaseBatch(ctx context.Context, max int, o LeaseOptions) ([]*Delivery, error) {
	const op = "lease"
	if err := q.checkLease(ctx, &o, op); err != nil {
		return nil, err
	}
	if max < 1 {
		return nil, q.fail(op, invalid("max %d is below 1", max))
	}
	ls, err := q.leaser.LeaseBatch(ctx, nil, o.Filter, o.For, max, false)
	if err != nil {
		return nil, q.fail(op, err)
	}
	ds := make([]Delivery, len(ls))
	out := make([]*Delivery, len(ls))
	for i := range ls {
		ds[i] = Delivery{Message: ls[i].Message, q: q, l: ls[i]}
		out[i] = &ds[i]
	}
	return out, nil
}

// checkLease refuses bad arguments and fills in the default.
func (q *Queue) checkLease(ctx context.Context, o *LeaseOptions, op string) error {
	switch {
	case ctx == nil:
		return q.fail(op, errNilContext)
	case o.For < 0:
		return q.fail(op, invalid("For %v is below 0", o.For))
	case !o.Filter.Valid():
		_, err := mergeSome([]Filter{o.Filter})
		return q.fail(op, err)
	case q.leaser == nil:
		return q.unsupported(op, Leases)
	}
	if o.For == 0 {
		o.For = defaultLease
	}
	return nil
}

// AckBatch acknowledges ds, all of this queue, in one call. It returns how many were acknowledged, and ErrLeaseLost if some were lost:
// the others are acknowledged nevertheless.
func (q *Queue) AckBatch(ctx context.Context, ds []*Delivery) (int, error) {
	const op = "ack"
	if ctx == nil {
		return 0, q.fail(op, errNilContext)
	}
	ls := make([]driver.Lease, len(ds))
	for i, d := range ds {
		if d == nil || d.q != q {
			return 0, q.fail(op, invalid("delivery %d is not of this queue", i))
		}
		ls[i].Slot, ls[i].Token = d.l.Slot, d.l.Token
	}
	if len(ls) == 0 {
		return 0, nil
	}
	n, err := q.leaser.AckBatch(ctx, ls)
	if err != nil {
		err = q.fail(op, err)
	}
	return n, err
}

// do calls f, one of the driver's, with the delivery's lease.
func (d *Delivery) do(ctx context.Context, op string, f func(driver.Leaser) error) error {
	if d.q == nil { // nobody but Lease makes a usable one
		return &Error{Op: op, Err: ErrUnsupported}
	}
	if ctx == nil {
		return d.q.fail(op, errNilContext)
	}
	if err := f(d.q.leaser); err != nil {
		return d.q.fail(op, err)
	}
	return nil
}

// Ack says that the message is done: it is removed. ErrLeaseLost if the lease had ended.
func (d *Delivery) Ack(ctx context.Context) error {
	return d.do(ctx, "ack", func(x driver.Leaser) error { return x.Ack(ctx, &d.l) })
}

// Retry gives the message back as one whose delivery failed, to be delivered again after delay (≥ 0), at the place of its send.
// ErrLeaseLost if the lease had ended.
func (d *Delivery) Retry(ctx context.Context, delay time.Duration) error {
	if delay < 0 && d.q != nil {
		return d.q.fail("retry", invalid("delay %v is below 0", delay))
	}
	return d.do(ctx, "retry", func(x driver.Leaser) error { return x.Retry(ctx, &d.l, delay) })
}

// Release gives the message back at once, as if it had not been delivered: Attempt stays what it is. ErrLeaseLost if the lease had
// ended.
func (d *Delivery) Release(ctx context.Context) error {
	return d.do(ctx, "release", func(x driver.Leaser) error { return x.Release(ctx, &d.l) })
}

// Extend makes the lease end at more (> 0) from now, be it earlier or later than before. ErrLeaseLost if the lease had ended.
func (d *Delivery) Extend(ctx context.Context, more time.Duration) error {
	if more <= 0 && d.q != nil {
		return d.q.fail("extend", invalid("more %v is not above 0", more))
	}
	return d.do(ctx, "extend", func(x driver.Leaser) error { return x.Extend(ctx, &d.l, more) })
}

// Dead moves the message to the dead letters, with a reason for people to read. No driver of this version can do so: ErrUnsupported.
func (d *Delivery) Dead(context.Context, string) error {
	if d.q == nil {
		return &Error{Op: "dead", Err: ErrUnsupported}
	}
	return d.q.unsupported("dead", Leases)
}
