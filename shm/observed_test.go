package shm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
	"golang.org/x/sys/unix"
)

// The observers against the engine itself: what it writes must be what docs/format.md says, at every moment.

// engineQueue creates a queue with the engine and opens an observer of it.
func engineQueue(t testing.TB, o driver.Options) (d Driver, q, ro *Queue) {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "kmqtest")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	d = Driver{Dir: dir}
	o.Create = true
	q = openEngine(t, d, o)
	return d, q, openEngine(t, d, driver.Options{ReadOnly: true})
}

func openEngine(t testing.TB, d Driver, o driver.Options) *Queue {
	t.Helper()
	q, err := d.OpenQueue(context.Background(), "/observed", &o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Close() })
	return q
}

// atRestSound fails the test unless Check found nothing at all, in a quiet moment.
func atRestSound(t testing.TB, q *Queue) {
	t.Helper()
	r, err := q.Check(context.Background())
	if err != nil || r.Busy || len(r.Problems) != 0 || len(r.Dead) != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
}

func peeked(t testing.TB, q *Queue, p driver.PeekOptions) (ms []driver.Message) {
	t.Helper()
	for m, err := range q.Peek(context.Background(), p) {
		if err != nil {
			t.Fatal(err)
		}
		ms = append(ms, m)
	}
	return ms
}

// What Peek shows is what Receive then gives, field by field.
func TestEnginePeekIsReceive(t *testing.T) {
	_, q, ro := engineQueue(t, driver.Options{MaxMessages: 1000, MaxSize: 100_000})
	ctx := context.Background()
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 300 {
		m := driver.Message{Body: make([]byte, []int{0, 10, 60, 80, 81, 3000, 70_000}[rnd.IntN(7)]), Priority: []int{0, 5, 5, 600, 32767}[rnd.IntN(5)], Type: 1 + rnd.Int64N(4)}
		for j := range m.Body {
			m.Body[j] = byte(i + j)
		}
		if rnd.IntN(2) == 0 {
			m.ID, m.Key = fmt.Sprint("id", i), fmt.Sprint("key", i%3)
			m.Headers = map[string]string{"n": strings.Repeat("x", rnd.IntN(200))}
		}
		if rnd.IntN(4) == 0 {
			m.Expires = time.Now().Add(time.Hour)
		}
		if err := q.Send(ctx, m, true); err != nil {
			t.Fatal(err)
		}
		if i == 200 {
			atRestSound(t, ro)
			if err := errors.Join(q.SendBatch(ctx, []driver.Message{{Type: 1, Body: []byte("x")}, {Type: 2, Priority: 9, Body: []byte("y")}}, true)); err != nil {
				t.Fatal(err)
			}
			if _, err := q.Receive(ctx, driver.Filter{Type: 2}, true); err != nil { // drains
				t.Fatal(err)
			}
		}
	}
	atRestSound(t, ro)
	for _, f := range []driver.Filter{{Type: 3}, {NotType: 1, MinPriority: 5}, {Key: "key2"}, {TypeAtMost: 3}, {}} {
		want := peeked(t, ro, driver.PeekOptions{Filter: f})
		if len(want) == 0 {
			t.Fatalf("%+v: nothing there", f)
		}
		few := peeked(t, ro, driver.PeekOptions{Filter: f, Skip: 3, Limit: 5, NoBody: true})
		for i, m := range few {
			if m.Seq != want[3+i].Seq || m.Body != nil {
				t.Errorf("%+v: page differs at %d: %+v", f, i, m)
			}
		}
		for i, w := range want {
			got, err := q.Receive(ctx, f, true)
			if err != nil {
				t.Fatal(err)
			}
			got.Taken = 0
			if g, x := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", w); g != x {
				t.Fatalf("%+v, message %d:\n  peek %.200s\nreceive %.200s", f, i, x, g)
			}
			if i%16 == 0 {
				atRestSound(t, ro)
			}
		}
	}
	if s, err := ro.Stat(ctx); err != nil || s.Messages != 0 || s.Sent != 302 || s.Received != 302 || s.Bytes != 0 || s.LowestPriority != -1 || s.Handles != 1 || !s.OldestEnqueued.IsZero() {
		t.Errorf("%+v, %v", s, err)
	}
}

