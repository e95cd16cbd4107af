package torture

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// crew is the worker processes: those in rounds and spare ones that wait for an order.
type crew struct {
	env      []string
	start    chan startRequest
	mu       sync.Mutex
	spare    []*proc
	all      map[*proc]struct{}
	closed   bool
	stocking sync.WaitGroup
}

// proc is a worker process.
type proc struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	lines  chan string // what it says; closed at its end
	stderr bytes.Buffer
	ended  chan struct{} // closed when it has been waited for
	state  *os.ProcessState
}

type startRequest struct {
	p    *proc
	done chan error
}

func newCrew(dir string) *crew {
	c := &crew{env: append(os.Environ(), workerVar+"=1", "KUMQUAT_SHM="+dir), start: make(chan startRequest), all: map[*proc]struct{}{}}
	go func() {
		// Linux sends the signal of Pdeathsig when the *thread* that forked ends, so one thread starts them all and stays.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for r := range c.start {
			r.done <- r.p.cmd.Start()
		}
	}()
	return c
}

// get returns a worker that waits for an order.
func (c *crew) get() (*proc, error) {
	c.mu.Lock()
	for n := len(c.spare); n > 0; n = len(c.spare) {
		p := c.spare[n-1]
		c.spare = c.spare[:n-1]
		select {
		case <-p.ended:
			continue
		default:
		}
		c.mu.Unlock()
		return p, nil
	}
	c.mu.Unlock()
	return c.launch()
}

// put gives back a worker that is done with its round.
func (c *crew) put(p *proc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spare = append(c.spare, p)
}

// stock starts a spare worker in the background, to replace one that is about to be needed.
func (c *crew) stock() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.stocking.Go(func() {
		if p, err := c.launch(); err == nil { // who needs it will meet the error
			c.put(p)
		}
	})
}

var errCrewGone = errors.New("the workers were sent away")

// launch starts a worker. It is in a process group of its own: Ctrl-C reaches the parent, which ends its workers itself; and the
// kernel kills it, even while it is stopped, when the parent dies.
func (c *crew) launch() (*proc, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &proc{cmd: exec.Command(exe), lines: make(chan string, 4), ended: make(chan struct{})}
	p.cmd.Env = c.env
	p.cmd.Stderr = &p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, errCrewGone
	}
	c.all[p] = struct{}{}
	r := startRequest{p, make(chan error, 1)}
	c.start <- r
	err = <-r.done
	if err != nil {
		delete(c.all, p)
	}
	c.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("starting a worker: %w", err)
	}
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
		_ = p.cmd.Wait() // the state says it all
		p.state = p.cmd.ProcessState
		c.mu.Lock()
		delete(c.all, p)
		c.mu.Unlock()
		close(p.lines)
		close(p.ended)
	}()
	return p, nil
}

func (p *proc) pid() int { return p.cmd.Process.Pid }

func (p *proc) say(line string) error {
	_, err := io.WriteString(p.in, line+"\n")
	return err
}

func (p *proc) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) } // one that is gone is found out by its end

// kill ends the process, in whatever state it is, and returns when it is gone.
func (p *proc) kill() {
	p.signal(unix.SIGKILL)
	for range p.lines { // it may have said something before
	}
	<-p.ended
}

// how says how the process ended.
func (p *proc) how() string {
	s := p.state.String()
	if e := bytes.TrimSpace(p.stderr.Bytes()); len(e) > 0 {
		s += ": " + string(e[:min(len(e), 20_000)])
	}
	return s
}

// close ends all workers.
func (c *crew) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.stocking.Wait()
	c.mu.Lock()
	var ps []*proc
	for p := range c.all {
		ps = append(ps, p)
	}
	c.mu.Unlock()
	for _, p := range slices.Backward(ps) {
		p.signal(unix.SIGKILL)
	}
	for _, p := range ps {
		p.kill()
	}
	close(c.start)
}
