package posix

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// Tests that need another process run this test binary again in a role; those that need other limits, in an IPC namespace.
var roles = map[string]func(args []string) int{}

const (
	roleVar      = "KUMQUAT_TEST_ROLE"
	namespaceVar = "KUMQUAT_TEST_NAMESPACE"
)

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
	goleak.VerifyTestMain(m)
}

// peer is another process, talked to by lines.
type peer struct {
	t    testing.TB
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	errs bytes.Buffer
	once sync.Once
	end  error
}

func startRole(t testing.TB, role string, attr *syscall.SysProcAttr, args ...string) *peer {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleVar+"="+role)
	cmd.SysProcAttr = attr
	return start(t, cmd)
}

func start(t testing.TB, cmd *exec.Cmd) *peer {
	t.Helper()
	p := &peer{t: t, cmd: cmd}
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
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.wait()
	})
	return p
}

// line reads one line, without its end.
func (p *peer) line() string {
	p.t.Helper()
	s, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatalf("the peer ended: %v, %v\n%s%s", err, p.wait(), s, p.errs.String())
	}
	return strings.TrimSuffix(s, "\n")
}

func (p *peer) expect(want string) {
	p.t.Helper()
	if got := p.line(); got != want {
		p.t.Fatalf("the peer says %q, want %q", got, want)
	}
}

func (p *peer) say(line string) {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.in, line); err != nil {
		p.t.Fatalf("the peer ended: %v, %v\n%s", err, p.wait(), p.errs.String())
	}
}

func (p *peer) wait() error {
	p.once.Do(func() {
		_ = p.in.Close()
		p.end = p.cmd.Wait()
	})
	return p.end
}

// inNamespace runs the test again in an IPC namespace of its own, where sysctls, "msg_max=100" and the like, are set before it. It
// reports true in that process; in the first one it waits, passes on the result and reports false. As root it needs CAP_SYS_ADMIN,
// else user namespaces for everybody.
func inNamespace(t *testing.T, sysctls ...string) bool {
	t.Helper()
	if os.Getenv(namespaceVar) == t.Name() {
		for _, s := range sysctls {
			name, value, _ := strings.Cut(s, "=")
			if err := os.WriteFile(sysctlDir+name, []byte(value), 0); err != nil {
				t.Skipf("no right to set fs.mqueue.%s in a namespace: %v", name, err)
			}
		}
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1", "-test.parallel=1", "-test.timeout=300s")
	cmd.Env = append(os.Environ(), namespaceVar+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWIPC | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err != nil && !errors.As(err, &exit):
		t.Skipf("needs an IPC namespace, which root, or unprivileged user namespaces, allow: %v", err)
	case err != nil:
		t.Errorf("in a namespace: %v\n%s", err, out)
	case bytes.Contains(out, []byte("--- SKIP: "+t.Name()+" ")):
		why := "no reason given"
		for line := range strings.Lines(string(out)) {
			if _, after, ok := strings.Cut(line, "_test.go:"); ok {
				_, why, _ = strings.Cut(strings.TrimSpace(after), ": ")
			}
		}
		t.Skip(why)
	case !bytes.Contains(out, []byte("--- PASS: "+t.Name()+" ")):
		t.Errorf("in a namespace nothing ran:\n%s", out)
	default:
		t.Logf("in a namespace:\n%s", out)
	}
	return false
}

var serial atomic.Int64

// freshName is a name that nobody else uses; the queue is removed at the end of the test if it is there.
func freshName(t testing.TB) string {
	name := fmt.Sprintf("/kumquat-%d-%d", os.Getpid(), serial.Add(1))
	t.Cleanup(func() { _ = Unlink(name) })
	return name
}

// fresh makes a queue of its own for the test.
func fresh(t testing.TB, messages, size int) *Queue {
	t.Helper()
	return open(t, freshName(t), ReadWrite|CreateFlag|ExclusiveFlag, 0o600, &Attr{MaxMessages: messages, MaxSize: size})
}

// open opens a queue and closes it at the end of the test.
func open(t testing.TB, name string, flags int, mode fs.FileMode, attr *Attr) *Queue {
	t.Helper()
	q, err := Open(name, flags, mode, attr)
	if err != nil {
		t.Fatalf("open %s: %v", name, err)
	}
	t.Cleanup(func() { _ = q.Close() })
	return q
}

func send(t testing.TB, q *Queue, body string, priority int) {
	t.Helper()
	if err := q.TrySend([]byte(body), priority); err != nil {
		t.Fatalf("send %q: %v", body, err)
	}
}

func take(t testing.TB, q *Queue, body string, priority int) {
	t.Helper()
	buf := make([]byte, q.MaxSize())
	n, p, err := q.TryReceive(buf)
	if err != nil || string(buf[:n]) != body || p != priority {
		t.Fatalf("received %q at %d, %v, want %q at %d", buf[:n], p, err, body, priority)
	}
}

// isErrno checks that err is the system's number want, and no other; 0: no error.
func isErrno(t testing.TB, what string, err error, want syscall.Errno) {
	t.Helper()
	var got syscall.Errno
	if err != nil && !errors.As(err, &got) {
		t.Errorf("%s: %v has no number, want %v", what, err, want)
		return
	}
	if got != want {
		t.Errorf("%s: %v (%v), want %v", what, err, got, want)
	}
}

// until waits for what must come; the time is only for tests that fail.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); time.Sleep(200 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: it did not come to that", what)
		}
	}
}

// inside waits until as many threads of a process as are said are in a system call of this number.
func inside(t testing.TB, pid, call, threads int) {
	t.Helper()
	until(t, fmt.Sprintf("%d threads of %d in system call %d", threads, pid, call), func() bool {
		n := 0
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), fmt.Sprint(call, " ")) {
				n++
			}
		}
		return n >= threads
	})
}

// build compiles a C program of testdata, once per run.
func build(t testing.TB, source string) string {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("no gcc to compile the C peer with")
	}
	to := filepath.Join(t.TempDir(), strings.TrimSuffix(source, ".c"))
	out, err := exec.Command(gcc, "-O2", "-Wall", "-Wextra", "-Werror", "-o", to, filepath.Join("testdata", source), "-lrt", "-pthread").CombinedOutput()
	if err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	return to
}
