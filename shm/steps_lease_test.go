//go:build kumquat_step

package shm

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

// The operations on leases. What a client leased stands in c.leases; the operations that end leases take the one leased last.

func opLeaseBy(f driver.Filter, d time.Duration) func(*client) {
	return func(c *client) {
		e := c.begin(opsLease)
		e.filter, e.short, c.w.timed = f, d < time.Minute, true
		l, err := c.q.Lease(context.Background(), f, d, true)
		if err == nil {
			e.got = []driver.Message{l.Message}
			c.leases = append(c.leases, l)
		}
		e.end(err)
	}
}

func opLeaseOne(c *client) { opLeaseBy(driver.Filter{}, time.Hour)(c) }

func opLeaseMany(n int) func(*client) {
	return func(c *client) {
		e := c.begin(opsLease)
		e.max, c.w.timed = n, true
		ls, err := c.q.LeaseBatch(context.Background(), nil, driver.Filter{}, time.Hour, n, true)
		for i := range ls {
			e.got = append(e.got, ls[i].Message)
		}
		c.leases = append(c.leases, ls...)
		e.end(err)
	}
}

// opEnd ends the lease that was taken last by what f does, or goes on with it.
func opEndLease(kind string, fails, goesOn bool, f func(q *Queue, l *driver.Lease) error) func(*client) {
	return func(c *client) {
		if len(c.leases) == 0 {
			return
		}
		n := len(c.leases) - 1
		l := &c.leases[n]
		e := c.begin(kind)
		e.failed = fails
		e.got, e.short = []driver.Message{l.Message}, l.Until.Sub(time.Unix(0, e.beganAt)) < time.Minute
		err := f(c.q, l)
		e.short = e.short || l.Until.IsZero()
		e.end(err)
		if goesOn {
			if b := &c.w.ledger.slots[l.Slot]; e.err == nil && b.leased && b.by == c {
				b.until = l.Until.UnixNano()
			}
			return
		}
		c.leases = c.leases[:n]
	}
}

var (
	opAck    = opEndLease(opsAck, false, false, func(q *Queue, l *driver.Lease) error { return q.Ack(context.Background(), l) })
	opLetGo  = opEndLease(opsBack, false, false, func(q *Queue, l *driver.Lease) error { return q.Release(context.Background(), l) })
	opLonger = opEndLease(opsExtend, false, true, func(q *Queue, l *driver.Lease) error { return q.Extend(context.Background(), l, 90*time.Minute) })
)

func opAgain(delay time.Duration) func(*client) {
	return opEndLease(opsBack, true, false, func(q *Queue, l *driver.Lease) error {
		if delay > 0 && delay < time.Minute { // when it has come the message may go to others, though this call has not returned
			l.Until = time.Time{}
		}
		return q.Retry(context.Background(), l, delay)
	})
}

func opAckAll(c *client) {
	for i := range c.leases {
		if time.Until(c.leases[i].Until) < time.Minute { // some may be lost, and only each call by itself tells which
			for len(c.leases) > 0 {
				opAck(c)
			}
			return
		}
	}
	if len(c.leases) == 0 {
		return
	}
	e := c.begin(opsAck)
	for i := range c.leases {
		e.got = append(e.got, c.leases[i].Message)
	}
	_, err := c.q.AckBatch(context.Background(), c.leases)
	c.leases = nil
	e.end(err)
}

// leases notes which messages were away for a time.
func (j *judge) leases() {
	for _, e := range j.w.log {
		if e.kind != opsLease && e.kind != opsBack && e.kind != opsAck && e.kind != opsExtend {
			continue
		}
		if e.kind == opsLease && (e.done == 0 || e.short) { // a short one may have lost some before it could read them
			j.unknown += e.max
		}
		for i := range e.got {
			j.leased[e.got[i].ID] = true
			if s, ok := j.sends[e.got[i].ID]; !ok || s.n.prio != e.got[i].Priority || !e.filter.Match(&e.got[i]) {
				j.w.fail("client %d leased %q of priority %d, which nobody sent so", e.c.n, e.got[i].ID, e.got[i].Priority)
			} else if e.kind == opsLease && (e.done != 0 && s.n.notBefore > e.doneAt || s.n.expires != 0 && s.n.expires <= e.beganAt) {
				j.w.fail("client %d leased message %s, which is not due, or over", e.c.n, s.n.id)
			}
		}
	}
}

