package posix

import (
	"fmt"
	"math"
	"math/bits"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

const sysctlDir = "/proc/sys/fs/mqueue/"

// The kernel's own bounds, which a process with CAP_SYS_RESOURCE is held to instead of the sysctls (HARD_MSGMAX, HARD_MSGSIZEMAX).
const (
	hardMessages = 65_536
	hardSize     = 16 << 20
)

// Limits are the limits that the kernel sets to POSIX queues, and what is used of them. Numbers that could not be found out are −1.
type Limits struct {
	MaxQueues       int // fs.mqueue.queues_max: queues in this IPC namespace; does not bind CAP_SYS_RESOURCE
	MaxMessages     int // fs.mqueue.msg_max: Attr.MaxMessages of a new queue
	MaxSize         int // fs.mqueue.msgsize_max: Attr.MaxSize of a new queue, bytes
	DefaultMessages int // fs.mqueue.msg_default: Attr.MaxMessages of a queue made without attributes
	DefaultSize     int // fs.mqueue.msgsize_default: its Attr.MaxSize, bytes

	// RLIMIT_MSGQUEUE: bytes of all queues of a user, as Footprint counts them. What one process may add depends on its own limit,
	// the use is counted for the user. math.MaxInt64 is no limit.
	Bytes    int64
	BytesMax int64 // to which the process may raise it

	// Privileged: this process has CAP_SYS_RESOURCE, so that the kernel's own bounds of 65,536 messages of 16 MiB apply.
	Privileged bool

	Queues    int   // in this IPC namespace now, those without a name left out
	UsedBytes int64 // of the queues that this user owns, in this IPC namespace: at least so much counts against Bytes
}

// ReadLimits returns the limits as they are now. It does not fail: what cannot be read is −1.
func ReadLimits() Limits {
	l := Limits{
		MaxQueues: sysctl("queues_max"), MaxMessages: sysctl("msg_max"), MaxSize: sysctl("msgsize_max"),
		DefaultMessages: sysctl("msg_default"), DefaultSize: sysctl("msgsize_default"),
		Bytes: -1, BytesMax: -1, Privileged: privileged(), Queues: -1, UsedBytes: -1,
	}
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MSGQUEUE, &r) == nil {
		l.Bytes, l.BytesMax = bytesOf(r.Cur), bytesOf(r.Max)
	}
	if list, err := List(); err == nil {
		l.Queues, l.UsedBytes = 0, 0
		for _, x := range list {
			l.Queues++
			if x.UID == os.Getuid() && x.Err == nil {
				l.UsedBytes += Footprint(x.MaxMessages, x.MaxSize)
			}
		}
	}
	return l
}

func bytesOf(r uint64) int64 { return int64(min(r, math.MaxInt64)) }

// Footprint returns how many bytes of RLIMIT_MSGQUEUE a queue takes from the moment it is made, whether it is used or not: its
// bodies, and for each message a message header and a node of the kernel's tree. math.MaxInt64 stands for anything larger.
func Footprint(messages, size int) int64 {
	if messages <= 0 || size <= 0 {
		return 0
	}
	const header, node, priorities = 6 * wordSize, 6 * wordSize, 32_768 // struct msg_msg, struct posix_msg_tree_node
	over, bodies := bits.Mul64(uint64(messages), uint64(header)+uint64(size))
	total, carry := bits.Add64(bodies, uint64(min(messages, priorities)*node), 0)
	if over+carry > 0 || total > math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(total)
}

const wordSize = strconv.IntSize / 8

func sysctl(name string) int {
	n, err := strconv.Atoi(sysctlText(name))
	if err != nil {
		return -1
	}
	return n
}

