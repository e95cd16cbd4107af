package torture

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/kumquat-mq/kumquat"
)

// actor is one goroutine that sends or receives and writes down what it does.
type actor struct {
	plan   *Plan
	order  actorOrder
	q      *kumquat.Queue
	rec    *recordOf
	rng    *rand.Rand
	next   uint32 // counter of the next message
	buf    []byte
	loans  []*kumquat.Loan
	bursts int
}

func newActor(p *Plan, o actorOrder, q *kumquat.Queue) (*actor, error) {
	rec, err := newRecord(o.Record, o.Entries)
	if err != nil {
		return nil, err
	}
	return &actor{plan: p, order: o, q: q, rec: rec, rng: rand.New(rand.NewPCG(o.Seed, 1)), buf: make([]byte, p.MaxSize)}, nil
}

// run works until ctx is done or the record is full.
func (a *actor) run(ctx context.Context) (err error) {
	defer func() {
		for _, l := range a.loans {
			err = errors.Join(err, l.Release())
		}
	}()
	a.rec.atWork()
	defer a.rec.atWork()
	pause := a.plan.RecvPause
	if a.order.Sends {
		pause = a.plan.SendPause
	}
	for ctx.Err() == nil && a.rec.room(maxBatch) {
		o := a.order.Ops[a.rng.IntN(len(a.order.Ops))]
		if a.order.Sends {
			if int(a.next) >= a.plan.Quota {
				return nil
			}
			err = a.send(ctx, o)
		} else {
			_, err = a.receive(ctx, o)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", o, err)
		}
		if a.bursts++; a.bursts%a.plan.Burst == 0 && o != opLook {
			time.Sleep(pause)
		}
	}
	return nil
}

const maxBatch = 64

// bounded is ctx, or ctx with a short deadline.
func (a *actor) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if a.rng.IntN(2) == 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, time.Duration(1+a.rng.IntN(30))*time.Millisecond)
}

// outcome sorts a call's error: nothing happened, or it is one that should not be.
func outcome(err error) (uint8, error) {
	switch {
	case err == nil:
		return resOK, nil
	case errors.Is(err, kumquat.ErrFull), errors.Is(err, kumquat.ErrEmpty), errors.Is(err, kumquat.ErrTimeout), errors.Is(err, context.Canceled):
		return resNothing, nil
	}
	return resAbandoned, err
}

func (a *actor) message(id uint64, body []byte) kumquat.Message {
	t := a.plan.traits(id)
	m := kumquat.Message{Body: body[:t.size], Priority: t.prio, Type: t.typ}
	a.plan.fill(m.Body, id)
	if t.timed() {
		n := time.Now()
		if t.delay > 0 {
			m.NotBefore = n.Add(t.delay)
		}
		if t.living > 0 {
			m.Expires = n.Add(t.living)
		}
	}
	return m
}

// send makes one call. A message that was not sent is never tried again: its number must not appear at a receiver.
func (a *actor) send(ctx context.Context, o op) error {
	ctx, cancel := a.bounded(ctx)
	defer cancel()
	n := 1
	if o == opSendBatch || o == opTrySendBatch {
		n = a.batch(a.q.MaxBatch())
	}
	id := messageID(a.order.Number, a.next)
	if t := a.plan.traits(id); (o == opSendBytes || o == opTrySendBytes) && (t.timed() || t.typ != 1) {
		o = opSend // these two carry no metadata
	}
	a.next += uint32(n)
	if o == opCommit {
		return a.commit(ctx, id)
	}
	if len(a.buf) < n*a.plan.MaxSize {
		a.buf = make([]byte, n*a.plan.MaxSize)
	}
	var ms []kumquat.Message
	for i := range n {
		ms = append(ms, a.message(id+uint64(i), a.buf[i*a.plan.MaxSize:]))
	}
	e := a.rec.begin(o, 0, id, n)
	var err error
	switch o {
	case opSend:
		err = a.q.Send(ctx, ms[0])
	case opTrySend:
		err = a.q.TrySend(ms[0])
	case opSendBytes:
		err = a.q.SendBytes(ctx, ms[0].Body, ms[0].Priority)
	case opTrySendBytes:
		err = a.q.TrySendBytes(ms[0].Body, ms[0].Priority)
	case opSendBatch:
		err = a.q.SendBatch(ctx, ms)
	case opTrySendBatch:
		err = a.q.TrySendBatch(ms)
	}
	return a.sent(e, n, err)
}

