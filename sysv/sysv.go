// Package sysv has the message queues of System V (msgget, msgsnd, msgrcv, msgctl), as Linux has them, without cgo. It can be used
// alone, and it is the driver of kumquat.Open("sysv:0x41000001") and kumquat.Open("sysv:/path,id").
//
//	key, err := sysv.Ftok("/srv/orders", 'A')
//	…
//	q, err := sysv.Get(key, sysv.Create, 0o600)
//	if err != nil {
//		return err
//	}
//	defer q.Close()
//	if err := q.Send(ctx, 1, []byte("two pears"), 0); err != nil {
//		return err
//	}
//	buf := make([]byte, 8192)
//	n, typ, err := q.Receive(ctx, buf, 0, 0) // 0: the first message; 7: the first of type 7; -7: the lowest type up to 7
//
// # How calls wait
//
// The kernel gives these queues no descriptor and their calls no timeout: whoever waits holds a thread. Here a call first tries
// without waiting. One that has to wait holds a goroutine only, and ends with its context or with Close at once; the threads are in a
// pool of at most 16 for the whole process (MaxThreads), whatever the number of queues and calls:
//
//   - One thread stands for all receives of one queue with the same type and flags. It calls msgrcv with room for no bytes, which
//     waits like any other and then, instead of taking the message, answers E2BIG. Then one of the waiting calls takes it. (A message
//     of no bytes does fit. It is given to one who waits. Where only lookers do, by Ready or FD, the process keeps it and gives it to
//     its next receive, before all others.) The last call that ends takes the thread out of the kernel by a signal and waits for it,
//     some microseconds, so that nothing is taken after it has returned; what was taken by then is what it returns.
//   - One thread stands for all sends that wait at one queue. It waits with the shortest of their messages, as the one that fits
//     first, and sends it; whatever else fits then is sent too. A send that is cancelled is taken out of the kernel by a signal:
//     it has sent its message, and says so, or has not and never will.
//   - Where more wait than there are threads, those who have waited longest without anything happening give theirs to the others, and
//     are asked every millisecond, or up to every five while nothing happens, instead.
//
// The signal is SIGURG, which the Go runtime uses itself, sent to one thread. EINTR is never returned.
//
// # What to know
//
// Which of several callers that wait is served first is not promised. A message is delivered at most once: it is gone from the queue
// when a receive has returned. Queues and messages stay until the queue is removed, or the machine or its IPC namespace ends; every
// thread of a process that uses this package must be in the same IPC namespace. Message boundaries are kept.
package sysv

