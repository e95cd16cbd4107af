package drivertest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat"
)

// The Try calls never wait, and say which of the two states they met.
func try(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 1})
	empty(t, q, kumquat.Filter{})
	send(t, q, s.text("a", 0))
	want(t, q.TrySend(s.text("b", 9)), kumquat.ErrFull)
	takes(t, q, kumquat.Filter{}, "a")
	empty(t, q, kumquat.Filter{})
}

// A context bounds waiting only: what need not wait succeeds under a context that is done, as POSIX.1-2024 has it for mq_timedsend.
func doneContexts(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 1})
	past, cancel := context.WithDeadline(context.Background(), time.Now().Add(-time.Hour))
	defer cancel()
	cancelled, cancel2 := context.WithCancel(context.Background())
	cancel2()
	for _, c := range []struct {
		ctx  context.Context
		errs []error
	}{
		{past, []error{kumquat.ErrTimeout, context.DeadlineExceeded}},
		{cancelled, []error{context.Canceled}},
	} {
		for _, e := range c.errs {
			_, err := q.Receive(c.ctx)
			want(t, err, e)
			want(t, q.Send(c.ctx, s.text("a", 0)), nil)
			want(t, q.Send(c.ctx, s.text("b", 0)), e)
			m, err := q.Receive(c.ctx)
			want(t, err, nil)
			if string(m.Body) != "a" {
				t.Fatalf("got %q", m.Body)
			}
			if s.can(kumquat.Purging) {
				want(t, q.Send(c.ctx, s.text("c", 0)), nil)
				if n, err := q.Purge(c.ctx); err != nil || n != 1 {
					t.Fatalf("purge removed %d, %v", n, err)
				}
			}
		}
	}
}

// A deadline that passes while a call waits ends it with ErrTimeout, not earlier, and nothing was sent or taken.
func deadlines(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 1})
	for _, d := range []time.Duration{time.Millisecond, 60 * time.Millisecond} {
		begin := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), d)
		_, err := q.Receive(ctx)
		want(t, err, kumquat.ErrTimeout)
		if since := time.Since(begin); since < d {
			t.Errorf("a receive of %v ended after %v", d, since)
		}
		cancel()
		send(t, q, s.text("a", 0))
		begin = time.Now()
		ctx, cancel = context.WithTimeout(context.Background(), d)
		want(t, q.Send(ctx, s.text("b", 5)), kumquat.ErrTimeout)
		if since := time.Since(begin); since < d {
			t.Errorf("a send of %v ended after %v", d, since)
		}
		cancel()
		takes(t, q, kumquat.Filter{}, "a")
		empty(t, q, kumquat.Filter{})
	}
	// A deadline that is very far must not overflow into the past.
	far, cancel := context.WithDeadline(context.Background(), time.Now().Add(200*365*24*time.Hour))
	defer cancel()
	c := receiveLater(far, q)
	s.blocked(t, q, 1, 0)
	send(t, q, s.text("z", 0))
	if r := get(t, c); r.err != nil || string(r.m.Body) != "z" {
		t.Errorf("got %q, %v", r.m.Body, r.err)
	}
}

// Cancelling ends a blocked call within 100 ms; the best of some trials counts, because the machine may be busy. A cancelled call
// has done nothing.
func cancellation(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 1})
	measure := func(name string, call func(context.Context) error, receivers, senders int) {
		best := time.Hour
		for range 20 {
			ctx, cancel := waitCancel(t)
			c := make(chan error, 1)
			go func() { c <- call(ctx) }()
			s.blocked(t, q, receivers, senders)
			begin := time.Now()
			cancel()
			want(t, get(t, c), context.Canceled)
			if best = min(best, time.Since(begin)); best <= 100*time.Millisecond {
				return
			}
		}
		t.Errorf("%s: cancelling took %v at best", name, best)
	}
	measure("receive", func(ctx context.Context) error { _, err := q.Receive(ctx); return err }, 1, 0)
	measure("receive batch", func(ctx context.Context) error { _, err := q.ReceiveBatch(ctx, 3); return err }, 1, 0)
	send(t, q, s.text("a", 0))
	measure("send", func(ctx context.Context) error { return q.Send(ctx, s.text("b", 9)) }, 0, 1)
	measure("send bytes", func(ctx context.Context) error { return q.SendBytes(ctx, []byte("b"), s.at(9)) }, 0, 1)
	takes(t, q, kumquat.Filter{}, "a")
	empty(t, q, kumquat.Filter{})
}

