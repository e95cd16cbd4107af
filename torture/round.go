package torture

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
)

// round is one queue's life, from its creation to its removal. One goroutine runs it.
type round struct {
	plan    Plan
	crew    *crew
	dir     string // of the records
	rng     *rand.Rand
	file    *os.File // of the queue
	look    *kumquat.Queue
	members []*member
	number  uint16 // of the last actor
	todo    []task
	own     []*life // what the parent itself sent and received
	tally   Tally

	ending   bool
	observed chan error // not nil: gets the end of an observation
	epoch    uint64     // as last seen
	victim   *member
	poll     time.Time // until then a takeover is about to happen: do not sleep
}

// member is a worker process in a round.
type member struct {
	p       *proc
	sends   bool
	plain   bool
	looker  bool
	actors  []actorOrder
	stopped bool
	busy    bool   // it has not said that it is done
	died    int64  // when it was certainly dead; 0: it lives, or ended as told
	away    []span // when it was stopped
	ambush  bool   // laid for it, and not sprung yet
	looked  int64  // when it was seen not to be stopped, last
}

// task is something to be done later in the round.
type task struct {
	at time.Time
	do func() error
}

// patience is how long a worker may take to finish a round before it counts as hanging.
const patience = 20 * time.Second

func (r *round) run(ctx context.Context) (err error) {
	if err := r.open(ctx); err != nil {
		return err
	}
	defer func() {
		for _, m := range r.members { // a round that failed leaves none in the middle of something
			if m.busy {
				m.p.kill()
				m.busy = false
			}
		}
		if r.observed != nil {
			err = errors.Join(err, <-r.observed)
			r.observed = nil
		}
		err = errors.Join(err, r.look.Close(), r.file.Close())
	}()
	for range r.plan.Producers {
		if err := r.join(true); err != nil {
			return err
		}
	}
	for i := range r.plan.Consumers {
		if err := r.joinConsumer(i == 0); err != nil {
			return err
		}
	}
	if r.plan.Looker {
		if err := r.joinLooker(); err != nil {
			return err
		}
	}
	if err := r.chaos(ctx); err != nil {
		return err
	}
	if err := r.finish(ctx); err != nil {
		return err
	}
	if r.observed != nil {
		err := <-r.observed
		r.observed = nil
		if err != nil {
			return err
		}
	}
	return r.judge(ctx)
}

// open creates the queue and, in a deep round, fills it.
func (r *round) open(ctx context.Context) error {
	q, err := kumquat.Open(ctx, r.plan.Queue, &kumquat.Options{Create: true, Exclusive: true, MaxMessages: r.plan.MaxMessages,
		MaxSize: r.plan.MaxSize, MaxHandles: r.plan.MaxHandles, Overflow: r.plan.Overflow})
	if err != nil {
		return err
	}
	s, err := q.Stat(ctx)
	if err == nil && r.plan.Deep > 0 {
		err = r.prefill(ctx, q)
	}
	if err := errors.Join(err, q.Close()); err != nil {
		return err
	}
	if r.file, err = os.Open(s.Path); err != nil {
		return err
	}
	if r.look, err = kumquat.Open(ctx, r.plan.Queue, &kumquat.Options{ReadOnly: true}); err != nil {
		_ = r.file.Close()
	}
	return err
}

func (r *round) prefill(ctx context.Context, q *kumquat.Queue) error {
	o := r.actor(true, []op{opSendBatch})
	o.Record, o.Entries = "", r.plan.Deep+maxBatch+2
	a, err := newActor(&r.plan, o, q)
	if err != nil {
		return err
	}
	for int(a.next)+maxBatch <= r.plan.Deep { // so that the last batch has room too
		if err := a.send(ctx, opSendBatch); err != nil {
			return err
		}
	}
	r.own = append(r.own, &life{order: o, entries: a.rec.entries[:a.rec.next]})
	return nil
}

// actor makes the orders for one goroutine.
func (r *round) actor(sends bool, ops []op) actorOrder {
	r.number++
	return actorOrder{Number: r.number, Sends: sends, Plain: true, Ops: ops, Seed: r.rng.Uint64(),
		Record: filepath.Join(r.dir, fmt.Sprintf("actor-%d", r.number)), Entries: r.plan.Entries}
}

var senders = [][]op{
	{opSend}, {opTrySend, opSend}, {opSendBytes, opTrySendBytes}, {opSendBatch, opTrySendBatch}, {opCommit, opSend},
	{opSend, opTrySend, opSendBytes, opTrySendBytes, opSendBatch, opTrySendBatch, opCommit},
}

var eager = []op{opTryReceive, opTryReceive, opTryReceiveBatch, opReceive}

var receivers = [][]op{
	{opReceive}, {opTryReceive, opReceive}, {opReceiveInto}, {opReceiveBatch, opTryReceiveBatch}, {opBorrow},
	{opReceive, opTryReceive, opReceiveInto, opReceiveBatch, opTryReceiveBatch, opBorrow},
}

