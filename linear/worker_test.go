package linear

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
)

// plan says what the workers of a round do. They get it as a line of JSON.
type plan struct {
	Queue      string
	Max, Size  int // capacity, longest body
	Headroom   kumquat.Headroom
	Overflow   kumquat.Overflow
	Calls      int // of each worker
	Priorities int
	Types      int64
	Sends      int           // percent of the calls
	Batches    int           // percent of the calls that are batches
	Filtered   int           // percent of the receives with a filter
	Waits      int           // percent of the calls that wait
	Pause      time.Duration // at most, between calls
	Deadline   time.Duration // at most, of a call that waits
}

// order is a plan for one worker.
type order struct {
	plan
	Who    int
	Seed   uint64
	Record string
	Signal syscall.Signal // 0: none
	After  int64          // ns from the start to the signal
}

// What goes through a worker's standard input and output, a line each. The end of the input ends it.
const (
	lineReady = "ready" // from it: the queue is open
	lineGo    = "go "   // to it: begin at this time
	lineDone  = "done"  // from it: all calls are made, the handle is closed
)

// work serves round after round.
func work(in io.Reader, out io.Writer) error {
	r := bufio.NewReader(in)
	for {
		line, err := r.ReadString('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var o order
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			return err
		}
		w, err := newWorker(&o)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(out, lineReady); err != nil {
			return err
		}
		if line, err = r.ReadString('\n'); err != nil {
			return err
		}
		at, err := strconv.ParseInt(strings.TrimSpace(strings.TrimPrefix(line, lineGo)), 10, 64)
		if err == nil {
			err = w.run(at)
		}
		if err = errors.Join(err, w.close()); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(out, lineDone); err != nil {
			return err
		}
	}
}

// worker makes the calls of a round.
type worker struct {
	*order
	q      *kumquat.Queue
	rec    *record
	rng    *rand.Rand
	next   uint32
	bodies [maxBatch][]byte
	into   []byte
}

func newWorker(o *order) (*worker, error) {
	w := &worker{order: o, rng: rand.New(rand.NewPCG(o.Seed, uint64(o.Who))), next: uint32(o.Who) << 16, into: make([]byte, o.Size)}
	for i := range w.bodies {
		w.bodies[i] = make([]byte, o.Size)
	}
	var err error
	if w.rec, err = openRecord(o.Record, o.Calls); err != nil {
		return nil, err
	}
	w.q, err = kumquat.Open(context.Background(), o.Queue, nil)
	return w, err
}

func (w *worker) close() error { return errors.Join(w.q.Close(), w.rec.close()) }

// run makes the calls, from the time at on: all workers begin together.
func (w *worker) run(at int64) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for now() < at {
	}
	if w.Signal != 0 {
		if err := ambush(w.Signal, w.After); err != nil {
			return err
		}
	}
	for range w.Calls {
		if err := w.call(); err != nil {
			return err
		}
		w.pause()
	}
	return nil
}

// ambush has the kernel send this process a signal after so many nanoseconds: it is hit while it runs, at whatever instruction.
func ambush(s syscall.Signal, after int64) error {
	ev := [16]int32{2: int32(s)} // struct sigevent: value, signo, notify = SIGEV_SIGNAL; 64 bytes
	var id int32
	if _, _, e := unix.Syscall(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&ev)), uintptr(unsafe.Pointer(&id))); e != 0 {
		return os.NewSyscallError("timer_create", e)
	}
	ts := [2]unix.Timespec{1: unix.NsecToTimespec(after)}
	if _, _, e := unix.Syscall6(unix.SYS_TIMER_SETTIME, uintptr(id), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0); e != 0 {
		return os.NewSyscallError("timer_settime", e)
	}
	return nil // it goes with the process; a round has one
}

func (w *worker) chance(percent int) bool { return w.rng.IntN(100) < percent }

// pause lets others in between, some of the time.
func (w *worker) pause() {
	switch w.rng.IntN(8) {
	case 0:
		_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	case 1, 2:
		if w.Pause > 0 {
			for end := now() + w.rng.Int64N(int64(w.Pause)); now() < end; {
			}
		}
	}
}

// call makes one call.
func (w *worker) call() error {
	e := &w.rec.entries[w.rec.next]
	wait, batch := w.chance(w.Waits), w.chance(w.Batches)
	ctx := context.Background()
	if wait {
		c, cancel := context.WithTimeout(ctx, time.Duration(1+w.rng.Int64N(int64(w.Deadline))))
		defer cancel()
		ctx = c
	}
	if w.chance(w.Sends) {
		return w.send(ctx, e, wait, batch)
	}
	if w.chance(w.Filtered) {
		e.filter = uint8(1 + w.rng.IntN(len(filters)-1))
	}
	return w.receive(ctx, e, wait, batch)
}

