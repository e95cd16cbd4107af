package bench

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// childVar holds the order of a child process, as JSON.
const childVar = "KUMQUAT_BENCH_CHILD"

// profileVar names a folder into which Go children write CPU profiles.
const profileVar = "KUMQUAT_BENCH_CPUPROFILE"

// The roles of a child.
const (
	roleProduce = "produce"
	roleConsume = "consume"
	roleBoth    = "both" // one process that does all
	rolePing    = "ping"
	rolePong    = "pong"
	roleBusy    = "busy" // takes time from the others
	roleBinding = "binding"
)

// order says what a child process is to do. peers.cpp gets the same as arguments.
type order struct {
	Subject    string
	Role       string
	Index      int // among those of its role
	Size       int
	Priorities int
	Capacity   int
	Batch      int
	Producers  int
	Consumers  int
	Filtered   bool          // receive by type
	Names      []string      // of queue 0 (to the right) and queue 1 (back)
	Pin        int           // number of the core to stay on; −1: any
	Namespace  int           // descriptor of the IPC namespace to live in; 0: stay
	Target     time.Duration // binding: how long to go on
}

// phase is one command of the parent: a line on the child's standard input.
type phase struct {
	Verb  string        // "run" or "fill"
	Count int           // messages of this child; −1: until the end mark
	Start uint64        // value of offArrived at which all start
	Last  uint64        // value of offFinished at which a producer is the last one
	Ends  int           // end marks that the last producer sends
	Group int           // pings: round trips to a sample
	Pause time.Duration // pings: before each answer
	Type  int64         // fill: type of the messages
}

func (p phase) line() string {
	return fmt.Sprintf("%s %d %d %d %d %d %d %d\n", p.Verb, p.Count, p.Start, p.Last, p.Ends, p.Group, int64(p.Pause), p.Type)
}

func parsePhase(line string) (p phase, err error) {
	var pause int64
	_, err = fmt.Sscanf(line, "%s %d %d %d %d %d %d %d", &p.Verb, &p.Count, &p.Start, &p.Last, &p.Ends, &p.Group, &pause, &p.Type)
	p.Pause = time.Duration(pause)
	return p, err
}

// done is a child's answer to a phase: a line on its standard output.
type done struct {
	Count       int
	First, Last int64 // of the messages, CLOCK_MONOTONIC in ns
	Samples     int
	Mallocs     uint64 // allocations of the process in the phase
}

func (d done) line() string {
	return fmt.Sprintf("ok %d %d %d %d %d\n", d.Count, d.First, d.Last, d.Samples, d.Mallocs)
}

func parseDone(line string) (d done, err error) {
	if text, failed := strings.CutPrefix(line, "error "); failed {
		return d, fmt.Errorf("%s", strings.TrimSpace(text))
	}
	_, err = fmt.Sscanf(line, "ok %d %d %d %d %d", &d.Count, &d.First, &d.Last, &d.Samples, &d.Mallocs)
	return d, err
}

// Child does not return in a process that Run has started; elsewhere it does nothing. A program that calls Run calls it first.
func Child() {
	text, is := os.LookupEnv(childVar)
	if !is {
		return
	}
	// Not on this goroutine: while packages are initialised it is bound to its thread, which makes each of its waits dearer than
	// a program's own are.
	go func() {
		if err := child(text); err != nil {
			fmt.Printf("error %s\n", strings.ReplaceAll(err.Error(), "\n", " "))
			os.Exit(1)
		}
		os.Exit(0)
	}()
	select {}
}

func child(text string) error {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return fmt.Errorf("%s: %w", childVar, err)
	}
	if o.Role == roleBusy {
		busy()
	}
	if o.Role == roleBinding {
		return bindingChild(&o)
	}
	ctl, err := mapControl(controlFD)
	if err != nil {
		return err
	}
	if o.Pin >= 0 {
		if err := pin(o.Pin); err != nil {
			return fmt.Errorf("staying on core %d: %w", o.Pin, err)
		}
	}
	if o.Namespace > 0 {
		runtime.LockOSThread() // the namespace is one of this thread only
		if err := unix.Setns(o.Namespace, unix.CLONE_NEWIPC); err != nil {
			return fmt.Errorf("entering the IPC namespace: %w", err)
		}
	}
	w := &work{order: o, ctl: ctl, clock: newClock(), random: 0x9e3779b97f4a7c15 * uint64(o.Index+1)}
	w.full = make([]byte, 8+o.Size)
	w.body = w.full[8:]
	w.buf = make([]byte, 8+o.Size)[8:]
	if err := w.open(); err != nil {
		return err
	}
	stop, err := profile(&o)
	if err != nil {
		return err
	}
	defer stop()
	fmt.Print("ready\n")
	in := bufio.NewReader(os.Stdin)
	for {
		line, err := in.ReadString('\n')
		if err == io.EOF {
			return w.close()
		}
		if err != nil {
			return err
		}
		p, err := parsePhase(line)
		if err != nil {
			return fmt.Errorf("command %q: %w", line, err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		d, err := w.do(p)
		if err != nil {
			return err
		}
		runtime.ReadMemStats(&after)
		d.Mallocs = after.Mallocs - before.Mallocs
		fmt.Print(d.line())
	}
}

// pin binds all threads of this process, and so those that they start, to a core. It comes when the program runs already, and keeps
// GOMAXPROCS: a program that is told that it has one core only behaves differently.
func pin(core int) error {
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0)) // set by hand it does not follow the affinity
	var set unix.CPUSet
	set.Set(core)
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range threads {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(id, &set); err != nil && err != unix.ESRCH {
			return err
		}
	}
	return nil
}

