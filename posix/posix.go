// Package posix is the kernel's POSIX message queues (mq_overview(7), POSIX.1-2024 <mqueue.h>) in pure Go: every call and every
// flag of the C library, and contexts besides. It is of use by itself, and as the driver of kumquat.Open("posix:/name").
//
//	q, err := posix.Open("/orders", posix.CreateFlag|posix.ReadWrite, 0o600, &posix.Attr{MaxMessages: 10, MaxSize: 1024})
//	if err != nil {
//		return err
//	}
//	defer q.Close()
//	if err := q.Send([]byte("two pears"), 20); err != nil {
//		return err
//	}
//	buf := make([]byte, q.MaxSize())
//	n, priority, err := q.ReceiveContext(ctx, buf)
//
// # How calls wait
//
// Send, Receive, SendContext and ReceiveContext wait in Go's poller, because the descriptor of a queue can be polled on Linux: a
// blocked call holds a goroutine and no thread, and ends at once with its context or with Close. TimedSend and TimedReceive are the
// kernel's own mq_timedsend and mq_timedreceive: they hold a thread while they wait, and in return they stand in the kernel's line
// of waiters, where a message is handed to the one of the highest task priority, then to the one that came first. Only they are
// "a receiver that waits" to mq_notify. Close ends them too.
//
// A message is delivered to one receiver, at most once: it is gone from the queue when a receive has returned. It is kept until the
// queue is unlinked and closed by all, or the machine or its IPC namespace ends.
//
// # What to know
//
// A buffer for receiving must hold the longest message that the queue allows, not the next one: MaxSize tells. Few and small queues
// fit the kernel's limits (10 messages of 8 KiB, 819,200 bytes for all queues of a user); Limits shows them, and errors that come
// from them say which one it was and how it is raised.
//
// A registration for notification ends when its process closes any descriptor of the queue, even one of another handle: keep one
// handle per queue and process where Notify is used.
package posix

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// Flags for Open. They are those of open(2), so the constants of packages syscall and unix serve as well.
const (
	ReadOnly      = unix.O_RDONLY   // receive only
	WriteOnly     = unix.O_WRONLY   // send only
	ReadWrite     = unix.O_RDWR     // both
	CreateFlag    = unix.O_CREAT    // make the queue if it is not there
	ExclusiveFlag = unix.O_EXCL     // with CreateFlag: fail with ErrExists if it is there
	NonblockFlag  = unix.O_NONBLOCK // Send and Receive, timed or not, return ErrFull and ErrEmpty instead of waiting
)

// Attr is struct mq_attr.
type Attr struct {
	Nonblock    bool // O_NONBLOCK of the open description; ignored by Open, which has a flag for it
	MaxMessages int  // mq_maxmsg: how many messages fit, ≥ 1
	MaxSize     int  // mq_msgsize: bytes of the longest message, ≥ 1
	Messages    int  // mq_curmsgs: messages in the queue now; ignored by Open
}

func (a *kernelAttr) attr() Attr {
	return Attr{a.flags&unix.O_NONBLOCK != 0, a.maxmsg, a.msgsize, a.curmsgs}
}

// Queue is an open queue: one open description of it. Open makes one; the zero value is not usable. Its methods may be called from
// many goroutines at once.
type Queue struct {
	// users counts the calls that use fd now; closedBit is set by Close. So fd is closed only when nobody is about to use it, and
	// no call ever meets the file that gets its number next.
	//
	// The description behind fd always has O_NONBLOCK, so that a try is the plain call and cannot hold up a thread. It is shown to
	// nobody who could clear the flag: the descriptor that FD gives is another one, of its own description.
	users   atomic.Int64
	fd      int
	size    int // mq_msgsize, which never changes
	inGate  gate
	_       [64]byte // senders and receivers do not share a cache line
	outGate gate

	name     string
	access   int // O_RDONLY, O_WRONLY or O_RDWR
	identity identity
	poll     poll
	in, out  side
	closing  chan struct{} // closed by Close
	idle     chan struct{} // closed when users is down to closedBit
	idleOnce sync.Once
	user     userFD
	notices  notices
	watch    watcher
}

// closedBit is far above any number of calls.
const closedBit = 1 << 40

// identity names a queue whatever happens to its name.
type identity struct{ dev, ino uint64 }

// Open opens the queue called name: a '/', then 1 to 255 bytes without another '/'. flags has one of ReadOnly, WriteOnly and
// ReadWrite, and any of the others. With CreateFlag a queue that is not there is made with mode, less the umask, and attr, or, if
// attr is nil, fs.mqueue.msg_default messages of fs.mqueue.msgsize_default bytes; if it is there, mode and attr mean nothing. The
// descriptor is closed when the process executes another program (O_CLOEXEC).
//
// Errors: ErrInvalid (EINVAL, ENAMETOOLONG; EACCES or ENOENT for what is no name), ErrNotFound (ENOENT), ErrExists (EEXIST),
// ErrPermission (EACCES), and ErrLimit (EINVAL, EMFILE, ENFILE, ENOSPC, ENOMEM), whose text says which limit it was, its value and
// the command that raises it. See POSIX.1-2024 mq_open.
func Open(name string, flags int, mode fs.FileMode, attr *Attr) (*Queue, error) {
	short, err := kernelName(name)
	if err != nil {
		return nil, err
	}
	var ka *kernelAttr
	if attr != nil {
		ka = &kernelAttr{maxmsg: attr.MaxMessages, msgsize: attr.MaxSize}
	}
	fd, errno := mqOpen(short, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, uint32(mode.Perm()), ka)
	if errno != 0 {
		return nil, openError(errno, name, flags, attr)
	}
	return adopt(fd, name, flags&unix.O_ACCMODE, flags&unix.O_NONBLOCK != 0)
}

