package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
)

// setup is a subject with all that shapes its measurement.
type setup struct {
	Subject    string // what the children run
	Label      string // what it is called in results
	Size       int
	Priorities int
	Producers  int
	Consumers  int
	Capacity   int
	Batch      int
	Mode       string // "" (a flow), modeSpin, modeSleep, modeWake, modeBinding
	Filtered   bool
	Pin        bool  // each process stays on a core of its own, if there are enough
	Waiting    int   // messages that lie in the queue all the time
	WaitType   int64 // their type
}

const (
	modeSpin  = "spin"  // ping-pong, answered at once
	modeSleep = "sleep" // ping-pong, answered when the other side sleeps
	modeWake  = "wake"  // one way, after a longer rest

	modeBinding = "binding" // one process that sends and receives
)

const (
	sleepPause = 200 * time.Microsecond // longer than anybody spins
	wakePause  = 2 * time.Millisecond
)

// flow reports whether the setup is measured by its rate.
func (s *setup) flow() bool { return s.Mode == "" }

// queues is the number of queues it needs.
func (s *setup) queues() int {
	if s.Mode == modeSpin || s.Mode == modeSleep {
		return 2
	}
	return 1
}

// session is one set of processes with their queues, for one round of one setup.
type session struct {
	setup
	control  *os.File
	ctl      control
	kids     []*kid
	kernel   *kernelQueues
	names    []string
	remove   []func()
	arrived  uint64 // what offArrived will be after the phases so far
	finished uint64
	patience time.Duration // of one phase
	notes    []string
}

// kid is a child process.
type kid struct {
	role  string
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string // closed at the end of its output
	errs  bytes.Buffer
}

var sessions int // numbers the queues of this process; Run is not concurrent with itself

func newSession(ctx context.Context, s setup, patience time.Duration) (*session, error) {
	x := &session{setup: s, patience: patience}
	if err := x.start(ctx); err != nil {
		x.close(true)
		return nil, err
	}
	return x, nil
}

func (x *session) start(ctx context.Context) (err error) {
	if x.control, x.ctl, err = newControl(); err != nil {
		return err
	}
	if err := x.makeQueues(ctx); err != nil {
		return err
	}
	roles := []string{}
	switch {
	case x.Subject == "gochan" || x.Subject == "memcpy":
		roles = append(roles, roleBoth)
	case x.queues() == 2:
		roles = append(roles, rolePong, rolePing)
	default:
		for range x.Consumers {
			roles = append(roles, roleConsume)
		}
		for range x.Producers {
			roles = append(roles, roleProduce)
		}
	}
	index := map[string]int{}
	for _, role := range roles {
		k, err := x.spawn(ctx, role, index[role])
		if err != nil {
			return err
		}
		index[role]++
		x.kids = append(x.kids, k)
	}
	for _, k := range x.kids {
		line, err := x.answer(ctx, k, time.Minute)
		if err != nil {
			return err
		}
		if line != "ready" {
			_, err := parseDone(line)
			return fmt.Errorf("%s: %w", k.role, err)
		}
	}
	return nil
}

func (x *session) makeQueues(ctx context.Context) error {
	sessions++
	n := x.queues()
	switch {
	case x.Subject == "gochan" || x.Subject == "memcpy" || x.Subject == "cacheline" || x.Subject == "futex":
		x.names = make([]string, n)
	case isKernel(x.Subject):
		k, err := openKernel(x.Subject, n, x.Size, x.Capacity, x.Waiting)
		if err != nil {
			return err
		}
		x.kernel, x.names = k, k.names
		x.notes = append(x.notes, k.notes...)
	case x.Subject == "boost":
		for i := range n {
			name := fmt.Sprintf("kumquat-bench-%d-%d-%d", os.Getpid(), sessions, i)
			x.names = append(x.names, name)
			x.remove = append(x.remove, func() { os.Remove(filepath.Join("/dev/shm", name)) })
		}
	case x.Subject == "zmq":
		for i := range n {
			// An abstract socket leaves no file.
			x.names = append(x.names, fmt.Sprintf("ipc://@kumquat-bench-%d-%d-%d", os.Getpid(), sessions, i))
		}
	default:
		for i := range n {
			name := kumquatName(2*sessions + i)
			q, err := kumquat.Open(ctx, name, &kumquat.Options{Create: true, Exclusive: true, MaxMessages: x.Capacity + x.Waiting, MaxSize: x.Size,
				MaxHandles: max(16, x.Producers+x.Consumers+2)})
			if err != nil {
				return err
			}
			x.names = append(x.names, name)
			x.remove = append(x.remove, func() { _ = kumquat.Remove(context.Background(), name) })
			if err := q.Close(); err != nil {
				return err
			}
		}
	}
	return nil
}

