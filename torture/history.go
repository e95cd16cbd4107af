package torture

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/kumquat-mq/kumquat"
)

// forever is a time that never comes.
const forever = math.MaxInt64

type span struct{ from, to int64 }

// history is all that happened in a round, as the records tell it. A time "began" is before the call, "ended" after it: so if one
// call ended before another began, it came first; nothing else follows from times.
type history struct {
	plan  *Plan
	lives []*life
	stats kumquat.Stats // of the emptied queue

	sends     map[uint16]*sendsOf
	takes     []take // every message that a receive returned
	hands     []hand // calls of killed receivers that did not return
	completed []int64
	wrong     []string
	count     [kinds]int
}

// sendsOf is the messages of one producer, by counter.
type sendsOf struct {
	msgs  []sendState
	calls []sendCall
	died  bool
}

type sendCall struct {
	first        uint32
	n            int
	began, ended int64 // ended: forever for a call that did not return
	res          uint8 // 0: it did not return
}

type sendState struct {
	call  int32 // index into calls + 1; 0: never attempted
	times int32 // received
	seq   uint64
}

// take is a message that a receive returned.
type take struct {
	id           uint64
	seq, taken   uint64 // 0: not told
	began, ended int64
	prio         uint16
	typ, filter  uint8
	delayed      bool
	actor        uint16
	op           op
	sent         span // its send
}

// hand is a receive that did not return: up to n messages were in the hand of the dead.
type hand struct {
	began, died int64
	n           int
	actor       uint16
	op          op
}

// A kind of finding.
type kind uint8

const (
	kindLost kind = iota
	kindDoubled
	kindInvented
	kindDamaged
	kindDisorder
	kindPassed
	kindOver
	kindRecords // the records themselves make no sense
	kinds
)

var kindNames = [kinds]string{"lost", "doubled", "invented", "damaged", "out of order", "passed over", "over capacity", "record"}

func (h *history) find(k kind, format string, args ...any) {
	h.count[k]++
	if h.count[k] <= 5 {
		h.wrong = append(h.wrong, kindNames[k]+": "+fmt.Sprintf(format, args...))
	}
}

func newHistory(p *Plan, lives []*life, s kumquat.Stats) *history {
	h := &history{plan: p, lives: lives, stats: s, sends: map[uint16]*sendsOf{}}
	for _, l := range lives {
		if l.order.Sends {
			h.readSends(l)
		}
	}
	for _, l := range lives {
		if !l.order.Sends {
			h.readTakes(l)
		}
	}
	slices.Sort(h.completed)
	return h
}

func (h *history) readSends(l *life) {
	so := &sendsOf{died: l.died != 0}
	h.sends[l.order.Number] = so
	for i := range l.entries {
		e := &l.entries[i]
		if e.kind() != kindCall {
			continue
		}
		c := sendCall{first: counterOf(e.id), n: int(e.n), began: e.began, ended: e.ended, res: e.res}
		if e.ended == 0 {
			c.ended, c.res = forever, 0
			if l.died == 0 {
				h.find(kindRecords, "producer %d ended as told, and its %s of message %d did not return", l.order.Number, e.op(), c.first)
			}
		}
		if c.res == resOK {
			h.completed = append(h.completed, c.ended)
		}
		so.calls = append(so.calls, c)
		for len(so.msgs) < int(c.first)+c.n {
			so.msgs = append(so.msgs, sendState{})
		}
		for k := range c.n {
			so.msgs[int(c.first)+k].call = int32(len(so.calls))
		}
	}
}

func (h *history) readTakes(l *life) {
	es := l.entries
	for i := 0; i < len(es); i++ {
		e := &es[i]
		if e.kind() != kindCall { // or of a batch that did not return
			continue
		}
		if e.ended == 0 {
			if l.died == 0 {
				h.find(kindRecords, "consumer %d ended as told, and its %s did not return", l.order.Number, e.op())
			}
			h.hands = append(h.hands, hand{began: e.began, died: l.died, n: int(e.n), actor: l.order.Number, op: e.op()})
			continue
		}
		if e.res != resOK {
			continue
		}
		h.completed = append(h.completed, e.ended)
		if e.op() != opReceiveBatch && e.op() != opTryReceiveBatch {
			h.take(l, e, e)
			continue
		}
		for k := 1; k <= int(e.got) && i+k < len(es); k++ {
			h.take(l, e, &es[i+k])
		}
		i += int(e.got)
	}
}

// take enters message m, received by call c.
func (h *history) take(l *life, c, m *entry) {
	t := take{id: m.id, seq: m.seq, taken: m.taken, began: c.began, ended: c.ended, prio: m.prio, typ: m.typ, filter: c.filter(),
		actor: l.order.Number, op: c.op()}
	where := fmt.Sprintf("message %d of producer %d, %s by consumer %d", counterOf(m.id), producerOf(m.id), c.op(), l.order.Number)
	if m.bad != badNothing {
		h.find(kindDamaged, "%s: %s", where, badNames[m.bad])
		return
	}
	so := h.sends[producerOf(m.id)]
	if so == nil || int(counterOf(m.id)) >= len(so.msgs) || so.msgs[counterOf(m.id)].call == 0 {
		h.find(kindInvented, "%s was never sent", where)
		return
	}
	s := &so.msgs[counterOf(m.id)]
	call := &so.calls[s.call-1]
	if call.res == resNothing || call.res == resAbandoned {
		h.find(kindInvented, "%s, and its send said that it was not sent", where)
		return
	}
	if s.times++; s.times > 1 {
		h.find(kindDoubled, "%s was received %d times", where, s.times)
		return
	}
	s.seq = m.seq
	t.delayed = h.plan.traits(m.id).delay > 0
	t.sent = span{call.began, call.ended}
	if t.ended < t.sent.from {
		h.find(kindInvented, "%s returned %d ns before its send began", where, t.sent.from-t.ended)
	}
	h.takes = append(h.takes, t)
}

// byTaken returns the takes that have stamps, in the order of these.
func (h *history) byTaken() []take {
	return h.sorted(func(t *take) uint64 { return t.taken })
}

func (h *history) bySeq() []take {
	return h.sorted(func(t *take) uint64 { return t.seq })
}

func (h *history) sorted(key func(*take) uint64) []take {
	ts := make([]take, 0, len(h.takes))
	for i := range h.takes {
		if key(&h.takes[i]) != 0 {
			ts = append(ts, h.takes[i])
		}
	}
	slices.SortFunc(ts, func(a, b take) int { return cmp.Compare(key(&a), key(&b)) })
	return ts
}