// adopt makes a Queue of a descriptor that has O_NONBLOCK; nonblock is what the user asked for.
func adopt(fd int, name string, access int, nonblock bool) (_ *Queue, err error) {
	q := &Queue{fd: fd, name: name, access: access, closing: make(chan struct{}), idle: make(chan struct{})}
	q.in.turn, q.out.turn = make(chan struct{}, 1), make(chan struct{}, 1)
	q.user.fd, q.user.nonblock = -1, nonblock
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	q.identity = identity{uint64(st.Dev), st.Ino}
	var now kernelAttr
	if e := mqGetSetAttr(fd, nil, &now); e != 0 {
		return nil, failure(nil, e, "mq_getattr: %v", e)
	}
	q.size = now.msgsize
	return q, nil
}

// acquire lets a call use fd until release. It reports false after Close.
func (q *Queue) acquire() bool {
	if q.users.Add(1) >= closedBit {
		q.release()
		return false
	}
	return true
}

func (q *Queue) release() {
	if q.users.Add(-1) == closedBit {
		q.idleOnce.Do(func() { close(q.idle) })
	}
}

// Name returns the name that the queue was opened by.
func (q *Queue) Name() string { return q.name }

// MaxSize returns the length in bytes of the longest message that the queue takes (mq_msgsize), ≥ 1: what a buffer for receiving
// must hold.
func (q *Queue) MaxSize() int { return q.size }

// Close gives the descriptor back (mq_close). Blocked calls return ErrClosed, as do all later ones. The queue and its messages stay,
// unless it was unlinked and this was the last that had it open. This process's registration for notification is removed, on
// whichever handle it was made. A second Close returns ErrClosed.
func (q *Queue) Close() error {
	if q.users.Or(closedBit) >= closedBit {
		return driver.ErrClosed
	}
	close(q.closing)
	if q.users.Load() == closedBit {
		q.idleOnce.Do(func() { close(q.idle) })
	}
	q.user.close()
	q.inGate.shut()
	q.outGate.shut()
	<-q.idle
	q.notices.close(q)
	q.watch.close()
	q.poll.close() // ends those that wait in the poller, and waits for them
	return unix.Close(q.fd)
}

// Unlink removes the name of a queue (mq_unlink). Those who have it open keep it, and it ends with the last of them. A queue made
// afterwards under the same name is another one.
//
// Errors: ErrInvalid, ErrNotFound (ENOENT), ErrPermission (EACCES: only the owner of a queue, and root, may remove it).
func Unlink(name string) error {
	short, err := kernelName(name)
	if err != nil {
		return err
	}
	return unlinkError(mqUnlink(short), name)
}

// Attr returns the attributes as they are now (mq_getattr).
//
// Errors: ErrClosed.
func (q *Queue) Attr() (Attr, error) {
	if !q.acquire() {
		return Attr{}, driver.ErrClosed
	}
	defer q.release()
	return q.user.attr(q, nil)
}

// SetNonblock sets or clears O_NONBLOCK, the one attribute that mq_setattr changes, and returns the attributes as they were before.
// The flag belongs to the open description: other handles have their own, and processes that inherited the descriptor of FD share
// it. It governs Send, Receive, TimedSend and TimedReceive; calls with a context wait whatever it says.
//
// Errors: ErrClosed.
func (q *Queue) SetNonblock(on bool) (old Attr, err error) {
	if !q.acquire() {
		return Attr{}, driver.ErrClosed
	}
	defer q.release()
	return q.user.attr(q, &on)
}

// FD returns a descriptor for poll(2), select(2) and epoll(7): readable while the queue is not empty, writable while it is not full.
// It belongs to the queue: Close closes it, nobody else may. Another program that inherits it (as exec.Cmd.ExtraFiles, by File) can
// use it with mq_send and mq_receive. Reading it gives the status line of /dev/mqueue, not a message.
//
// Errors: ErrClosed, ErrLimit (EMFILE), ErrPermission (the queue's mode does not allow to open it again, or /proc is missing).
func (q *Queue) FD() (int, error) {
	if !q.acquire() {
		return -1, driver.ErrClosed
	}
	defer q.release()
	return q.user.open(q)
}

// File returns a file with a duplicate of the descriptor of FD, for what wants an *os.File. It is the caller's, who closes it; as
// with every descriptor of a queue, that removes this process's registration for notification.
//
// Errors: those of FD.
func (q *Queue) File() (*os.File, error) {
	if !q.acquire() {
		return nil, driver.ErrClosed
	}
	defer q.release()
	fd, err := q.user.open(q)
	if err != nil {
		return nil, err
	}
	if fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return nil, descriptorError(err)
	}
	return os.NewFile(uintptr(fd), q.name), nil
}

// waitError tells the end of a context and Close apart, for a call that waited in the poller.
func (q *Queue) waitError(ctx context.Context, err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
		return driver.ContextError(ctx)
	}
	if q.users.Load() >= closedBit { // what package os says of a closed file is an error of its own
		return driver.ErrClosed
	}
	return err
}
