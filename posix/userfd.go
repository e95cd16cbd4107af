package posix

import (
	"fmt"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// userFD is the descriptor that users see, made when it is first asked for: a second open description of the queue, whose
// O_NONBLOCK is what the user set. The calls that wait in the kernel use it too, because there they wait unless the flag is set.
//
// A thread in the kernel is woken neither by close(2) nor by the poller, so Close takes the queue away from under the descriptor and
// interrupts them: the kernel begins an interrupted call anew, with the same deadline, and it finds something that is no queue
// (EBADF).
//
// Invariant: under mu, who is in tids will either enter the kernel after the descriptor changed, or is there already and gets the
// signal. A message that was handed to a thread before that is returned by its call as ever.
type userFD struct {
	mu       sync.Mutex
	fd       int  // −1: nobody has asked yet
	nonblock bool // the flag until then
	other    int  // an eventfd, which takes fd's place at the end
	tids     map[int]struct{}
	gone     chan struct{} // not nil: Close waits for the last to leave
	closed   bool
}

// open returns the descriptor.
func (u *userFD) open(q *Queue) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.openLocked(q)
}

func (u *userFD) openLocked(q *Queue) (int, error) {
	if u.closed {
		return -1, driver.ErrClosed
	}
	if u.fd >= 0 {
		return u.fd, nil
	}
	flags := q.access | unix.O_CLOEXEC
	if u.nonblock {
		flags |= unix.O_NONBLOCK
	}
	// By way of /proc it is the same queue, whatever became of its name.
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", q.fd), flags, 0)
	switch err {
	case nil:
	case unix.EMFILE, unix.ENFILE:
		return -1, descriptorError(err)
	default:
		e, _ := err.(syscall.Errno)
		return -1, failure(driver.ErrPermission, e, "the queue cannot be opened a second time, by way of /proc: %v", err)
	}
	other, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		_ = unix.Close(fd)
		return -1, descriptorError(err)
	}
	u.fd, u.other, u.tids = fd, other, map[int]struct{}{}
	return fd, nil
}

// attr returns the attributes with the user's flag, which it sets to *set if that is not nil.
func (u *userFD) attr(q *Queue, set *bool) (Attr, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return Attr{}, driver.ErrClosed
	}
	fd := u.fd
	if fd < 0 {
		fd = q.fd
	}
	var now kernelAttr
	if e := mqGetSetAttr(fd, nil, &now); e != 0 {
		return Attr{}, failure(nil, e, "mq_getattr: %v", e)
	}
	a := now.attr()
	if u.fd < 0 {
		a.Nonblock = u.nonblock
	}
	if set == nil {
		return a, nil
	}
	if u.nonblock = *set; u.fd < 0 {
		return a, nil
	}
	to := kernelAttr{}
	if *set {
		to.flags = unix.O_NONBLOCK
	}
	if e := mqGetSetAttr(u.fd, &to, &now); e != 0 {
		return Attr{}, failure(nil, e, "mq_setattr: %v", e)
	}
	return now.attr(), nil
}

// nonblock reports whether the user's flag is set now. It is asked only where a call would block.
func (q *Queue) nonblock() bool {
	a, err := q.Attr()
	return err == nil && a.Nonblock
}

// inKernel runs call, which may block, on the user's descriptor.
func (q *Queue) inKernel(call func(fd int) syscall.Errno) (syscall.Errno, error) {
	if !q.acquire() {
		return 0, driver.ErrClosed
	}
	runtime.LockOSThread() // the thread is what the signal goes to
	defer runtime.UnlockOSThread()
	tid := unix.Gettid()
	fd, err := q.user.enter(q, tid)
	q.release()
	if err != nil {
		return 0, err
	}
	var e syscall.Errno
	for {
		if e = call(fd); e != unix.EINTR {
			break
		}
	}
	if q.user.leave(tid) && e == unix.EBADF {
		return 0, driver.ErrClosed
	}
	return e, nil
}

func (u *userFD) enter(q *Queue, tid int) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	fd, err := u.openLocked(q)
	if err == nil {
		u.tids[tid] = struct{}{}
	}
	return fd, err
}

// leave reports whether the queue was closed meanwhile.
func (u *userFD) leave(tid int) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.tids, tid)
	if u.gone != nil && len(u.tids) == 0 {
		close(u.gone)
		u.gone = nil
	}
	return u.closed
}

func (u *userFD) close() {
	u.mu.Lock()
	u.closed = true
	if u.fd < 0 {
		u.mu.Unlock()
		return
	}
	// Closing a queue's descriptor cannot fail in a way that matters: the number is replaced in any case.
	_ = unix.Dup3(u.other, u.fd, unix.O_CLOEXEC)
	var gone chan struct{}
	if len(u.tids) > 0 {
		gone = make(chan struct{})
		u.gone = gone
		for tid := range u.tids {
			// SIGURG is what the runtime interrupts its own threads by; it is of no consequence to the program.
			_ = unix.Tgkill(unix.Getpid(), tid, unix.SIGURG)
		}
	}
	u.mu.Unlock()
	if gone != nil {
		<-gone
	}
	_ = unix.Close(u.fd)
	_ = unix.Close(u.other)
}

func descriptorError(err error) error {
	e, _ := err.(syscall.Errno)
	return failure(driver.ErrLimit, e, "%v: RLIMIT_NOFILE, the descriptors of a process; raise it by: ulimit -n N", err)
}
