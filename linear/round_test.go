package linear

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
)

// tally is what the rounds were, for people to judge whether the proof was one.
type tally struct {
	rounds, calls, overlapping  int
	killed, inCall, stopped     int
	takeovers                   uint64
	full, empty, batches, items int
}

func (s *tally) String() string {
	return fmt.Sprintf("%d rounds, %d calls, %d of them while another process was in one; %d messages, %d calls found it full, %d found nothing, "+
		"%d took a batch; %d killed, %d of them in a call, %d stopped, %d takeovers",
		s.rounds, s.calls, s.overlapping, s.items, s.full, s.empty, s.batches, s.killed, s.inCall, s.stopped, s.takeovers)
}

// pick returns one of xs.
func pick[T any](r *rand.Rand, xs ...T) T { return xs[r.IntN(len(xs))] }

// newPlan makes the plan of a round.
func newPlan(r *rand.Rand, n int) plan {
	p := plan{Queue: fmt.Sprintf("/linear/%d", n), Max: pick(r, 1, 2, 10, 64), Size: pick(r, 32, 300), Calls: 40,
		Priorities: pick(r, 1, 2, 4, 100), Types: pick[int64](r, 1, 3), Sends: pick(r, 40, 50, 60), Batches: pick(r, 0, 25, 50),
		Waits: pick(r, 0, 20, 60), Pause: pick(r, 0, time.Microsecond, 20*time.Microsecond), Deadline: pick(r, 100*time.Microsecond, 3*time.Millisecond),
		Overflow: pick(r, kumquat.Block, kumquat.Block, kumquat.Reject)}
	if p.Types > 1 || p.Priorities > 1 {
		p.Filtered = pick(r, 0, 30, 80)
	}
	if p.Priorities > 1 && p.Max >= 10 && r.IntN(3) == 0 {
		p.Headroom = kumquat.Headroom{Percent: 30, Priority: 1}
	}
	return p
}

// round is one queue's life.
type round struct {
	t      testing.TB
	plan   plan
	rng    *rand.Rand
	dir    string
	tally  *tally
	procs  []*proc // one a worker; nil: to be started
	orders []*order
}

// self is the number of this process in a history.
const self = 15