// takeOver makes another handle take the lock over from q, as if q's process had been stopped while it held it.
func takeOver(t testing.TB, q, other *Queue) {
	t.Helper()
	ctx := context.Background()
	q.lk.mustLock()
	if err := q.acquire(ctx); err != nil {
		t.Fatal(err)
	}
	other.lk.mustLock()
	if err := other.acquire(ctx); err != nil {
		t.Fatal(err)
	}
	other.unlock()
	other.lk.unlock()
	if !q.isFenced() {
		t.Fatal("the lock was not taken over")
	}
	if err := q.abandon(errFenced); err != nil {
		t.Fatal(err)
	}
	q.lk.unlock()
}

// Random operations of all kinds, takeovers among them: whenever the queue is at rest, every invariant holds, and the counts of Stat
// are right.
func TestEngineStaysSound(t *testing.T) {
	for _, o := range []driver.Options{{MaxMessages: 1}, {MaxMessages: 3, Overflow: driver.DropOldest}, {MaxMessages: 40, Overflow: driver.DropLowest},
		{MaxMessages: 500, Headroom: driver.Headroom{Percent: 20, Priority: 5}}} {
		t.Run(fmt.Sprint(o.MaxMessages), func(t *testing.T) {
			d, q, ro := engineQueue(t, o)
			other := openEngine(t, d, driver.Options{})
			ctx := context.Background()
			seed := uint64(time.Now().UnixNano())
			t.Log("seed", seed)
			rnd := rand.New(rand.NewPCG(seed, 0))
			sent, received := uint64(0), uint64(0)
			for i := range 1500 {
				h := []*Queue{q, other}[rnd.IntN(2)]
				var err error
				switch n := rnd.IntN(100); {
				case n < 50:
					m := driver.Message{Body: make([]byte, rnd.IntN(200)), Priority: rnd.IntN(10) * rnd.IntN(3000), Type: 1 + rnd.Int64N(3)}
					if rnd.IntN(3) == 0 {
						m.Expires = time.Now().Add(time.Duration(rnd.IntN(20)) * time.Millisecond)
					}
					if rnd.IntN(3) == 0 {
						m.NotBefore = time.Now().Add(time.Duration(rnd.IntN(20)) * time.Millisecond)
					}
					if err = h.Send(ctx, m, true); err == nil {
						sent++
					}
				case n < 60:
					ms := make([]driver.Message, 1+rnd.IntN(h.MaxBatch()))
					for i := range ms {
						ms[i] = driver.Message{Type: 1, Priority: rnd.IntN(9)}
					}
					if err = h.SendBatch(ctx, ms, true); err == nil {
						sent += uint64(len(ms))
					}
				case n < 85:
					f := driver.Filter{}
					if rnd.IntN(2) == 0 {
						f = driver.Filter{TypeAtMost: rnd.Int64N(3), MinPriority: rnd.IntN(20)}
					}
					if _, err = h.Receive(ctx, f, true); err == nil {
						received++
					}
				case n < 97:
					var ms []driver.Message
					ms, err = h.ReceiveBatch(ctx, nil, driver.Filter{}, 1+rnd.IntN(70), true)
					received += uint64(len(ms))
				case n < 98:
					_, err = h.Purge(ctx, driver.Filter{Type: 2})
				case n < 99 && o.MaxMessages > 1:
					takeOver(t, q, other)
				default:
					time.Sleep(2 * time.Millisecond)
				}
				if err != nil && !errors.Is(err, driver.ErrFull) && !errors.Is(err, driver.ErrEmpty) && !errors.Is(err, driver.ErrTooLarge) {
					t.Fatalf("step %d: %v", i, err)
				}
				if i%10 == 0 {
					atRestSound(t, ro)
					s, err := ro.Stat(ctx)
					if err != nil || s.Sent != sent || s.Received != received || s.Sent != s.Received+s.Dropped+s.Expired+uint64(s.Messages) {
						t.Fatalf("step %d: sent %d, received %d: %+v, %v", i, sent, received, s, err)
					}
					shown := 0
					for _, err := range ro.Peek(ctx, driver.PeekOptions{NoBody: true}) {
						if err != nil {
							t.Fatal(err)
						}
						shown++
					}
					if shown > s.Messages { // expired ones are not shown
						t.Fatalf("step %d: %d shown, %d wait", i, shown, s.Messages)
					}
				}
			}
		})
	}
}

