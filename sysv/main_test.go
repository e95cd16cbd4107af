package sysv

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// Tests that need other processes run this test binary again in a role. A role gets its arguments and returns the exit code.
var roles = map[string]func(args []string) int{}

const (
	roleVar  = "KUMQUAT_TEST_ROLE"
	spaceVar = "KUMQUAT_TEST_IPC" // "own": in an IPC namespace of the tests; "root": on the way there; "shared": that was not allowed
)

// ownSpace tells whether the tests have an IPC namespace to themselves.
var ownSpace = os.Getenv(spaceVar) == "own"

// TestMain runs the tests in an IPC namespace of their own, if that is allowed: they cannot touch the queues of others there, its
// limits can be raised, and what they should leave behind in a crash goes with it.
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
	switch os.Getenv(spaceVar) {
	case "":
		os.Exit(inSpace())
	case "root":
		raise()
		os.Exit(again("own", syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids(1000, 0), GidMappings: ids(1000, 0)}))
	}
	if ownSpace {
		_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
		if os.Getuid() == 0 {
			raise()
		}
	}
	code := m.Run()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if ownSpace {
		if left, err := List(); err != nil || len(left) > 0 {
			fmt.Fprintf(os.Stderr, "the tests have left queues: %v, %v\n", left, err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// raise raises the limits of the new namespace.
func raise() {
	for name, n := range map[string]int{"msgmax": 1 << 20, "msgmnb": 1 << 30} {
		if err := os.WriteFile("/proc/sys/kernel/"+name, []byte(strconv.Itoa(n)), 0); err != nil {
			fmt.Fprintf(os.Stderr, "the limits stay as they are: %v\n", err)
		}
	}
}

// inSpace runs this program again, in a new namespace or, where none is allowed, as it is. A user who is not root becomes it in a
// user namespace to raise the limits, and then somebody else again in another one: the tests would take him for the real root.
func inSpace() int {
	if code := again("own", syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWIPC}); code >= 0 {
		return code
	}
	if code := again("root", syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWIPC | unix.CLONE_NEWUSER, UidMappings: ids(0, os.Getuid()), GidMappings: ids(0, os.Getgid()),
	}); code >= 0 {
		return code
	}
	if code := again("shared", syscall.SysProcAttr{}); code >= 0 {
		return code
	}
	fmt.Fprintln(os.Stderr, "the tests cannot start themselves")
	return 2
}

func ids(inside, outside int) []syscall.SysProcIDMap {
	return []syscall.SysProcIDMap{{ContainerID: inside, HostID: outside, Size: 1}}
}

// again runs this program again and returns its exit code; −1 if it does not start.
func again(space string, attr syscall.SysProcAttr) int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), spaceVar+"="+space)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &attr
	if err := cmd.Start(); err != nil {
		return -1
	}
	_ = cmd.Wait() // its exit code says it
	if code := cmd.ProcessState.ExitCode(); code >= 0 {
		return code
	}
	fmt.Fprintln(os.Stderr, cmd.ProcessState)
	return 2
}

// A peer is another process in a role. What it writes to standard output is read line by line.
type peer struct {
	t      testing.TB
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	errs   bytes.Buffer
	once   sync.Once
	waited error
}

func startPeer(t testing.TB, role string, args ...string) *peer {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleVar+"="+role)
	return start(t, cmd)
}

func start(t testing.TB, cmd *exec.Cmd) *peer {
	t.Helper()
	p := &peer{t: t, cmd: cmd}
	cmd.Stderr = &p.errs
	in, err := cmd.StdinPipe()
	want(t, err, nil)
	out, err := cmd.StdoutPipe()
	want(t, err, nil)
	p.in, p.out = in, bufio.NewReader(out)
	want(t, cmd.Start(), nil)
	t.Cleanup(p.kill)
	return p
}

// line reads one line, without its end.
func (p *peer) line() string {
	p.t.Helper()
	s, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatalf("the peer ended: %v, %v\n%s%s", err, p.wait(), s, &p.errs)
	}
	return strings.TrimSuffix(s, "\n")
}

