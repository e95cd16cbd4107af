//go:build kumquat_step

package shm

import (
	"errors"
	"slices"

	"github.com/kumquat-mq/kumquat/driver"
)

// judge is the oracle that sees only what operations returned and when. It draws only conclusions that hold whatever the
// interleaving was:
//
//   - nothing is received that was not sent, nor twice, nor before it is due, nor by a receive that began after it expired;
//   - nothing is missing but what those that died had in hand, what a purge could take, and as many as the counters of dropped and
//     expired messages say; what a policy drops is what it says;
//   - batches are there wholly, at neighbouring places, or not at all;
//   - seqs follow the order of sends that do not overlap; receives follow seqs inside a priority, and no message is passed over by
//     a lower one that came after it, or whose receive began after its send had returned;
//   - "empty" and "full" are said only when they were true at some moment, and sends succeed only when there was room.
type judge struct {
	w     *world
	sends map[string]sending
	takes map[string]taking
	all   []taking // by the order in which they left
	drops bool

	leased  map[string]bool // messages that somebody had leased
	unknown int             // leases of which nobody can tell
}

type sending struct {
	e *event
	n *note
}

type taking struct {
	e *event
	m *driver.Message
}

func (w *world) judge() {
	w.t.Helper()
	j := &judge{w: w, sends: map[string]sending{}, takes: map[string]taking{}, drops: w.o.Overflow >= driver.DropOldest, leased: map[string]bool{}}
	for _, e := range w.log {
		j.errors(e)
		for i := range e.sent {
			j.sends[e.sent[i].id] = sending{e, &e.sent[i]}
		}
	}
	j.leases()
	for _, e := range w.log {
		if e.kind == opsTake || e.kind == opsAck && e.err == nil && e.done != 0 {
			for i := range e.got {
				j.received(taking{e, &e.got[i]})
			}
		}
	}
	slices.SortFunc(j.all, func(a, b taking) int { return int(a.m.Taken) - int(b.m.Taken) })
	j.order()
	j.batches()
	j.missing()
	for _, e := range w.log {
		switch {
		case e.kind == opsTake && errors.Is(e.err, driver.ErrEmpty):
			j.empty(e)
		case e.kind == opsSend && e.done != 0:
			j.capacity(e)
		case e.kind == opsPurge && e.done != 0 && e.err == nil:
			j.purged(e)
		case e.kind == opsPeek && e.done != 0 && e.err == nil:
			j.peeked(e)
		}
	}
}

// errors refuses errors that no operation may have met.
func (j *judge) errors(e *event) {
	removal := j.w.removedBy()
	switch {
	case e.kind == opsLease && errors.Is(e.err, driver.ErrEmpty), errors.Is(e.err, driver.ErrLeaseLost) && e.short:
	case e.err == nil, e.err == errAborted, isFull(e.err) && e.kind != opsTake, errors.Is(e.err, driver.ErrEmpty) && e.kind == opsTake:
	case errors.Is(e.err, driver.ErrLimit) && e.kind == opsOther: // all entries are in use
	case isGone(e.err) && removal != nil && e.done >= removal.began:
	default:
		j.w.fail("client %d: %s: %v", e.c.n, e.kind, e.err)
	}
	if removal != nil && removal.done != 0 && removal.err == nil && e.began > removal.done && (e.kind == opsSend || e.kind == opsTake) && !isGone(e.err) {
		j.w.fail("client %d: %s after the removal: %v", e.c.n, e.kind, e.err)
	}
}

// sure reports that the message was sent before the tick.
func (s sending) sure(before int) bool { return s.e.done != 0 && s.e.err == nil && s.e.done < before }

func (j *judge) received(x taking) {
	w := j.w
	s, ok := j.sends[x.m.ID]
	if !ok || s.n.prio != x.m.Priority || s.n.typ != x.m.Type || s.n.key != x.m.Key || s.e.done != 0 && s.e.err != nil {
		w.fail("client %d received %q of priority %d, which nobody sent so", x.e.c.n, x.m.ID, x.m.Priority)
	}
	if _, twice := j.takes[x.m.ID]; twice {
		w.fail("message %s was received twice", x.m.ID)
	}
	switch f := &x.e.filter; {
	case !f.Match(x.m):
		w.fail("message %s does not pass the filter %+v that it was received by", x.m.ID, *f)
	case x.e.done != 0 && s.n.notBefore > x.e.doneAt:
		w.fail("message %s was received before it is due", x.m.ID)
	case x.e.kind == opsTake && s.n.expires != 0 && s.n.expires <= x.e.beganAt:
		w.fail("message %s was received by a call that began after it expired", x.m.ID)
	}
	j.takes[x.m.ID] = x
	j.attempts(x)
	if x.e.kind == opsTake {
		j.all = append(j.all, x)
	}
}