// Observers in the middle of traffic: nothing is broken, no message is shown that was never sent, and Watch loses no count.
func TestEngineObservedAtWork(t *testing.T) {
	d, q, ro := engineQueue(t, driver.Options{MaxMessages: 200})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w := newWatcher(&ro.observer)
	if err := w.look(); err != nil { // the base line
		t.Fatal(err)
	}
	counts := map[driver.EventKind]uint64{}
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for counts[driver.EventClosed] < 4 && ctx.Err() == nil {
			if err := w.look(); err != nil {
				t.Error(err)
				return
			}
			for _, e := range w.events {
				counts[e.Kind] += max(1, e.N)
			}
			time.Sleep(watchEvery / 10)
		}
	}()
	var work sync.WaitGroup
	var sent, received atomic.Uint64
	handles := make([]*Queue, 4)
	for i := range handles {
		handles[i] = openEngine(t, d, driver.Options{})
	}
	stop := time.Now().Add(2 * time.Second)
	for i, h := range handles {
		work.Go(func() {
			for n := 0; time.Now().Before(stop); n++ {
				if i%2 == 0 {
					if h.Send(ctx, driver.Message{Body: fmt.Appendf(nil, "%d %d", i, n), Priority: n % 7, Type: 1}, true) == nil {
						sent.Add(1)
					}
				} else if _, err := h.Receive(ctx, driver.Filter{}, true); err == nil {
					received.Add(1)
				}
			}
		})
	}
	for time.Now().Before(stop) {
		r, err := ro.Check(ctx)
		if err != nil || slices.ContainsFunc(r.Problems, func(p driver.Problem) bool { return p.Broken }) {
			t.Fatalf("%+v, %v", r, err)
		}
		for m, err := range ro.Peek(ctx, driver.PeekOptions{Limit: 50}) {
			var i, n int
			if _, e := fmt.Sscanf(string(m.Body), "%d %d", &i, &n); err != nil || e != nil || n%7 != m.Priority || i%2 != 0 {
				t.Fatalf("%q of priority %d, %v", m.Body, m.Priority, err)
			}
		}
		if s, err := ro.Stat(ctx); err != nil || s.Messages > 200 || s.Handles < 5 {
			t.Fatalf("%+v, %v", s, err)
		}
	}
	work.Wait()
	atRestSound(t, ro)
	for _, h := range handles {
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-watched:
	case <-time.After(5 * time.Second):
		t.Fatal("Watch did not see all handles close")
	}
	if counts[driver.EventSent] != sent.Load() || counts[driver.EventReceived] != received.Load() || counts[driver.EventOpened] != 4 || sent.Load() == 0 {
		t.Errorf("watched %v, sent %d, received %d", counts, sent.Load(), received.Load())
	}
	_ = q
}

// die gives up what the kernel would take at the death of q's process: descriptor and mapping, and with the last of them the lock.
func die(t testing.TB, q *Queue) {
	t.Helper()
	if err := errors.Join(q.f.Close(), unix.MunmapPtr(q.base, uintptr(q.size))); err != nil {
		t.Fatal(err)
	}
}

