package sysv

import (
	"context"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// buffer has the header and the body of one message in one piece, as the system calls want it.
type buffer struct{ b []byte }

var buffers = sync.Pool{New: func() any { return &buffer{make([]byte, header+8192)} }}

// take returns a buffer of n bytes. A handle keeps the last one, so that a lone user never meets the pool.
func (q *Queue) take(n int) *buffer {
	b := q.spare.Swap(nil)
	if b == nil {
		b = buffers.Get().(*buffer)
	}
	if cap(b.b) < n {
		b.b = make([]byte, n)
	}
	b.b = b.b[:n]
	return b
}

func (q *Queue) put(b *buffer) {
	if cap(b.b) <= header+rawMax && !q.spare.CompareAndSwap(nil, b) {
		buffers.Put(b)
	}
}

// vast is a length above which a body is compared with the limits before it is copied.
const vast = 1 << 20

// Send puts a message into the queue (msgsnd). typ is its mtype, ≥ 1; body may be empty. flags may have NoWait. If the queue is full
// it waits until ctx is done; a longer message than fits into the empty queue waits in vain, as with the system call. A call that
// need not wait succeeds whatever its context says. An error means that the message was not sent, and never will be.
//
// Errors: ErrFull (EAGAIN, with NoWait), ErrInvalid (EINVAL: typ, flags), ErrTooLarge (EINVAL: longer than kernel.msgmax), ErrRemoved
// (EIDRM, EINVAL), ErrPermission (EACCES), ErrNoSpace (ENOMEM), ErrClosed, ErrTimeout, ctx.Err().
func (q *Queue) Send(ctx context.Context, typ int64, body []byte, flags int) error {
	switch {
	case q.closed.Load():
		return driver.ErrClosed
	case typ < 1:
		return failure(driver.ErrInvalid, unix.EINVAL, "type %d is below 1", typ)
	case flags&^NoWait != 0:
		return failure(driver.ErrInvalid, unix.EINVAL, "Send takes the flag NoWait, not %#o", flags)
	case len(body) > vast && (len(body) > 1<<31-1 || len(body) > sysctl("msgmax")):
		return q.sendError(unix.EINVAL, len(body))
	}
	if len(body) > short {
		b := q.take(header + len(body))
		err := q.sendIn(ctx, b.b, typ, body, flags)
		q.put(b)
		return err
	}
	var b [header + short]byte
	setMessageType(b[:], typ)
	copy(b[header:], body)
	var e syscall.Errno
	if q.s.shape.Load() == nil { // as trySend does, without another call
		e = trySend(q.s.id, b[:header+len(body)])
	} else {
		e = q.s.trySend(b[:header+len(body)])
	}
	if e == 0 {
		return nil
	}
	if e == unix.EAGAIN && flags&NoWait == 0 {
		b := q.take(header + len(body)) // another thread will send it
		err := q.sendIn(ctx, b.b, typ, body, flags)
		q.put(b)
		return err
	}
	return q.sendError(e, len(body))
}

// short is the longest body for which a message is put together on the stack: that is cheaper than to come by a buffer.
const short = 120

// sendIn is Send where m is the place to put the message together.
func (q *Queue) sendIn(ctx context.Context, m []byte, typ int64, body []byte, flags int) error {
	setMessageType(m, typ)
	copy(m[header:], body)
	e := q.s.trySend(m)
	if e == unix.EAGAIN && flags&NoWait == 0 {
		var err error
		if e, err = q.sendLater(ctx, m); e == 0 {
			return err
		}
	}
	if e != 0 {
		return q.sendError(e, len(body))
	}
	return nil
}

// sendLater waits for room. It returns an errno of msgsnd, or what ended the wait.
func (q *Queue) sendLater(ctx context.Context, m []byte) (syscall.Errno, error) {
	if ctx.Err() != nil {
		return 0, driver.ContextError(ctx)
	}
	w := &waiter{h: q, m: m, fired: make(chan struct{}, 1)}
	if !join(q.s, selector{send: true}, w, false) {
		return 0, driver.ErrClosed
	}
	select {
	case <-w.fired:
	case <-ctx.Done():
		withdraw(w)
	case <-q.closing:
		withdraw(w)
	}
	switch {
	case w.errno != unix.ECANCELED:
		return w.errno, nil
	case q.closed.Load():
		return 0, driver.ErrClosed
	}
	return 0, driver.ContextError(ctx)
}

// Receive takes a message out of the queue (msgrcv), copies its body into buf and returns its length and its type. typ chooses:
//
//	0    the first message
//	7    the first of type 7; with Except the first of any other type
//	-7   of the messages whose type is at most 7, those of the lowest type, and of them the first
//
// It waits for such a message until ctx is done; with NoWait it does not. A message that is longer than buf gives ErrTooLarge and
// stays, or, with NoError, is cut and lost from there on. With Copy and NoWait, the message at place typ, counted from 0 in the order
// of sends, is copied and stays. A call that need not wait succeeds whatever its context says. What lies in buf behind the body is of
// no meaning afterwards.
//
// Errors: ErrEmpty (ENOMSG, with NoWait), ErrTooLarge (E2BIG), ErrInvalid (EINVAL: flags), ErrRemoved (EIDRM, EINVAL), ErrPermission
// (EACCES), ErrUnsupported (ENOSYS: a kernel without MSG_COPY), ErrNoSpace (ENOMEM), ErrClosed, ErrTimeout, ctx.Err().
func (q *Queue) Receive(ctx context.Context, buf []byte, typ int64, flags int) (n int, mtype int64, err error) {
	switch {
	case q.closed.Load():
		return 0, 0, driver.ErrClosed
	case flags&^(NoWait|NoError|Except|Copy) != 0:
		return 0, 0, failure(driver.ErrInvalid, unix.EINVAL, "Receive takes the flags NoWait, NoError, Except and Copy, not %#o", flags)
	case flags&Copy != 0 && flags&(NoWait|Except) != NoWait:
		return 0, 0, failure(driver.ErrInvalid, unix.EINVAL, "Copy needs NoWait and does not go with Except")
	}
	n, mtype, e := q.tryReceive(buf, typ, flags)
	if e == unix.ENOMSG && flags&NoWait == 0 {
		n, mtype, e, err = q.receiveLater(ctx, buf, typ, flags)
	}
	if e != 0 {
		return 0, 0, q.receiveError(e, len(buf), flags)
	}
	return n, mtype, err
}

// roomy is the length from which on a buffer for receiving is taken to be longer than the messages are.
const roomy = 1024

// tryReceive is Receive that does not wait: ENOMSG.
func (q *Queue) tryReceive(buf []byte, typ int64, flags int) (n int, mtype int64, e syscall.Errno) {
	if q.s.held.Load() != 0 && flags&Copy == 0 {
		if mtype, ok := takeHeld(q.s, newSelector(typ, flags)); ok {
			return 0, mtype, 0
		}
	}
	// The kernel wants the header and the body in one piece, which for a short buffer is put together on the stack. A long buffer has
	// room for both until a message proves too long for it, and then the body need only be moved down; E2BIG has not touched it.
	switch {
	case len(buf) <= short:
		var b [header + short]byte
		if n, e = tryReceive(q.s.id, b[:header+len(buf)], typ, flags); e == 0 {
			mtype = messageType(b[:])
			copy(buf, b[header:header+n])
		}
		return q.afterReceive(n, mtype, e)
	case len(buf) >= roomy && !q.tight.Load():
		if n, e = tryReceive(q.s.id, buf, typ, flags&^NoError); e == 0 {
			mtype = messageType(buf)
			copy(buf, buf[header:header+n])
		} else if e == unix.E2BIG && flags&Copy == 0 {
			q.tight.Store(true)
		}
	default:
		e = unix.E2BIG
	}
	for room := min(len(buf), rawMax); e == unix.E2BIG; room = min(len(buf), 4*room) {
		f := flags
		if room < len(buf) {
			f &^= NoError
		}
		b := q.take(header + room)
		n, e = tryReceive(q.s.id, b.b, typ, f)
		if e == 0 {
			mtype = messageType(b.b)
			copy(buf, b.b[header:header+n])
		}
		q.put(b)
		if room == len(buf) {
			break
		}
	}
	return q.afterReceive(n, mtype, e)
}

// afterReceive tells those who wait what a receive that returned e has changed or seen.
func (q *Queue) afterReceive(n int, mtype int64, e syscall.Errno) (int, int64, syscall.Errno) {
	switch {
	case e == 0 && q.s.senders.Load() > 0:
		kickSenders(q.s)
	case e == unix.ENOMSG && q.events.on.Load():
		q.events.clear(q)
	}
	return n, mtype, e
}

func (q *Queue) receiveLater(ctx context.Context, buf []byte, typ int64, flags int) (int, int64, syscall.Errno, error) {
	if ctx.Err() != nil {
		return 0, 0, 0, driver.ContextError(ctx)
	}
	w := &waiter{h: q, fired: make(chan struct{}, 1)}
	for again := false; ; again = true {
		if !join(q.s, newSelector(typ, flags), w, again) {
			await(w.left)
			return 0, 0, 0, driver.ErrClosed
		}
		ended := false
		select {
		case <-w.fired:
		case <-ctx.Done():
			ended = true
		case <-q.closing:
			ended = true
		}
		if ended {
			withdraw(w)
		}
		// Whoever was told of a message looks for it, though his time be over: the others were not told.
		switch {
		case w.taken:
			await(w.left)
			return 0, w.mtype, 0, nil
		case w.errno == unix.ECANCELED:
		case w.errno != 0:
			return 0, 0, w.errno, nil
		default:
			if n, mtype, e := q.tryReceive(buf, typ, flags); e != unix.ENOMSG {
				tried(w, false)
				return n, mtype, e, nil
			}
		}
		if ended {
			if tried(w, true); w.taken {
				return 0, w.mtype, 0, nil
			}
			if q.closed.Load() {
				return 0, 0, 0, driver.ErrClosed
			}
			return 0, 0, 0, driver.ContextError(ctx)
		}
	}
}
