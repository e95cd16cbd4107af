package posix

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kernelAttr is struct mq_attr: four longs that mean something and four that the system call reads and writes all the same. A
// structure without those would have its neighbours on the stack overwritten.
type kernelAttr struct {
	flags, maxmsg, msgsize, curmsgs int // long is as wide as int on every Linux that Go runs on
	reserved                        [4]int
}

// kernelEvent is struct sigevent: 64 bytes, of which mq_notify reads the first three members.
type kernelEvent struct {
	value  uintptr
	signo  int32
	notify int32
	_      [64 - unsafe.Sizeof(uintptr(0)) - 8]byte
}

// The values of sigev_notify.
const (
	sigevSignal = 0
	sigevNone   = 1
	sigevThread = 2
)

// What the last byte of a SIGEV_THREAD cookie says, and its length (linux/mqueue.h, ipc/mqueue.c).
const (
	cookieSize    = 32
	cookieFired   = 1
	cookieRemoved = 2
)

// mqueueMagic is f_type of the file system that the queues live on.
const mqueueMagic = 0x19800202

// The tries go by package syscall: the same calls of x/sys/unix take a detour through assembly, some nanoseconds long.

// rawMax is the longest body that is copied without telling the scheduler about the call. The copy of 64 KiB takes some
// microseconds; telling costs every call some tens of nanoseconds.
const rawMax = 64 << 10

func mqOpen(name string, flags int, mode uint32, attr *kernelAttr) (int, syscall.Errno) {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return -1, unix.EINVAL
	}
	for {
		fd, _, e := unix.Syscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(p)), uintptr(flags), uintptr(mode), uintptr(unsafe.Pointer(attr)), 0, 0)
		if e != unix.EINTR {
			return int(fd), e
		}
	}
}

func mqUnlink(name string) syscall.Errno {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return unix.EINVAL
	}
	_, _, e := unix.Syscall(unix.SYS_MQ_UNLINK, uintptr(unsafe.Pointer(p)), 0, 0)
	return e
}

// mqTrySend sends on a description that has O_NONBLOCK: EAGAIN where it would block. Nothing in it waits, so no signal interrupts it.
func mqTrySend(fd int, body []byte, priority int) syscall.Errno {
	if len(body) > rawMax {
		return mqSend(fd, body, priority, nil)
	}
	return rawSend(fd, body, priority)
}

// rawSend is small enough to be a part of its callers.
func rawSend(fd int, body []byte, priority int) syscall.Errno {
	_, _, e := syscall.RawSyscall6(unix.SYS_MQ_TIMEDSEND, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(body))), uintptr(len(body)),
		uintptr(priority), 0, 0)
	return e
}

// mqSend is mq_timedsend; a nil deadline waits for ever.
func mqSend(fd int, body []byte, priority int, deadline *unix.Timespec) syscall.Errno {
	_, _, e := unix.Syscall6(unix.SYS_MQ_TIMEDSEND, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(body))), uintptr(len(body)),
		uintptr(priority), uintptr(unsafe.Pointer(deadline)), 0)
	return e
}

// mqTryReceive receives on a description that has O_NONBLOCK: EAGAIN where it would block. As with sending, no signal interrupts it.
func mqTryReceive(fd int, buf []byte) (n, priority int, errno syscall.Errno) {
	if len(buf) > rawMax {
		return mqReceive(fd, buf, nil)
	}
	var prio uint32
	r, _, e := syscall.RawSyscall6(unix.SYS_MQ_TIMEDRECEIVE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)),
		uintptr(unsafe.Pointer(&prio)), 0, 0)
	return int(r), int(prio), e
}

// mqReceive is mq_timedreceive; a nil deadline waits for ever.
func mqReceive(fd int, buf []byte, deadline *unix.Timespec) (n, priority int, errno syscall.Errno) {
	var prio uint32
	r, _, e := unix.Syscall6(unix.SYS_MQ_TIMEDRECEIVE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)),
		uintptr(unsafe.Pointer(&prio)), uintptr(unsafe.Pointer(deadline)), 0)
	return int(r), int(prio), e
}

func mqGetSetAttr(fd int, set, old *kernelAttr) syscall.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_MQ_GETSETATTR, uintptr(fd), uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)))
	return e
}

// mqNotify registers ev, or withdraws this process's registration if ev is nil.
func mqNotify(fd int, ev *kernelEvent) syscall.Errno {
	for {
		_, _, e := unix.Syscall(unix.SYS_MQ_NOTIFY, uintptr(fd), uintptr(unsafe.Pointer(ev)), 0)
		if e != unix.EINTR {
			return e
		}
	}
}

// addressOf is for words of the kernel's structures that hold an address. The caller pins what is there.
func addressOf(b *[cookieSize]byte) uintptr { return uintptr(unsafe.Pointer(b)) }