// busy takes all the time it can get until its parent is gone.
func busy() {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for x := uint64(1); ; x = x*6364136223846793005 + 1 {
		if x == 0 {
			runtime.Gosched() // never: the step is odd over odd; it keeps the loop
		}
	}
}

func profile(o *order) (stop func(), err error) {
	dir := os.Getenv(profileVar)
	if dir == "" {
		return func() {}, nil
	}
	f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%s-%s%d-%d.pprof", o.Subject, o.Role, o.Index, os.Getpid())))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", profileVar, err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		f.Close()
		return nil, err
	}
	return func() {
		pprof.StopCPUProfile()
		f.Close()
	}, nil
}

// sender and receiver are the ends of a subject's queue.
type sender interface {
	send(body []byte, priority int) error
}

type receiver interface {
	// receive returns the body of the next message, which may lie in buf.
	receive(buf []byte) ([]byte, error)
}

// flusher is a sender that collects messages into batches.
type flusher interface{ flush() error }

// giver is a receiver that may have taken more than was asked for.
type giver interface{ giveBack() error }

// filler is a sender that can send messages of another type.
type filler interface{ setType(t int64) }

// work is what a child has: its order, the ends it uses, and its buffers.
type work struct {
	order
	ctl    control
	clock  clock
	random uint64
	full   []byte // 8 bytes, then body: msgsnd wants the type there
	body   []byte // of the next message
	buf    []byte // for the received one
	out    sender
	in     receiver
	closer []func() error
}

// endMark in a body's first 8 bytes tells a consumer that no more messages come.
const endMark = ^uint64(0)

func (w *work) open() (err error) {
	out, in := 0, 0 // the queues of a flow
	switch w.Role {
	case rolePing:
		out, in = 0, 1
	case rolePong:
		out, in = 1, 0
	}
	if w.Role != roleConsume {
		if w.out, err = w.sender(out); err != nil {
			return err
		}
	}
	if w.Role != roleProduce {
		if w.in, err = w.receiver(in); err != nil {
			return err
		}
	}
	return nil
}

