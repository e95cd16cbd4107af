package posix

import (
	"context"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// Send puts body into the queue at priority, 0 to 32,767, higher ones first (mq_send). A full queue makes it wait, in the poller,
// or return ErrFull if O_NONBLOCK is set. The queue keeps nothing of body.
//
// Errors: ErrFull (EAGAIN), ErrTooLarge (EMSGSIZE: longer than MaxSize), ErrInvalid (EINVAL: the priority), ErrPermission (EBADF:
// the queue is open for receiving only), ErrNoSpace (ENOMEM), ErrClosed.
func (q *Queue) Send(body []byte, priority int) error {
	e, err := q.trySend(body, priority)
	switch {
	case e == 0:
		return err
	case e == unix.EAGAIN && !q.nonblock():
		return q.sendSlow(context.Background(), body, priority)
	}
	return q.sendError(e, len(body), priority)
}

// TrySend is Send that never waits, whatever O_NONBLOCK says.
func (q *Queue) TrySend(body []byte, priority int) error {
	e, err := q.trySend(body, priority)
	if e == 0 {
		return err
	}
	return q.sendError(e, len(body), priority)
}

// SendContext is Send that waits until ctx is done, whatever O_NONBLOCK says. A message for which there is room is sent even if ctx
// is done; a call that returns ErrTimeout or context.Canceled has sent nothing.
func (q *Queue) SendContext(ctx context.Context, body []byte, priority int) error {
	e, err := q.trySend(body, priority)
	switch {
	case e == 0:
		return err
	case e == unix.EAGAIN:
		return q.sendSlow(ctx, body, priority)
	}
	return q.sendError(e, len(body), priority)
}

// trySend is the path that every send takes first. err is only ErrClosed, or ErrInvalid for a priority that is no unsigned int.
func (q *Queue) trySend(body []byte, priority int) (syscall.Errno, error) {
	if uint(priority) > driver.MaxPriority {
		return unix.EINVAL, nil
	}
	if len(body) <= rawMax && q.outGate.enter() {
		e := rawSend(q.fd, body, priority)
		q.outGate.leave()
		return e, nil
	}
	if !q.acquire() {
		return 0, driver.ErrClosed
	}
	e := mqTrySend(q.fd, body, priority)
	q.release()
	return e, nil
}

// Receive takes the oldest of the messages of the highest priority, copies it into buf and returns its length and priority
// (mq_receive). An empty queue makes it wait, in the poller, or return ErrEmpty if O_NONBLOCK is set.
//
// Errors: ErrEmpty (EAGAIN), ErrTooLarge (EMSGSIZE: buf is shorter than MaxSize, whatever the message; it stays), ErrPermission
// (EBADF: the queue is open for sending only), ErrClosed.
func (q *Queue) Receive(buf []byte) (n, priority int, err error) {
	n, priority, e, err := q.tryReceive(buf)
	switch {
	case e == 0:
		return n, priority, err
	case e == unix.EAGAIN && !q.nonblock():
		return q.receiveSlow(context.Background(), buf)
	}
	return 0, 0, q.receiveError(e, len(buf))
}

// TryReceive is Receive that never waits, whatever O_NONBLOCK says.
func (q *Queue) TryReceive(buf []byte) (n, priority int, err error) {
	n, priority, e, err := q.tryReceive(buf)
	if e == 0 {
		return n, priority, err
	}
	return 0, 0, q.receiveError(e, len(buf))
}

// ReceiveContext is Receive that waits until ctx is done, whatever O_NONBLOCK says. A message that is there is received even if ctx
// is done; a call that returns ErrTimeout or context.Canceled has taken nothing.
func (q *Queue) ReceiveContext(ctx context.Context, buf []byte) (n, priority int, err error) {
	n, priority, e, err := q.tryReceive(buf)
	switch {
	case e == 0:
		return n, priority, err
	case e == unix.EAGAIN:
		return q.receiveSlow(ctx, buf)
	}
	return 0, 0, q.receiveError(e, len(buf))
}

func (q *Queue) tryReceive(buf []byte) (n, priority int, e syscall.Errno, err error) {
	if len(buf) <= rawMax && q.inGate.enter() {
		var prio uint32
		r, _, e := syscall.RawSyscall6(unix.SYS_MQ_TIMEDRECEIVE, uintptr(q.fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)),
			uintptr(unsafe.Pointer(&prio)), 0, 0)
		q.inGate.leave()
		return int(r), int(prio), e, nil
	}
	if !q.acquire() {
		return 0, 0, 0, driver.ErrClosed
	}
	n, priority, e = mqTryReceive(q.fd, buf)
	q.release()
	return n, priority, e, nil
}

// A side is one direction of a queue for those who wait in the poller. The file lets in one of them at a time, and the others would
// wait for it where no context reaches them; so they wait for their turn here. Who has the turn tries again before it sleeps, so a
// message that came while the turn changed hands is found.
type side struct{ turn chan struct{} }