func TestEngineDebris(t *testing.T) {
	d, q, ro := engineQueue(t, driver.Options{MaxMessages: 10, MaxHandles: 2})
	ctx := context.Background()
	victim, err := d.OpenQueue(ctx, "/observed", &driver.Options{}) // never closed: it dies
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Send(ctx, driver.Message{Type: 1, Body: []byte("a")}, true); err != nil {
		t.Fatal(err)
	}
	l, pos, err := victim.takeLane(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := victim.prepare(l, pos, &parcel{mtype: 1}); err != nil {
		t.Fatal(err)
	}
	var c claimed
	victim.lk.mustLock()
	if err := victim.acquire(ctx); err != nil {
		t.Fatal(err)
	}
	if err := victim.choose(nil, -1, &c); err != nil {
		t.Fatal(err)
	}
	who, err := ro.Who(ctx)
	if err != nil || len(who) != 2 || who[1].Doing != "hold the lock" || who[1].Holds != 2 || !who[0].Alive || !who[1].Alive {
		t.Errorf("%+v, %v", who, err)
	}
	die(t, victim)
	r, err := ro.Check(ctx)
	text := fmt.Sprintf("%+v", r.Problems)
	if err != nil || r.Busy || len(r.Dead) != 1 || strings.Contains(text, "Broken:true") || !strings.Contains(text, "being filled") ||
		!strings.Contains(text, "being read") || !strings.Contains(text, "Where:lock") || len(r.Dead[0].Last) == 0 || r.Dead[0].Doing != "hold the lock" {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := q.Receive(ctx, driver.Filter{}, true); !errors.Is(err, driver.ErrEmpty) { // takes the lock over
		t.Errorf("%v", err)
	}
	next := openEngine(t, d, driver.Options{}) // takes the dead one's place
	atRestSound(t, ro)
	if who, err := next.Who(ctx); err != nil || len(who) != 2 || !who[0].Alive || !who[1].Alive || who[1].Holds != 0 {
		t.Errorf("%+v, %v", who, err)
	}
}

func TestEngineObserverEnds(t *testing.T) {
	d, q, ro := engineQueue(t, driver.Options{MaxMessages: 10})
	ctx := context.Background()
	ended := make(chan driver.Event, 10)
	go func() {
		for e, err := range ro.Watch(ctx) {
			if err != nil {
				t.Error(err)
			}
			ended <- e
		}
		close(ended)
	}()
	time.Sleep(150 * time.Millisecond)
	if err := d.Remove(ctx, "/observed"); err != nil {
		t.Fatal(err)
	}
	if e := <-ended; e.Kind != driver.EventRemoved {
		t.Errorf("%+v", e)
	}
	if _, more := <-ended; more {
		t.Error("Watch goes on after the removal")
	}
	if s, err := q.Stat(ctx); !errors.Is(err, driver.ErrRemoved) || !s.Removed {
		t.Errorf("%+v, %v", s, err)
	}
	if err := ro.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := ro.Stat(ctx); !errors.Is(err, driver.ErrClosed) {
		t.Errorf("%v", err)
	}
}

// A page of a deep queue is what the whole would have there, though only the first keys are kept.
func TestEnginePeekPage(t *testing.T) {
	_, q, ro := engineQueue(t, driver.Options{MaxMessages: 7000})
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 7000 {
		m := driver.Message{Type: 1 + rnd.Int64N(5), Priority: rnd.IntN(300)}
		if rnd.IntN(3) == 0 {
			m.NotBefore = time.Now().Add(time.Hour + time.Duration(rnd.Int64N(1e12)))
		}
		if err := q.Send(context.Background(), m, true); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []driver.Filter{{}, {TypeAtMost: 4}} {
		all := peeked(t, ro, driver.PeekOptions{Filter: f})
		for _, p := range [][2]int{{0, 1}, {17, 40}, {300, 3000}, {4900, 2500}, {6999, 1}} {
			page := peeked(t, ro, driver.PeekOptions{Filter: f, Skip: p[0], Limit: p[1]})
			want := all[min(p[0], len(all)):min(p[0]+p[1], len(all))]
			if !slices.EqualFunc(page, want, func(a, b driver.Message) bool { return a.Seq == b.Seq }) {
				t.Errorf("%+v, %v: %d messages, want %d, or another order", f, p, len(page), len(want))
			}
		}
	}
}

// Who and Stat say who waits.
func TestEngineWaiters(t *testing.T) {
	d, q, ro := engineQueue(t, driver.Options{MaxMessages: 1})
	ctx := context.Background()
	other := openEngine(t, d, driver.Options{})
	for _, c := range []struct {
		doing              string
		receivers, senders int
		block, release     func() error
	}{
		{"wait to receive", 1, 0, func() error { _, err := other.Receive(ctx, driver.Filter{}, false); return err },
			func() error { return q.Send(ctx, driver.Message{Type: 1}, true) }},
		{"wait to send", 0, 1, func() error {
			return errors.Join(other.Send(ctx, driver.Message{Type: 1}, false), other.Send(ctx, driver.Message{Type: 1}, false))
		}, func() error { _, err := q.Receive(ctx, driver.Filter{}, true); return err }},
	} {
		done := make(chan error, 1)
		go func() { done <- c.block() }()
		var s driver.Stats
		var who []driver.Participant
		for deadline := time.Now().Add(5 * time.Second); s.Receivers != c.receivers || s.Senders != c.senders; time.Sleep(time.Millisecond) {
			var err, err2 error
			s, err = ro.Stat(ctx)
			who, err2 = ro.Who(ctx)
			if err != nil || err2 != nil || time.Now().After(deadline) {
				t.Fatalf("%+v, %v, %v", s, err, err2)
			}
		}
		for len(who) == 2 && who[1].Doing != c.doing {
			who, _ = ro.Who(ctx)
		}
		if len(who) != 2 || who[1].Since.IsZero() || time.Since(who[1].Since) > time.Minute {
			t.Errorf("%+v", who)
		}
		if err := errors.Join(c.release(), <-done); err != nil {
			t.Fatal(err)
		}
	}
}
