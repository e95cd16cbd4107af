package posix

import (
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// ErrBusy: a process is registered for notification already; there is one per queue. It matches EBUSY. /dev/mqueue/NAME, and
// Info.NotifyPID, tell which process it is.
var ErrBusy error = &callError{text: "another registration for notification is there", errno: unix.EBUSY}

// callError is an error of a system call: what it means for Kumquat, the kernel's own number, and a text that says what to do.
// errors.Is finds the sentinel and the number, errors.As the number alone (as a syscall.Errno).
type callError struct {
	text  string
	is    error // sentinel; nil: none fits
	errno syscall.Errno
}

func (e *callError) Error() string {
	switch {
	case e.text == "" && e.is == nil:
		return e.errno.Error()
	case e.text == "":
		return e.is.Error()
	case e.is == nil:
		return e.text
	}
	return e.is.Error() + ": " + e.text
}

func (e *callError) Unwrap() []error {
	if e.is == nil {
		return []error{e.errno}
	}
	return []error{e.is, e.errno}
}

func failure(is error, errno syscall.Errno, format string, args ...any) error {
	return &callError{fmt.Sprintf(format, args...), is, errno}
}

// What the calls that never wait return is made once: it is no accident there, and must cost nothing.
var (
	errFull  error = &callError{is: driver.ErrFull, errno: unix.EAGAIN}
	errEmpty error = &callError{is: driver.ErrEmpty, errno: unix.EAGAIN}
	errPast  error = &callError{is: driver.ErrTimeout, errno: unix.ETIMEDOUT}
)

// kernelName checks name and returns it as the system calls take it, without its slash. All that cannot be a name is ErrInvalid; the
// number is the one that the C library gives, so some of them are EACCES or ENOENT.
func kernelName(name string) (string, error) {
	switch {
	case !strings.HasPrefix(name, "/"):
		return "", failure(driver.ErrInvalid, unix.EINVAL, "the name %q does not begin with '/'; POSIX queues are called /NAME", name)
	case name == "/":
		return "", failure(driver.ErrInvalid, unix.ENOENT, "%q names no queue; POSIX queues are called /NAME", name)
	case name == "/." || name == "/..":
		return "", failure(driver.ErrInvalid, unix.EACCES, "%q names no queue; POSIX queues are called /NAME", name)
	case strings.Contains(name[1:], "/"):
		return "", failure(driver.ErrInvalid, unix.EACCES, "the name %q has a second '/': POSIX queues have no folders", name)
	case strings.ContainsRune(name, 0):
		return "", failure(driver.ErrInvalid, unix.EINVAL, "the name %q has a zero byte", name)
	case len(name)-1 > 255:
		return "", failure(driver.ErrInvalid, unix.ENAMETOOLONG, "the name has %d bytes behind its '/', 255 are allowed", len(name)-1)
	}
	return name[1:], nil
}

// sendError says why a send of n bytes failed.
func (q *Queue) sendError(e syscall.Errno, n, priority int) error {
	switch e {
	case unix.EAGAIN:
		return errFull
	case unix.ETIMEDOUT:
		return errPast
	case unix.EMSGSIZE:
		how := ""
		if most := sysctl("msgsize_max"); n > most && n <= hardSize {
			how = fmt.Sprintf(", after fs.mqueue.msgsize_max = %d is raised: sysctl -w fs.mqueue.msgsize_max=%d", most, n)
		} else if n > hardSize {
			how = fmt.Sprintf("; no POSIX queue takes more than %d bytes", hardSize)
		}
		return failure(driver.ErrTooLarge, e, "%d bytes, and the queue was made for %d at most (mq_msgsize); to send longer ones remove it and make "+
			"it with a larger MaxSize%s", n, q.size, how)
	case unix.EBADF:
		return failure(driver.ErrPermission, e, "the queue is not open for sending")
	case unix.EINVAL:
		return failure(driver.ErrInvalid, e, "priority %d is not from 0 to %d", priority, driver.MaxPriority)
	case unix.ENOMEM:
		return failure(driver.ErrNoSpace, e, "the kernel has no memory for a message of %d bytes", n)
	}
	return failure(nil, e, "mq_timedsend: %v", e)
}

// receiveError says why a receive into n bytes failed.
func (q *Queue) receiveError(e syscall.Errno, n int) error {
	switch e {
	case unix.EAGAIN:
		return errEmpty
	case unix.ETIMEDOUT:
		return errPast
	case unix.EMSGSIZE:
		return failure(driver.ErrTooLarge, e, "the buffer has %d bytes; a POSIX queue wants room for its longest message, %d bytes (mq_msgsize)", n, q.size)
	case unix.EBADF:
		return failure(driver.ErrPermission, e, "the queue is not open for receiving")
	}
	return failure(nil, e, "mq_timedreceive: %v", e)
}

// openError says why mq_open failed.
func openError(e syscall.Errno, name string, flags int, attr *Attr) error {
	switch e {
	case unix.ENOENT:
		return failure(driver.ErrNotFound, e, "there is no POSIX queue %s", name)
	case unix.EEXIST:
		return failure(driver.ErrExists, e, "the POSIX queue %s is there already", name)
	case unix.EACCES:
		return failure(driver.ErrPermission, e, "the mode of %s does not allow this access; its owner can change that: chmod in /dev/mqueue", name)
	case unix.EMFILE, unix.ENFILE, unix.ENOSPC, unix.ENOMEM, unix.EOVERFLOW, unix.EINVAL:
		return limitError(e, flags, attr)
	case unix.ENAMETOOLONG:
		return failure(driver.ErrInvalid, e, "the name %q is too long", name)
	case unix.ENOSYS:
		return failure(driver.ErrUnsupported, e, "this kernel has no POSIX message queues (CONFIG_POSIX_MQUEUE)")
	}
	return failure(nil, e, "mq_open: %v", e)
}

func unlinkError(e syscall.Errno, name string) error {
	switch e {
	case 0:
		return nil
	case unix.ENOENT:
		return failure(driver.ErrNotFound, e, "there is no POSIX queue %s", name)
	case unix.EPERM, unix.EACCES:
		// The folder of the queues is sticky. mq_unlink of the C library says EACCES, as POSIX has it.
		return failure(driver.ErrPermission, unix.EACCES, "only its owner or root may remove %s", name)
	case unix.ENAMETOOLONG:
		return failure(driver.ErrInvalid, e, "the name %q is too long", name)
	}
	return failure(nil, e, "mq_unlink: %v", e)
}
