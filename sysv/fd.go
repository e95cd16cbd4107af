package sysv

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// descriptor is the eventfd of a handle. It is readable from the moment at which a thread of the pool has seen a message until a
// receive finds nothing; then it is armed again: a looker stands in the group that waits for any message.
type descriptor struct {
	on       atomic.Bool // made, so receives that find nothing come by
	mu       sync.Mutex  // taken before pool.mu
	fd       int         // −1: none yet
	readable bool
	closed   bool
}

// FD returns a descriptor for poll(2), select(2) and epoll(7) that is readable when it is worth trying to receive: a message is
// there, or the queue was removed. It may be so for nothing; a receive by this handle that finds nothing clears it. It belongs to the
// handle: Close closes it, nobody else may.
//
// Errors: ErrClosed, ErrLimit (EMFILE, ENFILE).
func (q *Queue) FD() (int, error) {
	d := &q.events
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return -1, driver.ErrClosed
	}
	if d.fd >= 0 {
		return d.fd, nil
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, failure(driver.ErrLimit, errnoOf(err), "eventfd: %v; ulimit -n tells how many descriptors a process may have", err)
	}
	d.fd = fd
	d.arm(q)
	d.on.Store(true)
	return fd, nil
}

func (d *descriptor) arm(q *Queue) {
	d.readable = false
	join(q.s, selector{}, &waiter{h: q, wake: d.fire}, false)
}

func (d *descriptor) fire() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	d.readable = true
	one := binary.NativeEndian.AppendUint64(nil, 1)
	for { // it was 0: only a signal can be in the way
		if _, err := unix.Write(d.fd, one); err != unix.EINTR {
			return
		}
	}
}

// clear is called by a receive that found nothing. A message that came since is seen by the looker, who does not sleep over it.
func (d *descriptor) clear(q *Queue) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || !d.readable {
		return
	}
	var b [8]byte
	for {
		if _, err := unix.Read(d.fd, b[:]); err != unix.EINTR {
			break
		}
	}
	d.arm(q)
}

func (d *descriptor) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.on.Store(false)
	if d.fd >= 0 {
		_ = unix.Close(d.fd) // nothing was written that could be lost
	}
}

// Ready reports whether a Receive with this typ and these flags (Except) would find something now. If not, it arranges that wake is
// called, once, on another goroutine, when it should be asked again, be it for nothing, be it that the queue was removed or the
// handle closed. wake must not wait. stop takes that back; it may be called more than once, and wake may just be under way. Asking
// for a type (not 0), and waiting until stop has returned, may take a message of no bytes out of the kernel's queue; the process's next
// receive gets it, before all others.
//
// Errors: ErrInvalid (other flags), ErrRemoved, ErrPermission, ErrClosed.
func (q *Queue) Ready(typ int64, flags int, wake func()) (ready bool, stop func(), err error) {
	stop = func() {}
	if q.closed.Load() {
		return false, stop, driver.ErrClosed
	}
	if flags&^Except != 0 {
		return false, stop, failure(driver.ErrInvalid, unix.EINVAL, "Ready takes the flag Except, not %#o", flags)
	}
	sel := newSelector(typ, flags)
	if len(heldOnes(q.s, sel)) > 0 {
		return true, stop, nil
	}
	if sel == (selector{}) {
		var k kernelQueue
		if _, e := msgctlStat(q.s.id, ipcStat, &k); e != 0 {
			return false, stop, controlError(e, q.s.id, "msgctl IPC_STAT")
		} else if k.qnum > 0 {
			return true, stop, nil
		}
	} else {
		switch mtype, e := look(q.s.id, sel, false); e {
		case unix.ENOMSG:
		case unix.E2BIG:
			return true, stop, nil
		case 0:
			pool.mu.Lock()
			wakes := q.s.hold(mtype)
			pool.mu.Unlock()
			call(wakes)
			return true, stop, nil
		default:
			return false, stop, q.receiveError(e, 0, 0)
		}
	}
	w := &waiter{h: q, wake: wake}
	if !join(q.s, sel, w, false) {
		return false, stop, driver.ErrClosed
	}
	return false, func() { withdraw(w) }, nil
}