func (r *round) join(sends bool) error {
	if !sends {
		return r.joinConsumer(false)
	}
	m := &member{sends: true}
	ops := senders[r.rng.IntN(len(senders))]
	for range r.plan.Threads {
		m.actors = append(m.actors, r.actor(true, ops))
	}
	return r.enlist(m)
}

// joinConsumer starts a consumer. A plain one uses no filter: with one of these running, there is always work to be done.
func (r *round) joinConsumer(plain bool) error {
	m := &member{plain: plain || r.plan.Types == 1 && r.rng.IntN(4) > 0}
	ops := receivers[r.rng.IntN(len(receivers))]
	if r.plan.Eager > 0 && r.rng.IntN(3) > 0 {
		ops = eager
	}
	for range r.plan.Threads {
		o := r.actor(false, ops)
		o.Plain = m.plain
		m.actors = append(m.actors, o)
	}
	return r.enlist(m)
}

func (r *round) joinLooker() error {
	m := &member{looker: true}
	o := r.actor(false, []op{opLook})
	o.Plain = false
	m.actors = append(m.actors, o)
	return r.enlist(m)
}

func (r *round) enlist(m *member) error {
	line, err := json.Marshal(order{Plan: r.plan, Actors: m.actors})
	if err != nil {
		return err
	}
	if m.p, err = r.crew.get(); err != nil {
		return err
	}
	m.busy = true
	r.members = append(r.members, m)
	return m.p.say(string(line))
}

// overheard listens to what workers say. None is done before it is told to, unless all its messages are sent or its record is full.
func (r *round) overheard() error {
	for _, m := range r.members {
		for m.busy {
			select {
			case line, ok := <-m.p.lines:
				if err := r.heard(m, line, ok); err != nil {
					return err
				}
				continue
			default:
			}
			break
		}
	}
	return nil
}

func (r *round) heard(m *member, line string, ok bool) error {
	switch {
	case !ok:
		m.busy = false
		<-m.p.ended
		return failure("worker %d ended: %s", m.p.pid(), m.p.how())
	case line == lineDone:
		m.busy = false
		r.crew.put(m.p)
		if !r.ending && len(r.members) < mostMembers {
			r.later(0, func() error { return r.replace(m) })
		}
	case strings.HasPrefix(line, lineFailed):
		m.busy = false
		r.crew.put(m.p)
		return failure("worker %d: %s", m.p.pid(), strings.TrimPrefix(line, lineFailed))
	default:
		return failure("worker %d says %q", m.p.pid(), line)
	}
	return nil
}

// finish has everybody go on, tells them to end, and waits for it.
func (r *round) finish(ctx context.Context) error {
	r.ending = true
	if err := r.sprung(); err != nil {
		return err
	}
	for _, m := range r.members {
		if m.busy && m.ambush && !m.stopped { // it may stop itself from now on and is waked blindly: it counts as stopped
			m.away = append(m.away, span{from: m.looked, to: forever})
		}
	}
	for _, m := range r.members {
		r.cont(m)
	}
	for _, sends := range []bool{true, false} {
		for _, m := range r.members {
			if m.busy && m.sends == sends {
				if err := m.p.say(lineStop); err != nil {
					return failure("worker %d takes no orders: %v", m.p.pid(), err)
				}
			}
		}
		for _, m := range r.members {
			if m.sends == sends {
				if err := r.finished(ctx, m); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// finished waits until a worker has said that it is done. Its last ambush may spring meanwhile.
func (r *round) finished(ctx context.Context, m *member) error {
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for deadline := time.Now().Add(patience); m.busy; {
		select {
		case line, ok := <-m.p.lines:
			if err := r.heard(m, line, ok); err != nil {
				return err
			}
		case <-again.C:
			m.p.signal(unix.SIGCONT)
			if time.Now().After(deadline) {
				return r.hangs(m)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// hangs ends a worker that does not finish, with the stacks of its goroutines.
func (r *round) hangs(m *member) error {
	who := ""
	if ps, err := r.look.Who(context.Background()); err == nil {
		for _, p := range ps {
			who += fmt.Sprintf("\n  handle %d, process %d: alive %v, %s since %v, holds %d, %s", p.Number, p.PID, p.Alive, p.Doing, p.Since, p.Holds,
				strings.Join(p.Last, ", "))
		}
	}
	w, _ := r.lockWord()
	m.p.signal(unix.SIGQUIT)
	select {
	case <-m.p.ended:
	case <-time.After(5 * time.Second):
	}
	m.p.kill()
	m.busy = false
	return failure("worker %d did not finish within %v; lock word %#x;%s\n%s", m.p.pid(), patience, w, who, m.p.how())
}

// failed is what is wrong with the queue, as opposed to the machine.
type failed struct{ text string }

func (f *failed) Error() string { return f.text }

func failure(format string, args ...any) error { return &failed{fmt.Sprintf(format, args...)} }
