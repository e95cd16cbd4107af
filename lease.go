package kumquat

import (
	"context"
	"time"
)

// LeaseOptions says what Lease takes and for how long.
type LeaseOptions struct {
	For    time.Duration // how long the message is this receiver's; 0: 30 s
	Filter Filter
}

// Delivery is a leased message. It is delivered again unless it is acknowledged before the lease ends.
type Delivery struct {
	Message
	q *Queue
}

// Lease takes a message like Receive, but only for a time: it goes back into the queue when the lease ends, or at once when this
// process dies. No driver of this version can do so: Can(Leases) is false and Lease returns ErrUnsupported.
func (q *Queue) Lease(ctx context.Context, o LeaseOptions) (*Delivery, error) {
	const op = "lease"
	if ctx == nil {
		return nil, q.fail(op, errNilContext)
	}
	if o.For < 0 {
		return nil, q.fail(op, invalid("For %v is below 0", o.For))
	}
	if !o.Filter.Valid() {
		_, err := mergeSome([]Filter{o.Filter})
		return nil, q.fail(op, err)
	}
	return nil, q.unsupported(op, Leases)
}

// Ack says that the message is done: it is removed. ErrLeaseLost if the lease had ended.
func (d *Delivery) Ack(context.Context) error { return d.unsupported("ack") }

// Retry gives the message back, to be delivered again after delay. ErrLeaseLost if the lease had ended.
func (d *Delivery) Retry(context.Context, time.Duration) error { return d.unsupported("retry") }

// Dead moves the message to the dead letters, with a reason for people to read. ErrLeaseLost if the lease had ended.
func (d *Delivery) Dead(context.Context, string) error { return d.unsupported("dead") }

// Extend makes the lease end later, more after now. ErrLeaseLost if the lease had ended.
func (d *Delivery) Extend(context.Context, time.Duration) error { return d.unsupported("extend") }

func (d *Delivery) unsupported(op string) error {
	if d.q == nil { // nobody but Lease makes a usable one
		return &Error{Op: op, Err: ErrUnsupported}
	}
	return d.q.unsupported(op, Leases)
}
