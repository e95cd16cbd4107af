package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat/posix"
	"github.com/kumquat-mq/kumquat/sysv"
)

// What judge makes of what was seen, and of what could not be seen.
func TestJudge(t *testing.T) {
	start := bootTime()
	if start.IsZero() || start.After(time.Now()) {
		t.Fatalf("the machine started %v", start)
	}
	long := time.Now().Add(-time.Second) // not before this process
	gone := 1 << 22                      // no pid is that high (PID_MAX_LIMIT)
	me := os.Getpid()
	if p := readProcess(me); !p.alive() || p.uid != os.Geteuid() || p.started.Before(start) || p.started.After(time.Now().Add(clockSlack)) {
		t.Fatalf("this process: %+v", p)
	}
	queue := func(send, recv int, sent, received time.Time) *row {
		return &row{kind: sysvKind, sysv: &sysv.Status{ID: 7, SendPID: send, RecvPID: recv, LastSend: sent, LastRecv: received}}
	}
	var never time.Time
	all := &kernelUsers{open: &posix.Holders{}, whole: true}
	for i, c := range []struct {
		row  *row
		u    *kernelUsers
		want string
	}{
		{queue(gone, gone, long, long), all, unused},
		{queue(gone, 0, long, never), all, unused},
		{queue(0, gone, never, long), all, unused},
		{queue(me, gone, long, long), all, inUse},
		{queue(gone, me, long, long), all, inUse},
		{queue(1, gone, start, long), all, inUse},
		{queue(me, gone, start.Add(-time.Hour), long), all, unused}, // this process has only the number of the one that was
		{queue(0, gone, long, long), all, unknown},                  // the sender is in another PID namespace
		{queue(0, 0, never, never), all, unknown},
		{queue(gone, gone, long, long), &kernelUsers{open: &posix.Holders{}, whole: true, inside: map[int][]waiter{7: {{pid: 1}}}}, inUse},
		{queue(gone, gone, long, long), &kernelUsers{open: &posix.Holders{}, whole: true, hidden: 1}, unknown},
		{queue(gone, gone, long, long), &kernelUsers{open: &posix.Holders{}, whole: false}, unknown},
		{queue(gone, gone, long, long), &kernelUsers{open: &posix.Holders{}, whole: true, closed: 1}, unused}, // descriptors matter to POSIX queues only
		{&row{kind: posixKind, posix: &posix.Info{}}, all, unused},
		{&row{kind: posixKind, posix: &posix.Info{}}, &kernelUsers{open: &posix.Holders{}, whole: true, closed: 1}, unknown},
		{&row{kind: posixKind, posix: &posix.Info{}}, &kernelUsers{open: &posix.Holders{}, whole: false}, unknown},
		{&row{kind: posixKind}, all, unknown},
		{&row{kind: sysvKind}, all, unknown},
	} {
		if got := c.u.judge(c.row, false); got.state != c.want || got.why == "" {
			t.Errorf("case %d: %q (%s), not %q", i, got.state, got.why, c.want)
		}
	}
	if got := all.judge(queue(0, 0, never, never), true); got.state != unused {
		t.Errorf("never used: %v", got)
	}
}

func TestParseCall(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the numbers are those of amd64")
	}
	for line, want := range map[string]string{
		"70 0x80037 0x7f2a 0xa 0x0 0x0 0x7f 0x7f 0x7f\n": "524343 false true",
		"69 0x1 0x7f2a 0xa 0x0 0x0 0x7f 0x7f 0x7f\n":     "1 true true",
		"117 0xc 0x1 0xa 0x0 0x0 0x7f 0x7f 0x7f\n":       "1 false true", // ipc(MSGRCV, 1) of a 32-bit program
		"401 0x1 0xc 0xa 0x0 0x0 0x7f 0x7f 0x7f\n":       "1 false true",
		"0 0x1 0xc 0xa 0x0 0x0 0x7f 0x7f 0x7f\n":         "0 false false",
		"running\n":                                      "0 false false", "-1 0x7f 0x7f\n": "0 false false", "": "0 false false", "70\n": "0 false false", "70 x y\n": "0 false false",
	} {
		id, sends, ok := parseCall(line)
		if got := fmt.Sprint(id, sends, ok); got != want {
			t.Errorf("%q: %s, not %s", line, got, want)
		}
	}
}

// On a terminal the queues are shown, then it asks; control characters in the names of others do no harm.
func TestTerminalUnused(t *testing.T) {
	dir := privateShm(t)
	mustRun(t, dir, "send", "/evil\x1b[31m", "x", "--create")
	for _, c := range []struct {
		answer string
		code   int
		left   string
	}{{"n\n", exitFailure, "1"}, {"y\n", exitDone, ""}} {
		x := startTerminal(t, command(t, dir, "rm", "--unused", "--kind", "engine"), 100)
		x.until("Remove 1 queue with 1 message? [y/N] ")
		x.typed(c.answer)
		code, text := x.end()
		wellBehaved(t, text)
		if code != c.code || !strings.Contains(text, "no process has it open") {
			t.Errorf("%q: exit code %d: %q", c.answer, code, text)
		}
		out := mustRun(t, dir, "ls", "--kind", "engine", "--columns", "messages")
		if got := strings.TrimSpace(strings.TrimPrefix(out, "MESSAGES")); got != c.left {
			t.Errorf("%q: %q messages left, not %q", c.answer, got, c.left)
		}
	}
	name := kernelName(t, dir, "sysv", "term")
	mustRun(t, dir, "send", name, "x")
	if text := lookAt(t, dir, 120, "ls", name); !strings.Contains(text, "gone") || !colours.MatchString(text) {
		t.Errorf("ls on a terminal: %q", text)
	}
	if out := mustRun(t, dir, "ls", name); colours.MatchString(out) {
		t.Errorf("colours elsewhere: %q", out)
	}
}
