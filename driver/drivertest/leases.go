package drivertest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat"
)

// leaseQueue creates a queue, or checks that a driver without leases says so.
func (s *suite) leaseQueue(t *testing.T, o kumquat.Options) *kumquat.Queue {
	t.Helper()
	q := s.queue(t, o)
	if !q.Can(kumquat.Leases) {
		_, err := q.TryLease(waiting(t), kumquat.LeaseOptions{})
		want(t, err, kumquat.ErrUnsupported)
		_, err = q.LeaseBatch(waiting(t), 1, kumquat.LeaseOptions{})
		want(t, err, kumquat.ErrUnsupported)
		t.Skip("the driver has no leases")
	}
	return q
}

func lease(t testing.TB, q *kumquat.Queue, o kumquat.LeaseOptions, body string, attempt int) *kumquat.Delivery {
	t.Helper()
	d, err := q.TryLease(waiting(t), o)
	if err != nil {
		t.Fatalf("lease %q: %v", body, err)
	}
	if string(d.Body) != body || d.Attempt != attempt {
		t.Fatalf("leased %q, attempt %d, want %q, %d", d.Body, d.Attempt, body, attempt)
	}
	return d
}

// A leased message is nobody else's until it is given back, then it stands where it stood; what is acknowledged is gone. Only
// failures count.
func leases(s *suite, t *testing.T) {
	q := s.leaseQueue(t, kumquat.Options{MaxMessages: 10})
	p := s.again(t, q)
	ctx := waiting(t)
	o := kumquat.LeaseOptions{For: time.Hour}
	send(t, q, s.text("a", 1), s.text("b", 1), s.text("c", 2))
	c := lease(t, q, o, s.letters("c", "a"), 0)
	a := lease(t, p, o, s.letters("a", "b"), 0)
	b := lease(t, q, o, s.letters("b", "c"), 0)
	empty(t, p, kumquat.Filter{})
	_, err := p.TryLease(ctx, o)
	want(t, err, kumquat.ErrEmpty)
	if st := stat(t, q); st.Messages != 3 || st.Leased != 3 {
		t.Errorf("%d messages, %d leased, want 3 and 3", st.Messages, st.Leased)
	}
	if until := time.Until(c.Until()); until < 59*time.Minute || until > 61*time.Minute {
		t.Errorf("a lease of an hour ends in %v", until)
	}

	want(t, b.Release(ctx), nil) // given back in the wrong order
	want(t, c.Retry(ctx, 0), nil)
	want(t, a.Release(ctx), nil)
	for _, d := range []*kumquat.Delivery{a, b, c} { // it is over
		want(t, d.Ack(ctx), kumquat.ErrLeaseLost)
		want(t, d.Retry(ctx, 0), kumquat.ErrLeaseLost)
		want(t, d.Release(ctx), kumquat.ErrLeaseLost)
		want(t, d.Extend(ctx, time.Hour), kumquat.ErrLeaseLost)
	}
	c2 := lease(t, q, o, string(c.Body), 1)
	want(t, c.Ack(ctx), kumquat.ErrLeaseLost) // another lease of the same message by the same handle
	want(t, c2.Ack(ctx), nil)
	want(t, c2.Ack(ctx), kumquat.ErrLeaseLost)
	if m, err := p.TryReceive(); err != nil || string(m.Body) != string(a.Body) || m.Attempt != 0 {
		t.Errorf("received %q, attempt %d, %v", m.Body, m.Attempt, err)
	}
	for i := range 3 {
		want(t, lease(t, q, o, string(b.Body), i).Retry(ctx, 0), nil)
	}
	want(t, lease(t, p, o, string(b.Body), 3).Ack(ctx), nil)
	if st := stat(t, q); st.Messages != 0 || st.Leased != 0 {
		t.Errorf("%d messages, %d leased, want none", st.Messages, st.Leased)
	}
	// A new message in the place of an old one has failed never.
	send(t, q, s.text("d", 1))
	want(t, lease(t, q, o, "d", 0).Ack(ctx), nil)
	_, err = q.TryLease(ctx, kumquat.LeaseOptions{For: -1})
	want(t, err, kumquat.ErrInvalid)
	_, err = q.LeaseBatch(ctx, 0, o)
	want(t, err, kumquat.ErrInvalid)
}

