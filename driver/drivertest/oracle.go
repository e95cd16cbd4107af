package drivertest

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/kumquat-mq/kumquat"
)

// oracle is the queue as the documents describe it, written to be read: a list in the order of sends.
type oracle struct {
	max      int
	overflow kumquat.Overflow
	headroom kumquat.Headroom
	ms       []kumquat.Message
	dropped  int
}

// send puts m in, or returns ErrFull.
func (o *oracle) send(m kumquat.Message) error {
	if m.Type == 0 {
		m.Type = 1
	}
	room := o.max
	if m.Priority < o.headroom.Priority {
		room -= o.max * o.headroom.Percent / 100
	}
	if len(o.ms) >= room {
		victim := 0
		switch o.overflow {
		case kumquat.DropOldest:
		case kumquat.DropLowest:
			for i := range o.ms {
				if o.ms[i].Priority < o.ms[victim].Priority {
					victim = i
				}
			}
			if o.ms[victim].Priority >= m.Priority {
				return kumquat.ErrFull
			}
		default:
			return kumquat.ErrFull
		}
		o.ms = slices.Delete(o.ms, victim, victim+1)
		o.dropped++
	}
	o.ms = append(o.ms, m)
	return nil
}

// order returns the places of the messages that f lets through, in the order in which they are received.
func (o *oracle) order(f kumquat.Filter) []int {
	var is []int
	for i := range o.ms {
		if f.Match(&o.ms[i]) {
			is = append(is, i)
		}
	}
	slices.SortStableFunc(is, func(i, j int) int {
		a, b := &o.ms[i], &o.ms[j]
		if f.TypeAtMost > 0 && a.Type != b.Type {
			return cmp.Compare(a.Type, b.Type)
		}
		return cmp.Compare(b.Priority, a.Priority)
	})
	return is
}

// receive takes the first message, or returns nil.
func (o *oracle) receive(f kumquat.Filter) *kumquat.Message {
	is := o.order(f)
	if len(is) == 0 {
		return nil
	}
	m := o.ms[is[0]]
	o.ms = slices.Delete(o.ms, is[0], is[0]+1)
	return &m
}

func (o *oracle) purge(f kumquat.Filter) int {
	n := len(o.order(f))
	o.ms = slices.DeleteFunc(o.ms, func(m kumquat.Message) bool { return f.Match(&m) })
	o.dropped += n
	return n
}

// Random programs of one goroutine on two handles give what the oracle gives, for each overflow policy and with headroom. The seed
// is in every failure's name.
func random(s *suite, t *testing.T) {
	for _, o := range []kumquat.Options{
		{MaxMessages: 6}, {MaxMessages: 40}, {MaxMessages: 6, Overflow: kumquat.Reject},
		{MaxMessages: 6, Overflow: kumquat.DropOldest}, {MaxMessages: 6, Overflow: kumquat.DropLowest},
		{MaxMessages: 10, Headroom: kumquat.Headroom{Percent: 35, Priority: 2}},
	} {
		if o.Overflow > kumquat.Reject && !s.can(kumquat.Dropping) || o.Headroom.Percent > 0 && !s.can(kumquat.Headrooms) {
			continue
		}
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("%d-of-%d/seed=%d", o.Overflow, o.MaxMessages, seed), func(t *testing.T) {
			s.program(t, o, rand.New(rand.NewPCG(seed, 0)))
		})
	}
}