// enter waits for the turn.
func (s *side) enter(ctx context.Context, q *Queue) error {
	select {
	case s.turn <- struct{}{}:
		return nil
	default:
	}
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return driver.ContextError(ctx)
	case <-q.closing:
		return driver.ErrClosed
	}
}

func (s *side) leave() { <-s.turn }

func (q *Queue) sendSlow(ctx context.Context, body []byte, priority int) error {
	if ctx.Err() != nil {
		return driver.ContextError(ctx)
	}
	if err := q.out.enter(ctx, q); err != nil {
		return err
	}
	defer q.out.leave()
	file, raw, err := q.poll.open(q)
	if err != nil {
		return err
	}
	defer bound(ctx, file.SetWriteDeadline)()
	var e syscall.Errno
	if err := raw.Write(func(fd uintptr) bool {
		e = mqTrySend(int(fd), body, priority)
		return e != unix.EAGAIN
	}); err != nil {
		return q.waitError(ctx, err)
	}
	if e != 0 {
		return q.sendError(e, len(body), priority)
	}
	return nil
}

func (q *Queue) receiveSlow(ctx context.Context, buf []byte) (n, priority int, err error) {
	if ctx.Err() != nil {
		return 0, 0, driver.ContextError(ctx)
	}
	if err := q.in.enter(ctx, q); err != nil {
		return 0, 0, err
	}
	defer q.in.leave()
	file, raw, err := q.poll.open(q)
	if err != nil {
		return 0, 0, err
	}
	defer bound(ctx, file.SetReadDeadline)()
	var e syscall.Errno
	if err := raw.Read(func(fd uintptr) bool {
		n, priority, e = mqTryReceive(int(fd), buf)
		return e != unix.EAGAIN
	}); err != nil {
		return 0, 0, q.waitError(ctx, err)
	}
	if e != 0 {
		return 0, 0, q.receiveError(e, len(buf))
	}
	return n, priority, nil
}

var longAgo = time.Unix(1, 0)

// bound makes the end of ctx end the file's wait, by a deadline in the past. What it returns undoes that: the next one who waits
// must not find the deadline of this one.
func bound(ctx context.Context, setDeadline func(time.Time) error) (undo func()) {
	if ctx.Done() == nil {
		return func() {}
	}
	set := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = setDeadline(longAgo) // it fails on a closed file, where nobody waits any more
		close(set)
	})
	return func() {
		if !stop() {
			<-set
			_ = setDeadline(time.Time{})
		}
	}
}

// TimedSend is mq_timedsend: like Send, but it waits in the kernel's line of senders, with a thread, until deadline by
// CLOCK_REALTIME; setting that clock moves the end of the wait. The zero deadline means none: then it is the kernel's mq_send. A
// deadline that is past matters only to a call that would wait. Close ends the wait.
//
// Errors: ErrTimeout (ETIMEDOUT), ErrInvalid (EINVAL: also a deadline before 1970), and those of Send and FD.
func (q *Queue) TimedSend(body []byte, priority int, deadline time.Time) error {
	ts, err := timespec(deadline)
	if err != nil {
		return err
	}
	e, err := q.trySend(body, priority)
	if e == unix.EAGAIN && !q.nonblock() {
		e, err = q.inKernel(func(fd int) syscall.Errno { return mqSend(fd, body, priority, ts) })
	}
	if e == 0 {
		return err
	}
	return q.sendError(e, len(body), priority)
}

// TimedReceive is mq_timedreceive: like Receive, but it waits in the kernel's line of receivers, with a thread, until deadline by
// CLOCK_REALTIME; setting that clock moves the end of the wait. The zero deadline means none: then it is the kernel's mq_receive. A
// deadline that is past matters only to a call that would wait. Close ends the wait.
//
// Errors: ErrTimeout (ETIMEDOUT), ErrInvalid (EINVAL: a deadline before 1970), and those of Receive and FD.
func (q *Queue) TimedReceive(buf []byte, deadline time.Time) (n, priority int, err error) {
	ts, err := timespec(deadline)
	if err != nil {
		return 0, 0, err
	}
	n, priority, e, err := q.tryReceive(buf)
	if e == unix.EAGAIN && !q.nonblock() {
		e, err = q.inKernel(func(fd int) (e syscall.Errno) {
			n, priority, e = mqReceive(fd, buf, ts)
			return e
		})
	}
	switch {
	case err != nil:
		return 0, 0, err
	case e != 0:
		return 0, 0, q.receiveError(e, len(buf))
	}
	return n, priority, nil
}

// timespec turns a deadline into the kernel's form; nil for none. Linux refuses a bad one even where the call would not wait.
func timespec(deadline time.Time) (*unix.Timespec, error) {
	if deadline.IsZero() {
		return nil, nil
	}
	ts, err := unix.TimeToTimespec(deadline)
	if err != nil || deadline.Unix() < 0 {
		return nil, failure(driver.ErrInvalid, unix.EINVAL, "the deadline %v is not a time that mq_timedsend and mq_timedreceive take", deadline)
	}
	return &ts, nil
}