// attempts judges how often x's message has failed: each Retry counts once, and each lease of which the end is not known may count.
func (j *judge) attempts(x taking) {
	if x.e.kind == opsAck {
		return // it was leased before it failed again, perhaps
	}
	least, most := 0, j.unknown
	open := map[*client]int{}
	for _, e := range j.w.log {
		for i := range e.got {
			if e.got[i].ID != x.m.ID {
				continue
			}
			switch {
			case e.kind == opsLease && e.done != 0 && e.err == nil:
				open[e.c]++
			case e.kind == opsBack && e.done != 0 && e.err == nil:
				if open[e.c]--; e.failed {
					least++
				}
			}
		}
	}
	for _, e := range j.w.log {
		if e.kind == opsLease && e.short {
			most += 5 // it may have lost some before it could read them, and leased again
		}
	}
	for _, n := range open {
		most += n
	}
	if x.m.Attempt < least || x.m.Attempt > least+most {
		j.w.fail("message %s was received with attempt %d, its deliveries failed %d to %d times", x.m.ID, x.m.Attempt, least, least+most)
	}
}

// deadLessee leaves one that died with leases.
func deadLessee(ops ...func(*client)) func(w *world) {
	return func(w *world) {
		w.did(opSendMany(1, 3, 2))
		c := w.add(append(ops, func(c *client) { c.stop() })...)
		w.diesAfter(c, len(ops))
	}
}

