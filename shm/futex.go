package shm

import (
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	futexWaitOp = 0
	futexWakeOp = 1
)

// futexWaitRaw sleeps while *p is v, at most d, and keeps its processor: the runtime is not told, so waking is 3–5× cheaper, but
// a stop of the world waits for it. Callers keep d ≤ 1 ms and reach a preemption point between two calls.
func futexWaitRaw(p *uint32, v uint32, d time.Duration) syscall.Errno {
	ts := unix.NsecToTimespec(int64(d))
	_, _, e := syscall.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(p)), futexWaitOp, uintptr(v), uintptr(unsafe.Pointer(&ts)), 0, 0)
	return e
}

// futexWait is the same for long sleeps: the runtime gives the processor to others.
func futexWait(p *uint32, v uint32, d time.Duration) syscall.Errno {
	ts := unix.NsecToTimespec(int64(d))
	_, _, e := syscall.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(p)), futexWaitOp, uintptr(v), uintptr(unsafe.Pointer(&ts)), 0, 0)
	return e
}

// futexWake wakes at most n sleepers on p, in any process, and returns how many there were.
func futexWake(p *uint32, n int) int {
	r, _, e := syscall.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(p)), futexWakeOp, uintptr(n), 0, 0, 0)
	if e != 0 {
		return 0
	}
	return int(r)
}

// waitv is struct futex_waitv of futex_waitv(2).
type waitv struct {
	val   uint64
	addr  uint64
	flags uint32
	_     uint32
}

const (
	futex32       = 2 // FUTEX_32: shared, 32 bits
	sysFutexWaitv = 449
)

// futexWaitMany sleeps until one of the words no longer has its value or is woken, at most d.
func futexWaitMany(ws []waitv, d time.Duration) syscall.Errno {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	ts := unix.NsecToTimespec(now.Nano() + int64(d))
	_, _, e := syscall.Syscall6(sysFutexWaitv, uintptr(unsafe.Pointer(&ws[0])), uintptr(len(ws)), 0, uintptr(unsafe.Pointer(&ts)), unix.CLOCK_MONOTONIC, 0)
	return e
}