// A lease ends by its time, and then counts as failed; Extend makes it end later, or earlier. Retry delays.
func leaseTimes(s *suite, t *testing.T) {
	q := s.leaseQueue(t, kumquat.Options{MaxMessages: 10})
	p := s.again(t, q)
	ctx := waiting(t)
	send(t, q, s.text("a", 1))
	first := lease(t, q, kumquat.LeaseOptions{For: 30 * time.Millisecond}, "a", 0)
	m, err := p.Receive(ctx) // blocked until the lease is over
	if now := time.Now(); err != nil || string(m.Body) != "a" || m.Attempt != 1 || now.Before(first.Until()) {
		t.Fatalf("received %q, attempt %d, %v, %v before the end", m.Body, m.Attempt, err, first.Until().Sub(now))
	}
	want(t, first.Ack(ctx), kumquat.ErrLeaseLost)

	send(t, q, s.text("b", 1))
	d := lease(t, q, kumquat.LeaseOptions{For: 10 * time.Second}, "b", 0)
	want(t, d.Extend(ctx, time.Hour), nil)
	if time.Until(d.Until()) < 59*time.Minute {
		t.Errorf("extended by an hour, it ends in %v", time.Until(d.Until()))
	}
	c := receiveLater(ctx, p)
	s.blocked(t, q, 1, 0)
	pending(t, c)
	want(t, d.Extend(ctx, 20*time.Millisecond), nil)
	if r := get(t, c); r.err != nil || string(r.m.Body) != "b" || r.m.Attempt != 1 || time.Now().Before(d.Until()) {
		t.Fatalf("received %q, attempt %d, %v", r.m.Body, r.m.Attempt, r.err)
	}
	want(t, d.Extend(ctx, time.Hour), kumquat.ErrLeaseLost)

	send(t, q, s.text("c", 1), s.text("d", 1))
	d = lease(t, q, kumquat.LeaseOptions{}, "c", 0)
	at := time.Now().Add(50 * time.Millisecond)
	want(t, d.Retry(ctx, 50*time.Millisecond), nil)
	if st := stat(t, q); st.Messages != 2 || st.Delayed != 1 {
		t.Errorf("%d messages, %d delayed, want 2 and 1", st.Messages, st.Delayed)
	}
	want(t, lease(t, q, kumquat.LeaseOptions{}, "d", 0).Ack(ctx), nil)
	l, err := p.Lease(ctx, kumquat.LeaseOptions{})
	if err != nil || string(l.Body) != "c" || l.Attempt != 1 || time.Now().Before(at) {
		t.Fatalf("leased %v, %v", l, err)
	}
	want(t, l.Ack(ctx), nil)
}

// Whoever waits for a message gets what comes back, at once.
func leaseWakes(s *suite, t *testing.T) {
	q := s.leaseQueue(t, kumquat.Options{MaxMessages: 10})
	p := s.again(t, q)
	ctx := waiting(t)
	send(t, q, s.text("a", 1))
	for i, back := range []func(*kumquat.Delivery) error{
		func(d *kumquat.Delivery) error { return d.Release(ctx) },
		func(d *kumquat.Delivery) error { return d.Retry(ctx, 0) },
		func(d *kumquat.Delivery) error { return d.Retry(ctx, 20*time.Millisecond) },
	} {
		d, err := q.TryLease(ctx, kumquat.LeaseOptions{For: time.Hour})
		want(t, err, nil)
		c := make(chan error, 1)
		go func() {
			l, err := p.Lease(ctx, kumquat.LeaseOptions{For: time.Hour})
			if err == nil {
				err = l.Release(ctx)
			}
			c <- err
		}()
		s.blocked(t, q, 1, 0)
		began := time.Now()
		want(t, back(d), nil)
		want(t, get(t, c), nil)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("case %d: who waited was woken after %v", i, took)
		}
	}
	// One that waits with a filter, and one that is told that the queue is no longer empty.
	d, err := q.TryLease(ctx, kumquat.LeaseOptions{For: time.Hour})
	want(t, err, nil)
	c := receiveLater(ctx, p, kumquat.Type(1))
	s.blocked(t, q, 1, 0)
	want(t, d.Release(ctx), nil)
	if r := get(t, c); r.err != nil || string(r.m.Body) != "a" {
		t.Fatalf("received %q, %v", r.m.Body, r.err)
	}
}

// Leased messages take their room until they are acknowledged; then a blocked sender goes on.
func leaseCapacity(s *suite, t *testing.T) {
	q := s.leaseQueue(t, kumquat.Options{MaxMessages: 3})
	p := s.again(t, q)
	ctx := waiting(t)
	n := stat(t, q).MaxMessages
	for range 3 {
		for i := range n {
			send(t, q, s.text(fmt.Sprint(i), 1))
		}
		var ds []*kumquat.Delivery
		for i := range n {
			ds = append(ds, lease(t, q, kumquat.LeaseOptions{}, fmt.Sprint(i), 0))
			want(t, p.TrySend(s.text("x", 1)), kumquat.ErrFull)
		}
		c := sendLater(ctx, p, s.text("y", 1))
		s.blocked(t, q, 0, 1)
		pending(t, c)
		want(t, ds[n-1].Ack(ctx), nil)
		want(t, get(t, c).err, nil)
		want(t, p.TrySend(s.text("x", 1)), kumquat.ErrFull)
		for _, d := range ds[:n-1] {
			want(t, d.Ack(ctx), nil)
		}
		for range n - 1 {
			send(t, p, s.text("z", 1))
		}
		want(t, p.TrySend(s.text("x", 1)), kumquat.ErrFull)
		if st := stat(t, q); st.Messages != n || st.Leased != 0 {
			t.Errorf("%d messages, %d leased, want %d and 0", st.Messages, st.Leased, n)
		}
		takes(t, q, kumquat.Filter{}, append([]string{"y"}, repeat("z", n-1)...)...)
	}
}

func repeat(s string, n int) (out []string) {
	for range n {
		out = append(out, s)
	}
	return out
}

