package bench

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The control page is a memfd that all processes of a measurement map; peers.cpp has the same numbers.
const (
	offArrived  = 0    // processes that stand at the start line, over all phases
	offFinished = 64   // producers that have sent everything, over all phases
	offPing     = 2048 // the words of the floors
	offPong     = 2112
	offSamples  = 4096    // nanoseconds, 4 bytes each
	maxSamples  = 1 << 20 // of one phase
	controlSize = offSamples + 4*maxSamples

	controlFD = 3 // in a child; what the subject needs follows
)

// control is the mapped control page.
type control []byte

func newControl() (*os.File, control, error) {
	fd, err := unix.MemfdCreate("kumquat-bench", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "control")
	if err := f.Truncate(controlSize); err != nil {
		f.Close()
		return nil, nil, err
	}
	c, err := mapControl(fd)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, c, nil
}

func mapControl(fd int) (control, error) {
	b, err := unix.Mmap(fd, 0, controlSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping the control page: %w", err)
	}
	return b, nil
}

func (c control) word(off int) *uint64 { return (*uint64)(unsafe.Pointer(&c[off])) }

// half is the word's low half, as futexes want it.
func (c control) half(off int) *uint32 { return (*uint32)(unsafe.Pointer(&c[off])) }

func (c control) samples() []uint32 {
	return unsafe.Slice((*uint32)(unsafe.Pointer(&c[offSamples])), maxSamples)
}

// meet waits until target processes have come to the start line. It spins, to start all at the same moment, but lets others run:
// there may be more processes than cores.
func (c control) meet(target uint64) {
	w := c.word(offArrived)
	atomic.AddUint64(w, 1)
	for i := 0; atomic.LoadUint64(w) < target; i++ {
		if i > 1000 {
			unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		}
	}
}

// clock reads CLOCK_MONOTONIC, which all processes share, without a system call.
type clock struct {
	start time.Time
	base  int64
}

func newClock() clock {
	var c clock
	best := int64(1 << 62)
	for range 16 {
		var ts unix.Timespec
		before := time.Now()
		_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail with a valid clock
		if d := int64(time.Since(before)); d < best {
			best = d
			c = clock{before, ts.Nano() - d/2}
		}
	}
	return c
}

func (c clock) now() int64 { return c.base + int64(time.Since(c.start)) }
