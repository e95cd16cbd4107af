package linear

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// proc is a worker process. What it says arrives on lines; the channel is closed at its end.
type proc struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
	errs  bytes.Buffer
	state *os.ProcessState
}

// start starts a worker. It is killed at the end of the test, whatever state it is in.
func start(t testing.TB) *proc {
	t.Helper()
	p := &proc{cmd: exec.Command("/proc/self/exe"), lines: make(chan string, 2)}
	p.cmd.Env = append(os.Environ(), workerVar+"=1")
	p.cmd.Stderr = &p.errs
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
		_ = p.cmd.Wait() // the state says it all
		p.state = p.cmd.ProcessState
		close(p.lines)
	}()
	t.Cleanup(p.kill)
	return p
}

func (p *proc) say(line string) error {
	_, err := io.WriteString(p.in, line+"\n")
	return err
}

// kill ends the process and returns when it is gone. It may have gone already.
func (p *proc) kill() {
	_ = p.cmd.Process.Kill()
	for range p.lines {
	}
	_ = p.in.Close()
}

// killed reports whether the process, which is gone, was ended by SIGKILL.
func (p *proc) killed() bool {
	s, ok := p.state.Sys().(syscall.WaitStatus)
	return ok && s.Signaled() && s.Signal() == unix.SIGKILL
}

func (p *proc) how() string {
	return fmt.Sprintf("process %d ended: %v: %s", p.cmd.Process.Pid, p.state, strings.TrimSpace(p.errs.String()))
}

// stopped reports whether the process has been stopped since it was asked last. It leaves its death to others.
func (p *proc) stopped() bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, p.cmd.Process.Pid, &info, unix.WSTOPPED|unix.WNOHANG, nil)
	return err == nil && info.Signo == int32(unix.SIGCHLD)
}

// patience is how long a worker may take for what takes milliseconds. One that needs longer hangs.
const patience = 30 * time.Second

// hears waits for a line. ended: the process is gone. hang: it says nothing.
func (p *proc) hears(wait time.Duration) (line string, ended, hang bool) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case line, ok := <-p.lines:
		return line, !ok, false
	case <-timer.C:
		return "", false, true
	}
}