// Batches: what is there, in order; acknowledged at once, with the lost ones told.
func leaseBatches(s *suite, t *testing.T) {
	q := s.leaseQueue(t, kumquat.Options{MaxMessages: 300})
	ctx := waiting(t)
	n := min(stat(t, q).MaxMessages, 150)
	for round := range 3 {
		for i := range n {
			send(t, q, s.text(fmt.Sprint(i), 1))
		}
		ds, err := q.LeaseBatch(ctx, n+10, kumquat.LeaseOptions{For: time.Hour})
		if err != nil || len(ds) != n {
			t.Fatalf("%d leased, %v, want %d", len(ds), err, n)
		}
		for i, d := range ds {
			if string(d.Body) != fmt.Sprint(i) {
				t.Fatalf("delivery %d is %q", i, d.Body)
			}
		}
		empty(t, q, kumquat.Filter{})
		want(t, ds[3%n].Release(ctx), nil)
		k, err := q.AckBatch(ctx, ds)
		want(t, err, kumquat.ErrLeaseLost)
		if k != n-1 {
			t.Errorf("%d acknowledged, want %d", k, n-1)
		}
		takes(t, q, kumquat.Filter{}, fmt.Sprint(3%n))
		if st := stat(t, q); st.Messages != 0 {
			t.Errorf("round %d: %d messages are left", round, st.Messages)
		}
	}
	k, err := q.AckBatch(ctx, nil)
	if k != 0 || err != nil {
		t.Errorf("no deliveries: %d, %v", k, err)
	}
	// It waits for the first only.
	c := make(chan int, 1)
	go func() {
		ds, _ := q.LeaseBatch(ctx, 10, kumquat.LeaseOptions{})
		c <- len(ds)
	}()
	s.blocked(t, q, 1, 0)
	send(t, q, s.text("late", 1))
	if n := get(t, c); n != 1 {
		t.Errorf("%d leased, want 1", n)
	}
}

// Leases by filter. What was leased and given back is found again by whoever filters, at its time and only then.
func leaseFilters(s *suite, t *testing.T) {
	q := s.leaseQueue(t, kumquat.Options{MaxMessages: 10})
	ctx := waiting(t)
	two := kumquat.LeaseOptions{For: time.Hour, Filter: kumquat.Type(2)}
	for i, typ := range []int64{1, 2, 2, 1} {
		send(t, q, kumquat.Message{Body: []byte(fmt.Sprint(i)), Type: typ})
	}
	first, second := lease(t, q, two, "1", 0), lease(t, q, two, "2", 0)
	_, err := q.TryLease(ctx, two)
	want(t, err, kumquat.ErrEmpty)
	want(t, second.Release(ctx), nil)
	want(t, first.Retry(ctx, 0), nil)
	first = lease(t, q, two, "1", 1)
	want(t, first.Retry(ctx, 30*time.Millisecond), nil)
	second = lease(t, q, two, "2", 0)
	want(t, second.Retry(ctx, time.Hour), nil)
	empty(t, q, kumquat.Type(2))
	d, err := q.Lease(ctx, two)
	if err != nil || string(d.Body) != "1" || d.Attempt != 2 {
		t.Fatalf("%v, %v", d, err)
	}
	want(t, d.Ack(ctx), nil)
	empty(t, q, kumquat.Type(2))
	takes(t, q, kumquat.Filter{}, "0", "3")
	if st := stat(t, q); st.Messages != 1 || st.Delayed != 1 {
		t.Errorf("%d messages, %d delayed, want 1 and 1", st.Messages, st.Delayed)
	}
	n, err := q.Purge(ctx)
	if n != 1 || err != nil {
		t.Errorf("purged %d, %v", n, err)
	}
}

// A handle that is closed gives back what it has leased, and that is no failure. Its deliveries are lost.
func leaseHandles(s *suite, t *testing.T) {
	q := s.leaseQueue(t, kumquat.Options{MaxMessages: 10})
	ctx := waiting(t)
	for range 3 {
		send(t, q, s.text("a", 1), s.text("b", 1))
		p := s.again(t, q)
		d := lease(t, p, kumquat.LeaseOptions{}, "a", 0)
		lease(t, p, kumquat.LeaseOptions{}, "b", 0)
		c := receiveLater(ctx, q)
		s.blocked(t, q, 1, 0)
		want(t, p.Close(), nil)
		if err := d.Ack(ctx); !errors.Is(err, kumquat.ErrClosed) {
			t.Errorf("acknowledged by a closed handle: %v", err)
		}
		if r := get(t, c); r.err != nil || string(r.m.Body) != "a" || r.m.Attempt != 0 {
			t.Fatalf("received %q, attempt %d, %v", r.m.Body, r.m.Attempt, r.err)
		}
		takes(t, q, kumquat.Filter{}, "b")
	}
	// A delivery outlives the context that it was asked for with.
	send(t, q, s.text("c", 1))
	short, cancel := context.WithCancel(ctx)
	d, err := q.Lease(short, kumquat.LeaseOptions{})
	want(t, err, nil)
	cancel()
	want(t, d.Ack(short), nil)
}
