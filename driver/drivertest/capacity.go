package drivertest

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat"
)

var capacities = []int{1, 2, 10, 64, 1000}

// A queue for n messages takes n and not one more, again and again, whichever handle asks: nothing is lost in caches.
func capacity(s *suite, t *testing.T) {
	for _, n := range capacities {
		q := s.queue(t, kumquat.Options{MaxMessages: n, MaxSize: 16})
		hs := []*kumquat.Queue{q, s.again(t, q)}
		if n = stat(t, q).MaxMessages; n == 0 {
			t.Fatal("Stat says MaxMessages 0")
		}
		for i := range n {
			if err := hs[i%2].TrySend(s.text("x", i%3)); err != nil {
				t.Fatalf("send %d of %d: %v", i+1, n, err)
			}
		}
		for round := range 2*n + 3 {
			h := hs[round%2]
			want(t, h.TrySend(s.text("x", 5)), kumquat.ErrFull)
			if st := stat(t, h); st.Messages != n {
				t.Fatalf("Stat says %d messages in a full queue of %d", st.Messages, n)
			}
			_, err := hs[(round/2)%2].TryReceive()
			want(t, err, nil)
			if err := h.TrySend(s.text("y", round%7)); err != nil {
				t.Fatalf("no room for one in round %d, though one of %d was taken: %v", round, n, err)
			}
		}
		for range n {
			_, err := q.TryReceive()
			want(t, err, nil)
		}
		empty(t, q, kumquat.Filter{})
	}
}

// The same while senders and receivers run: never more than n are in, and no place is lost by the end.
func busyCapacity(s *suite, t *testing.T) {
	for _, n := range capacities {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			q := s.queue(t, kumquat.Options{MaxMessages: n, MaxSize: 16})
			n := stat(t, q).MaxMessages
			hs := []*kumquat.Queue{q, s.again(t, q)}
			const workers = 3
			each := max(500, 2*n)
			ctx, wg := crew(t)
			// A send counts when it has returned, a receive before it begins: so sent − begun is never above what is in.
			var sent, begun, most atomic.Int64
			for i := range workers {
				h := hs[i%2]
				wg.Go(func() {
					for range each {
						if err := h.Send(ctx, s.text("x", i)); err != nil {
							t.Errorf("send: %v", err)
							return
						}
						in := sent.Add(1) - begun.Load()
						for m := most.Load(); in > m && !most.CompareAndSwap(m, in); m = most.Load() {
						}
					}
				})
				wg.Go(func() {
					for range each {
						begun.Add(1)
						if _, err := h.Receive(ctx); err != nil {
							t.Errorf("receive: %v", err)
							return
						}
					}
				})
			}
			over := make(chan struct{})
			go func() { wg.Wait(); close(over) }()
			for running := true; running; {
				select {
				case <-over:
					running = false
				case <-time.After(time.Millisecond):
					if m := stat(t, q).Messages; m < 0 || m > n {
						t.Errorf("Stat says %d messages in a queue of %d", m, n)
						running = false
					}
				}
			}
			get(t, over)
			if most.Load() > int64(n) {
				t.Errorf("%d messages were in a queue of %d", most.Load(), n)
			}
			empty(t, q, kumquat.Filter{})
			for range n {
				want(t, q.TrySend(s.text("x", 0)), nil)
			}
			want(t, q.TrySend(s.text("x", 0)), kumquat.ErrFull)
		})
	}
}

// Reject says so at once, also to a send that could wait.
func reject(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 2, Overflow: kumquat.Reject})
	ctx := waiting(t)
	want(t, q.Send(ctx, s.text("a", 0)), nil)
	want(t, q.Send(ctx, s.text("b", 0)), nil)
	want(t, q.Send(ctx, s.text("c", 9)), kumquat.ErrFull)
	takes(t, q, kumquat.Filter{}, "a", "b")
	empty(t, q, kumquat.Filter{})
}

// DropOldest makes room by age alone; DropLowest by priority, then age, and only for a higher one. Both count what they drop.
func dropping(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 3, Overflow: kumquat.DropOldest})
	send(t, q, s.text("a", 9), s.text("b", 0), s.text("c", 5), s.text("d", 0), s.text("e", 0))
	if st := stat(t, q); st.Messages != 3 || st.Dropped != 2 || st.Overflow != kumquat.DropOldest {
		t.Errorf("Stat: %d messages, %d dropped, overflow %d", st.Messages, st.Dropped, st.Overflow)
	}
	takes(t, q, kumquat.Filter{}, "c", "d", "e")

	q = s.queue(t, kumquat.Options{MaxMessages: 3, Overflow: kumquat.DropLowest})
	send(t, q, s.text("a", 9), s.text("b", 2), s.text("c", 2))
	want(t, q.TrySend(s.text("d", 2)), kumquat.ErrFull)
	want(t, q.Send(waiting(t), s.text("d", 1)), kumquat.ErrFull)
	send(t, q, s.text("e", 3))
	if st := stat(t, q); st.Messages != 3 || st.Dropped != 1 {
		t.Errorf("Stat: %d messages, %d dropped", st.Messages, st.Dropped)
	}
	takes(t, q, kumquat.Filter{}, "a", "e", "c")
	empty(t, q, kumquat.Filter{})

	// Many at once: the queue stays exact, and every message was either received or dropped.
	for _, o := range []kumquat.Overflow{kumquat.DropOldest, kumquat.DropLowest} {
		q := s.queue(t, kumquat.Options{MaxMessages: 4, MaxSize: 16, Overflow: o})
		hs := []*kumquat.Queue{q, s.again(t, q)}
		var sent, taken atomic.Int64
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				for k := range 800 {
					if err := hs[i%2].TrySend(s.text("x", (i*k)%5)); err == nil {
						sent.Add(1)
					} else if o == kumquat.DropOldest {
						t.Errorf("DropOldest: %v", err)
					}
					if k%8 == 0 {
						if _, err := hs[i%2].TryReceive(); err == nil {
							taken.Add(1)
						}
					}
				}
			})
		}
		wg.Wait()
		st := stat(t, q)
		if st.Messages > 4 || sent.Load() != taken.Load()+int64(st.Dropped)+int64(st.Messages) {
			t.Errorf("overflow %d: sent %d, taken %d, dropped %d, left %d", o, sent.Load(), taken.Load(), st.Dropped, st.Messages)
		}
	}
}

// Headroom keeps its share for the urgent: the others are refused, or wait, as if the queue were smaller.
func headroom(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 10, Headroom: kumquat.Headroom{Percent: 25, Priority: 20}})
	for range 8 { // 25 % of 10, rounded down, is 2
		send(t, q, s.text("low", 1))
	}
	want(t, q.TrySend(s.text("low", 19)), kumquat.ErrFull)
	send(t, q, s.text("high", 20), s.text("high", 30))
	want(t, q.TrySend(s.text("high", 30)), kumquat.ErrFull)
	c := sendLater(waiting(t), q, s.text("later", 2))
	s.blocked(t, q, 0, 1)
	takes(t, q, kumquat.Filter{}, "high", "high") // 8 are left: still no room for the low one
	want(t, q.TrySend(s.text("low", 19)), kumquat.ErrFull)
	pending(t, c)
	takes(t, q, kumquat.Filter{}, "low")
	want(t, get(t, c).err, nil)
	takes(t, q, kumquat.Filter{}, "later")
	if h := stat(t, q).Headroom; h != (kumquat.Headroom{Percent: 25, Priority: 20}) {
		t.Errorf("Stat says %+v", h)
	}
}
