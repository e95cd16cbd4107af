package linear

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kumquat-mq/kumquat"
)

// TestPrograms runs random programs of one process with several handles of one queue, and foretells every answer.
func TestPrograms(t *testing.T) {
	usual := map[string]string{"rapid.checks": "300", "rapid.steps": "60"} // unless somebody chose others
	flag.Visit(func(f *flag.Flag) { delete(usual, f.Name) })
	for name, n := range usual {
		if testing.Short() || os.Getenv("RAPID_CHECKS")+os.Getenv("RAPID_STEPS") != "" {
			break
		}
		if err := flag.Set(name, n); err != nil {
			t.Fatal(err)
		}
	}
	var programs, steps, blurred int
	rapid.Check(t, func(t *rapid.T) {
		p := newProgram(t)
		defer p.end(t)
		t.Repeat(p.actions())
		programs++
		steps += p.steps
		if p.blurred {
			blurred++
		}
	})
	t.Logf("programs summary: %d programs, %d steps; %d were broken off because the machine was too slow for their times", programs, steps, blurred)
	if blurred > programs/4+1 {
		t.Errorf("%d of %d programs were broken off: this shows too little", blurred, programs)
	}
}

// program is a queue, the handles that use it and what the reference says of it.
type program struct {
	name     string
	o        kumquat.Options
	maxBatch int
	handles  []*handle
	look     *kumquat.Queue // opened to observe
	removed  bool           // the queue that the handles have open

	reference
	info     map[uint64]*parcel // of every message that waits, by its id
	lapsed   []*parcel          // expired; the queue may not have noticed yet
	sent     uint64
	received uint64
	dropped  uint64
	taken    uint64 // Taken of the last message

	now     time.Time // when the step began
	until   time.Time // when the next message becomes due or expires
	steps   int
	blurred bool
}

type handle struct {
	q    *kumquat.Queue // nil: closed
	last *kumquat.Queue // the one closed last
	held []held
}

// held is a reservation or a loan.
type held struct {
	r    *kumquat.Reservation
	size int
	l    *kumquat.Loan
	want *parcel
}

// parcel is a message with what the queue should say of it.
type parcel struct {
	item
	m             kumquat.Message
	before, after time.Time // its send
}

func (x *parcel) due(at time.Time) bool  { return !x.m.NotBefore.After(at) }
func (x *parcel) over(at time.Time) bool { return !x.m.Expires.IsZero() && !x.m.Expires.After(at) }

var serial atomic.Uint64

func newProgram(t *rapid.T) *program {
	p := &program{name: fmt.Sprintf("/program/%d", serial.Add(1)), info: map[uint64]*parcel{}}
	p.o = kumquat.Options{Create: true, Exclusive: true, MaxHandles: 4,
		MaxMessages: rapid.SampledFrom([]int{1, 2, 5, 20}).Draw(t, "capacity"),
		MaxSize:     rapid.SampledFrom([]int{1, 60, 5000}).Draw(t, "longest body"),
		Overflow:    rapid.SampledFrom([]kumquat.Overflow{kumquat.Block, kumquat.Reject, kumquat.DropOldest, kumquat.DropLowest}).Draw(t, "overflow"),
	}
	if rapid.Bool().Draw(t, "headroom") {
		p.o.Headroom = kumquat.Headroom{Percent: 40, Priority: 2}
	}
	p.handles = []*handle{{}, {}, {}}
	p.create(t)
	return p
}