// sysctlText is the value for a text.
func sysctlText(name string) string {
	b, err := os.ReadFile(sysctlDir + name)
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

// privileged reports whether this thread has CAP_SYS_RESOURCE.
func privileged() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&header, &data[0]) != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// limitError finds out which of the limits made mq_open fail: the kernel's number stands for several of them.
func limitError(e syscall.Errno, flags int, attr *Attr) error {
	l := ReadLimits()
	a := Attr{MaxMessages: l.DefaultMessages, MaxSize: l.DefaultSize}
	if attr != nil {
		a = *attr
	}
	created := flags&unix.O_CREAT != 0
	maxMessages, maxSize := l.MaxMessages, l.MaxSize
	if l.Privileged {
		maxMessages, maxSize = hardMessages, hardSize
	}
	switch {
	case e == unix.EINVAL && flags&unix.O_ACCMODE == unix.O_ACCMODE:
		return failure(driver.ErrInvalid, e, "an existing queue is opened for receiving, sending or both, not with the access mode 3")
	case e == unix.EINVAL && created && (a.MaxMessages <= 0 || a.MaxSize <= 0):
		return failure(driver.ErrInvalid, e, "MaxMessages %d and MaxSize %d must both be 1 or more", a.MaxMessages, a.MaxSize)
	case e == unix.EINVAL && created && a.MaxMessages > maxMessages:
		return failure(driver.ErrLimit, e, "MaxMessages %d: %s", a.MaxMessages, raise("msg_max", maxMessages, a.MaxMessages, hardMessages))
	case e == unix.EINVAL && created && a.MaxSize > maxSize:
		return failure(driver.ErrLimit, e, "MaxSize %d bytes: %s", a.MaxSize, raise("msgsize_max", maxSize, a.MaxSize, hardSize))
	case e == unix.EINVAL:
		return failure(driver.ErrInvalid, e, "mq_open refuses the name, the flags %#x or the attributes", flags)
	case e == unix.ENOSPC:
		return failure(driver.ErrLimit, e, "this IPC namespace has as many queues as fs.mqueue.queues_max = %d allows, those counted that are removed and still "+
			"open; remove some, or raise it: sysctl -w fs.mqueue.queues_max=%d", l.MaxQueues, l.MaxQueues*2)
	case e == unix.EOVERFLOW:
		return failure(driver.ErrLimit, e, "%d messages of %d bytes are more than can be addressed", a.MaxMessages, a.MaxSize)
	case e == unix.EMFILE && descriptorsLeft() && created:
		need := Footprint(a.MaxMessages, a.MaxSize)
		return failure(driver.ErrLimit, e, "the queue would take %d bytes, and RLIMIT_MSGQUEUE allows the queues of this user %d in all; remove some "+
			"of them, make this one smaller, or raise it: ulimit -q %d (up to %s; beyond: prlimit --pid $$ --msgqueue=%d as root, or "+
			"LimitMSGQUEUE= of the systemd unit)", need, l.Bytes, raisedBytes(l, need), bytesText(l.BytesMax), raisedBytes(l, need))
	case e == unix.EMFILE:
		return descriptorError(e)
	case e == unix.ENFILE:
		return failure(driver.ErrLimit, e, "the machine has as many open files as fs.file-max allows; raise it: sysctl -w fs.file-max=N")
	case e == unix.ENOMEM:
		return failure(driver.ErrLimit, e, "the kernel has no memory for a queue of %d messages of %d bytes", a.MaxMessages, a.MaxSize)
	}
	return failure(driver.ErrLimit, e, "mq_open: %v", e)
}

// raise is the advice about a sysctl that is too low.
func raise(name string, value, wanted, hard int) string {
	if wanted > hard {
		return fmt.Sprintf("the kernel takes no more than %d, whatever fs.mqueue.%s = %s says", hard, name, sysctlText(name))
	}
	return fmt.Sprintf("fs.mqueue.%s = %d allows no more; raise it: sysctl -w fs.mqueue.%s=%d", name, value, name, wanted)
}

// raisedBytes is an RLIMIT_MSGQUEUE that the queue fits into besides what is there.
func raisedBytes(l Limits, need int64) int64 {
	if n := max(l.UsedBytes, l.Bytes, 0); n < math.MaxInt64-need {
		return n + need
	}
	return math.MaxInt64
}

func bytesText(n int64) string {
	if n == math.MaxInt64 {
		return "any value"
	}
	return strconv.FormatInt(n, 10)
}

// descriptorsLeft tells the two meanings of EMFILE apart.
func descriptorsLeft() bool {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}