func (a *actor) sent(e *entry, n int, err error) error {
	at := now()
	res, bad := outcome(err)
	e.end(at, res, n)
	if res == resNothing {
		time.Sleep(time.Duration(a.rng.IntN(1000)) * time.Microsecond / time.Duration(a.plan.Eager*20+1))
	}
	return bad
}

// batch chooses a batch's length: mostly short, at times the longest.
func (a *actor) batch(most int) int {
	most = min(most, maxBatch)
	if a.rng.IntN(3) > 0 {
		most = min(most, 8)
	}
	return 1 + a.rng.IntN(most)
}

func (a *actor) commit(ctx context.Context, id uint64) error {
	t := a.plan.traits(id)
	r, err := a.q.Reserve(ctx, t.size)
	if err != nil {
		_, err = outcome(err)
		return err
	}
	m := a.message(id, r.Bytes())
	if a.rng.IntN(16) == 0 {
		return r.Abort()
	}
	e := a.rec.begin(opCommit, 0, id, 1)
	if a.rng.IntN(2) == 0 {
		err = r.Commit(ctx, m)
	} else {
		err = r.TryCommit(m)
	}
	failed := err != nil
	if err := a.sent(e, 1, err); err != nil {
		return err
	}
	if failed {
		return r.Abort()
	}
	return nil
}

// receive makes one call and returns how many messages it got.
func (a *actor) receive(ctx context.Context, o op) (int, error) {
	if o == opLook {
		if err := a.look(); err != nil || a.plan.Types < 3 {
			return 0, err
		}
		return a.one(ctx, opTryReceive, rareType, []kumquat.Filter{filters[rareType]})
	}
	var fs []kumquat.Filter
	filter := uint8(0)
	if !a.order.Plain && o != opReceiveInto && a.rng.IntN(4) > 0 {
		filter = uint8(1 + a.rng.IntN(len(filters)-1))
		fs = []kumquat.Filter{filters[filter]}
	}
	// What a filter waits for may never come, so such calls are bounded.
	if filter != 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(1+a.rng.IntN(20))*time.Millisecond)
		defer cancel()
	} else {
		var cancel context.CancelFunc
		ctx, cancel = a.bounded(ctx)
		defer cancel()
	}
	switch o {
	case opReceiveBatch, opTryReceiveBatch:
		return a.receiveBatch(ctx, o, filter, fs)
	case opReceiveInto:
		return a.receiveInto(ctx)
	}
	return a.one(ctx, o, filter, fs)
}

// one receives or borrows one message.
func (a *actor) one(ctx context.Context, o op, filter uint8, fs []kumquat.Filter) (int, error) {
	asked := time.Now()
	e := a.rec.begin(o, filter, 0, 1)
	var m kumquat.Message
	var err error
	switch o {
	case opReceive:
		m, err = a.q.Receive(ctx, fs...)
	case opTryReceive:
		m, err = a.q.TryReceive(fs...)
	case opBorrow:
		var l *kumquat.Loan
		if l, err = a.q.Borrow(ctx, fs...); err == nil {
			m = l.Message()
			a.loans = append(a.loans, l)
		}
	}
	at := now()
	res, bad := outcome(err)
	if o == opBorrow && errors.Is(err, kumquat.ErrLimit) { // batches of the handle's other goroutines may hold all its places
		res, bad = resNothing, nil
	}
	if res == resOK {
		a.note(e, &m, asked)
	}
	e.end(at, res, 1)
	if bad != nil || res != resOK {
		return 0, a.nothing(ctx, o, bad)
	}
	for len(a.loans) > 0 && (len(a.loans) > 4 || a.rng.IntN(2) == 0) {
		l := a.loans[0]
		// Nobody else may have written there while it was lent.
		if m := l.Message(); !a.sound(m.Body) {
			e.bad = badBody
		}
		a.loans = a.loans[1:]
		if err := l.Release(); err != nil {
			return 1, err
		}
	}
	return 1, nil
}