import (
	"fmt"
	"io/fs"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// Key names a queue. Private names none.
type Key int32

// Private is IPC_PRIVATE: Get makes a new queue that has no name.
const Private Key = 0

// String returns the key in the form in which ipcs(1) shows it and the driver takes it: 0x41000001.
func (k Key) String() string { return fmt.Sprintf("0x%08x", uint32(k)) }

// Flags. Their values are those of the C headers.
const (
	Create    = ipcCreat   // IPC_CREAT, for Get: make the queue if it is not there
	Exclusive = ipcExcl    // IPC_EXCL, for Get with Create: fail with ErrExists if it is there
	NoWait    = ipcNowait  // IPC_NOWAIT, for Send and Receive: return ErrFull and ErrEmpty instead of waiting
	NoError   = msgNoerror // MSG_NOERROR, for Receive: cut a message that is longer than the buffer
	Except    = msgExcept  // MSG_EXCEPT, for Receive with a type above 0: the first message of any other type
	Copy      = msgCopy    // MSG_COPY, for Receive with NoWait: copy the message at place typ (from 0) and leave it in the queue
)

// Ftok makes a key of a file and a number, as ftok(3) does: the file's inode and device and the low eight bits of id. Two files may
// give the same key, and a file made anew gives another. The file must exist.
//
// Errors: ErrInvalid if the low eight bits of id are 0, for which POSIX.1-2024 says nothing; those of stat(2), as ErrNotFound and
// ErrPermission.
func Ftok(path string, id int) (Key, error) {
	if id&0xff == 0 {
		return 0, failure(driver.ErrInvalid, unix.EINVAL, "ftok: the low eight bits of the number %d are 0; 1 to 255 are allowed", id)
	}
	var st unix.Stat_t
	for {
		err := unix.Stat(path, &st)
		switch err {
		case nil:
			return Key(uint32(id&0xff)<<24 | uint32(st.Dev&0xff)<<16 | uint32(st.Ino&0xffff)), nil
		case unix.EINTR:
		case unix.ENOENT, unix.ENOTDIR:
			return 0, failure(driver.ErrNotFound, err.(syscall.Errno), "ftok: there is no file %q", path)
		case unix.EACCES:
			return 0, failure(driver.ErrPermission, unix.EACCES, "ftok: a folder of %q may not be searched", path)
		default:
			return 0, failure(driver.ErrInvalid, errnoOf(err), "ftok: %q: %v", path, err)
		}
	}
}

func errnoOf(err error) syscall.Errno {
	if e, ok := err.(syscall.Errno); ok {
		return e
	}
	return unix.EINVAL
}

// Queue is a handle of a queue. Get and FromID make one; the zero value is not usable. Its methods may be called from many
// goroutines at once.
type Queue struct {
	s       *shared
	key     Key
	closed  atomic.Bool
	closing chan struct{} // closed by Close
	spare   atomic.Pointer[buffer]
	tight   atomic.Bool // a message did not fit into its buffer together with the header
	events  descriptor
}

// Get opens the queue with this key, or makes it (msgget). flags has any of Create and Exclusive. mode has the permission bits of a
// new queue, of which the kernel takes no umask away; for one that is there it has the bits that the caller wants to have, 0o600 for
// both reading and writing and 0 for no check now. With the key Private a new queue is made, whatever flags say.
//
// Errors: ErrNotFound (ENOENT), ErrExists (EEXIST), ErrPermission (EACCES), ErrLimit (ENOSPC: kernel.msgmni), ErrNoSpace (ENOMEM),
// ErrInvalid (other flags).
func Get(key Key, flags int, mode fs.FileMode) (*Queue, error) {
	if flags&^(Create|Exclusive) != 0 {
		return nil, failure(driver.ErrInvalid, unix.EINVAL, "msgget takes Create and Exclusive, not %#o", flags)
	}
	id, e := msgget(key, flags|int(mode.Perm()))
	if e != 0 {
		return nil, getError(e, key)
	}
	return newHandle(id, key), nil
}

// FromID makes a handle of a queue by its identifier, as msgget returned it in any process and ipcs(1) shows it. Whether it is there
// the first call tells: ErrRemoved if not.
//
// Errors: ErrInvalid if id is below 0.
func FromID(id int) (*Queue, error) {
	if id < 0 || id > 1<<31-1 {
		return nil, failure(driver.ErrInvalid, unix.EINVAL, "%d is not an identifier of a queue", id)
	}
	return newHandle(id, Private), nil
}

func newHandle(id int, key Key) *Queue {
	return &Queue{s: acquireShared(id), key: key, closing: make(chan struct{}), events: descriptor{fd: -1}}
}

// ID returns the queue's identifier, ≥ 0, which other processes may use with FromID.
func (q *Queue) ID() int { return q.s.id }

// Close gives the handle back. Blocked calls return ErrClosed, as do all later ones. The queue and its messages stay: Remove removes
// it. A second Close returns ErrClosed.
func (q *Queue) Close() error {
	if q.closed.Swap(true) {
		return driver.ErrClosed
	}
	close(q.closing)
	wakeLookers(q)
	q.events.close()
	releaseShared(q.s)
	return nil
}

// Remove removes the queue and its messages (IPC_RMID). Those who wait get ErrRemoved, and so does every later call, in all
// processes.
//
// Errors: ErrRemoved (EINVAL, EIDRM), ErrPermission (EPERM: only the owner, the creator and root may), ErrClosed.
func (q *Queue) Remove() error {
	if q.closed.Load() {
		return driver.ErrClosed
	}
	return removeID(q.s.id)
}

func removeID(id int) error {
	if _, e := msgctl(id, ipcRmid, nil); e != 0 {
		return controlError(e, id, "msgctl IPC_RMID")
	}
	wakeRemoved(id)
	return nil
}

// Status is struct msqid_ds. Times are to the second, and zero for what has not happened yet.
type Status struct {
	Key        Key
	ID         int
	UID, GID   int // owner; may be changed by Set
	CUID, CGID int // creator
	Mode       fs.FileMode
	Sequence   int       // how often the kernel has used the queue's place
	LastSend   time.Time // msg_stime
	LastRecv   time.Time // msg_rtime
	Changed    time.Time // msg_ctime: creation, or the last Set
	Bytes      int64     // msg_cbytes: bytes of all bodies in the queue
	Messages   int64     // msg_qnum
	QBytes     int64     // msg_qbytes: how many bytes, and how many messages, fit; −1: not known (List, when the queue may not be read)
	SendPID    int       // msg_lspid: process of the last send, 0: none (or not in this PID namespace)
	RecvPID    int       // msg_lrpid
}

func seconds(s int64) time.Time {
	if s == 0 {
		return time.Time{}
	}
	return time.Unix(s, 0)
}

func (k *kernelQueue) status(id int) Status {
	return Status{
		Key: Key(k.perm.key), ID: id, UID: int(k.perm.uid), GID: int(k.perm.gid), CUID: int(k.perm.cuid), CGID: int(k.perm.cgid),
		Mode: fs.FileMode(k.perm.mode & 0o777), Sequence: int(k.perm.seq), LastSend: seconds(k.stime), LastRecv: seconds(k.rtime),
		Changed: seconds(k.ctime), Bytes: clamp(k.cbytes), Messages: clamp(k.qnum), QBytes: clamp(k.qbytes), SendPID: int(k.lspid), RecvPID: int(k.lrpid),
	}
}

// clamp is for msg_qbytes, which root may set to anything.
func clamp(n uint64) int64 { return int64(min(n, 1<<63-1)) }

// Stat returns the state of the queue (IPC_STAT).
//
// Errors: ErrRemoved (EINVAL, EIDRM), ErrPermission (EACCES: it takes read permission), ErrClosed.
func (q *Queue) Stat() (Status, error) {
	if q.closed.Load() {
		return Status{}, driver.ErrClosed
	}
	var k kernelQueue
	if _, e := msgctlStat(q.s.id, ipcStat, &k); e != 0 {
		return Status{}, controlError(e, q.s.id, "msgctl IPC_STAT")
	}
	return k.status(q.s.id), nil
}

// Change says what Set changes: what is not nil.
type Change struct {
	UID, GID *int         // owner
	Mode     *fs.FileMode // permission bits
	QBytes   *int64       // room in bytes, and in messages; above kernel.msgmnb only with CAP_SYS_RESOURCE
}

// Set changes the owner, the mode and the room of the queue (IPC_SET). Those who wait look again, in all processes.
//
// Errors: ErrRemoved, ErrInvalid (a negative number, bits that are no permissions), ErrPermission (EPERM: only the owner, the creator
// and root may), ErrLimit (EPERM: QBytes is above kernel.msgmnb), ErrClosed.
func (q *Queue) Set(c Change) error {
	if q.closed.Load() {
		return driver.ErrClosed
	}
	switch {
	case c.UID != nil && (*c.UID < 0 || int64(*c.UID) >= 1<<32-1):
		return failure(driver.ErrInvalid, unix.EINVAL, "%d is not a user id", *c.UID)
	case c.GID != nil && (*c.GID < 0 || int64(*c.GID) >= 1<<32-1):
		return failure(driver.ErrInvalid, unix.EINVAL, "%d is not a group id", *c.GID)
	case c.Mode != nil && *c.Mode&^fs.ModePerm != 0:
		return failure(driver.ErrInvalid, unix.EINVAL, "mode %v has more than permission bits", *c.Mode)
	case c.QBytes != nil && *c.QBytes < 0:
		return failure(driver.ErrInvalid, unix.EINVAL, "a queue cannot have room for %d bytes", *c.QBytes)
	}
	id := q.s.id
	var k kernelQueue
	if e := statAnyway(id, &k); e != 0 {
		return controlError(e, id, "msgctl IPC_STAT")
	}
	if c.UID != nil {
		k.perm.uid = uint32(*c.UID)
	}
	if c.GID != nil {
		k.perm.gid = uint32(*c.GID)
	}
	if c.Mode != nil {
		k.perm.mode = uint32(*c.Mode)
	}
	if c.QBytes != nil {
		k.qbytes = uint64(*c.QBytes)
	}
	_, e := msgctlStat(id, ipcSet, &k)
	switch {
	case e == 0:
		kickSenders(q.s)
		return nil
	case e == unix.EPERM && c.QBytes != nil && *c.QBytes > int64(sysctl("msgmnb")):
		return qbytesError(*c.QBytes)
	case e == unix.EINVAL && (c.UID != nil || c.GID != nil) && !q.gone(e):
		return failure(driver.ErrInvalid, e, "the user or group has no place in this user namespace")
	}
	return controlError(e, id, "msgctl IPC_SET")
}

func qbytesError(n int64) error {
	return failure(driver.ErrLimit, unix.EPERM, "a queue of %d bytes is larger than kernel.msgmnb = %s allows without CAP_SYS_RESOURCE; "+
		"it is raised by: sysctl -w kernel.msgmnb=%d", n, sysctlText("msgmnb"), n)
}

// statAnyway is IPC_STAT also where the caller may not read: the owner may have taken that right from himself.
func statAnyway(id int, k *kernelQueue) syscall.Errno {
	_, e := msgctlStat(id, ipcStat, k)
	if e == unix.EACCES {
		for _, bits := range []int{15, 24} { // an identifier's index has 15 bits, 24 with the boot parameter ipcmni_extend
			if got, e := msgctlStat(id&(1<<bits-1), msgStatAny, k); e == 0 && got == id {
				return 0
			}
		}
	}
	return e
}