// cores are the numbers of those that this process may use.
var cores = func() (n []int) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return []int{0}
	}
	for i := range 8 * int(unsafe.Sizeof(set)) {
		if set.IsSet(i) {
			n = append(n, i)
		}
	}
	return n
}()

func isKernel(subject string) bool {
	switch subject {
	case "posix", "sysv", "sysv-types", "pipe", "unix":
		return true
	}
	return false
}

func (x *session) spawn(ctx context.Context, role string, index int) (*kid, error) {
	o := order{Subject: x.Subject, Role: role, Index: index, Size: x.Size, Priorities: x.Priorities, Capacity: x.Capacity + x.Waiting, Batch: x.Batch,
		Producers: x.Producers, Consumers: x.Consumers, Filtered: x.Filtered, Names: x.names, Pin: -1}
	processes := x.Producers + x.Consumers
	// ZeroMQ has a thread of its own in each process. To share a core with the caller helps it where cores are short, and only there.
	if roomy := x.Subject == "zmq" && 2*processes <= len(cores); x.Pin && role != roleBoth && processes <= len(cores) && !roomy {
		o.Pin = cores[len(x.kids)]
	}
	k := &kid{role: role, lines: make(chan string, 4)}
	if x.Subject == "boost" || x.Subject == "zmq" {
		program, err := nativePeer(ctx, x.Subject)
		if err != nil {
			return nil, err
		}
		names := append(append([]string{}, x.names...), "")[:2]
		k.cmd = exec.Command(program, role, strconv.Itoa(index), strconv.Itoa(o.Size), strconv.Itoa(o.Priorities), strconv.Itoa(o.Capacity),
			strconv.Itoa(o.Producers), strconv.Itoa(o.Consumers), names[0], names[1], strconv.Itoa(o.Pin))
	} else {
		if x.kernel != nil {
			o.Namespace = x.kernel.namespace
		}
		text, err := json.Marshal(o)
		if err != nil {
			return nil, err
		}
		if k.cmd, err = again(string(text)); err != nil {
			return nil, err
		}
	}
	k.cmd.ExtraFiles = []*os.File{x.control}
	if x.kernel != nil {
		k.cmd.ExtraFiles = append(k.cmd.ExtraFiles, x.kernel.files...)
	}
	return k, k.start()
}

// again returns this program as a child with the given order.
func again(text string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childVar+"="+text)
	return cmd, nil
}

func (k *kid) start() error {
	// A group of its own: Ctrl-C reaches the parent only, which then ends its children in order. Should it be killed, they die too.
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	k.cmd.Stderr = &k.errs
	in, err := k.cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := k.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	k.in = in
	if err := k.cmd.Start(); err != nil {
		return err
	}
	go func() {
		defer close(k.lines)
		s := bufio.NewScanner(out)
		for s.Scan() {
			k.lines <- s.Text()
		}
	}()
	return nil
}

// answer returns the child's next line.
func (x *session) answer(ctx context.Context, k *kid, patience time.Duration) (string, error) {
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case line, ok := <-k.lines:
		if !ok {
			// The pipe is at its end, so the process is too, or nearly.
			err := k.cmd.Wait()
			return "", fmt.Errorf("the %s process ended early: %v %s", k.role, err, firstLine(k.errs.String()))
		}
		return line, nil
	case <-t.C:
		return "", fmt.Errorf("the %s process did not finish within %v", k.role, patience)
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s
}

// close ends the processes and removes the queues; with kill at once.
func (x *session) close(kill bool) {
	for _, k := range x.kids {
		k.in.Close() // its end tells the child to finish
	}
	for _, k := range x.kids {
		if k.cmd.ProcessState != nil {
			continue
		}
		t := time.AfterFunc(2*time.Second, func() { _ = k.cmd.Process.Kill() })
		if kill {
			_ = k.cmd.Process.Kill()
		}
		for range k.lines { // to the end of the output, as Wait demands
		}
		_ = k.cmd.Wait()
		t.Stop()
	}
	for _, f := range x.remove {
		f()
	}
	if x.kernel != nil {
		x.kernel.close()
	}
	if x.ctl != nil {
		_ = syscall.Munmap(x.ctl)
	}
	if x.control != nil {
		x.control.Close()
	}
}