// look looks through the whole queue for what is not there, over and over. Nothing is written down unless something is there after
// all: clocks and records would take more time than the lock is held.
func (a *actor) look() error {
	for range 20 {
		m, err := a.q.TryReceive(noMessage)
		res, bad := outcome(err)
		if bad != nil {
			return bad
		}
		if res == resOK {
			e := a.rec.begin(opLook, 0, 0, 1)
			a.judge(e, m.Body, m.Priority, m.Type)
			e.bad = badType
			e.end(now(), res, 1)
		}
	}
	return nil
}

func (a *actor) sound(body []byte) bool {
	_, ok := a.plan.identify(body)
	return ok
}

// nothing ends a receive that took nothing. Those who try in vain rest, unless they are eager: these have the lock half of the time.
func (a *actor) nothing(ctx context.Context, o op, bad error) error {
	if bad != nil {
		return bad
	}
	a.rec.forget()
	if (o == opTryReceive || o == opTryReceiveBatch) && a.plan.Eager == 0 {
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(a.rng.IntN(500)) * time.Microsecond):
		}
	}
	return nil
}

func (a *actor) receiveInto(ctx context.Context) (int, error) {
	e := a.rec.begin(opReceiveInto, 0, 0, 1)
	n, prio, err := a.q.ReceiveInto(ctx, a.buf)
	at := now()
	res, bad := outcome(err)
	if res == resOK {
		a.judge(e, a.buf[:n], prio, 1)
		if e.bad == badType { // it is not told
			e.bad = badNothing
		}
		e.typ = uint8(a.plan.traits(e.id).typ)
	}
	e.end(at, res, 1)
	if res != resOK {
		return 0, a.nothing(ctx, opReceiveInto, bad)
	}
	return 1, nil
}

func (a *actor) receiveBatch(ctx context.Context, o op, filter uint8, fs []kumquat.Filter) (int, error) {
	want := a.batch(maxBatch)
	asked := time.Now()
	e := a.rec.begin(o, filter, 0, want)
	var ms []kumquat.Message
	var err error
	if o == opReceiveBatch {
		ms, err = a.q.ReceiveBatch(ctx, want, fs...)
	} else {
		ms, err = a.q.TryReceiveBatch(want, fs...)
	}
	at := now()
	res, bad := outcome(err)
	for i := range ms {
		a.note(a.rec.message(), &ms[i], asked)
	}
	e.end(at, res, len(ms))
	if bad != nil || res != resOK {
		return 0, a.nothing(ctx, o, bad)
	}
	return len(ms), nil
}

// note writes down a message that was received by a call made at asked.
func (a *actor) note(e *entry, m *kumquat.Message, asked time.Time) {
	e.seq, e.taken = m.Seq, m.Taken
	a.judge(e, m.Body, m.Priority, m.Type)
	switch {
	case e.bad != badNothing:
	case m.Seq == 0 || m.Taken == 0:
		e.bad = badStamps
	case !m.NotBefore.IsZero() && time.Now().Before(m.NotBefore):
		e.bad = badEarly
	case !m.Expires.IsZero() && asked.After(m.Expires.Add(clockTick)):
		e.bad = badLate
	}
}

// clockTick is how exact times of messages are.
const clockTick = 10 * time.Millisecond

func (a *actor) judge(e *entry, body []byte, prio int, typ int64) {
	id, ok := a.plan.identify(body)
	t := a.plan.traits(id)
	e.id, e.prio, e.typ = id, uint16(prio), uint8(typ)
	switch {
	case !ok:
		e.bad = badBody
	case len(body) != t.size:
		e.bad = badLength
	case prio != t.prio:
		e.bad = badPriority
	case typ != t.typ:
		e.bad = badType
	}
}
