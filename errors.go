package kumquat

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/kumquat-mq/kumquat/driver"
)

// The errors. Calls return an *Error that wraps one of them (or the error of the context), so test with errors.Is. They also match
// the errno values of the mq_* and msg* calls for the same condition: errors.Is(err, syscall.EAGAIN) holds for ErrFull.
var (
	ErrInvalid     = driver.ErrInvalid     // a name, priority, type, size or option is outside its bounds; nothing was done
	ErrNotFound    = driver.ErrNotFound    // there is no queue of this name
	ErrExists      = driver.ErrExists      // the queue exists and Options.Exclusive was given
	ErrFull        = driver.ErrFull        // no room, and the call does not wait or the overflow policy rejects the message
	ErrEmpty       = driver.ErrEmpty       // no message that matches, and the call does not wait
	ErrTooLarge    = driver.ErrTooLarge    // message longer than the queue or the buffer allows, or batch too large
	ErrTimeout     = driver.ErrTimeout     // the deadline passed while the call waited; context.DeadlineExceeded too
	ErrPermission  = driver.ErrPermission  // the mode bits, or the owner asked for, do not allow this
	ErrRemoved     = driver.ErrRemoved     // the queue was removed while this handle had it open
	ErrCorrupt     = driver.ErrCorrupt     // what the queue's file holds breaks its format
	ErrLeaseLost   = driver.ErrLeaseLost   // the lease ended before it was acknowledged; the call changed nothing
	ErrClosed      = driver.ErrClosed      // the handle was closed
	ErrNoSpace     = driver.ErrNoSpace     // the file system that holds the queue is full
	ErrLimit       = driver.ErrLimit       // a limit was reached; the text says which, its value, and how to raise it
	ErrUnsupported = driver.ErrUnsupported // this driver, or this queue, cannot do that
)

// Error is what the calls of this package return: the operation, the queue, and what went wrong.
type Error struct {
	Op    string // "open", "send", "receive", …
	Queue string // as it was given to Open; empty if no one queue is concerned
	Err   error  // wraps one of the sentinels, or is the error of the context
}

// Error returns the text in the form "kumquat: send /orders: queue full: …".
func (e *Error) Error() string {
	if e.Queue == "" {
		return "kumquat: " + e.Op + ": " + e.Err.Error()
	}
	return "kumquat: " + e.Op + " " + printable(e.Queue) + ": " + e.Err.Error()
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// printable quotes names that would play with the terminal they are printed on: any user of the machine may choose names.
func printable(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(name)
	}
	return name
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
}

var errNilContext = fmt.Errorf("%w: the context is nil", ErrInvalid)

// fail is the one place where a queue's errors get their operation and name.
func (q *Queue) fail(op string, err error) error {
	return &Error{Op: op, Queue: q.name, Err: err}
}

func (q *Queue) unsupported(op string, a Ability) error {
	return q.fail(op, fmt.Errorf("%w: the driver of %q queues has no %s", ErrUnsupported, q.scheme, a))
}