func (s *suite) program(t *testing.T, o kumquat.Options, r *rand.Rand) {
	o.MaxSize = 64
	q := s.queue(t, o)
	hs := []*kumquat.Queue{q, s.again(t, q)}
	w := &oracle{max: stat(t, q).MaxMessages, overflow: o.Overflow, headroom: o.Headroom}
	message := func(step int) kumquat.Message {
		m := kumquat.Message{Body: fmt.Appendf(nil, "%d", step), Priority: s.at(r.IntN(4))}
		if s.can(kumquat.Filters, kumquat.Metadata) {
			m.Type = r.Int64N(5)
			m.Key = []string{"", "a", "b"}[r.IntN(3)]
		}
		return m
	}
	filter := func() (f kumquat.Filter) {
		if !s.can(kumquat.Filters) || r.IntN(2) == 0 {
			return f
		}
		switch r.IntN(8) {
		case 0:
			f.Type = 1 + r.Int64N(4)
		case 1, 2:
			f.TypeAtMost = 1 + r.Int64N(4)
		case 3:
			f.NotType = 1 + r.Int64N(4)
		case 4:
			f.MinPriority = r.IntN(4)
		case 5:
			f.Key = "a"
		case 6:
			f.TypeAtMost, f.MinPriority = 2+r.Int64N(3), r.IntN(4)
		case 7:
			f.NotType, f.Key = 1+r.Int64N(4), "b"
		}
		return f
	}
	same := func(step int, did string, m kumquat.Message, want *kumquat.Message) {
		t.Helper()
		if want == nil || string(m.Body) != string(want.Body) || m.Priority != want.Priority {
			t.Fatalf("step %d: %s gave %q at %d, want %+v", step, did, m.Body, m.Priority, want)
		}
		if s.can(kumquat.Metadata) && (m.Type != want.Type || m.Key != want.Key) {
			t.Fatalf("step %d: %s gave type %d, key %q, want %+v", step, did, m.Type, m.Key, want)
		}
	}
	for step := range 2500 {
		q := hs[r.IntN(2)]
		switch k := r.IntN(100); {
		case k < 50:
			m := message(step)
			want(t, q.TrySend(m), w.send(m))
		case k < 80:
			f := filter()
			m, err := q.TryReceive(f)
			if x := w.receive(f); err == nil {
				same(step, fmt.Sprintf("receive %+v", f), m, x)
			} else if x != nil || !errors.Is(err, kumquat.ErrEmpty) {
				t.Fatalf("step %d: receive %+v: %v, want %+v", step, f, err, x)
			}
		case k < 85:
			f, n := filter(), 1+r.IntN(4)
			ms, err := q.TryReceiveBatch(n, f)
			if len(ms) == 0 {
				want(t, err, kumquat.ErrEmpty)
			}
			if have := len(w.order(f)); len(ms) != min(n, have) {
				t.Fatalf("step %d: a batch of %d of %d, %+v, has %d", step, n, have, f, len(ms))
			}
			for i := range ms {
				same(step, "receive batch", ms[i], w.receive(f))
			}
		case k < 90 && s.can(kumquat.Batches) && o.Overflow <= kumquat.Reject && o.Headroom.Percent == 0:
			var ms []kumquat.Message
			for range 1 + r.IntN(min(3, q.MaxBatch())) {
				ms = append(ms, message(step))
			}
			if len(w.ms)+len(ms) > w.max {
				want(t, q.TrySendBatch(ms), kumquat.ErrFull)
				continue
			}
			want(t, q.TrySendBatch(ms), nil)
			for _, m := range ms {
				want(t, w.send(m), nil)
			}
		case k < 97 && s.can(kumquat.Peeking):
			f := filter()
			is := w.order(f)
			i := 0
			for m, err := range q.Peek(waiting(t), kumquat.PeekOptions{Filter: f}) {
				if want(t, err, nil); i == len(is) {
					t.Fatalf("step %d: peek %+v gave more than %d", step, f, i)
				}
				same(step, fmt.Sprintf("peek %+v", f), m, &w.ms[is[i]])
				i++
			}
			if i != len(is) {
				t.Fatalf("step %d: peek %+v gave %d, want %d", step, f, i, len(is))
			}
		case k == 97 && s.can(kumquat.Purging):
			f := filter()
			n, err := q.Purge(waiting(t), f)
			if want(t, err, nil); n != w.purge(f) {
				t.Fatalf("step %d: purge %+v removed %d", step, f, n)
			}
		default:
			st := stat(t, q)
			if st.Messages != len(w.ms) || !s.NoCounts && st.Dropped != uint64(w.dropped) {
				t.Fatalf("step %d: Stat says %d messages, %d dropped, want %d, %d", step, st.Messages, st.Dropped, len(w.ms), w.dropped)
			}
		}
	}
}
