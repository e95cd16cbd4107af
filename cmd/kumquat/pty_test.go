package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is a command whose three streams are a pseudo-terminal of 100 columns.
type terminal struct {
	t    *testing.T
	cmd  *exec.Cmd
	ctrl *os.File

	mu   sync.Mutex
	text bytes.Buffer
	done chan struct{}
}

func startTerminal(t *testing.T, cmd *exec.Cmd, cols uint16) *terminal {
	t.Helper()
	ctrl, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminal: %v", err)
	}
	raw := int(ctrl.Fd())
	n, err := unix.IoctlGetInt(raw, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(raw, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(raw, unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: cols})
	}
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if cmd.Stdin == nil {
		cmd.Stdin = tty
	}
	if cmd.Stdout == nil {
		cmd.Stdout = tty
	}
	cmd.Stderr = tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 2}
	cmd.Env = append(cmd.Env, "TERM=xterm-256color")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tty.Close()
	x := &terminal{t: t, cmd: cmd, ctrl: ctrl, done: make(chan struct{})}
	go func() {
		defer close(x.done)
		b := make([]byte, 4096)
		for {
			n, err := ctrl.Read(b)
			x.mu.Lock()
			x.text.Write(b[:n])
			x.mu.Unlock()
			if err != nil { // EIO: the last user of the terminal has gone
				return
			}
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-x.done
		ctrl.Close()
	})
	return x
}

func (x *terminal) shown() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.text.String()
}

// until waits for text on the terminal.
func (x *terminal) until(text string) {
	x.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if strings.Contains(x.shown(), text) {
			return
		}
	}
	x.t.Fatalf("%q does not appear in %q", text, x.shown())
}

func (x *terminal) typed(s string) {
	x.t.Helper()
	if _, err := io.WriteString(x.ctrl, s); err != nil {
		x.t.Fatal(err)
	}
}

// end waits for the command and returns its exit code and all that was shown.
func (x *terminal) end() (int, string) {
	x.t.Helper()
	timer := time.AfterFunc(20*time.Second, func() { x.cmd.Process.Kill() })
	defer timer.Stop()
	x.cmd.Wait()
	<-x.done
	return x.cmd.ProcessState.ExitCode(), x.shown()
}
