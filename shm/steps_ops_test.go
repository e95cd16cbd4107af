//go:build kumquat_step

package shm

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

// An event is one operation of a client.
type event struct {
	c               *client
	kind            string
	began, done     int   // ticks; done 0: it never returned
	beganAt, doneAt int64 // the same by the clock, ns
	err             error
	sent            []note
	got             []driver.Message
	max             int // of a batch receive
	filter          driver.Filter
	failed          bool // it says that the delivery failed
	short           bool // of a lease that may end while its owner lives
}

// A note is what a client knows of a message that it sends.
type note struct {
	id                 string
	prio               int
	typ                int64
	key                string
	notBefore, expires int64 // ns, 0: none
}

func (n *note) message() driver.Message {
	return driver.Message{Priority: n.prio, Type: n.typ, Key: n.key}
}

const (
	opsSend   = "send"
	opsTake   = "receive" // by filter too
	opsPurge  = "purge"
	opsPeek   = "peek"
	opsRemove = "remove"
	opsOther  = "other"
	opsLease  = "lease"
	opsBack   = "give back"
	opsExtend = "extend"
	opsAck    = "acknowledge"
)

var errAborted = errors.New("aborted")

func isFull(err error) bool { return errors.Is(err, driver.ErrFull) }
func isGone(err error) bool {
	return errors.Is(err, driver.ErrRemoved) || errors.Is(err, driver.ErrNotFound)
}

func (e *event) String() string {
	s := fmt.Sprintf("client %d: %s, tick %d to %d, err %v", e.c.n, e.kind, e.began, e.done, e.err)
	if e.c.dead && e.done == 0 {
		s += ", died in it"
	}
	if e.short {
		s += ", of a short lease"
	}
	for _, n := range e.sent {
		s += fmt.Sprintf("; sends %s p%d", n.id, n.prio)
		if n.notBefore|n.expires != 0 {
			s += fmt.Sprintf(" from %d to %d", n.notBefore, n.expires)
		}
	}
	for _, m := range e.got {
		s += fmt.Sprintf("; got %s p%d seq %d taken %d", m.ID, m.Priority, m.Seq, m.Taken)
	}
	return s
}

// begin and end put an operation into the log.
func (c *client) begin(kind string) *event {
	e := &event{c: c, kind: kind, began: c.w.tick, beganAt: time.Now().UnixNano(), max: 1}
	c.w.log = append(c.w.log, e)
	return e
}

func (e *event) end(err error) {
	e.err = err
	e.done, e.doneAt = e.c.w.tick, time.Now().UnixNano()
}

// message makes a message that e is about to send; delay and life are 0 for none, a life < 0 has ended already.
func (e *event) message(prio, size int, delay, life time.Duration) driver.Message {
	w := e.c.w
	w.nextID++
	m := driver.Message{ID: strconv.FormatUint(w.nextID, 10), Body: make([]byte, size), Priority: prio, Type: 1 + int64(prio%2)}
	if prio%3 == 1 {
		m.Key = "k"
	}
	n := note{id: m.ID, prio: prio, typ: m.Type, key: m.Key}
	if delay != 0 {
		m.NotBefore, w.timed = time.Now().Add(delay), true
		n.notBefore = m.NotBefore.UnixNano()
	}
	if life != 0 {
		m.Expires, w.timed = time.Now().Add(life), true
		n.expires = m.Expires.UnixNano()
	}
	e.sent = append(e.sent, n)
	return m
}

func opSendOne(prio, size int) func(*client) { return opSendTimed(prio, size, 0, 0) }

func opSendTimed(prio, size int, delay, life time.Duration) func(*client) {
	return func(c *client) {
		e := c.begin(opsSend)
		e.end(c.q.Send(context.Background(), e.message(prio, size, delay, life), true))
	}
}

func opSendMany(prios ...int) func(*client) { return opSendManyTimed(0, 0, prios...) }

func opSendManyTimed(delay, life time.Duration, prios ...int) func(*client) {
	return func(c *client) {
		e := c.begin(opsSend)
		var ms []driver.Message
		for _, p := range prios {
			ms = append(ms, e.message(p, 8, delay, life))
		}
		e.end(c.q.SendBatch(context.Background(), ms, true))
	}
}