func (p *peer) say(format string, a ...any) {
	p.t.Helper()
	if _, err := fmt.Fprintf(p.in, format+"\n", a...); err != nil {
		p.t.Fatalf("the peer ended: %v, %v\n%s", err, p.wait(), &p.errs)
	}
}

func (p *peer) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.wait()
}

func (p *peer) wait() error {
	p.once.Do(func() {
		_ = p.in.Close()
		p.waited = p.cmd.Wait()
	})
	return p.waited
}

// long bounds what must happen. It is never waited out when all is well.
const long = 30 * time.Second

// private makes a queue without a key, removed at the end of the test.
func private(t testing.TB, mode fs.FileMode) *Queue {
	t.Helper()
	q, err := Get(Private, Create, mode)
	want(t, err, nil)
	t.Cleanup(func() {
		if err := q.Remove(); err != nil && !errors.Is(err, driver.ErrRemoved) && !errors.Is(err, driver.ErrClosed) {
			t.Errorf("remove: %v", err)
		}
		_ = removeID(q.ID()) // a test may have closed the handle
		_ = q.Close()
	})
	return q
}

// roomFor sets msg_qbytes.
func roomFor(t testing.TB, q *Queue, n int64) {
	t.Helper()
	want(t, q.Set(Change{QBytes: &n}), nil)
}

// want checks an error: nil, or one that errors.Is every target.
func want(t testing.TB, err error, targets ...error) {
	t.Helper()
	for _, target := range targets {
		if target == nil && err != nil || target != nil && !errors.Is(err, target) {
			t.Fatalf("error %v, want %v", err, target)
		}
	}
}

func put(t testing.TB, q *Queue, typ int64, body string) {
	t.Helper()
	want(t, q.Send(t.Context(), typ, []byte(body), NoWait), nil)
}

// gets receives without waiting and checks what comes.
func gets(t testing.TB, q *Queue, typ int64, flags int, body string, mtype int64) {
	t.Helper()
	buf := make([]byte, 100)
	n, got, err := q.Receive(t.Context(), buf, typ, flags|NoWait)
	want(t, err, nil)
	if string(buf[:n]) != body || got != mtype {
		t.Fatalf("msgrcv of %d with %#o gave %q of type %d, want %q of type %d", typ, flags, buf[:n], got, body, mtype)
	}
}

// fails receives without waiting and checks the error.
func fails(t testing.TB, q *Queue, typ int64, flags int, targets ...error) {
	t.Helper()
	_, _, err := q.Receive(t.Context(), make([]byte, 100), typ, flags|NoWait)
	want(t, err, targets...)
}

// result is what a call in another goroutine returned.
type result struct {
	body  string
	mtype int64
	err   error
}

func receiveLater(ctx context.Context, q *Queue, typ int64, flags int) <-chan result {
	c := make(chan result, 1)
	go func() {
		buf := make([]byte, 100)
		n, mtype, err := q.Receive(ctx, buf, typ, flags)
		c <- result{string(buf[:n]), mtype, err}
	}()
	return c
}

func sendLater(ctx context.Context, q *Queue, typ int64, body string) <-chan error {
	c := make(chan error, 1)
	go func() { c <- q.Send(ctx, typ, []byte(body), 0) }()
	return c
}

func get[T any](t testing.TB, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(long):
		t.Fatal("it does not come")
	}
	return v
}

func pending[T any](t testing.TB, c <-chan T) {
	t.Helper()
	select {
	case v := <-c:
		t.Fatalf("it did not wait: %v", v)
	case <-time.After(20 * time.Millisecond): // nothing happens: there is no event for that
	}
}

// until waits for a condition.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(long); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it does not come to this: %s", what)
		}
	}
}

// sleeping waits until that many threads of the pool are in the kernel.
func sleeping(t testing.TB, n int) {
	t.Helper()
	until(t, fmt.Sprintf("%d threads wait", n), func() bool { return asleep() == n })
}

func asleep() (n int) {
	pool.mu.Lock()
	defer pool.mu.Unlock()
	for _, w := range pool.workers {
		if w.asleep {
			n++
		}
	}
	return n
}
