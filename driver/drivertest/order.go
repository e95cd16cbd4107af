package drivertest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/kumquat-mq/kumquat"
)

// Higher priority first, the order of sends inside: the first promise of all. The senders use several handles in turn, because the
// order is one over all of them.
func order(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 10})
	hs := []*kumquat.Queue{q, s.again(t, q), s.again(t, q)}
	for i, p := range []int{5, 0, 9, 5, 0, 9, 5, 0, 9} {
		send(t, hs[i*2%3], s.text(fmt.Sprintf("%d at %d", i, p), p))
	}
	takes(t, hs[1], kumquat.Filter{}, s.order(
		[]string{"2 at 9", "5 at 9", "8 at 9", "0 at 5", "3 at 5", "6 at 5", "1 at 0", "4 at 0", "7 at 0"},
		[]string{"0 at 5", "1 at 0", "2 at 9", "3 at 5", "4 at 0", "5 at 9", "6 at 5", "7 at 0", "8 at 9"})...)
	empty(t, q, kumquat.Filter{})
	// A more urgent message overtakes those that wait, at any moment.
	send(t, q, s.text("a", 1), s.text("b", 1))
	takes(t, q, kumquat.Filter{}, "a")
	send(t, q, s.text("c", 2), s.text("d", 1))
	takes(t, q, kumquat.Filter{}, s.order([]string{"c", "b", "d"}, []string{"b", "c", "d"})...)
}

// Every priority is one of its own: a driver that maps them to fewer levels is found here.
func priorities(s *suite, t *testing.T) {
	const n = kumquat.MaxPriority + 1
	q := s.queue(t, kumquat.Options{MaxMessages: n, MaxSize: 16})
	room := stat(t, q).MaxMessages
	all := rand.Perm(n)
	var buf [16]byte
	for len(all) > 0 {
		part := all[:min(len(all), room)]
		all = all[len(part):]
		there := make([]bool, n)
		for _, p := range part {
			want(t, q.TrySend(kumquat.Message{Body: binary.LittleEndian.AppendUint32(buf[:0], uint32(p)), Priority: p}), nil)
			there[p] = true
		}
		for p := n - 1; p >= 0; p-- {
			if !there[p] {
				continue
			}
			m, err := q.TryReceive()
			want(t, err, nil)
			if m.Priority != p || binary.LittleEndian.Uint32(m.Body) != uint32(p) {
				t.Fatalf("got priority %d (body %x), want %d", m.Priority, m.Body, p)
			}
		}
		empty(t, q, kumquat.Filter{})
	}
}

// Senders that run at the same time: each one's messages keep their order, and the queue's own stamps say one order for all.
func concurrentOrder(s *suite, t *testing.T) {
	const senders, each = 4, 1500
	q := s.queue(t, kumquat.Options{MaxMessages: 100, MaxSize: 16})
	ctx, wg := crew(t)
	for i := range senders {
		h := q
		if i%2 == 1 {
			h = s.again(t, q)
		}
		wg.Go(func() {
			for k := range each {
				if err := h.Send(ctx, s.text(fmt.Sprintf("%d %d", i, k), 7)); err != nil {
					t.Errorf("send: %v", err)
					return
				}
			}
		})
	}
	next := make([]int, senders)
	var seq, taken uint64
	for range senders * each {
		m, err := q.Receive(ctx)
		want(t, err, nil)
		var i, k int
		if _, err := fmt.Sscanf(string(m.Body), "%d %d", &i, &k); err != nil || i < 0 || i >= senders {
			t.Fatalf("received %q, which nobody sent", m.Body)
		}
		if next[i] != k {
			t.Fatalf("sender %d: message %d came, want %d", i, k, next[i])
		}
		next[i]++
		if m.Seq != 0 && m.Seq <= seq || m.Taken != 0 && m.Taken <= taken {
			t.Fatalf("Seq %d, Taken %d after %d, %d", m.Seq, m.Taken, seq, taken)
		}
		seq, taken = m.Seq, m.Taken
	}
	wg.Wait()
	empty(t, q, kumquat.Filter{})
}

// Bodies of all lengths come back as they were sent, and the queue keeps nothing of the sender's buffer. One byte over is
// ErrTooLarge on every way in and changes nothing.
func sizes(s *suite, t *testing.T) {
	for _, maxSize := range []int{1, 100, 4096, 70_001} {
		q := s.queue(t, kumquat.Options{MaxMessages: 10, MaxSize: maxSize})
		limit := stat(t, q).MaxSize
		var buf []byte
		for _, n := range []int{0, 1, 2, 7, 8, 15, 31, 63, 64, 65, 99, 100, 127, 128, 200, 255, 256, 1000, 4095, 4096, 65_536, limit - 1, limit} {
			if n > limit {
				continue
			}
			buf = append(buf[:0], pattern(n, n)...)
			want(t, q.TrySend(kumquat.Message{Body: buf, Priority: s.at(3)}), nil)
			clear(buf)
			m, err := q.TryReceive()
			want(t, err, nil)
			if !bytes.Equal(m.Body, pattern(n, n)) || m.Priority != s.at(3) {
				t.Fatalf("max %d: a body of %d bytes came back changed (%d bytes, priority %d)", maxSize, n, len(m.Body), m.Priority)
			}
		}
		long := kumquat.Message{Body: make([]byte, limit+1)}
		want(t, q.TrySend(long), kumquat.ErrTooLarge)
		want(t, q.Send(waiting(t), long), kumquat.ErrTooLarge)
		want(t, q.TrySendBytes(long.Body, 0), kumquat.ErrTooLarge)
		empty(t, q, kumquat.Filter{})
	}
}