// run has the workers do their work and returns the history.
func (r *round) run() *history {
	t := r.t
	ctx := context.Background()
	q, err := kumquat.Open(ctx, r.plan.Queue, &kumquat.Options{Create: true, Exclusive: true, MaxMessages: r.plan.Max, MaxSize: r.plan.Size,
		Overflow: r.plan.Overflow, Headroom: r.plan.Headroom})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(q.Close(), kumquat.Remove(ctx, r.plan.Queue)); err != nil {
			t.Fatal(err)
		}
	}()
	r.warm(q)
	r.begin()
	h := &history{max: r.plan.Max, headroom: r.plan.Headroom}
	died := r.wait()
	serial := 0
	for i, o := range r.orders {
		entries, err := readRecord(o.Record)
		if err != nil {
			t.Fatal(err)
		}
		cs, err := calls(i, entries, died[i], &serial)
		if err != nil {
			t.Fatalf("%v\nplan: %+v", err, r.plan)
		}
		h.calls = append(h.calls, cs...)
		r.tally.calls += len(entries)
		if died[i] != 0 && len(entries) > 0 && entries[len(entries)-1].ended == 0 {
			r.tally.inCall++
		}
	}
	r.tally.overlapping += overlapping(h.calls)
	r.tally.rounds++
	r.tally.batches += serial
	h.calls = append(h.calls, r.settle(q)...)
	for _, c := range h.calls {
		switch c.kind {
		case sent:
			r.tally.items += len(c.items)
		case full:
			r.tally.full++
		case empty:
			r.tally.empty++
		}
	}
	report, err := q.Check(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range report.Problems {
		if p.Broken {
			t.Errorf("check after plan %+v: %s: %s", r.plan, p.Where, p.Text)
		}
	}
	s, err := q.Stat(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r.tally.takeovers += s.Takeovers
	return h
}

// warm sends and receives some messages, one after the other, before a round. Receivers look for news at every call until for a while
// nothing came that was above what waited; only from then on do they rely on being alerted. Rounds are short, so without this most of
// them would end before that.
func (r *round) warm(q *kumquat.Queue) {
	if r.plan.Max == 1 { // nothing waits there when another message comes
		return
	}
	prio, n := r.rng.IntN(r.plan.Priorities), pick(r.rng, 0, 40, 80)
	for i := range n + 1 {
		if i < n {
			if err := q.TrySendBytes(nil, prio); err != nil {
				r.t.Fatal(err)
			}
		}
		if i > 0 {
			if _, err := q.TryReceive(); err != nil {
				r.t.Fatal(err)
			}
		}
	}
}

// begin has all workers open the queue, then start at one time.
func (r *round) begin() {
	var lines []string
	for i, o := range r.orders {
		o.plan, o.Who, o.Seed = r.plan, i, r.rng.Uint64()
		o.Record = filepath.Join(r.dir, fmt.Sprintf("record-%d", i))
		if err := createRecord(o.Record, r.plan.Calls); err != nil {
			r.t.Fatal(err)
		}
		line, err := json.Marshal(o)
		if err != nil {
			r.t.Fatal(err)
		}
		lines = append(lines, string(line))
	}
	for i := range r.procs {
		if r.procs[i] == nil {
			r.procs[i] = start(r.t)
		}
		if err := r.procs[i].say(lines[i]); err != nil {
			r.t.Fatal(err)
		}
	}
	for _, p := range r.procs {
		if line, ended, hang := p.hears(patience); ended || hang || line != lineReady {
			p.kill()
			r.t.Fatalf("%q instead of %q: %s", line, lineReady, p.how())
		}
	}
	at := fmt.Sprint(lineGo, now()+int64(300*time.Microsecond))
	for _, p := range r.procs {
		if err := p.say(at); err != nil {
			r.t.Fatal(err)
		}
	}
}

// wait waits until all workers are done, or dead as planned, and returns when they were surely dead.
func (r *round) wait() []int64 {
	died := make([]int64, len(r.procs))
	for i, p := range r.procs {
		o := r.orders[i]
		for deadline := time.Now().Add(patience); ; {
			line, ended, quiet := p.hears(2 * time.Millisecond)
			r.wake()
			switch {
			case quiet && time.Now().Before(deadline):
				continue
			case quiet:
				_ = p.cmd.Process.Signal(unix.SIGQUIT) // for the stacks of its goroutines
				time.Sleep(time.Second)
				p.kill()
				r.t.Fatalf("a worker hangs: %s\nplan: %+v", p.how(), r.plan)
			case ended && o.Signal == unix.SIGKILL && p.killed():
				died[i] = now()
				r.tally.killed++
				r.procs[i] = nil
				_ = p.in.Close()
			case ended || line != lineDone:
				p.kill()
				r.t.Fatalf("%q instead of %q: %s\nplan: %+v", line, lineDone, p.how(), r.plan)
			case o.Signal != 0: // its ambush may still be laid, and it must not spring in the next round
				p.kill()
				r.procs[i] = nil
			}
			break
		}
	}
	return died
}

// wake lets those go on that stopped themselves, some time later.
func (r *round) wake() {
	for i, o := range r.orders {
		if o.Signal != unix.SIGSTOP || r.procs[i] == nil {
			continue
		}
		if r.procs[i].stopped() {
			r.tally.stopped++
			// Beyond 20 ms the others take over what it holds.
			time.Sleep(time.Duration(r.rng.Int64N(int64(40 * time.Millisecond))))
		}
		_ = r.procs[i].cmd.Process.Signal(syscall.SIGCONT)
	}
}

// settle makes the last calls of the history: what is left is received, then the queue is filled, which shows that no place is lost
// for ever, and emptied again.
func (r *round) settle(q *kumquat.Queue) (cs []*call) {
	note := func(k kind, began int64, t token) {
		c := &call{who: self, kind: k, began: began, ended: now()}
		if k != empty {
			c.items = []item{t.item()}
		}
		cs = append(cs, c)
	}
	drain := func() {
		for {
			began := now()
			m, err := q.TryReceive()
			switch res, bad := outcome(err); {
			case bad != nil:
				r.t.Fatal(bad)
			case res == resEmpty:
				note(empty, began, 0)
				return
			}
			t, ok := readToken(m.Body, r.plan.Size, m.Priority, m.Type)
			if !ok {
				r.t.Fatalf("a message is not what was sent: token %#x, priority %d, type %d", uint64(t), m.Priority, m.Type)
			}
			note(took, began, t)
		}
	}
	drain()
	body := make([]byte, r.plan.Size)
	for i := range r.plan.Max + 1 {
		t := newToken(self<<16+uint32(i), kumquat.MaxPriority, 1)
		b := body[:sizeOf(t, r.plan.Size)]
		t.fill(b)
		began := now()
		switch res, bad := outcome(q.TrySend(kumquat.Message{Body: b, Priority: kumquat.MaxPriority})); {
		case bad != nil:
			r.t.Fatal(bad)
		case res == resFull:
			note(full, began, t)
		default:
			note(sent, began, t)
		}
	}
	drain()
	return cs
}

// overlapping counts the calls during which a call of another process went on.
func overlapping(cs []*call) (n int) {
	for _, a := range cs {
		for _, b := range cs {
			if a.who != b.who && a.began <= b.ended && b.began <= a.ended {
				n++
				break
			}
		}
	}
	return n
}
