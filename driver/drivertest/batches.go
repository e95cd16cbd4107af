package drivertest

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/kumquat-mq/kumquat"
)

func (s *suite) group(prefix string, n, priority int) (ms []kumquat.Message) {
	for i := range n {
		ms = append(ms, s.text(fmt.Sprintf("%s%d", prefix, i), priority))
	}
	return ms
}

// A batch goes in whole or not at all, keeps its order and its caller's slice, and is sorted in by priority like single messages.
func batches(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 10, MaxSize: 100})
	limit := stat(t, q).MaxMessages
	if b := q.MaxBatch(); b < 1 || b > limit {
		t.Fatalf("MaxBatch %d in a queue of %d", b, limit)
	}
	ms := s.group("a", 5, 1)
	want(t, q.TrySendBatch(ms), nil)
	if ms[0].Type != 0 || string(ms[4].Body) != "a4" {
		t.Error("the caller's messages were changed")
	}
	if n := limit - 5 + 1; n <= q.MaxBatch() {
		want(t, q.TrySendBatch(s.group("b", n, 9)), kumquat.ErrFull)
	}
	long := s.group("c", 3, 9)
	long[2].Body = make([]byte, 101)
	want(t, q.TrySendBatch(long), kumquat.ErrTooLarge)
	wrong := s.group("d", 3, 9)
	wrong[1].Priority = -1
	want(t, q.TrySendBatch(wrong), kumquat.ErrInvalid)
	want(t, q.TrySendBatch(nil), nil)
	ctx := waiting(t)
	want(t, q.SendBatch(ctx, s.group("e", q.MaxBatch()+1, 0)), kumquat.ErrTooLarge)
	if st := stat(t, q); st.Messages != 5 {
		t.Fatalf("%d messages are there after batches that failed, want 5", st.Messages)
	}
	want(t, q.SendBatch(ctx, []kumquat.Message{s.text("f0", 0), s.text("f1", 2), s.text("f2", 1)}), nil)
	takes(t, q, kumquat.Filter{}, s.order([]string{"f1", "a0", "a1", "a2", "a3", "a4", "f2", "f0"}, []string{"a0", "a1", "a2", "a3", "a4", "f0", "f1", "f2"})...)
	empty(t, q, kumquat.Filter{})

	// A batch waits until all of it has room; one that is cancelled has sent nothing.
	size := min(4, q.MaxBatch())
	for range limit - size + 1 {
		send(t, q, s.text("x", 0))
	}
	cctx, cancel := waitCancel(t)
	c := make(chan error, 1)
	go func() { c <- q.SendBatch(cctx, s.group("g", size, 5)) }()
	s.blocked(t, q, 0, 1)
	cancel()
	want(t, get(t, c), context.Canceled)
	go func() { c <- q.SendBatch(ctx, s.group("h", size, 5)) }()
	s.blocked(t, q, 0, 1)
	pending(t, c)
	takes(t, q, kumquat.Filter{}, "x")
	want(t, get(t, c), nil)
	if !s.can(kumquat.Priorities) {
		takes(t, q, kumquat.Filter{}, slices.Repeat([]string{"x"}, limit-size)...)
	}
	takes(t, q, kumquat.Filter{}, numbered("h%d", 0, size)...)
}

// Batches that are sent at the same time do not mix.
func batchesStayTogether(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 30, MaxSize: 32})
	size := min(5, q.MaxBatch())
	const senders, each = 4, 150
	ctx, wg := crew(t)
	for i := range senders {
		h := s.again(t, q)
		wg.Go(func() {
			for k := range each {
				if err := h.SendBatch(ctx, s.group(fmt.Sprintf("%d/%d/", i, k), size, 3)); err != nil {
					t.Errorf("send batch: %v", err)
					return
				}
			}
		})
	}
	for range senders * each {
		var head string
		for n := range size {
			m, err := q.Receive(ctx)
			want(t, err, nil)
			if n == 0 {
				head = string(bytes.TrimSuffix(m.Body, []byte("0")))
			}
			if w := fmt.Sprintf("%s%d", head, n); string(m.Body) != w {
				t.Fatalf("got %q, want %q: a batch was torn apart", m.Body, w)
			}
		}
	}
	wg.Wait()
}

