package tour

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
)

// crew is the child processes of a round and what they report. One goroutine, that of Run, uses it.
type crew struct {
	all     []*proc
	events  chan event
	readers sync.WaitGroup
	// patience is how long nothing at all may happen before the tour says that the queue hangs. The largest file is read and hashed
	// in this time.
	patience time.Duration
	on       func(*proc, report) error // gets the reports of files
}

// proc is a child process.
type proc struct {
	name    string
	cmd     *exec.Cmd
	in      io.WriteCloser
	stderr  bytes.Buffer
	ready   bool
	ended   bool // reaped
	state   *os.ProcessState
	told    bool // it reported finished
	takes   int
	inHand  int // index of the file that it took and has not reported, −1: none
	doomed  bool
	stopped bool
}

type event struct {
	p     *proc
	r     report
	state *os.ProcessState // not nil: the process has ended, this is its last event
}

func newCrew(largest int64) *crew {
	const slowest = 20 << 20 // bytes a second
	return &crew{events: make(chan event, 1024), patience: 30*time.Second + time.Duration(largest/slowest)*time.Second}
}

// start starts a child. It runs in a process group of its own, so that Ctrl-C on the terminal reaches the tour only, which then
// ends its children itself; it is killed, even while it is stopped, when the tour dies.
func (c *crew) start(name string, o order) (*proc, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &proc{name: name, inHand: -1, cmd: exec.Command(exe)}
	p.cmd.Env = append(os.Environ(), childVar+"="+o.Role)
	p.cmd.Stderr = &p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	p.cmd.WaitDelay = time.Second
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	first, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting a process of the tour: %w", err)
	}
	c.all = append(c.all, p)
	c.readers.Go(func() {
		readReports(out, func(r report) { c.events <- event{p: p, r: r} })
		_ = p.cmd.Wait() // ProcessState says it all
		c.events <- event{p: p, state: p.cmd.ProcessState}
	})
	// A list of many files is longer than the pipe: the child reads it while it is written.
	if _, err := p.in.Write(append(first, '\n')); err != nil {
		return nil, fmt.Errorf("%s took no orders: %w", p, err)
	}
	return p, nil
}

func (p *proc) String() string { return fmt.Sprintf("%s (pid %d)", p.name, p.cmd.Process.Pid) }

func (p *proc) pid() int { return p.cmd.Process.Pid }

// command sends a line to the child; one that is gone is found out by its end.
func (p *proc) command(s string) { _, _ = io.WriteString(p.in, s+"\n") }

// finish tells the child to end.
func (p *proc) finish() { _ = p.in.Close() }

// until handles what the children report until done says so. It fails if ctx ends, if a child ends that was not told to or reports
// a failure, or if nothing at all is reported for too long.
func (c *crew) until(ctx context.Context, what string, done func() bool) error {
	timer := time.NewTimer(c.patience)
	defer timer.Stop()
	for !done() {
		select {
		case e := <-c.events:
			if err := c.handle(e); err != nil {
				return err
			}
			timer.Reset(c.patience)
		case <-ctx.Done():
			return stopped(ctx)
		case <-timer.C:
			return &Failure{[]string{fmt.Sprintf("nothing happened for %s while the tour waited until %s", c.patience, what)}}
		}
	}
	return nil
}

func (c *crew) handle(e event) error {
	p := e.p
	if e.state != nil {
		p.ended, p.state = true, e.state
		if !p.doomed && !(p.told && e.state.Success()) {
			return &Failure{[]string{fmt.Sprintf("%s ended: %s%s", p, e.state, after(p.stderr.String()))}}
		}
		return nil
	}
	switch e.r.Kind {
	case ready:
		p.ready = true
	case took:
		p.takes++
		p.inHand = e.r.Index
	case finished:
		p.told = true
	case failed:
		if e.r.Full {
			return fmt.Errorf("%w: %s filled up while the tour ran, others use it too: %s", kumquat.ErrNoSpace, shmFolder(), e.r.Text)
		}
		return &Failure{[]string{fmt.Sprintf("%s failed: %s", p, e.r.Text)}}
	default:
		if e.r.Kind == arrived {
			p.inHand = -1
		}
		return c.on(p, e.r)
	}
	return nil
}

func after(stderr string) string {
	if s := strings.TrimSpace(stderr); s != "" {
		return ": " + tail(s, 2000)
	}
	return ""
}

// end leaves no child behind, whatever state it is in.
func (c *crew) end() {
	for _, p := range c.all {
		p.finish()
		if !p.ended {
			_ = p.cmd.Process.Kill() // works on a stopped process too
		}
	}
	go func() {
		c.readers.Wait()
		close(c.events)
	}()
	for range c.events {
	}
}

// stop sends SIGSTOP and returns when /proc shows the process as stopped.
func (p *proc) stop(ctx context.Context) error {
	if err := p.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s, err := p.procState()
		if err != nil {
			return err
		}
		if s == "T" {
			p.stopped = true
			return nil
		}
		if ctx.Err() != nil {
			return stopped(ctx)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not stop, its state is %s", p, s)
		}
	}
}

func (p *proc) cont() error {
	p.stopped = false
	return p.cmd.Process.Signal(unix.SIGCONT)
}

// procState returns the state letter of the third field of /proc/PID/stat.
func (p *proc) procState() (string, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(p.pid()) + "/stat")
	if err != nil {
		return "", err
	}
	i := bytes.LastIndexByte(b, ')') // the command's name may hold anything
	if i < 0 || i+2 >= len(b) {
		return "", errors.New("the stat file of a process has no state")
	}
	return string(b[i+2]), nil
}