var leaseVictims = []victim{
	{name: "lease", before: []func(*client){opSendMany(1, 3, 2)}, op: opLeaseOne},
	{name: "lease drained", before: []func(*client){opSendMany(1, 3, 2), opTakeOne}, op: opLeaseOne},
	{name: "lease nothing", op: opLeaseOne},
	{name: "lease again", before: []func(*client){opSendOne(3, 8), opLeaseOne, opAgain(0)}, op: opLeaseOne},
	{name: "lease big", before: []func(*client){opSendOne(3, 1000)}, op: opLeaseOne},
	{name: "lease some", before: []func(*client){opSendMany(1, 3, 2)}, op: opLeaseMany(2)},
	{name: "lease by filter", before: []func(*client){opSendMany(2, 3, 2)}, op: opLeaseBy(driver.Filter{Type: 2}, time.Hour)},
	{name: "lease what expires", before: []func(*client){opSendTimed(3, 8, 0, time.Hour)}, op: opLeaseOne},
	{name: "ack", before: []func(*client){opSendMany(1, 3, 2), opLeaseOne}, op: opAck},
	{name: "ack and lease", before: []func(*client){opSendMany(1, 3, 2), opLeaseOne, opAck}, op: opLeaseOne},
	{name: "ack some", before: []func(*client){opSendMany(1, 3, 2), opLeaseMany(3)}, op: opAckAll},
	{name: "ack for a sleeper", before: []func(*client){opSendMany(1, 2), opSendMany(1, 2), opLeaseOne}, set: sleeper, op: opAck},
	{name: "ack makes room", before: []func(*client){opSendMany(1, 2), opSendMany(1, 2), opLeaseMany(2), opAckAll}, op: opSendMany(1, 2)},
	{name: "ack and send in its place", before: []func(*client){opSendMany(1, 2), opLeaseMany(2), opAckAll, opSendMany(3, 2)}, op: opTakeOne},
	{name: "retry", before: []func(*client){opSendMany(1, 3, 2), opLeaseOne}, op: opAgain(0)},
	{name: "retry later", before: []func(*client){opSendMany(1, 3, 2), opLeaseOne}, op: opAgain(soon)},
	{name: "receive what waits for its retry", before: []func(*client){opSendMany(1, 3), opLeaseOne, opAgain(soon), opPass(2 * soon)}, op: opTakeOne},
	{name: "release", before: []func(*client){opSendMany(1, 3, 2), opLeaseOne}, op: opLetGo},
	{name: "release for a sleeper", before: []func(*client){opSendMany(1, 3), opLeaseOne}, set: sleeper, op: opLetGo},
	{name: "extend", before: []func(*client){opSendMany(1, 3, 2), opLeaseOne}, op: opLonger},
	{name: "lease that is over", before: []func(*client){opSendMany(1, 3), opLeaseBy(driver.Filter{}, soon), opPass(2 * soon)}, op: opTakeOne},
	{name: "ack of what is over", before: []func(*client){opSendMany(1, 3), opLeaseBy(driver.Filter{}, soon), opPass(2 * soon)}, op: opAck},
	{name: "retry of what is over", before: []func(*client){opSendMany(1, 3), opLeaseBy(driver.Filter{}, soon), opPass(2 * soon)}, op: opAgain(0)},
	{name: "lease of the dead", stage: deadLessee(opLeaseMany(2)), op: opTakeOne},
	{name: "lease of the dead, leased", stage: deadLessee(opLeaseMany(3)), op: opLeaseMany(3)},
	{name: "lease of the dead, partly acknowledged", stage: deadLessee(opLeaseMany(3), opAck), op: opTakeMany(3, driver.Filter{})},
	{name: "open in the place of a dead one with leases", stage: deadLessee(opLeaseMany(2)), set: (*world).fill, op: opOpenAnother, second: openers},
	{name: "purge beside leases", before: []func(*client){opSendMany(1, 3, 2), opLeaseOne}, op: opPurgeBy(driver.Filter{})},
	{name: "drop oldest beside leases", o: driver.Options{Overflow: driver.DropOldest}, before: append(full(), opLeaseOne), op: opSendOne(3, 8)},
	{name: "close with leases", before: []func(*client){opSendMany(1, 3, 2), opLeaseMany(2)}, op: opCloseIt, least: 3},
	{name: "peek beside leases", before: []func(*client){opSendMany(1, 3, 2), opLeaseOne}, op: opPeekAll},
	{name: "takeover beside leases", stage: func(w *world) {
		w.did(opSendMany(1, 3), opSendOne(2, 8))
		c := w.add(opLeaseOne, opLeaseOne, opAck, func(c *client) { c.stop() }, opLetGo)
		for len(w.log) == 0 || c.last() == nil || c.last().kind != opsAck || c.last().done == 0 {
			w.run(c, true)
		}
		w.runTo(w.add(opTakeOne), "claim")
	}, op: opTakeOne},
	{name: "takeover from a lessee", stage: func(w *world) {
		w.did(opSendMany(1, 3), opSendOne(2, 8))
		w.runTo(w.add(opLeaseOne, opAck), "lease")
	}, op: opLeaseOne},
	{name: "takeover from one that gives back", stage: func(w *world) {
		w.did(opSendMany(1, 3), opSendOne(2, 8))
		w.runTo(w.add(opLeaseOne, opAgain(0)), "give back")
	}, op: opLeaseMany(2)},
	{name: "takeover from a dead one that counted a failure", stage: func(w *world) {
		w.did(opSendMany(1, 3), opSendOne(2, 8))
		c := w.add(opLeaseOne, opAgain(soon))
		w.runTo(c, "give back")
		w.run(c, false)
	}, op: opTakeMany(3, driver.Filter{})},
	{name: "takeover from one that extends", stage: func(w *world) {
		w.did(opSendMany(1, 3))
		w.runTo(w.add(opLeaseOne, opLonger, opAck), "extend")
	}, op: opTakeOne},
}

func init() { victims = append(victims, leaseVictims...) }

// A lease that was lost is told so, whoever stopped where.
func TestStepsLeaseLost(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for k := 0; ; k++ {
			w := newWorld(t, driver.Options{MaxMessages: 4, MaxSize: 2000, MaxHandles: 9}, fmt.Sprintf("stopped %d steps after its lease", k))
			w.did(opSendMany(1, 3))
			ready := false
			c := w.add(opLeaseBy(driver.Filter{}, soon), func(c *client) { ready = true; c.stop(); c.steps = 0 }, opAck)
			for !ready {
				w.run(c, true)
			}
			for w.run(c, true) && c.steps < k {
			}
			w.pass(2 * soon)
			w.did(opTakeOne)
			more := !c.ended
			w.finish(c)
			if e := c.last(); e.kind == opsAck && e.err != nil && !errors.Is(e.err, driver.ErrLeaseLost) {
				t.Fatalf("step %d: %v", k, e.err)
			} else if k == 0 && e.err == nil {
				t.Fatal("acknowledged what another has received")
			}
			w.settle()
			if !more {
				return
			}
		}
	})
}