// ReceiveBatch takes what is there in the order of Receive, waits only for the first, and leaves the rest.
func receiveBatch(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 10})
	ctx := waiting(t)
	bodies := func(ms []kumquat.Message, err error) string {
		t.Helper()
		want(t, err, nil)
		all := ""
		for _, m := range ms {
			all += string(m.Body)
		}
		return all
	}
	_, err := q.TryReceiveBatch(3)
	want(t, err, kumquat.ErrEmpty)
	if ms, err := q.ReceiveBatch(ctx, 0); err != nil || len(ms) != 0 {
		t.Errorf("a batch of none: %v, %v", ms, err)
	}
	_, err = q.ReceiveBatch(ctx, -1)
	want(t, err, kumquat.ErrInvalid)
	send(t, q, s.text("a", 0), s.text("b", 7), s.text("c", 0), s.text("d", 7), s.text("e", 3))
	if got, w := bodies(q.ReceiveBatch(ctx, 3)), s.letters("bde", "abc"); got != w {
		t.Errorf("got %s, want %s", got, w)
	}
	if got, w := bodies(q.ReceiveBatch(ctx, 100)), s.letters("ac", "de"); got != w {
		t.Errorf("got %s, want %s", got, w)
	}
	if s.can(kumquat.Filters, kumquat.Priorities) {
		send(t, q, s.text("a", 0), s.text("b", 7), s.text("c", 0), s.text("d", 7))
		if got := bodies(q.TryReceiveBatch(9, kumquat.MinPriority(1))); got != "bd" {
			t.Errorf("got %s, want bd", got)
		}
		_, err = q.TryReceiveBatch(9, kumquat.MinPriority(1))
		want(t, err, kumquat.ErrEmpty)
		takes(t, q, kumquat.Filter{}, "a", "c")
	}
	c := make(chan string, 1)
	go func() {
		ms, err := q.ReceiveBatch(ctx, 5)
		c <- fmt.Sprint(len(ms), err)
	}()
	s.blocked(t, q, 1, 0)
	send(t, q, s.text("x", 0))
	if got := get(t, c); got != "1 <nil>" {
		t.Errorf("a batch that waited gave %s", got)
	}
	empty(t, q, kumquat.Filter{})
}

// SendBytes and ReceiveInto are Send and Receive without the rest; a buffer that is too short leaves the message where it is.
func bytesPath(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 3, MaxSize: 1000})
	ctx := waiting(t)
	buf := make([]byte, 1000)
	_, _, err := q.TryReceiveInto(buf)
	want(t, err, kumquat.ErrEmpty)
	for _, n := range []int{0, 1, 63, 64, 500, 1000} {
		at := s.at(n % 9)
		want(t, q.SendBytes(ctx, pattern(n, n), at), nil)
		k, p, err := q.ReceiveInto(ctx, buf[:n])
		want(t, err, nil)
		if k != n || p != at || !bytes.Equal(buf[:k], pattern(n, n)) {
			t.Fatalf("%d bytes at %d came back as %d bytes at %d", n, at, k, p)
		}
	}
	want(t, q.TrySendBytes([]byte("eleven byte"), s.at(5)), nil)
	want(t, q.TrySendBytes([]byte("low"), s.at(1)), nil)
	_, _, err = q.ReceiveInto(ctx, buf[:10])
	want(t, err, kumquat.ErrTooLarge)
	_, _, err = q.TryReceiveInto(nil)
	want(t, err, kumquat.ErrTooLarge)
	if n := stat(t, q).Messages; n != 2 {
		t.Fatalf("%d messages are there, want 2", n)
	}
	want(t, q.TrySendBytes(nil, 0), nil)
	want(t, q.TrySendBytes(nil, s.at(9)), kumquat.ErrFull)
	n, p, err := q.TryReceiveInto(buf)
	if err != nil || string(buf[:n]) != "eleven byte" || p != s.at(5) {
		t.Fatalf("got %q at %d, %v", buf[:n], p, err)
	}
	m, err := q.TryReceive() // the two paths are one queue
	if err != nil || string(m.Body) != "low" || m.Type != 1 {
		t.Fatalf("got %q of type %d, %v", m.Body, m.Type, err)
	}
	n, _, err = q.TryReceiveInto(nil)
	if err != nil || n != 0 {
		t.Fatalf("a message of no bytes into no buffer: %d, %v", n, err)
	}
	want(t, q.TrySendBytes(nil, -1), kumquat.ErrInvalid)
	want(t, q.SendBytes(ctx, nil, kumquat.MaxPriority+1), kumquat.ErrInvalid)
}

// The promise of the path is that it allocates nothing, with and without a context that can end.
func allocations(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 10, MaxSize: 1000})
	ctx := waiting(t)
	for _, n := range []int{8, 64, 1000} {
		body, buf := make([]byte, n), make([]byte, n)
		for name, f := range map[string]func() error{
			"waiting": func() error {
				if err := q.SendBytes(ctx, body, s.at(5)); err != nil {
					return err
				}
				_, _, err := q.ReceiveInto(ctx, buf)
				return err
			},
			"trying": func() error {
				if err := q.TrySendBytes(body, s.at(5)); err != nil {
					return err
				}
				_, _, err := q.TryReceiveInto(buf)
				return err
			},
		} {
			want(t, f(), nil)
			if a := testing.AllocsPerRun(500, func() {
				if err := f(); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}); a != 0 {
				t.Errorf("%s, %d bytes: %v allocations for a send and a receive, want 0", name, n, a)
			}
		}
	}
}

