package sysv

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// callError is an error of a system call: what it means for Kumquat, the kernel's own number, and a text that says what to do.
// errors.Is finds the sentinel and the number, errors.As the number alone (as a syscall.Errno).
type callError struct {
	text  string
	is    error // sentinel; nil: none fits
	errno syscall.Errno
}

func (e *callError) Error() string {
	switch {
	case e.is == nil:
		return e.text
	case e.text == "":
		return e.is.Error()
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

// What the calls that do not wait return is made once: it is no accident there, and must cost nothing.
var (
	errFull  error = &callError{is: driver.ErrFull, errno: unix.EAGAIN}
	errEmpty error = &callError{is: driver.ErrEmpty, errno: unix.ENOMSG}
)

// gone reports whether errno says that the queue is not there any more, be it that another error is meant by EINVAL too: EIDRM is
// what those hear who slept, EINVAL those who come later.
func (q *Queue) gone(e syscall.Errno) bool {
	if e == unix.EIDRM {
		return true
	}
	if e != unix.EINVAL {
		return false
	}
	var st kernelQueue
	_, s := msgctlStat(q.s.id, ipcStat, &st)
	return s == unix.EINVAL || s == unix.EIDRM
}

func (q *Queue) removed(e syscall.Errno) error {
	return failure(driver.ErrRemoved, e, "the queue with identifier %d is not there any more", q.s.id)
}

// sendError says why a send of n bytes failed.
func (q *Queue) sendError(e syscall.Errno, n int) error {
	switch {
	case e == unix.EAGAIN:
		return errFull
	case q.gone(e):
		return q.removed(e)
	case e == unix.EINVAL:
		return failure(driver.ErrTooLarge, e, "%d bytes are more than kernel.msgmax = %s allows for a message; it is raised by: sysctl -w kernel.msgmax=%d",
			n, sysctlText("msgmax"), n)
	case e == unix.EACCES:
		return failure(driver.ErrPermission, e, "the mode of queue %d does not allow this user to send (write)", q.s.id)
	case e == unix.ENOMEM:
		return failure(driver.ErrNoSpace, e, "the kernel has no memory for a message of %d bytes", n)
	}
	return failure(nil, e, "msgsnd: %v", e)
}

// receiveError says why a receive into n bytes failed.
func (q *Queue) receiveError(e syscall.Errno, n, flags int) error {
	switch {
	case e == unix.ENOMSG:
		return errEmpty
	case e == unix.E2BIG:
		return failure(driver.ErrTooLarge, e, "the message is longer than the buffer of %d bytes; it stays in the queue (MSG_NOERROR would cut it)", n)
	case q.gone(e):
		return q.removed(e)
	case e == unix.EINVAL && flags&Copy != 0:
		return failure(driver.ErrInvalid, e, "MSG_COPY does not cut a message: the buffer of %d bytes is too short", n)
	case e == unix.EACCES:
		return failure(driver.ErrPermission, e, "the mode of queue %d does not allow this user to receive (read)", q.s.id)
	case e == unix.ENOSYS:
		return failure(driver.ErrUnsupported, e, "this kernel has no MSG_COPY (CONFIG_CHECKPOINT_RESTORE)")
	case e == unix.ENOMEM:
		return failure(driver.ErrNoSpace, e, "the kernel has no memory for a copy of %d bytes", n)
	}
	return failure(nil, e, "msgrcv: %v", e)
}

// getError says why msgget failed.
func getError(e syscall.Errno, key Key) error {
	switch e {
	case unix.ENOENT:
		return failure(driver.ErrNotFound, e, "there is no System V queue with key %v", key)
	case unix.EEXIST:
		return failure(driver.ErrExists, e, "a System V queue with key %v is there already", key)
	case unix.EACCES:
		return failure(driver.ErrPermission, e, "the mode of the queue with key %v does not allow this access; its owner can change that "+
			"(msgctl IPC_SET)", key)
	case unix.ENOSPC:
		return failure(driver.ErrLimit, e, "as many queues are there as kernel.msgmni = %s allows; unused ones are shown by ipcs -q, "+
			"the limit is raised by: sysctl -w kernel.msgmni=N (up to 32768)", sysctlText("msgmni"))
	case unix.ENOMEM:
		return failure(driver.ErrNoSpace, e, "the kernel has no memory for another queue")
	case unix.ENOSYS:
		return failure(driver.ErrUnsupported, e, "this kernel has no System V message queues (CONFIG_SYSVIPC)")
	}
	return failure(nil, e, "msgget: %v", e)
}

// controlError says why msgctl failed for the queue with this identifier.
func controlError(e syscall.Errno, id int, what string) error {
	switch e {
	case unix.EINVAL, unix.EIDRM:
		return failure(driver.ErrRemoved, e, "the queue with identifier %d is not there any more", id)
	case unix.EACCES:
		return failure(driver.ErrPermission, e, "%s: the mode of queue %d does not allow this user to read", what, id)
	case unix.EPERM:
		return failure(driver.ErrPermission, e, "%s: only the owner of queue %d, its creator and root may do that", what, id)
	}
	return failure(nil, e, "%s: %v", what, e)
}

// sysctl reads a number of /proc/sys/kernel; −1 if it cannot be read.
func sysctl(name string) int {
	b, err := os.ReadFile("/proc/sys/kernel/" + name)
	if err != nil {
		return -1
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return -1
	}
	return n
}

func sysctlText(name string) string {
	if n := sysctl(name); n >= 0 {
		return strconv.Itoa(n)
	}
	return "(unknown)"
}
