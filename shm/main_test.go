package shm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// Tests that need other processes run this test binary again in a role. A role gets its arguments and returns the exit code.
var roles = map[string]func(args []string) int{}

const roleVar = "KUMQUAT_TEST_ROLE"

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

// startPeer starts this binary in a role. The path by way of /proc works for other users too, whatever folder the binary is in.
func startPeer(t testing.TB, role string, attr *syscall.SysProcAttr, args ...string) *peer {
	t.Helper()
	p := &peer{t: t, cmd: exec.Command("/proc/self/exe", args...)}
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
	t.Cleanup(func() {
		p.kill()
	})
	return p
}

// line reads one line, without its end.
func (p *peer) line() string {
	p.t.Helper()
	s, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatalf("the peer ended: %v, %v\n%s%s", err, p.wait(), s, p.tail())
	}
	return strings.TrimSuffix(s, "\n")
}

func (p *peer) say(format string, a ...any) {
	p.t.Helper()
	if _, err := fmt.Fprintf(p.in, format+"\n", a...); err != nil {
		p.t.Fatalf("the peer ended: %v, %v\n%s", err, p.wait(), p.tail())
	}
}

// kill kills the process and waits for its end.
func (p *peer) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.wait()
}

// wait waits for the end of the process. Its standard output must have been read to the end, or be short.
func (p *peer) wait() error {
	p.once.Do(func() {
		_ = p.in.Close()
		p.waited = p.cmd.Wait()
	})
	return p.waited
}

// tail returns the end of what the process wrote to standard error, where a crash tells its story.
func (p *peer) tail() string {
	s := p.errs.String()
	if len(s) > 6000 {
		s = s[:4500] + "\n…\n" + s[len(s)-1500:]
	}
	return s
}

// shmDir makes a folder on the tmpfs where queues belong; elsewhere pages behave differently.
func shmDir(t testing.TB) Driver {
	t.Helper()
	dir, err := os.MkdirTemp(defaultDir, "kumquat-test-")
	if err != nil {
		t.Logf("no room in %s, a folder elsewhere takes its place: %v", defaultDir, err)
		dir = t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return Driver{Dir: dir}
}

// openQueue opens a queue and closes it at the end, whatever state it is in then.
func openQueue(t testing.TB, d Driver, name string, o *driver.Options) *Queue {
	t.Helper()
	q, err := d.OpenQueue(context.Background(), name, o)
	if err != nil {
		t.Fatalf("open %s: %v", name, err)
	}
	t.Cleanup(func() { _ = q.Close() })
	return q
}

func sendBody(t testing.TB, q *Queue, body string, prio int) {
	t.Helper()
	if err := q.SendBytes(context.Background(), []byte(body), prio, true); err != nil {
		t.Fatalf("send %.20q: %v", body, err)
	}
}

// tryBody receives without waiting; "" when there is nothing.
func tryBody(t testing.TB, q *Queue) string {
	t.Helper()
	m, err := q.Receive(context.Background(), driver.Filter{}, true)
	if errors.Is(err, driver.ErrEmpty) {
		return ""
	}
	if err != nil {
		t.Fatalf("receive: %v", err)
	}
	return string(m.Body)
}

// mustBeSound fails the test if Check finds a broken invariant.
func mustBeSound(t testing.TB, q *Queue) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r, err := q.Check(ctx)
	if err != nil {
		t.Fatalf("check: %v", err)
	}
	for _, p := range r.Problems {
		if p.Broken {
			t.Errorf("check: %s: %s", p.Where, p.Text)
		}
	}
}

// fileOf is the path of a queue's file.
func fileOf(d Driver, name string) string { return filepath.Join(d.Dir, filePrefix+name[1:]) }

var sentinels = []struct {
	name string
	err  error
}{{"invalid", driver.ErrInvalid}, {"not found", driver.ErrNotFound}, {"exists", driver.ErrExists}, {"full", driver.ErrFull},
	{"empty", driver.ErrEmpty}, {"too large", driver.ErrTooLarge}, {"timeout", driver.ErrTimeout}, {"permission", driver.ErrPermission},
	{"removed", driver.ErrRemoved}, {"corrupt", driver.ErrCorrupt}, {"closed", driver.ErrClosed}, {"no space", driver.ErrNoSpace},
	{"limit", driver.ErrLimit}, {"unsupported", driver.ErrUnsupported}, {"cancelled", context.Canceled}}

// kindOfError names the sentinel that err wraps: "ok" for none at all, "" for an error that wraps none.
func kindOfError(err error) string {
	if err == nil {
		return "ok"
	}
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			return s.name
		}
	}
	return ""
}