// Reserve: written in place, in the order of commits, and no capacity is taken before them.
func reserve(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 2, MaxSize: 5000})
	ctx := waiting(t)
	for _, n := range []int{0, 1, 64, 300, 5000} {
		r, err := q.Reserve(ctx, n)
		want(t, err, nil)
		if len(r.Bytes()) != n {
			t.Fatalf("a reservation of %d bytes has %d", n, len(r.Bytes()))
		}
		copy(r.Bytes(), pattern(n, n))
		empty(t, q, kumquat.Filter{})
		want(t, r.Commit(ctx, kumquat.Message{Body: []byte("ignored"), Priority: s.at(4), ID: "id"}), nil)
		m, err := q.TryReceive()
		want(t, err, nil)
		if !bytes.Equal(m.Body, pattern(n, n)) || m.Priority != s.at(4) || m.Type != 1 || m.ID != "id" {
			t.Fatalf("committed %d bytes, got %d at %d, type %d, id %q", n, len(m.Body), m.Priority, m.Type, m.ID)
		}
		want(t, r.Abort(), kumquat.ErrInvalid)
		want(t, r.Commit(ctx, kumquat.Message{}), kumquat.ErrInvalid)
	}
	_, err := q.Reserve(ctx, 5001)
	want(t, err, kumquat.ErrTooLarge)
	_, err = q.Reserve(ctx, -1)
	want(t, err, kumquat.ErrInvalid)

	a, err := q.Reserve(ctx, 1)
	want(t, err, nil)
	b, err := q.Reserve(ctx, 1)
	want(t, err, nil)
	a.Bytes()[0], b.Bytes()[0] = 'a', 'b'
	send(t, q, s.text("x", 0), s.text("y", 0)) // reservations take no capacity
	want(t, b.TryCommit(kumquat.Message{}), kumquat.ErrFull)
	if err := q.Close(); err == nil {
		t.Fatal("Close succeeded with reservations open")
	}
	takes(t, q, kumquat.Filter{}, "x", "y") // and did nothing
	want(t, b.TryCommit(kumquat.Message{}), nil)
	want(t, a.TryCommit(kumquat.Message{}), nil)
	takes(t, q, kumquat.Filter{}, "b", "a")
	for range 500 { // an aborted one leaves nothing behind
		r, err := q.Reserve(ctx, 100)
		want(t, err, nil)
		want(t, r.Abort(), nil)
	}
	want(t, q.Close(), nil)
}

// Borrow: read in place, taken like a received one, and its place is its own until Release.
func borrow(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 1, MaxSize: 5000})
	ctx := waiting(t)
	_, err := q.TryBorrow()
	want(t, err, kumquat.ErrEmpty)
	want(t, q.TrySend(kumquat.Message{Body: pattern(5000, 1), Priority: s.at(3), Key: "k"}), nil)
	l, err := q.Borrow(ctx)
	want(t, err, nil)
	if m := l.Message(); !bytes.Equal(m.Body, pattern(5000, 1)) || m.Priority != s.at(3) || m.Key != "k" {
		t.Fatalf("borrowed %d bytes at %d, key %q", len(m.Body), m.Priority, m.Key)
	}
	empty(t, q, kumquat.Filter{})
	for i := range 20 { // it is out of the queue: capacity is whole, and nothing overwrites it
		want(t, q.TrySend(kumquat.Message{Body: pattern(5000, 2+i)}), nil)
		want(t, q.TrySend(kumquat.Message{}), kumquat.ErrFull)
		_, err := q.TryReceive()
		want(t, err, nil)
	}
	if !bytes.Equal(l.Message().Body, pattern(5000, 1)) {
		t.Fatal("a borrowed body changed")
	}
	if err := q.Close(); err == nil {
		t.Fatal("Close succeeded with a loan open")
	}
	want(t, l.Release(), nil)
	want(t, l.Release(), kumquat.ErrInvalid)
	for i := range 500 {
		want(t, q.TrySend(kumquat.Message{Type: 1 + int64(i%2)}), nil)
		l, err := q.TryBorrow(kumquat.Not(3))
		want(t, err, nil)
		want(t, l.Release(), nil)
	}
	want(t, q.Close(), nil)
}
