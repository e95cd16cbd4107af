package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// running is a command that runs in the background.
type running struct {
	t        *testing.T
	cmd      *exec.Cmd
	out, err bytes.Buffer
}

func start(t *testing.T, cmd *exec.Cmd) *running {
	t.Helper()
	r := &running{t: t, cmd: cmd}
	cmd.Stdout, cmd.Stderr = &r.out, &r.err
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	return r
}

// stop sends the command a signal and checks how it ends.
func (r *running) stop(sig syscall.Signal, code int, stderr string) {
	r.t.Helper()
	if err := r.cmd.Process.Signal(sig); err != nil {
		r.t.Fatal(err)
	}
	r.ends(code, stderr)
}

func (r *running) ends(code int, stderr string) {
	r.t.Helper()
	timer := time.AfterFunc(patience, func() { r.cmd.Process.Kill() })
	defer timer.Stop()
	r.cmd.Wait()
	if got := r.cmd.ProcessState.ExitCode(); got != code {
		r.t.Errorf("%v: exit code %d, not %d: %s", r.cmd.Args, got, code, &r.err)
	}
	if got := r.err.String(); !regexp.MustCompile("^" + stderr + "$").MatchString(got) {
		r.t.Errorf("%v: it said %q, not %q", r.cmd.Args, got, stderr)
	}
}

func TestSignalsEndWaitingCommands(t *testing.T) {
	dir := privateShm(t)
	mustRun(t, dir, "create", "/q", "--max-messages", "2")
	for sig, code := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143, syscall.SIGHUP: 129} {
		for _, args := range [][]string{{"recv", "/q"}, {"recv", "/q", "--follow"}, {"recv", "/q", "--timeout", "1m", "--type", "3"}} {
			r := start(t, command(t, dir, args...))
			await(t, dir, "/q", "receivers", "1")
			r.stop(sig, code, "")
			await(t, dir, "/q", "receivers", "0")
		}
	}
	for _, args := range [][]string{{"watch", "/q"}, {"stat", "/q", "--watch"}} {
		c := command(t, dir, args...)
		r := start(t, c)
		time.Sleep(300 * time.Millisecond) // nothing shows from outside that it has begun
		r.stop(syscall.SIGTERM, 143, "")
	}
}

func TestSignalTellsHowFarItCame(t *testing.T) {
	dir := privateShm(t)
	mustRun(t, dir, "create", "/q", "--max-messages", "2")
	r := start(t, command(t, dir, "recv", "/q", "-n", "5"))
	mustRun(t, dir, "send", "/q", "a")
	mustRun(t, dir, "send", "/q", "b")
	await(t, dir, "/q", "received", "2")
	await(t, dir, "/q", "receivers", "1")
	r.stop(syscall.SIGTERM, 143, "kumquat: 2 of 5 messages received: stopped by SIGTERM\n")
	if r.out.String() != "a\nb\n" {
		t.Errorf("it wrote %q", &r.out)
	}

	// A sender that waits for input.
	c := command(t, dir, "send", "/q", "--lines")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r = start(t, c)
	if _, err := in.Write([]byte("one\nhal")); err != nil {
		t.Fatal(err)
	}
	await(t, dir, "/q", "messages", "1")
	r.stop(syscall.SIGTERM, 143, "kumquat: 1 message sent: stopped by SIGTERM\n")

	// One that waits for room.
	c = command(t, dir, "send", "/q", "--lines")
	c.Stdin = strings.NewReader("two\nthree\nfour\n")
	r = start(t, c)
	await(t, dir, "/q", "senders", "1")
	r.stop(syscall.SIGTERM, 143, "kumquat: 1 message sent: stopped by SIGTERM\n")
	if got := mustRun(t, dir, "peek", "/q"); got != "one\ntwo\n" {
		t.Errorf("the queue holds %q", got)
	}
}

func TestSignalLetsTheCommandOfExecFinish(t *testing.T) {
	dir := privateShm(t)
	mustRun(t, dir, "create", "/q")
	mustRun(t, dir, "send", "/q", "1")
	mustRun(t, dir, "send", "/q", "2")
	c := command(t, dir, "recv", "/q", "-n", "2", "--exec", "echo x > begun; sleep 0.5; echo x > ended")
	c.Dir = t.TempDir()
	r := start(t, c)
	awaitFile(t, filepath.Join(c.Dir, "begun"), regexp.MustCompile("x"))
	r.stop(syscall.SIGTERM, 143, "kumquat: 1 of 2 messages received: stopped by SIGTERM\n")
	if !exists(filepath.Join(c.Dir, "ended")) {
		t.Error("the command was not finished")
	}
	await(t, dir, "/q", "messages", "1")
}

func TestIgnoredSignalsStayIgnored(t *testing.T) {
	dir := privateShm(t)
	mustRun(t, dir, "create", "/q")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := command(t, dir)
	c.Path, c.Args = "/bin/sh", []string{"sh", "-c", `trap "" HUP; exec "$0" recv /q --timeout 1s`, linkTo(t, self)}
	r := start(t, c)
	await(t, dir, "/q", "receivers", "1")
	r.stop(syscall.SIGHUP, exitEmpty, "kumquat: receive batch /q: timed out\n")
}

// linkTo makes a link named kumquat to the test binary: under that name it is the command.
func linkTo(t *testing.T, self string) string {
	t.Helper()
	link := filepath.Join(t.TempDir(), "kumquat")
	if err := os.Symlink(self, link); err != nil {
		t.Fatal(err)
	}
	return link
}
