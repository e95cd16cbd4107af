package rpc

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
)

// Tests that need other processes run this test binary again in a role. A role gets its arguments and returns the exit code.
var roles = map[string]func(args []string) int{}

const roleVar = "KUMQUAT_TEST_ROLE"

// soon is how long a death, an end or a cancellation may take to arrive: 250 ms. The race detector, and a machine on which far more
// wants to run than can, take their own time, which is not what is tested.
var soon = func() time.Duration {
	var load float64
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		_, _ = fmt.Sscan(string(b), &load)
	}
	if raceOn || load > 3*float64(runtime.NumCPU()) {
		return 2 * time.Second
	}
	return 250 * time.Millisecond
}()

func TestMain(m *testing.M) {
	if name := os.Getenv(roleVar); name != "" {
		// A child must not outlive a test that is killed.
		_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
		role := roles[name]
		if role == nil {
			fmt.Fprintf(os.Stderr, "no role %q\n", name)
			os.Exit(2)
		}
		os.Exit(role(os.Args[1:]))
	}
	// All queues and sockets are in a folder of this run, which is sticky as /dev/shm is, and must be empty at the end.
	dir, err := os.MkdirTemp("/dev/shm", "kumquat-rpc-")
	if err == nil {
		err = errors.Join(os.Chmod(dir, os.ModeSticky|0o777), os.Setenv(folderVar, dir))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if left := inFolder(); len(left) > 0 && code == 0 {
			fmt.Fprintln(os.Stderr, "left behind:", left)
			code = 1
		}
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// inFolder lists the files of queues, sockets and locks.
func inFolder() []string {
	l, _ := filepath.Glob(filepath.Join(os.Getenv(folderVar), "*"))
	for i := range l {
		l[i] = filepath.Base(l[i])
	}
	return l
}

// A child is another process in a role. What it writes to standard output is read line by line.
type child struct {
	t      testing.TB
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	errs   bytes.Buffer
	once   sync.Once
	waited error
}

// startChild starts this binary in a role. The path by way of /proc works for other users too, whatever folder the binary is in.
func startChild(t testing.TB, attr *syscall.SysProcAttr, role string, args ...string) *child {
	t.Helper()
	p := &child{t: t, cmd: exec.Command("/proc/self/exe", args...)}
	p.cmd.Env = append(os.Environ(), roleVar+"="+role)
	p.cmd.SysProcAttr = attr
	p.cmd.Stderr = &p.errs
	in, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.in, p.out = in, bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return p
}

// line reads one line, without its end.
func (p *child) line() string {
	p.t.Helper()
	s, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatalf("the child ended: %v, %v\n%s%s", err, p.wait(), s, p.errs.String())
	}
	return strings.TrimSuffix(s, "\n")
}

func (p *child) expect(want string) {
	p.t.Helper()
	if got := p.line(); got != want {
		p.t.Fatalf("the child says %q, not %q\n%s", got, want, p.errs.String())
	}
}

func (p *child) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
	if s == unix.SIGSTOP { // the kernel stops a process a little later
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
			if f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:]); err == nil && string(f[0]) == "T" {
				return
			}
			if time.Now().After(deadline) {
				p.t.Fatal("it does not stop")
			}
		}
	}
}

// kill kills the process and waits for its end.
func (p *child) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.wait()
}

// end closes its standard input, which ends it in order.
func (p *child) end() {
	p.t.Helper()
	if err := p.wait(); err != nil {
		p.t.Errorf("the child: %v\n%s", err, p.errs.String())
	}
}

func (p *child) wait() error {
	p.once.Do(func() {
		_ = p.in.Close()
		p.waited = p.cmd.Wait()
	})
	return p.waited
}

var quiet = slog.New(slog.DiscardHandler)

// withTime is a context that bounds a test.
func withTime(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// serve runs s in this process until the test's end, when Serve must return nil.
func serve(t testing.TB, s *Server, name string) {
	t.Helper()
	if err := s.Listen(withTime(t), name); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
}

func dial(t testing.TB, name string, o *ClientOptions) *Client {
	t.Helper()
	c, err := Dial(withTime(t), name, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// eventually waits for what must become true, for as long as within.
func eventually(t testing.TB, limit time.Duration, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after %v: not %s", limit, what)
		}
	}
}

// closesWithin waits for the end of a channel.
func closesWithin(t testing.TB, c <-chan struct{}, limit time.Duration, what string) {
	t.Helper()
	if !within(c, limit) {
		t.Fatalf("%s: not within %v", what, limit)
	}
}

// kindOf names an error for other processes.
func kindOf(err error) string {
	for _, k := range []struct {
		name string
		err  error
	}{{"died", ErrDied}, {"stopped", ErrStopped}, {"permission", kumquat.ErrPermission}, {"timeout", kumquat.ErrTimeout},
		{"cancelled", context.Canceled}, {"not found", kumquat.ErrNotFound}, {"closed", kumquat.ErrClosed}} {
		if errors.Is(err, k.err) {
			return k.name
		}
	}
	if err == nil {
		return "ok"
	}
	return err.Error()
}