// preferred reports whether f delivers a before b, if both are there.
func preferred(f *driver.Filter, a, b *driver.Message) bool {
	if f.TypeAtMost != 0 && a.Type != b.Type {
		return a.Type < b.Type
	}
	if a.Priority != b.Priority {
		return a.Priority > b.Priority
	}
	return a.Seq < b.Seq
}

// order judges pairs: x left before y.
func (j *judge) order() {
	for i, x := range j.all {
		for n, y := range j.all[i+1:] {
			if n == 0 && x.m.Taken == y.m.Taken {
				j.w.fail("messages %s and %s were taken as number %d both", x.m.ID, y.m.ID, x.m.Taken)
			}
			s, f := j.sends[y.m.ID], &x.e.filter
			if j.unknown > 0 || j.leased[x.m.ID] || j.leased[y.m.ID] { // it may have been away
				continue
			}
			if !f.Match(y.m) || !preferred(f, y.m, x.m) || s.n.notBefore > x.e.beganAt {
				continue
			}
			// y came before x, so whoever knew x knew y, or it had been sent before this receive began.
			if seqDiff(y.m.Seq, x.m.Seq) < 0 || s.sure(x.e.began) {
				j.w.fail("message %s (p%d seq %d) was taken before %s (p%d seq %d)", x.m.ID, x.m.Priority, x.m.Seq, y.m.ID, y.m.Priority, y.m.Seq)
			}
		}
		for _, y := range j.all {
			if a, b := j.sends[x.m.ID], j.sends[y.m.ID]; a.sure(b.e.began) && seqDiff(x.m.Seq, y.m.Seq) >= 0 {
				j.w.fail("message %s was sent before %s, their seqs are %d and %d", x.m.ID, y.m.ID, x.m.Seq, y.m.Seq)
			}
		}
	}
}

// batches: the places of a batch are neighbours.
func (j *judge) batches() {
	for _, e := range j.w.log {
		for i := range e.sent {
			for k := range i {
				x, a := j.takes[e.sent[i].id]
				y, b := j.takes[e.sent[k].id]
				if a && b && seqDiff(x.m.Seq, y.m.Seq) != int64(i-k) {
					j.w.fail("messages %s and %s of one batch have the seqs %d and %d", y.m.ID, x.m.ID, y.m.Seq, x.m.Seq)
				}
			}
		}
	}
}

// missing accounts for what was sent and not received.
func (j *judge) missing() {
	w := j.w
	if w.removedBy() != nil && load(w.seen.removed) != 0 {
		return // what waits goes with the queue
	}
	hands, uncounted := 0, 0
	for _, e := range w.log {
		if e.done == 0 {
			uncounted++ // it may have dropped a message and died before it counted it
			if e.kind == opsTake {
				hands += e.max - len(e.got) // a borrower has shown what it had
			}
			if e.kind == opsAck {
				hands += len(e.got)
			}
		}
	}
	dropped, expired := int(load(w.seen.dropped)), int(load(w.seen.expired))
	sure, gone := 0, 0
	for _, e := range w.log {
		there := e.done != 0 && e.err == nil
		for i := range e.sent {
			_, got := j.takes[e.sent[i].id]
			there = there || got // one of a batch is there: all are
		}
		for i := range e.sent {
			n := &e.sent[i]
			if _, got := j.takes[n.id]; got {
				continue
			}
			gone++
			if !there {
				continue
			}
			sure++
			if hands == 0 && !j.drops && n.expires == 0 && !j.purgeable(sending{e, n}) {
				w.fail("message %s is lost", n.id)
			}
			if j.drops && hands == 0 && n.expires == 0 && !j.purgeable(sending{e, n}) {
				j.dropped(sending{e, n})
			}
		}
	}
	if sure > hands+dropped+expired+uncounted {
		w.fail("%d messages are lost: receivers that died had at most %d in hand, %d were dropped and %d expired", sure, hands, dropped, expired)
	}
	if dropped+expired > gone {
		w.fail("%d messages are counted as dropped and %d as expired, but all but %d were received", dropped, expired, gone)
	}
}

// purgeable reports whether a purge could have taken the message.
func (j *judge) purgeable(s sending) bool {
	m := s.n.message()
	for _, e := range j.w.log {
		if e.kind == opsPurge && e.filter.Match(&m) && (e.done == 0 || s.e.began <= e.done) {
			return true
		}
	}
	return false
}