// create makes the queue anew.
func (p *program) create(t *rapid.T) {
	q, err := kumquat.Open(context.Background(), p.name, &p.o)
	if err != nil {
		t.Fatal(err)
	}
	p.handles[0].q = q
	for _, h := range p.handles[1:] {
		if h.q, err = kumquat.Open(context.Background(), p.name, nil); err != nil {
			t.Fatal(err)
		}
	}
	if p.look, err = kumquat.Open(context.Background(), p.name, &kumquat.Options{ReadOnly: true}); err != nil {
		t.Fatal(err)
	}
	s, err := q.Stat(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	p.reference = reference{max: p.o.MaxMessages, headroom: p.o.Headroom}
	p.maxBatch, p.removed = s.MaxBatch, false
	p.sent, p.received, p.dropped, p.taken, p.lapsed = 0, 0, 0, 0, nil
	clear(p.info)
}

// end gives everything back, also after a failure.
func (p *program) end(t *rapid.T) {
	for _, h := range p.handles {
		if h.q == nil {
			continue
		}
		for _, x := range h.held {
			if x.r != nil {
				_ = x.r.Abort()
			} else {
				_ = x.l.Release()
			}
		}
		if err := h.q.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	_ = p.look.Close()
	_ = kumquat.Remove(context.Background(), p.name)
}

// Times. A transition is the moment at which a message becomes due or expires. The queue is exact to a tick of the coarse clock, and
// a step takes its time, so no step is made near a transition: it is waited for.
const (
	tick   = 10 * time.Millisecond
	spare  = 8 * time.Millisecond // before a transition; a step that takes longer blurs the program
	soon   = 60 * time.Millisecond
	remote = time.Hour
)

// step makes an action one that begins with a clear view of the times and counts only if it had it to the end.
func (p *program) step(f func(*rapid.T)) func(*rapid.T) {
	return func(t *rapid.T) {
		if p.blurred {
			return
		}
		p.settle()
		p.steps++
		f(t)
		p.isBlurred()
	}
}

// settle waits until no transition is near, and has the reference forget what has expired.
func (p *program) settle() {
	for {
		p.now, p.until = time.Now(), time.Now().Add(remote/2)
		wait := time.Duration(0)
		for _, x := range p.info {
			for _, at := range [...]time.Time{x.m.NotBefore, x.m.Expires} {
				switch {
				case at.IsZero() || at.Before(p.now.Add(-tick)):
				case at.Before(p.now.Add(spare)):
					wait = max(wait, at.Sub(p.now)+tick)
				case at.Before(p.until):
					p.until = at
				}
			}
		}
		if wait == 0 {
			break
		}
		time.Sleep(wait)
	}
	for i := 0; i < len(p.items); i++ {
		if x := p.info[p.items[i].id]; x.over(p.now) {
			p.lapsed = append(p.lapsed, x)
			p.remove(i)
			i--
		}
	}
}

// isBlurred reports whether the machine was so slow that a transition may have fallen into this step.
func (p *program) isBlurred() bool {
	p.blurred = p.blurred || time.Now().After(p.until)
	return p.blurred
}

// wrong fails the program, unless its times have become uncertain.
func (p *program) wrong(t *rapid.T, format string, args ...any) {
	t.Helper()
	if !p.isBlurred() {
		t.Fatalf(format, args...)
	}
}

// remove takes the message at place i out of the reference.
func (p *program) remove(i int) *parcel {
	x := p.info[p.items[i].id]
	delete(p.info, x.id)
	p.reference = p.without(i)
	return x
}

func (p *program) ready(x item) bool { return p.info[x.id].due(p.now) }

// next returns the place of the message that a receive with f takes now.
func (p *program) next(f kumquat.Filter) int { return p.first(f, p.ready) }

// send is what the reference makes of a send of ms. waits: it is a call that would wait for room, with a context that is done, whose
// error is done. It returns the error that must come.
func (p *program) send(ms []*parcel, done error) (want error) {
	low := ms[0].prio
	for _, x := range ms {
		low = min(low, x.prio)
		if len(x.m.Body) > p.o.MaxSize {
			return kumquat.ErrTooLarge
		}
	}
	n := len(ms)
	switch {
	case n > p.maxBatch:
		return kumquat.ErrTooLarge
	case p.room(n, low):
	case n > p.limit(low):
		return kumquat.ErrTooLarge
	case p.o.Overflow == kumquat.Block && done != nil:
		return done
	case p.o.Overflow < kumquat.DropOldest:
		return kumquat.ErrFull
	default:
		for !p.room(n, low) {
			i := 0
			if p.o.Overflow == kumquat.DropLowest {
				if i = p.lowest(); p.items[i].prio >= low {
					return kumquat.ErrFull
				}
			}
			p.remove(i)
			p.dropped++
		}
	}
	for _, x := range ms {
		p.sent++
		x.m.Seq = p.sent
		p.reference = p.with(x.item)
		p.info[x.id] = x
	}
	return nil
}

// lowest is the place of the oldest message of the lowest priority.
func (p *program) lowest() int {
	return slices.IndexFunc(p.items, func(x item) bool {
		return x.prio == slices.MinFunc(p.items, func(a, b item) int { return cmp.Compare(a.prio, b.prio) }).prio
	})
}

// same compares a message that came out of the queue with the one that went in.
func (p *program) same(t *rapid.T, got kumquat.Message, want *parcel, took bool) {
	t.Helper()
	w := want.m
	switch {
	case string(got.Body) != string(w.Body), got.Priority != w.Priority, got.Type != max(w.Type, 1), got.ID != w.ID, got.Key != w.Key,
		got.Group != w.Group, got.CorrelationID != w.CorrelationID, got.ReplyTo != w.ReplyTo, got.ContentType != w.ContentType,
		len(got.Headers) != len(w.Headers), !got.NotBefore.Equal(w.NotBefore), !got.Expires.Equal(w.Expires), got.Seq != w.Seq, got.Attempt != 0,
		got.Sender != os.Getpid():
		p.wrong(t, "the message\n%+v came instead of\n%+v", got, w)
	case got.Enqueued.Before(want.before.Add(-2*tick)) || got.Enqueued.After(want.after.Add(time.Millisecond)):
		p.wrong(t, "Enqueued is %v, the send lasted from %v to %v", got.Enqueued, want.before, want.after)
	case took && got.Taken <= p.taken:
		p.wrong(t, "Taken is %d, the last message had %d", got.Taken, p.taken)
	}
	for k, v := range w.Headers {
		if got.Headers[k] != v {
			p.wrong(t, "header %q is %q, not %q", k, got.Headers[k], v)
		}
	}
	if took {
		p.taken = got.Taken
	}
}

// errs fails the program unless err is what must come: nil, or an error that matches want.
func (p *program) errs(t *rapid.T, what string, err, want error) {
	t.Helper()
	if e, ok := want.(either); ok {
		if !errors.Is(err, e[0]) && !errors.Is(err, e[1]) {
			p.wrong(t, "%s: %v, not %v", what, err, want)
		}
	} else if want == nil && err != nil || want != nil && !errors.Is(err, want) {
		p.wrong(t, "%s: %v, not %v", what, err, want)
	}
}

// either stands for one of two errors, where which of them comes is not promised.
type either [2]error

func (e either) Error() string { return e[0].Error() + " or " + e[1].Error() }

// order returns what a peek with f shows: those due in the order of receipt, then the delayed by time.
func (p *program) order(f kumquat.Filter) (xs []*parcel) {
	for _, x := range p.items {
		if lets(f, x) {
			xs = append(xs, p.info[x.id])
		}
	}
	slices.SortStableFunc(xs, func(a, b *parcel) int {
		if x, y := a.due(p.now), b.due(p.now); x != y {
			if x {
				return -1
			}
			return 1
		} else if !x && !a.m.NotBefore.Equal(b.m.NotBefore) {
			return a.m.NotBefore.Compare(b.m.NotBefore)
		} else if x && before(f, a.item, b.item) {
			return -1
		} else if x && before(f, b.item, a.item) {
			return 1
		}
		return cmp.Compare(b.prio, a.prio)
	})
	return xs
}
