package sysv

import (
	"encoding/binary"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's structures below are those of the machines where long has 64 bits and <asm-generic> applies (amd64, arm64, riscv64,
// loong64). Elsewhere this line does not compile, which is better than a structure too short.
const _ = uint(unsafe.Sizeof(uintptr(0)) - 8)

// Commands of msgctl(2) and flags of msgget(2) and msgrcv(2) (linux/ipc.h, linux/msg.h).
const (
	ipcCreat  = 0o1000
	ipcExcl   = 0o2000
	ipcNowait = 0o4000

	ipcRmid    = 0
	ipcSet     = 1
	ipcStat    = 2
	ipcInfo    = 3
	msgStat    = 11
	msgInfo    = 12
	msgStatAny = 13

	msgNoerror = 0o10000
	msgExcept  = 0o20000
	msgCopy    = 0o40000
)

// kernelPerm is struct ipc64_perm.
type kernelPerm struct {
	key                  int32
	uid, gid, cuid, cgid uint32
	mode                 uint32 // the C library calls the upper half padding
	seq, _               uint16
	_                    uint32 // long is aligned to 8 bytes
	_, _                 uint64
}

// kernelQueue is struct msqid64_ds: what IPC_STAT writes, all 120 bytes of it.
type kernelQueue struct {
	perm                 kernelPerm
	stime, rtime, ctime  int64 // seconds since 1970
	cbytes, qnum, qbytes uint64
	lspid, lrpid         int32
	_, _                 uint64
}

// kernelInfo is struct msginfo. IPC_INFO and MSG_INFO give some members another meaning.
type kernelInfo struct {
	pool, msgmap, max, mnb, mni, ssz, tql int32
	seg                                   uint16
}

// header is the mtype in front of every body.
const header = 8

// rawMax is the longest body that is copied without telling the scheduler about the call. The copy of 64 KiB takes some
// microseconds; telling costs every call some tens of nanoseconds.
const rawMax = 64 << 10

func msgget(key Key, flags int) (int, syscall.Errno) {
	id, _, e := unix.RawSyscall(unix.SYS_MSGGET, uintptr(key), uintptr(flags), 0)
	return int(id), e
}

func msgctl(id, cmd int, p unsafe.Pointer) (int, syscall.Errno) {
	r, _, e := unix.RawSyscall(unix.SYS_MSGCTL, uintptr(id), uintptr(cmd), uintptr(p))
	return int(r), e
}

func msgctlStat(id, cmd int, s *kernelQueue) (int, syscall.Errno) {
	return msgctl(id, cmd, unsafe.Pointer(s))
}

// trySend is msgsnd with IPC_NOWAIT. m is the header and the body.
func trySend(id int, m []byte) syscall.Errno {
	for {
		var e syscall.Errno
		if len(m) <= header+rawMax {
			_, _, e = syscall.RawSyscall6(unix.SYS_MSGSND, uintptr(id), uintptr(unsafe.Pointer(unsafe.SliceData(m))), uintptr(len(m)-header), ipcNowait, 0, 0)
		} else {
			_, _, e = unix.Syscall6(unix.SYS_MSGSND, uintptr(id), uintptr(unsafe.Pointer(unsafe.SliceData(m))), uintptr(len(m)-header), ipcNowait, 0, 0)
		}
		if e != unix.EINTR {
			return e
		}
	}
}

// sendWaiting is msgsnd: it holds its thread until the message is sent, the queue removed or a signal comes (EINTR: not sent).
func sendWaiting(id int, m []byte) syscall.Errno {
	_, _, e := unix.Syscall6(unix.SYS_MSGSND, uintptr(id), uintptr(unsafe.Pointer(unsafe.SliceData(m))), uintptr(len(m)-header), 0, 0, 0)
	return e
}

// tryReceive is msgrcv with IPC_NOWAIT into m, which has room for the header and its body.
func tryReceive(id int, m []byte, typ int64, flags int) (int, syscall.Errno) {
	for {
		var n uintptr
		var e syscall.Errno
		if len(m) <= header+rawMax {
			n, _, e = syscall.RawSyscall6(unix.SYS_MSGRCV, uintptr(id), uintptr(unsafe.Pointer(unsafe.SliceData(m))), uintptr(len(m)-header),
				uintptr(typ), uintptr(flags|ipcNowait), 0)
		} else {
			n, _, e = unix.Syscall6(unix.SYS_MSGRCV, uintptr(id), uintptr(unsafe.Pointer(unsafe.SliceData(m))), uintptr(len(m)-header),
				uintptr(typ), uintptr(flags|ipcNowait), 0)
		}
		if e != unix.EINTR {
			return int(n), e
		}
	}
}

// canCopy reports whether the kernel has MSG_COPY. One that has not says so before it looks at the identifier, which is most likely
// nobody's.
var canCopy = sync.OnceValue(func() bool {
	var m [header]byte
	_, e := tryReceive(1<<31-1, m[:], 0, Copy)
	return e != unix.ENOSYS
})

// look waits for a message that the selector lets through and leaves it in the queue: its buffer has no room, so msgrcv answers
// E2BIG. A message of no bytes fits all the same and is taken; then the errno is 0 and its type is returned. With wait it holds
// its thread, and a signal gives EINTR; without it an empty queue gives ENOMSG.
func look(id int, s selector, wait bool) (int64, syscall.Errno) {
	var m [header]byte
	flags := s.flags()
	var e syscall.Errno
	if wait {
		_, _, e = unix.Syscall6(unix.SYS_MSGRCV, uintptr(id), uintptr(unsafe.Pointer(&m)), 0, uintptr(s.typ), uintptr(flags), 0)
	} else {
		_, _, e = syscall.RawSyscall6(unix.SYS_MSGRCV, uintptr(id), uintptr(unsafe.Pointer(&m)), 0, uintptr(s.typ), uintptr(flags|ipcNowait), 0)
	}
	return messageType(m[:]), e
}

func messageType(m []byte) int64 { return int64(binary.NativeEndian.Uint64(m)) }

func setMessageType(m []byte, typ int64) { binary.NativeEndian.PutUint64(m, uint64(typ)) }