func (w *work) close() error {
	for _, f := range w.closer {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// priority returns the next random priority: xorshift, mapped to the range without a division.
func (w *work) priority() int {
	if w.Priorities <= 1 {
		return 0
	}
	x := w.random
	x ^= x << 13
	x ^= x >> 7
	x ^= x << 17
	w.random = x
	return int((x >> 32) * uint64(w.Priorities) >> 32)
}

func (w *work) do(p phase) (done, error) {
	switch {
	case w.Subject == "memcpy":
		return w.copyMemory(p)
	case w.Subject == "gochan":
		return w.channel(p)
	case p.Verb == "fill":
		return w.fill(p)
	case w.Role == roleProduce && p.Pause > 0:
		return w.pacedProduce(p)
	case w.Role == roleConsume && p.Pause > 0:
		return w.pacedConsume(p)
	case w.Role == roleProduce:
		return w.produce(p)
	case w.Role == roleConsume:
		return w.consume(p)
	case w.Role == rolePing:
		return w.ping(p)
	case w.Role == rolePong:
		return w.pong(p)
	}
	return done{}, fmt.Errorf("no such role: %q", w.Role)
}

func (w *work) fill(p phase) (done, error) {
	if f, ok := w.out.(filler); ok && p.Type != 0 {
		f.setType(p.Type)
		defer f.setType(1)
	}
	return w.produce(p)
}

func (w *work) produce(p phase) (done, error) {
	w.ctl.meet(p.Start)
	first := w.clock.now()
	for i := range p.Count {
		binary.LittleEndian.PutUint64(w.body, uint64(i))
		if err := w.out.send(w.body, w.priority()); err != nil {
			return done{}, fmt.Errorf("send: %w", err)
		}
	}
	if f, ok := w.out.(flusher); ok {
		if err := f.flush(); err != nil {
			return done{}, fmt.Errorf("send: %w", err)
		}
	}
	last := w.clock.now()
	if atomic.AddUint64(w.ctl.word(offFinished), 1) == p.Last {
		// Everything else was sent before: at the lowest priority the marks come out last.
		binary.LittleEndian.PutUint64(w.body, endMark)
		for range p.Ends {
			if err := w.out.send(w.body, 0); err != nil {
				return done{}, fmt.Errorf("send: %w", err)
			}
			if f, ok := w.out.(flusher); ok {
				if err := f.flush(); err != nil {
					return done{}, fmt.Errorf("send: %w", err)
				}
			}
		}
	}
	return done{Count: p.Count, First: first, Last: last}, nil
}

func (w *work) consume(p phase) (done, error) {
	w.ctl.meet(p.Start)
	d := done{}
	for d.Count != p.Count {
		b, err := w.in.receive(w.buf)
		if err != nil {
			return done{}, fmt.Errorf("receive: %w", err)
		}
		if len(b) != w.Size {
			return done{}, fmt.Errorf("received %d bytes instead of %d", len(b), w.Size)
		}
		if p.Count < 0 && binary.LittleEndian.Uint64(b) == endMark {
			break
		}
		if d.Count == 0 {
			d.First = w.clock.now()
		}
		d.Count++
	}
	d.Last = w.clock.now()
	if g, ok := w.in.(giver); ok {
		if err := g.giveBack(); err != nil {
			return done{}, fmt.Errorf("giving end marks back: %w", err)
		}
	}
	return d, nil
}

// rest passes the time until then without giving up the core: when it is over the other side has gone to sleep.
func (w *work) rest(until int64) {
	for w.clock.now() < until {
	}
}

func (w *work) ping(p phase) (done, error) {
	s := w.ctl.samples()
	group := max(p.Group, 1)
	pause := int64(p.Pause)
	w.ctl.meet(p.Start)
	d := done{First: w.clock.now()}
	at := d.First
	for i := 1; i <= p.Count; i++ {
		if pause > 0 {
			w.rest(at + pause)
			at = w.clock.now()
		}
		binary.LittleEndian.PutUint64(w.body, uint64(i))
		if err := w.out.send(w.body, 0); err != nil {
			return d, fmt.Errorf("send: %w", err)
		}
		b, err := w.in.receive(w.buf)
		if err != nil {
			return d, fmt.Errorf("receive: %w", err)
		}
		if n := binary.LittleEndian.Uint64(b); n != uint64(i) {
			return d, fmt.Errorf("answer %d to ping %d", n, i)
		}
		if i%group == 0 && d.Samples < maxSamples {
			now := w.clock.now()
			s[d.Samples] = uint32(min(now-at-pause, 1<<32-1))
			d.Samples++
			at = now
		}
	}
	d.Count, d.Last = p.Count, w.clock.now()
	return d, nil
}

func (w *work) pong(p phase) (done, error) {
	pause := int64(p.Pause)
	w.ctl.meet(p.Start)
	for range p.Count {
		b, err := w.in.receive(w.buf)
		if err != nil {
			return done{}, fmt.Errorf("receive: %w", err)
		}
		if pause > 0 {
			w.rest(w.clock.now() + pause)
		}
		copy(w.body, b)
		if err := w.out.send(w.body, 0); err != nil {
			return done{}, fmt.Errorf("send: %w", err)
		}
	}
	return done{Count: p.Count}, nil
}

// pacedProduce sends a message each pause; the message says when it was sent.
func (w *work) pacedProduce(p phase) (done, error) {
	w.ctl.meet(p.Start)
	for range p.Count {
		time.Sleep(p.Pause)
		binary.LittleEndian.PutUint64(w.body, uint64(w.clock.now()))
		if err := w.out.send(w.body, 0); err != nil {
			return done{}, fmt.Errorf("send: %w", err)
		}
	}
	return done{Count: p.Count}, nil
}

func (w *work) pacedConsume(p phase) (done, error) {
	w.ctl.meet(p.Start)
	s := w.ctl.samples()
	d := done{First: w.clock.now()}
	for range p.Count {
		b, err := w.in.receive(w.buf)
		if err != nil {
			return d, fmt.Errorf("receive: %w", err)
		}
		if d.Samples < maxSamples {
			late := w.clock.now() - int64(binary.LittleEndian.Uint64(b))
			s[d.Samples] = uint32(min(max(late, 0), 1<<32-1))
			d.Samples++
		}
	}
	d.Count, d.Last = p.Count, w.clock.now()
	return d, nil
}