// command gives each child of parts its phase, starts them together, and returns their answers.
func (x *session) command(ctx context.Context, parts map[*kid]phase) (map[*kid]done, error) {
	x.arrived += uint64(len(parts))
	for k := range parts {
		if k.role == roleProduce {
			x.finished++
		}
	}
	for k, p := range parts {
		p.Start, p.Last = x.arrived, x.finished
		if _, err := io.WriteString(k.in, p.line()); err != nil {
			return nil, fmt.Errorf("the %s process: %w: %s", k.role, err, firstLine(k.errs.String()))
		}
	}
	type reply struct {
		k   *kid
		d   done
		err error
	}
	replies := make(chan reply, len(parts))
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for k := range parts {
		go func() {
			line, err := x.answer(ctx, k, x.patience)
			var d done
			if err == nil {
				d, err = parseDone(line)
			}
			replies <- reply{k, d, err}
		}()
	}
	answers := map[*kid]done{}
	var failure error
	for range parts {
		r := <-replies
		switch {
		case r.err == nil:
			answers[r.k] = r.d
		case failure == nil:
			failure = r.err
			cancel(r.err) // the others would wait for this one
		}
	}
	return answers, failure
}

func (x *session) fill(ctx context.Context) error {
	for _, k := range x.kids {
		if k.role == roleProduce {
			_, err := x.command(ctx, map[*kid]phase{k: {Verb: "fill", Count: x.Waiting, Type: x.WaitType}})
			return err
		}
	}
	return errors.New("nobody can fill the queue")
}

// outcome is what one phase gave.
type outcome struct {
	elapsed time.Duration
	rate    float64  // messages a second
	samples []uint32 // ns; valid until the next phase
	mallocs float64  // allocations a message, of all processes together
}

// run sends count messages through the queue, or makes count round trips in samples of group. A queue in which messages lie has to
// stay as deep as it was: there it stops now and then for the slower side, and the rate is that of the slower side.
func (x *session) run(ctx context.Context, count, group int) (outcome, error) {
	if !x.lying() {
		return x.once(ctx, count, group)
	}
	var all outcome
	for rest, most := count, max(x.Waiting/4, 1<<18); rest > 0; rest -= most {
		part := min(rest, most)
		o, err := x.once(ctx, part, group)
		if err != nil {
			return outcome{}, err
		}
		all.elapsed += o.elapsed
		all.mallocs += o.mallocs * float64(part) / float64(count)
	}
	all.rate = float64(count) / all.elapsed.Seconds()
	return all, nil
}

// lying reports whether messages that will be received lie in the queue all the time.
func (s *setup) lying() bool { return s.Waiting > 0 && !s.Filtered }

// once is one phase of run.
func (x *session) once(ctx context.Context, count, group int) (outcome, error) {
	parts := map[*kid]phase{}
	shares := split(count, max(x.Producers, 1))
	producers := 0
	for _, k := range x.kids {
		p := phase{Verb: "run", Count: count, Group: group}
		switch {
		case x.Mode == modeSleep:
			p.Pause = sleepPause
		case x.Mode == modeWake:
			p.Pause = wakePause
		}
		switch {
		case k.role == roleProduce:
			p.Count = shares[producers]
			producers++
			if x.Consumers > 1 {
				p.Ends = x.Consumers
			}
		case k.role == roleConsume && x.Consumers > 1:
			p.Count = -1
		}
		parts[k] = p
	}
	answers, err := x.command(ctx, parts)
	if err != nil {
		return outcome{}, err
	}
	var o outcome
	first, last, n := int64(1<<62), int64(0), 0
	for k, d := range answers {
		o.mallocs += float64(d.Mallocs) / float64(count)
		if k.role == roleProduce && x.lying() {
			first, last = min(first, d.First), max(last, d.Last) // the receiver may be through before the sender is
		}
		if k.role == roleProduce || k.role == rolePong || d.Count == 0 {
			continue
		}
		first, last, n = min(first, d.First), max(last, d.Last), n+d.Count
		if d.Samples > 0 {
			o.samples = x.ctl.samples()[:d.Samples]
		}
	}
	if n != count {
		return outcome{}, fmt.Errorf("%d messages were sent and %d received", count, n)
	}
	o.elapsed = time.Duration(max(last-first, 1))
	o.rate = float64(max(n-1, 1)) / o.elapsed.Seconds()
	return o, nil
}
