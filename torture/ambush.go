package torture

import (
	"math/rand/v2"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ambush is a timer that sends SIGSTOP to this process when it has used a certain time of its processor. A signal from outside mostly
// hits a worker that sleeps, and never inside a step; this one hits it while it runs, at whatever instruction the clock's interrupt
// finds it.
type ambush struct{ id int32 }

func newAmbush() (*ambush, error) {
	// struct sigevent: value, signo, notify; 64 bytes.
	ev := [16]int32{2: int32(unix.SIGSTOP), 3: sigevSignal}
	a := &ambush{}
	if _, _, e := unix.Syscall(unix.SYS_TIMER_CREATE, unix.CLOCK_PROCESS_CPUTIME_ID, uintptr(unsafe.Pointer(&ev)), uintptr(unsafe.Pointer(&a.id))); e != 0 {
		return nil, e
	}
	return a, nil
}

const sigevSignal = 0 // SIGEV_SIGNAL

func (a *ambush) set(ns int64) error {
	// struct itimerspec: interval, value.
	ts := [2]unix.Timespec{1: unix.NsecToTimespec(ns)}
	if _, _, e := unix.Syscall6(unix.SYS_TIMER_SETTIME, uintptr(a.id), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0); e != 0 {
		return e
	}
	return nil
}

// arm lays the ambush: it springs once, after up to 1 ms of work and a tick of the clock.
func (a *ambush) arm() error { return a.set(1 + rand.Int64N(1_000_000)) }

func (a *ambush) disarm() error { return a.set(0) }

func (a *ambush) delete() error {
	if _, _, e := unix.Syscall(unix.SYS_TIMER_DELETE, uintptr(a.id), 0, 0); e != 0 {
		return e
	}
	return nil
}

// stoppedItself reports whether the process has been stopped since it was asked last. It leaves the death of the process to others.
func (p *proc) stoppedItself() bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, p.pid(), &info, unix.WSTOPPED|unix.WNOHANG, nil)
	return err == nil && info.Signo == int32(unix.SIGCHLD)
}