func (w *worker) send(ctx context.Context, e *entry, wait, batch bool) (err error) {
	n := 1
	if batch {
		r := reference{max: w.Max, headroom: w.Headroom}
		n = 1 + w.rng.IntN(min(maxBatch, w.q.MaxBatch(), r.limit(0)))
	}
	var buf [maxBatch]kumquat.Message
	ms := buf[:n]
	for i := range ms {
		t := newToken(w.next, w.priority(), 1+w.rng.Int64N(w.Types))
		w.next++
		body := w.bodies[i][:sizeOf(t, w.Size)]
		t.fill(body)
		e.items[i] = t
		ms[i] = kumquat.Message{Body: body, Priority: t.item().prio, Type: t.item().typ}
	}
	e.n = uint8(n)
	switch {
	case batch && wait:
		e.op = opSendBatch
		w.rec.begin(e)
		err = w.q.SendBatch(ctx, ms)
	case batch:
		e.op = opTrySendBatch
		w.rec.begin(e)
		err = w.q.TrySendBatch(ms)
	case wait:
		e.op = opSend
		w.rec.begin(e)
		err = w.q.Send(ctx, ms[0])
	case w.rng.IntN(8) == 0:
		e.op = opCommit
		r, err := w.q.Reserve(ctx, len(ms[0].Body))
		if err != nil {
			return err
		}
		copy(r.Bytes(), ms[0].Body)
		w.rec.begin(e)
		err = r.TryCommit(ms[0])
		if res, bad := outcome(err); bad == nil && res != resDone {
			w.rec.end(e, now(), res)
			return r.Abort()
		}
		return w.ended(e, err)
	case ms[0].Type == 1:
		e.op = opTrySendBytes
		w.rec.begin(e)
		err = w.q.TrySendBytes(ms[0].Body, ms[0].Priority)
	default:
		e.op = opTrySend
		w.rec.begin(e)
		err = w.q.TrySend(ms[0])
	}
	return w.ended(e, err)
}

// priority is 0 to Priorities−1; where there are many, far apart, so that other words of the bitmap are used.
func (w *worker) priority() int {
	p := w.rng.IntN(w.Priorities)
	if w.Priorities > 8 {
		return p * (kumquat.MaxPriority / (w.Priorities - 1))
	}
	return p
}

func (w *worker) receive(ctx context.Context, e *entry, wait, batch bool) (err error) {
	var ms []kumquat.Message
	var m kumquat.Message
	f := filters[e.filter]
	e.n = 1
	switch {
	case batch:
		e.n = uint8(1 + w.rng.IntN(maxBatch))
		if wait {
			e.op = opReceiveBatch
			w.rec.begin(e)
			ms, err = w.q.ReceiveBatch(ctx, int(e.n), f)
		} else {
			e.op = opTryReceiveBatch
			w.rec.begin(e)
			ms, err = w.q.TryReceiveBatch(int(e.n), f)
		}
		at := now()
		for i := range ms {
			w.got(e, ms[i].Body, ms[i].Priority, ms[i].Type)
		}
		return w.endedAt(e, at, err)
	case e.filter == 0 && !wait && w.rng.IntN(2) == 0:
		e.op = opTryReceiveInto
		w.rec.begin(e)
		n, prio, err := w.q.TryReceiveInto(w.into)
		at := now()
		if err == nil {
			t, _ := readToken(w.into[:n], w.Size, 0, 0)
			w.got(e, w.into[:n], prio, t.item().typ) // the type is not told
		}
		return w.endedAt(e, at, err)
	case !wait && w.rng.IntN(8) == 0:
		e.op = opBorrow
		w.rec.begin(e)
		l, err := w.q.TryBorrow(f)
		at := now()
		if err == nil {
			m := l.Message()
			w.got(e, m.Body, m.Priority, m.Type)
			if err := l.Release(); err != nil {
				return err
			}
		}
		return w.endedAt(e, at, err)
	case wait:
		e.op = opReceive
		w.rec.begin(e)
		m, err = w.q.Receive(ctx, f)
	default:
		e.op = opTryReceive
		w.rec.begin(e)
		m, err = w.q.TryReceive(f)
	}
	at := now()
	if err == nil {
		w.got(e, m.Body, m.Priority, m.Type)
	}
	return w.endedAt(e, at, err)
}

func (w *worker) got(e *entry, body []byte, prio int, typ int64) {
	t, ok := readToken(body, w.Size, prio, typ)
	if !ok {
		e.bad = 1
	}
	e.items[e.got] = t
	e.got++
}

func (w *worker) ended(e *entry, err error) error { return w.endedAt(e, now(), err) }

func (w *worker) endedAt(e *entry, at int64, err error) error {
	res, bad := outcome(err)
	w.rec.end(e, at, res)
	return bad
}

// outcome sorts what a call returned; an error that no call should return here comes back.
func outcome(err error) (result, error) {
	switch {
	case err == nil:
		return resDone, nil
	case errors.Is(err, kumquat.ErrFull):
		return resFull, nil
	case errors.Is(err, kumquat.ErrEmpty):
		return resEmpty, nil
	case errors.Is(err, kumquat.ErrTimeout):
		return resNothing, nil
	}
	return resNothing, err
}
