package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/shm"
)

// testVar makes a program of this test binary. Its value is what the child of the role "" shall do.
const testVar = "KUMQUAT_LAB_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(testVar) == "" {
		os.Exit(m.Run())
	}
	Main(map[string]func(context.Context) error{
		"": func(ctx context.Context) (err error) {
			q, err := kumquat.Open(ctx, Queue("/lab/test"), &kumquat.Options{Create: true, Exclusive: true})
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, q.Close(), kumquat.Remove(context.Background(), Queue("/lab/test"))) }()
			defer Stop()
			Start(ctx, os.Getenv(testVar), "one")
			if _, err = q.Receive(ctx); err != nil {
				return err
			}
			if os.Getenv(testVar) == "send, wait" {
				return errors.New("the parent is ill")
			}
			return nil
		},
		"send": func(ctx context.Context) error { return send(ctx) },
		"fail": func(context.Context) error { return errors.New("the child is ill") },
		"die": func(context.Context) error {
			return unix.Kill(os.Getpid(), unix.SIGKILL)
		},
		"send, wait": func(ctx context.Context) error {
			if err := send(ctx); err != nil {
				return err
			}
			<-ctx.Done()
			return ctx.Err()
		},
		"wait": func(ctx context.Context) error {
			fmt.Println(os.Getpid())
			<-ctx.Done()
			return ctx.Err()
		},
	})
}

func send(ctx context.Context) error {
	q, err := kumquat.Open(ctx, Queue("/lab/test"), nil)
	if err != nil {
		return err
	}
	return errors.Join(q.Send(ctx, kumquat.Message{}), q.Close())
}

// program is the test binary as a program whose child does what, in a folder of queues of its own.
func program(t *testing.T, what string, args ...string) (cmd *exec.Cmd, dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "kumquat-lab-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	cmd = exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), testVar+"="+what, shm.EnvDir+"="+dir)
	cmd.WaitDelay = time.Second
	return cmd, dir
}

func leftIn(t *testing.T, dir string) []string {
	t.Helper()
	left, err := filepath.Glob(dir + "/*")
	if err != nil {
		t.Fatal(err)
	}
	return left
}

// TestEnds: whichever way it ends, the program says why, once, and leaves no queue.
func TestEnds(t *testing.T) {
	for _, c := range []struct {
		what   string
		args   []string
		status int
		says   string
	}{
		{"send", nil, 0, ""},
		{"fail", nil, 1, "the child is ill\nthe process \"fail one\" failed: exit status 1\n"},
		{"die", nil, 1, "the process \"die one\" failed: signal: killed\n"},
		{"send, wait", nil, 1, "the parent is ill\n"},
		{"send", []string{"-role", "king"}, 2, "there is no role \"king\"\n"},
		{"send", []string{"-on", "pigeon:"}, 2, "-on pigeon: there are "},
	} {
		cmd, dir := program(t, c.what, c.args...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		if cmd.ProcessState.ExitCode() != c.status || !strings.HasPrefix(out.String(), c.says) || c.says == "" && out.Len() > 0 {
			t.Errorf("%s %q: %v, %q; want status %d, %q", c.what, c.args, err, &out, c.status, c.says)
		}
		if left := leftIn(t, dir); len(left) > 0 {
			t.Errorf("%s: left: %q", c.what, left)
		}
	}
}

// TestSignals: SIGINT to the whole group, as the terminal sends it at Ctrl-C, and SIGTERM to the parent alone end both processes
// and remove the queue. After SIGKILL the child ends, too; the queue stays, and the next run says what to do about it.
func TestSignals(t *testing.T) {
	for _, s := range []syscall.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGKILL} {
		cmd, dir := program(t, "wait")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		out, w, err := os.Pipe() // both processes hold its other end, so it ends with the last of them
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		var errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = w, &errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(w.Close(), out.SetReadDeadline(time.Now().Add(30*time.Second))); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil { // the child has begun
			t.Fatal(err)
		}
		to := cmd.Process.Pid
		if s == unix.SIGINT {
			to = -to
		}
		if err := unix.Kill(to, s); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // its status is looked at below
		if _, err := io.Copy(io.Discard, out); err != nil {
			t.Errorf("%v: the child does not end: %v", s, err)
		}
		left := leftIn(t, dir)
		if s != unix.SIGKILL {
			if cmd.ProcessState.ExitCode() != 130 || errs.String() != "interrupted\n" || len(left) > 0 {
				t.Errorf("%v: %v, %q, left: %q", s, cmd.ProcessState, &errs, left)
			}
			continue
		}
		if len(left) != 1 {
			t.Errorf("after SIGKILL there is %q", left)
		}
		again, _ := program(t, "send")
		again.Env = append(again.Env, shm.EnvDir+"="+dir)
		b, err := again.CombinedOutput()
		if again.ProcessState.ExitCode() != 1 || !strings.Contains(string(b), "kumquat rm /lab/test") {
			t.Errorf("the next run: %v, %s", err, b)
		}
	}
}

func TestQueue(t *testing.T) {
	defer func(old string) { *on = old }(*on)
	for _, c := range []struct{ on, name, url string }{
		{"", "/images/input", "/images/input"},
		{"shm", "/images/input", "shm:/images/input"},
		{"posix", "/images/input", "posix:/images.input"},
		{"posix", "orders", "posix:/orders"},
		{"sysv", "/images/input", "sysv:0x4bf6b323"},
		{"sysv+priority", "/images/input", "sysv+priority:0x4bf6b323"},
	} {
		*on = c.on
		if url := Queue(c.name); url != c.url {
			t.Errorf("-on %q: %s is %s, want %s", c.on, c.name, url, c.url)
		}
	}
}
