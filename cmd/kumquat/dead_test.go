package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestTheStoppedAndTheDead looks on while a receiver is stopped and then killed: who, watch and check tell of it, and what it left
// is no fault of the queue.
func TestTheStoppedAndTheDead(t *testing.T) {
	dir := privateShm(t)
	mustRun(t, dir, "create", "/q")
	events := filepath.Join(t.TempDir(), "events")
	c := command(t, dir)
	c.Path, c.Args = "/bin/sh", []string{"sh", "-c", `exec "$0" watch /q > "$1"`, linkTo(t, c.Path), events}
	watcher := start(t, c)
	for end := time.Now().Add(patience); ; { // until the watcher has begun
		mustRun(t, dir, "send", "/q", "x")
		mustRun(t, dir, "recv", "/q")
		if b, err := os.ReadFile(events); err == nil && len(b) > 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the watcher shows nothing")
		}
	}
	r := start(t, command(t, dir, "recv", "/q"))
	await(t, dir, "/q", "receivers", "1")
	awaitFile(t, events, regexp.MustCompile(`opened process [0-9]+ \(.*recv /q\)`))

	if err := r.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := regexp.MustCompile(`(?m)^[0-9]+ +.*recv /q +\S+ +\S+ +T +wait`)
	for end := time.Now().Add(patience); !stopped.MatchString(mustRun(t, dir, "who", "/q")); {
		if time.Now().After(end) {
			t.Fatalf("who does not show the stopped process: %s", mustRun(t, dir, "who", "/q"))
		}
	}
	r.stop(syscall.SIGKILL, -1, "")
	awaitFile(t, events, regexp.MustCompile(`died process [0-9]+ \(.*recv /q\)`))
	if out := mustRun(t, dir, "who", "/q"); !regexp.MustCompile(`recv /q +\S+ +\S+ +dead `).MatchString(out) {
		t.Errorf("who: %s", out)
	}
	out := mustRun(t, dir, "check", "/q") // exit code 0
	if !strings.HasPrefix(out, "/q: sound, ") || !regexp.MustCompile(`(?m)^  debris: .*died.*wait to receive`).MatchString(out) {
		t.Errorf("check: %s", out)
	}
	mustRun(t, dir, "send", "/q", "x")
	if out := mustRun(t, dir, "recv", "/q"); out != "x\n" {
		t.Errorf("recv: %q", out)
	}
	mustRun(t, dir, "rm", "/q")
	watcher.ends(exitNotFound, "(?s)kumquat: .*queue removed.*")
}