// A receiver that waits gets what is sent, a sender that waits gets the room that is made, whichever handle they use.
func wakes(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 1})
	p := s.again(t, q)
	ctx := waiting(t)
	for range 20 {
		c := receiveLater(ctx, p)
		s.blocked(t, q, 1, 0)
		send(t, q, s.text("a", 0))
		if r := get(t, c); r.err != nil || string(r.m.Body) != "a" {
			t.Fatalf("got %q, %v", r.m.Body, r.err)
		}
		send(t, q, s.text("b", 0))
		c = sendLater(ctx, p, s.text("c", 0))
		s.blocked(t, q, 0, 1)
		takes(t, q, kumquat.Filter{}, "b")
		want(t, get(t, c).err, nil)
		takes(t, q, kumquat.Filter{}, "c")
	}
	// As many waiters as there are messages are served: no wake-up is lost among several.
	var cs []<-chan result
	for range 8 {
		cs = append(cs, receiveLater(ctx, q), receiveLater(ctx, p))
	}
	s.blocked(t, q, 16, 0)
	for range cs {
		want(t, q.Send(ctx, s.text("x", 0)), nil)
	}
	for _, c := range cs {
		want(t, get(t, c).err, nil)
	}
	send(t, q, s.text("first", 0))
	cs = cs[:0]
	for range 8 {
		cs = append(cs, sendLater(ctx, q, s.text("x", 0)), sendLater(ctx, p, s.text("x", 0)))
	}
	s.blocked(t, q, 0, 16)
	for range 1 + len(cs) {
		_, err := q.Receive(ctx)
		want(t, err, nil)
	}
	for _, c := range cs {
		want(t, get(t, c).err, nil)
	}
	empty(t, q, kumquat.Filter{})
}

// Close wakes those who wait on its handle, and only those. After it the handle is of no use, and says so.
func closing(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 1})
	ctx := waiting(t)
	p := s.again(t, q)
	other, mine := receiveLater(ctx, q), receiveLater(ctx, p)
	s.blocked(t, q, 2, 0)
	want(t, p.Close(), nil)
	want(t, get(t, mine).err, kumquat.ErrClosed)
	pending(t, other)
	send(t, q, s.text("a", 0))
	want(t, get(t, other).err, nil)

	p = s.again(t, q)
	send(t, q, s.text("b", 0))
	mine = sendLater(ctx, p, s.text("c", 0))
	s.blocked(t, q, 0, 1)
	want(t, p.Close(), nil)
	want(t, get(t, mine).err, kumquat.ErrClosed)

	want(t, p.Close(), kumquat.ErrClosed)
	want(t, p.TrySend(s.text("d", 0)), kumquat.ErrClosed)
	want(t, p.TrySendBytes(nil, 0), kumquat.ErrClosed)
	long := kumquat.Message{Body: make([]byte, stat(t, q).MaxSize+1)} // as EBADF comes before EMSGSIZE
	want(t, p.TrySend(long), kumquat.ErrClosed)
	want(t, p.TrySendBytes(long.Body, 0), kumquat.ErrClosed)
	_, err := p.TryReceive()
	want(t, err, kumquat.ErrClosed)
	_, err = p.Receive(ctx)
	want(t, err, kumquat.ErrClosed)
	_, err = p.TryReceiveBatch(1)
	want(t, err, kumquat.ErrClosed)
	_, err = p.Stat(ctx)
	want(t, err, kumquat.ErrClosed)
	if s.can(kumquat.Modes) { // what the handle was opened for does not matter any more
		o, err := kumquat.Open(ctx, q.Name(), &kumquat.Options{ReadOnly: true})
		want(t, err, nil)
		want(t, o.TrySend(s.text("d", 0)), kumquat.ErrPermission)
		want(t, o.Close(), nil)
		want(t, o.TrySend(s.text("d", 0)), kumquat.ErrClosed)
		want(t, o.Send(ctx, s.text("d", 0)), kumquat.ErrClosed)
		_, err = o.TryReceive()
		want(t, err, kumquat.ErrClosed)
		if s.can(kumquat.Purging) {
			_, err = o.Purge(ctx)
			want(t, err, kumquat.ErrClosed)
		}
	}
	takes(t, q, kumquat.Filter{}, "b")
	empty(t, q, kumquat.Filter{})

	// Closing while others are in the middle of calls must neither crash nor hang them.
	for range 10 {
		p := s.again(t, q)
		var cs []<-chan result
		for range 4 {
			cs = append(cs, receiveLater(ctx, p), sendLater(ctx, p, s.text("x", 0)))
		}
		want(t, p.Close(), nil)
		for _, c := range cs {
			if err := get(t, c).err; err != nil {
				want(t, err, kumquat.ErrClosed)
			}
		}
		if _, err := q.TryReceive(); err != nil {
			want(t, err, kumquat.ErrEmpty)
		}
	}
}