func opReserveCommit(prio int, abort bool) func(*client) {
	return func(c *client) {
		e := c.begin(opsSend)
		r, err := c.q.Reserve(context.Background(), 16)
		if err != nil || abort {
			if err == nil {
				err = r.Abort()
			}
			if err == nil {
				err = errAborted
			}
			e.kind = opsOther
			e.end(err)
			return
		}
		if err = r.Commit(context.Background(), e.message(prio, 0, 0, 0), true); err != nil {
			_ = r.Abort()
		}
		e.end(err)
	}
}

func opTakeOne(c *client) { opTakeBy(driver.Filter{})(c) }

func opTakeBy(f driver.Filter) func(*client) {
	return func(c *client) {
		e := c.begin(opsTake)
		e.filter = f
		m, err := c.q.Receive(context.Background(), f, true)
		if err == nil {
			e.got = []driver.Message{m}
		}
		e.end(err)
	}
}

func opTakeMany(n int, f driver.Filter) func(*client) {
	return func(c *client) {
		e := c.begin(opsTake)
		e.max, e.filter = n, f
		var err error
		e.got, err = c.q.ReceiveBatch(context.Background(), nil, f, n, true)
		e.end(err)
	}
}

func opBorrowOne(c *client) {
	e := c.begin(opsTake)
	l, err := c.q.Borrow(context.Background(), driver.Filter{}, true)
	if err == nil {
		e.got = []driver.Message{l.Message()}
		e.got[0].Body = nil
		err = l.Release()
	}
	e.end(err)
}

func opPurgeBy(f driver.Filter) func(*client) {
	return func(c *client) {
		e := c.begin(opsPurge)
		e.filter = f
		_, err := c.q.Purge(context.Background(), f)
		e.end(err)
	}
}

// opPeekAll looks as an observer does: it may only read, and the kernel sees to that. Its reads are system calls, not accesses of
// the mapping. It stops where it hands a body to Match and where it yields a message, and before each read if the engine's read
// has a hook.
func opPeekAll(c *client) {
	e := c.begin(opsPeek)
	q, err := c.w.d.OpenQueue(context.Background(), c.w.name, &driver.Options{ReadOnly: true})
	if err != nil {
		e.end(err)
		return
	}
	defer func() { _ = q.Close() }()
	for m, err := range q.Peek(context.Background(), driver.PeekOptions{Match: func([]byte) bool { c.stop(); return true }}) {
		if err != nil {
			e.end(err)
			return
		}
		e.got = append(e.got, m)
		c.stop()
	}
	e.end(nil)
}

func opCloseIt(c *client) {
	e := c.begin(opsOther)
	e.end(c.q.Close())
	c.quit = true
}

// opOpenAnother opens a second handle and closes it.
func opOpenAnother(c *client) {
	e := c.begin(opsOther)
	var err error
	c.opens(func() {
		var q *Queue
		if q, err = c.w.d.OpenQueue(context.Background(), c.w.name, nil); err == nil {
			err = q.Close()
		}
	})
	e.end(err)
}

// opRestart closes the handle and opens another: the entry is used again, by this one or somebody else.
func opRestart(c *client) {
	e := c.begin(opsOther)
	c.leases = nil
	err := c.q.Close()
	if err == nil {
		c.opens(func() {
			var q *Queue
			if q, err = c.w.d.OpenQueue(context.Background(), c.w.name, nil); err == nil {
				c.q = q
			}
		})
	}
	c.quit = err != nil
	e.end(err)
}

func opRemoveIt(c *client) {
	e := c.begin(opsRemove)
	e.end(c.w.d.Remove(context.Background(), c.w.name))
}

// opPass lets time pass, for everybody.
func opPass(d time.Duration) func(*client) { return func(*client) { time.Sleep(d) } }

// removedBy is the first attempt to remove the queue.
func (w *world) removedBy() *event {
	for _, e := range w.log {
		if e.kind == opsRemove {
			return e
		}
	}
	return nil
}
