package torture

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kumquat-mq/kumquat"
)

// life is what one actor did.
type life struct {
	order   actorOrder
	entries []entry
	died    int64  // when it was certainly dead; 0: it ended as told
	away    []span // when it was stopped
}

// judge empties the queue, accounts for every message, and tries out what the dead have left.
func (r *round) judge(ctx context.Context) error {
	lives := r.own
	for _, m := range r.members {
		for _, o := range m.actors {
			es, err := readRecord(o.Record)
			if err != nil {
				return err
			}
			lives = append(lives, &life{order: o, entries: es, died: m.died, away: m.away})
		}
	}
	q, err := openPatiently(ctx, r.plan.Queue)
	if err != nil {
		return failure("opening the queue at the end: %v", err)
	}
	drained, err := r.drain(ctx, q)
	lives = append(lives, drained)
	var s kumquat.Stats
	if err == nil {
		s, err = q.Stat(ctx)
	}
	if err := errors.Join(err, q.Close()); err != nil {
		return failure("emptying the queue at the end: %v", err)
	}
	r.tally.Takeovers += int(s.Takeovers)
	h := newHistory(&r.plan, lives, s)
	wrong := h.account(&r.tally)
	if s.Messages != 0 {
		wrong = append(wrong, fmt.Sprintf("the queue is empty to a receiver, and Stat counts %d messages", s.Messages))
	}
	w, err := r.sound(ctx, "after the round")
	if err != nil {
		return err
	}
	wrong = append(wrong, w...)
	if len(wrong) == 0 {
		if wrong, err = r.exact(ctx); err != nil {
			return failure("trying out the capacity: %v", err)
		}
	}
	if len(wrong) > 0 {
		return &failed{textOf(wrong)}
	}
	return nil
}

func textOf(wrong []string) string {
	const most = 12
	text := ""
	for i, w := range wrong {
		if i == most {
			text += fmt.Sprintf("\n  … and %d more", len(wrong)-most)
			break
		}
		text += "\n  " + w
	}
	return fmt.Sprintf("%d findings:%s", len(wrong), text)
}

// drain receives what is left, delayed messages too.
func (r *round) drain(ctx context.Context, q *kumquat.Queue) (*life, error) {
	o := r.actor(false, []op{opTryReceiveBatch})
	l := &life{order: o}
	s, err := q.Stat(ctx)
	if err != nil {
		return l, err
	}
	o.Record, o.Entries = "", 2*s.Messages+100_000
	a, err := newActor(&r.plan, o, q)
	if err != nil {
		return l, err
	}
	for deadline := time.Now().Add(3 * time.Second); ; {
		n, err := a.receive(ctx, opTryReceiveBatch)
		l.entries = a.rec.entries[:a.rec.next]
		if err != nil || ctx.Err() != nil {
			return l, errors.Join(err, ctx.Err())
		}
		if !a.rec.room(maxBatch) {
			return l, failure("more came out of the queue than was in it")
		}
		if n > 0 {
			continue
		}
		if !r.plan.Timed {
			return l, nil
		}
		// What is not due yet will be, what is nobody's for ever shows in the accounts.
		if s, err = q.Stat(ctx); err != nil || s.Messages == 0 || time.Now().After(deadline) {
			return l, err
		}
		time.Sleep(time.Millisecond)
	}
}

// sound has the file checked. What the dead have left is no fault.
func (r *round) sound(ctx context.Context, when string) ([]string, error) {
	rep, err := r.look.Check(ctx)
	if err != nil {
		return nil, failure("checking the file %s: %v", when, err)
	}
	var wrong []string
	for _, p := range rep.Problems {
		if p.Broken {
			wrong = append(wrong, fmt.Sprintf("check %s: %s: %s", when, p.Where, p.Text))
		}
	}
	if rep.Busy {
		wrong = append(wrong, "check "+when+": it says that the queue is in use, and nobody is there")
	}
	return wrong, nil
}

// exact fills the queue through a new handle: it must take MaxMessages and not one more, whatever the dead were holding.
func (r *round) exact(ctx context.Context) (wrong []string, err error) {
	if r.plan.MaxMessages > 1000 && !r.plan.FillAll {
		return nil, nil
	}
	q, err := openPatiently(ctx, r.plan.Queue)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, q.Close()) }()
	before, err := q.Stat(ctx)
	if err != nil {
		return nil, err
	}
	body := make([]byte, 8)
	one := kumquat.Message{Body: body, Priority: 3}
	n := 0
	for batch := q.MaxBatch(); n < r.plan.MaxMessages; {
		k := min(batch, r.plan.MaxMessages-n)
		if k > 1 {
			ms := make([]kumquat.Message, k)
			for i := range ms {
				ms[i] = one
			}
			err = q.TrySendBatch(ms)
		} else {
			err = q.TrySend(one)
		}
		if err != nil {
			return []string{fmt.Sprintf("a new handle of the emptied queue could send %d of %d messages: %v", n, r.plan.MaxMessages, err)}, nil
		}
		n += k
	}
	err = q.TrySend(one)
	if r.plan.Overflow == kumquat.DropOldest {
		s, err2 := q.Stat(ctx)
		if err != nil || err2 != nil || s.Messages != r.plan.MaxMessages || s.Dropped != before.Dropped+1 {
			wrong = append(wrong, fmt.Sprintf("one message more than the capacity: %v, %v; %d messages are there, %d were dropped by it",
				err, err2, s.Messages, s.Dropped-before.Dropped))
		}
	} else if !errors.Is(err, kumquat.ErrFull) {
		wrong = append(wrong, fmt.Sprintf("one message more than the capacity: the error is %v, should be ErrFull", err))
	}
	got := 0
	for {
		ms, err := q.TryReceiveBatch(maxBatch)
		if err != nil {
			if !errors.Is(err, kumquat.ErrEmpty) {
				return nil, err
			}
			break
		}
		got += len(ms)
	}
	if got != r.plan.MaxMessages {
		wrong = append(wrong, fmt.Sprintf("the full queue gave %d messages of %d", got, r.plan.MaxMessages))
	}
	w, err := r.sound(ctx, "after filling and emptying it")
	return append(wrong, w...), err
}