// A message of no bytes is a message: it counts, and it keeps its place and priority.
func zeroLength(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 3})
	send(t, q, kumquat.Message{}, kumquat.Message{Body: []byte{}, Priority: s.at(4)}, s.text("x", 2))
	want(t, q.TrySend(kumquat.Message{}), kumquat.ErrFull)
	in := []struct{ n, p int }{{0, 4}, {1, 2}, {0, 0}}
	if !s.can(kumquat.Priorities) {
		in = []struct{ n, p int }{{0, 0}, {0, 0}, {1, 0}}
	}
	for _, w := range in {
		m, err := q.TryReceive()
		want(t, err, nil)
		if len(m.Body) != w.n || m.Priority != w.p {
			t.Fatalf("got %d bytes at %d, want %d at %d", len(m.Body), m.Priority, w.n, w.p)
		}
	}
	empty(t, q, kumquat.Filter{})
}

// What one receiver does with its message does not reach another.
func ownership(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 4, MaxSize: 4096})
	var got [][]byte
	for i := range 12 {
		want(t, q.TrySend(kumquat.Message{Body: pattern(1000+i, i)}), nil)
		m, err := q.TryReceive()
		want(t, err, nil)
		got = append(got, m.Body)
	}
	for i, b := range got {
		if !bytes.Equal(b, pattern(1000+i, i)) {
			t.Fatalf("the body of message %d changed after it was received", i)
		}
	}
}

// Many goroutines on several handles, every way in and out at once: each message arrives exactly once.
func exactlyOnce(s *suite, t *testing.T) {
	const senders, receivers, each = 6, 6, 2000
	q := s.queue(t, kumquat.Options{MaxMessages: 50, MaxSize: 64})
	hs := []*kumquat.Queue{q, s.again(t, q), s.again(t, q)}
	ctx, wg := crew(t)
	ctx, fail := context.WithCancel(ctx)
	defer fail()
	seen := make([]atomic.Int32, senders*each)
	var left atomic.Int64
	left.Store(senders * each)
	done := make(chan struct{})
	for i := range senders {
		h := hs[i%len(hs)]
		wg.Go(func() { s.sendAll(ctx, t, h, i, i*each, (i+1)*each) })
	}
	mark := func(b []byte, pr int) {
		n := int(binary.LittleEndian.Uint32(b))
		if n >= len(seen) || pr != s.at(n%40) || seen[n].Add(1) != 1 {
			t.Errorf("message %d at priority %d: doubled, or nobody sent it", n, pr)
			fail() // the senders would wait for receivers that have counted to the end
		}
		if left.Add(-1) == 0 {
			close(done)
		}
	}
	rctx, stop := context.WithCancel(ctx)
	defer stop()
	for i := range receivers {
		h := hs[i%len(hs)]
		wg.Go(func() { s.receiveAll(rctx, h, i, mark) })
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
	stop()
	wg.Wait()
	empty(t, q, kumquat.Filter{})
	if st := stat(t, q); !s.NoCounts && (st.Sent != senders*each || st.Received != senders*each) {
		t.Errorf("Stat: sent %d, received %d, want %d", st.Sent, st.Received, senders*each)
	}
}

// sendAll sends the numbers from…to−1 in the ways that the driver has; which one comes first depends on how.
func (s *suite) sendAll(ctx context.Context, t *testing.T, q *kumquat.Queue, how, from, to int) {
	body := func(n int) []byte { return binary.LittleEndian.AppendUint32(make([]byte, 0, 64), uint32(n))[:4+n%60] }
	msg := func(n int) kumquat.Message { return kumquat.Message{Body: body(n), Priority: s.at(n % 40)} }
	for n := from; n < to; {
		var err error
		switch k := 1; {
		case how%3 == 1 && s.can(kumquat.Batches):
			var ms []kumquat.Message
			for k = 0; k < 7 && n+k < to; k++ {
				ms = append(ms, msg(n+k))
			}
			err, n = q.SendBatch(ctx, ms), n+k
		case how%3 == 2:
			err, n = q.SendBytes(ctx, body(n), s.at(n%40)), n+1
		default:
			err, n = q.Send(ctx, msg(n)), n+1
		}
		if err != nil {
			t.Errorf("send: %v", err)
			return
		}
		how += 3 * (n % 2)
	}
}

// receiveAll receives until ctx is done.
func (s *suite) receiveAll(ctx context.Context, q *kumquat.Queue, how int, mark func([]byte, int)) {
	buf := make([]byte, 64)
	for {
		switch {
		case how%3 == 1:
			ms, err := q.ReceiveBatch(ctx, 5)
			if err != nil {
				return
			}
			for _, m := range ms {
				mark(m.Body, m.Priority)
			}
		case how%3 == 2 && s.can(kumquat.Bytes):
			n, p, err := q.ReceiveInto(ctx, buf)
			if err != nil {
				return
			}
			mark(buf[:n], p)
		default:
			m, err := q.Receive(ctx)
			if err != nil {
				return
			}
			mark(m.Body, m.Priority)
		}
	}
}