// dropped judges a message that the overflow policy must have removed: nothing that it had to prefer was there all the time.
func (j *judge) dropped(s sending) {
	last := 0 // no send, so no drop, ended later
	for _, e := range j.w.log {
		if e.kind == opsSend {
			last = max(last, e.done)
			if e.done == 0 {
				return
			}
		}
	}
	for _, x := range j.all {
		o := j.sends[x.m.ID]
		if x.e.began <= last || !o.sure(s.e.began) || j.unknown > 0 || j.leased[x.m.ID] || j.leased[s.n.id] {
			continue
		}
		if j.w.o.Overflow == driver.DropOldest || o.n.prio <= s.n.prio {
			j.w.fail("message %s of priority %d was dropped, and not %s of priority %d, which had been sent before", s.n.id, s.n.prio, o.n.id, o.n.prio)
		}
	}
}

// empty judges a receive that found nothing: at every moment of it some message that it wants was there.
func (j *judge) empty(e *event) {
	type span struct {
		id       string
		from, to int // there for certain
	}
	var there []span
	for id, x := range j.takes {
		s, m := j.sends[id], x.m
		if j.unknown > 0 || j.leased[id] {
			continue
		}
		if s.e.done != 0 && s.e.err == nil && e.filter.Match(m) && s.n.notBefore <= e.beganAt {
			there = append(there, span{id, s.e.done, x.e.began})
		}
	}
	slices.SortFunc(there, func(a, b span) int { return a.from - b.from })
	at, ids := e.began, []string{}
	for _, s := range there {
		if s.from < at && s.to > at {
			at, ids = s.to, append(ids, s.id)
		}
	}
	if at > e.done {
		j.w.fail("client %d found nothing, but of the messages %v one was there all the time", e.c.n, ids)
	}
}

// capacity judges a send: how many messages can have been there, and how many were.
func (j *judge) capacity(e *event) {
	most, least := 0, 0
	for id, s := range j.sends {
		x, got := j.takes[id]
		if s.e == e {
			continue
		}
		if s.e.began < e.done && (s.e.done == 0 || s.e.err == nil) && !(got && x.e.done != 0 && x.e.done < e.began) &&
			!(s.n.expires != 0 && s.n.expires <= e.beganAt && !j.leased[id] && j.unknown == 0) { // a lease outlasts the expiry
			most++
		}
		if s.sure(e.began) && got && x.e.began > e.done {
			least++
		}
	}
	if isFull(e.err) && !j.drops && most+len(e.sent) <= j.w.o.MaxMessages {
		j.w.fail("client %d found the queue full, but at most %d were there", e.c.n, most)
	}
	if e.err == nil && least+len(e.sent) > j.w.o.MaxMessages {
		j.w.fail("client %d sent although %d were there", e.c.n, least)
	}
}

// purged: what was there when a purge began is not there when it has ended.
func (j *judge) purged(e *event) {
	for id, x := range j.takes {
		if s := j.sends[id]; !j.leased[id] && j.unknown == 0 && s.sure(e.began) && x.e.began > e.done && e.filter.Match(x.m) {
			j.w.fail("message %s was received after a purge", id)
		}
	}
}

// peeked judges what an observer saw.
func (j *judge) peeked(e *event) {
	seen := map[string]bool{}
	for i := range e.got {
		m := &e.got[i]
		s, ok := j.sends[m.ID]
		if !ok || s.n.prio != m.Priority || s.n.typ != m.Type || s.e.began > e.done || s.e.done != 0 && s.e.err != nil {
			j.w.fail("client %d saw message %q of priority %d, which nobody had sent so", e.c.n, m.ID, m.Priority)
		}
		if seen[m.ID] {
			j.w.fail("client %d saw message %s twice", e.c.n, m.ID)
		}
		seen[m.ID] = true
		x, got := j.takes[m.ID]
		if got && (x.e.done != 0 && x.e.done < e.began || x.m.Seq != m.Seq) {
			j.w.fail("client %d saw message %s as seq %d, which was received before as seq %d", e.c.n, m.ID, m.Seq, x.m.Seq)
		}
		for k := range i {
			if j.unknown > 0 || j.leased[m.ID] || j.leased[e.got[k].ID] {
				continue
			}
			if o := &e.got[k]; s.n.notBefore <= e.beganAt && preferred(&e.filter, m, o) {
				j.w.fail("client %d saw message %s after %s", e.c.n, m.ID, o.ID)
			}
		}
	}
	for id, x := range j.takes {
		if j.unknown > 0 || j.leased[id] {
			continue
		}
		if s := j.sends[id]; s.sure(e.began) && x.e.began > e.done && !seen[id] && (s.n.expires == 0 || s.n.expires > e.doneAt) {
			j.w.fail("client %d did not see message %s, which was there from %d to %d", e.c.n, id, s.e.done, x.e.began)
		}
	}
}