// A queue of the same name as a removed one is a new one: old handles do not reach it, and it has none of the old messages.
func removing(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 2})
	ctx := waiting(t)
	send(t, q, s.text("old", 0))
	want(t, kumquat.Remove(ctx, q.Name()), nil)
	want(t, kumquat.Remove(ctx, q.Name()), kumquat.ErrNotFound)
	_, err := kumquat.Open(ctx, q.Name(), nil)
	want(t, err, kumquat.ErrNotFound)
	n, err := kumquat.Open(ctx, q.Name(), s.bounded(kumquat.Options{MaxMessages: 2}))
	want(t, err, nil)
	defer n.Close()
	empty(t, n, kumquat.Filter{})
	_ = q.TrySend(s.text("old", 0)) // it may say what it likes, as long as the new queue does not get it
	empty(t, n, kumquat.Filter{})
	send(t, n, s.text("new", 0))
	if m, err := q.TryReceive(); err == nil && string(m.Body) == "new" {
		t.Fatal("an old handle received from the new queue")
	}
	takes(t, n, kumquat.Filter{}, "new")
}

// Remove wakes those who wait with ErrRemoved, receivers and senders on all handles, and every later call says so too.
func revoking(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 2})
	ctx := waiting(t)
	p := s.again(t, q)
	c1, c2 := receiveLater(ctx, q), receiveLater(ctx, p)
	s.blocked(t, q, 2, 0)
	want(t, kumquat.Remove(ctx, q.Name()), nil)
	want(t, get(t, c1).err, kumquat.ErrRemoved)
	want(t, get(t, c2).err, kumquat.ErrRemoved)

	q = s.queue(t, kumquat.Options{MaxMessages: 2})
	p = s.again(t, q)
	send(t, q, s.text("a", 0), s.text("b", 0))
	c1, c2 = sendLater(ctx, q, s.text("c", 0)), sendLater(ctx, p, s.text("d", 0))
	s.blocked(t, q, 0, 2)
	want(t, kumquat.Remove(ctx, q.Name()), nil)
	want(t, get(t, c1).err, kumquat.ErrRemoved)
	want(t, get(t, c2).err, kumquat.ErrRemoved)
	want(t, q.TrySend(s.text("e", 0)), kumquat.ErrRemoved)
	want(t, q.Send(ctx, s.text("e", 0)), kumquat.ErrRemoved)
	want(t, p.TrySendBytes(nil, 0), kumquat.ErrRemoved)
	_, err := p.Receive(ctx)
	want(t, err, kumquat.ErrRemoved)
	_, err = q.TryReceive()
	want(t, err, kumquat.ErrRemoved)
}

// The iterator takes one message a step, yields an error once, and ends.
func iterator(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 5})
	send(t, q, s.text("a", 0), s.text("b", 0), s.text("c", 0))
	ctx, cancel := waitCancel(t)
	for m, err := range q.Messages(ctx) {
		if want(t, err, nil); string(m.Body) == "b" {
			break
		}
	}
	if n := stat(t, q).Messages; n != 1 {
		t.Fatalf("%d messages are left, want 1", n)
	}
	var bodies []string
	var errs []error
	for m, err := range q.Messages(ctx) {
		if err != nil {
			errs = append(errs, err)
			continue
		}
		bodies = append(bodies, string(m.Body))
		cancel()
	}
	if len(bodies) != 1 || len(errs) != 1 || !errors.Is(errs[0], context.Canceled) {
		t.Fatalf("bodies %q, errors %v", bodies, errs)
	}
}
