package doctor

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/posix"
	"github.com/kumquat-mq/kumquat/sysv"
)

// Tests that need another process run this test binary again in a role; those that need other limits, in an IPC namespace.
var roles = map[string]func(args []string) error{
	"receive":      receiveRole,
	"send":         sendRole,
	"hold":         holdRole,
	"churn":        churnRole,
	"kernelBlock":  kernelBlockRole,
	"sysvBlock":    sysvBlockRole,
	"notify":       notifyRole,
	"withoutCalls": withoutCallsRole,
}

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
		if err := role(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// untilClosed waits for the end of standard input, which comes with the end of the test.
func untilClosed() error {
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// receiveRole: URL PAUSE. Receives, and rests after each message.
func receiveRole(args []string) error {
	pause, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	ctx := context.Background()
	q, err := kumquat.Open(ctx, args[0], nil)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		if _, err := q.Receive(ctx); err != nil {
			return err
		}
		time.Sleep(pause)
	}
}

// sendRole: URL PAUSE. Sends, and rests after each message.
func sendRole(args []string) error {
	pause, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	ctx := context.Background()
	q, err := kumquat.Open(ctx, args[0], nil)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		if err := q.Send(ctx, kumquat.Message{Body: []byte("pear"), Type: 1}); err != nil {
			return err
		}
		time.Sleep(pause)
	}
}

// holdRole: URL. Has the queue open and does nothing with it.
func holdRole(args []string) error {
	q, err := kumquat.Open(context.Background(), args[0], nil)
	if err != nil {
		return err
	}
	defer q.Close()
	fmt.Println("ready")
	return untilClosed()
}

// churnRole: URL. Sends and receives without rest, at many priorities, so that it has the lock most of the time.
func churnRole(args []string) error {
	ctx := context.Background()
	q, err := kumquat.Open(ctx, args[0], nil)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for i := 0; ; i++ {
		if err := q.SendBytes(ctx, []byte("pear"), i%1000); err != nil {
			return err
		}
		if _, err := q.Receive(ctx); err != nil {
			return err
		}
	}
}

// kernelBlockRole: NAME receive|send. Waits in the kernel's line of a POSIX queue, as a C program does.
func kernelBlockRole(args []string) error {
	q, err := posix.Open(args[0], posix.ReadWrite, 0, nil)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	if args[1] == "send" {
		return q.TimedSend([]byte("pear"), 0, time.Time{})
	}
	_, _, err = q.TimedReceive(make([]byte, q.MaxSize()), time.Time{})
	return err
}

// notifyRole: NAME. Is registered for notification.
func notifyRole(args []string) error {
	q, err := posix.Open(args[0], posix.ReadOnly, 0, nil)
	if err != nil {
		return err
	}
	defer q.Close()
	if err := q.NotifyNone(); err != nil {
		return err
	}
	fmt.Println("ready")
	return untilClosed()
}

// sysvBlockRole: ID TYPE. Waits in msgrcv for a type.
func sysvBlockRole(args []string) error {
	id, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	typ, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	q, err := sysv.FromID(id)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	_, _, err = q.Receive(context.Background(), make([]byte, 100), typ, 0)
	return err
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

// start starts a role and waits until it says that it is ready.
func start(t testing.TB, role string, args ...string) *peer {
	t.Helper()
	p := &peer{t: t, cmd: exec.Command("/proc/self/exe", args...)}
	p.cmd.Env = append(os.Environ(), roleVar+"="+role)
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
	if line := p.line(); line != "ready" {
		t.Fatalf("the peer says %q", line)
	}
	return p
}

func (p *peer) line() string {
	p.t.Helper()
	s, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatalf("the peer ended: %v, %v\n%s%s", err, p.wait(), s, p.errs.String())
	}
	return strings.TrimSuffix(s, "\n")
}

func (p *peer) pid() int { return p.cmd.Process.Pid }

func (p *peer) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.wait()
}

func (p *peer) wait() error {
	p.once.Do(func() {
		_ = p.in.Close()
		p.end = p.cmd.Wait()
	})
	return p.end
}

// stop stops the process and waits until it stands still.
func (p *peer) stop() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		p.t.Fatal(err)
	}
	m := thisMachine()
	until(p.t, "the process stops", func() bool {
		letter, _, _ := m.state(p.pid())
		return letter == "T"
	})
}

func (p *peer) goOn() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		p.t.Fatal(err)
	}
}

// until waits for what must come; the time is only for tests that fail.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: it did not come to that", what)
		}
	}
}

// inNamespace runs the test again in an IPC and a mount namespace of its own. It reports true in that process; in the first one it
// waits, passes on the result and reports false. As root it needs CAP_SYS_ADMIN, else user namespaces for everybody.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(namespaceVar) == t.Name() {
		// What is mounted here must not reach the machine.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Skipf("needs the right to mount in a namespace: %v", err)
		}
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1", "-test.timeout=120s")
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
	}
	return false
}

// finding returns the only finding of a check.
func finding(t testing.TB, fs []Finding, check string) Finding {
	t.Helper()
	var found []Finding
	for _, f := range fs {
		if f.Check == check {
			found = append(found, f)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d findings of %s in\n%s", len(found), check, text(fs))
	}
	return found[0]
}

func text(fs []Finding) string {
	var b strings.Builder
	for _, f := range fs {
		fmt.Fprintf(&b, "%-9s %-22s %s\n", f.Level, f.Check, f.Text)
		if f.Fix != "" {
			fmt.Fprintf(&b, "%33s %s\n", "fix:", f.Fix)
		}
	}
	return b.String()
}

// expectThat checks the level and parts of the text and the fix of a finding; fix "" wants none.
func expectThat(t testing.TB, f Finding, level Level, fix string, parts ...string) {
	t.Helper()
	if f.Level != level {
		t.Errorf("%s is %s, want %s: %s", f.Check, f.Level, level, f.Text)
	}
	for _, p := range parts {
		if !strings.Contains(f.Text, p) {
			t.Errorf("%s says %q, want %q in it", f.Check, f.Text, p)
		}
	}
	if f.Fix != fix {
		t.Errorf("%s is mended by %q, want %q", f.Check, f.Fix, fix)
	}
}
