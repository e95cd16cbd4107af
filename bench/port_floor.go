package bench

import (
	"encoding/binary"
	"errors"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
)

func isEmpty(err error) bool { return errors.Is(err, kumquat.ErrEmpty) }

// bounce passes one cache line to and fro: the ping writes odd values, the pong even ones. Nothing between two cores is faster.
type bounce struct {
	ctl  control
	ping bool
	body []byte
}

func (b *bounce) send(body []byte, _ int) error {
	v := 2 * binary.LittleEndian.Uint64(body)
	if !b.ping {
		v++
	}
	atomic.StoreUint64(b.ctl.word(offPing), v)
	return nil
}

// receive waits for the other side's value: after 2n by the ping comes 2n+1 by the pong, then 2n+2.
func (b *bounce) receive([]byte) ([]byte, error) {
	w := b.ctl.word(offPing)
	mine := uint64(1)
	if !b.ping {
		mine = 0
	}
	last := binary.LittleEndian.Uint64(b.body)
	for i := 0; ; i++ {
		v := atomic.LoadUint64(w)
		if n := v / 2; v%2 == mine && n != last && n != 0 {
			binary.LittleEndian.PutUint64(b.body, n)
			return b.body, nil
		}
		if i > 2000 { // the other side may want this core
			unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		}
	}
}

// bareFutex passes a number through a word in shared memory and a futex on it: what any sleeping queue pays at least.
type bareFutex struct {
	ctl     control
	out, in int
	body    []byte
}

const (
	futexWait = 0
	futexWake = 1
)

func (f *bareFutex) send(body []byte, _ int) error {
	w := f.ctl.half(f.out)
	// The whole number goes beside the word; the word itself always changes.
	atomic.StoreUint64(f.ctl.word(f.out+8), binary.LittleEndian.Uint64(body))
	atomic.AddUint32(w, 1)
	_, _, e := unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(w)), futexWake, 1, 0, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

func (f *bareFutex) receive([]byte) ([]byte, error) {
	w := f.ctl.half(f.in)
	last := uint32(binary.LittleEndian.Uint64(f.ctl[f.in+16:])) // the reader's own, beside the word
	for {
		if atomic.LoadUint32(w) != last {
			binary.LittleEndian.PutUint64(f.ctl[f.in+16:], uint64(last+1)) // one at a time: senders may be ahead
			binary.LittleEndian.PutUint64(f.body, atomic.LoadUint64(f.ctl.word(f.in+8)))
			return f.body, nil
		}
		_, _, e := unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(w)), futexWait, uintptr(last), 0, 0, 0)
		if e != 0 && e != unix.EAGAIN && e != unix.EINTR {
			return nil, e
		}
	}
}

// copyMemory copies each body into a ring of the queue's capacity and out of it: the floor for large bodies, in one process.
func (w *work) copyMemory(p phase) (done, error) {
	ring := make([]byte, w.Size*w.Capacity)
	clear(ring) // touch the pages
	w.ctl.meet(p.Start)
	d := done{Count: p.Count, First: w.clock.now()}
	for i, at := 0, 0; i < p.Count; i++ {
		binary.LittleEndian.PutUint64(w.body, uint64(i))
		copy(ring[at:at+w.Size], w.body)
		copy(w.buf, ring[at:at+w.Size])
		if at += w.Size; at == len(ring) {
			at = 0
		}
	}
	d.Last = w.clock.now()
	return d, nil
}
