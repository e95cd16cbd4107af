package driver

import (
	"context"
	"errors"
	"syscall"
)

// Error is the type of the sentinels below. A sentinel matches itself and the errno values that the mq_* and msg* calls give for
// the same condition, so errors.Is(err, ErrFull) and errors.Is(err, unix.EAGAIN) hold for the same errors.
type Error struct {
	text string
	is   []error
}

// Error returns the sentinel's short text, without a prefix.
func (e *Error) Error() string { return e.text }

// Is reports whether target is one of the errno values (or context errors) that stand for the same condition.
func (e *Error) Is(target error) bool {
	for _, x := range e.is {
		if x == target {
			return true
		}
	}
	return false
}

func sentinel(text string, is ...error) *Error { return &Error{text, is} }

// The sentinels. Drivers wrap them with fmt.Errorf("…: %w", …) and a text that says what to do next; callers test with errors.Is.
var (
	// ErrInvalid: a name, priority, type, size or option is outside its bounds. Nothing was done.
	ErrInvalid error = sentinel("invalid argument", syscall.EINVAL)
	// ErrNotFound: there is no queue of this name.
	ErrNotFound error = sentinel("no such queue", syscall.ENOENT)
	// ErrExists: the queue exists and Options.Exclusive was given.
	ErrExists error = sentinel("queue exists", syscall.EEXIST)
	// ErrFull: the queue has no room for this message and the call does not wait (or the overflow policy rejects it).
	ErrFull error = sentinel("queue full", syscall.EAGAIN)
	// ErrEmpty: no message is there (or none that matches) and the call does not wait.
	ErrEmpty error = sentinel("queue empty", syscall.EAGAIN, syscall.ENOMSG)
	// ErrTooLarge: the message is longer than the queue (send) or the buffer (receive) allows, or a batch has too many messages.
	// A message that is too long for a receiver's buffer stays in the queue.
	ErrTooLarge error = sentinel("message too large", syscall.EMSGSIZE, syscall.E2BIG)
	// ErrTimeout: the deadline of the context passed while the call waited. It matches context.DeadlineExceeded too.
	ErrTimeout error = sentinel("timed out", syscall.ETIMEDOUT, context.DeadlineExceeded)
	// ErrPermission: the mode bits, or the owner asked for, do not allow this.
	ErrPermission error = sentinel("permission denied", syscall.EACCES, syscall.EPERM)
	// ErrRemoved: the queue was removed while this handle had it open.
	ErrRemoved error = sentinel("queue removed", syscall.EIDRM)
	// ErrCorrupt: what the queue's file holds breaks its format. The queue should be exported if it can be, and removed.
	ErrCorrupt error = sentinel("queue corrupt", syscall.EBADMSG)
	// ErrLeaseLost: the lease ended before it was acknowledged; the call changed nothing.
	ErrLeaseLost error = sentinel("lease lost")
	// ErrClosed: the handle was closed.
	ErrClosed error = sentinel("queue handle closed", syscall.EBADF)
	// ErrNoSpace: the file system that holds the queue is full.
	ErrNoSpace error = sentinel("no space", syscall.ENOSPC)
	// ErrLimit: a limit of the system or of the queue was reached; the text says which, its value, and how to raise it.
	ErrLimit error = sentinel("limit reached", syscall.EMFILE)
	// ErrUnsupported: this driver, or this queue, cannot do that.
	ErrUnsupported error = sentinel("not supported", syscall.ENOTSUP, errors.ErrUnsupported)
)

// ContextError turns the error of a done context into what a blocked call returns: ErrTimeout for a passed deadline, else the
// context's own error.
func ContextError(ctx context.Context) error {
	err := ctx.Err()
	if errors.Is(err, context.DeadlineExceeded) {
		return ErrTimeout
	}
	return err
}
