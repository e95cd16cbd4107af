package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// lookAt runs the command on a terminal and returns what it showed.
func lookAt(t *testing.T, dir string, cols uint16, args ...string) string {
	t.Helper()
	code, text := startTerminal(t, command(t, dir, args...), cols).end()
	if code != 0 {
		t.Fatalf("kumquat %v: exit code %d: %s", args, code, text)
	}
	return text
}

var colours = regexp.MustCompile("\x1b\\[[0-9;]*m")

// wellBehaved fails if text has control sequences other than colours.
func wellBehaved(t *testing.T, text string) {
	t.Helper()
	for _, r := range colours.ReplaceAllString(text, "") {
		if r < ' ' && r != '\r' && r != '\n' || r >= 0x7f && r < 0xa0 || r == 0x202e {
			t.Errorf("%U reached the terminal in %q", r, text)
			return
		}
	}
}

func TestTerminalEscapesWhatOthersWrote(t *testing.T) {
	dir := privateShm(t)
	const evil = "\x1b]0;owned\a\x1b[2J\u009b31m\u202e\r\n\xff"
	mustRun(t, dir, "create", "/q")
	mustRun(t, dir, "create", "/evil\x1b[31m")
	mustRun(t, dir, "send", "/q", evil, "--id", evil, "--key", evil, "--header", evil+"="+evil)
	for _, args := range [][]string{
		{"ls"}, {"ls", "--json"}, {"peek", "/q"}, {"peek", "/q", "--json"}, {"stat", "/q"}, {"stat", "/evil\x1b[31m"},
		{"rm", "/evil*", "--dry-run"}, {"check"}, {"who", "/q"}, {"recv", "/q"},
	} {
		text := lookAt(t, dir, 100, args...)
		wellBehaved(t, text)
		if args[0] == "peek" && !strings.Contains(text, "owned") {
			t.Errorf("%v: the body is missing: %q", args, text)
		}
	}
	code, text := startTerminal(t, command(t, dir, "recv", "/no\x1b[2Jsuch"), 100).end()
	wellBehaved(t, text)
	if code != exitNotFound {
		t.Errorf("exit code %d: %s", code, text)
	}
}

func TestTerminalTable(t *testing.T) {
	dir := privateShm(t)
	long := "/" + strings.Repeat("long-", 12) + "name"
	mustRun(t, dir, "create", "/orders", "--max-messages", "1000000")
	mustRun(t, dir, "create", long)
	text := lookAt(t, dir, 72, "ls")
	if !strings.Contains(text, "1,000,000") || !strings.Contains(text, "\x1b[1mNAME") {
		t.Errorf("numbers or colours for people are missing: %q", text)
	}
	for l := range strings.SplitSeq(colours.ReplaceAllString(text, ""), "\r\n") {
		if utf8.RuneCountInString(l) > 72 {
			t.Errorf("line of %d columns: %q", utf8.RuneCountInString(l), l)
		}
	}
	if wide := lookAt(t, dir, 200, "ls"); !strings.Contains(wide, long) {
		t.Errorf("the name is cut though there is room: %q", wide)
	}
	c := command(t, dir, "ls")
	c.Env = append(c.Env, "NO_COLOR=1")
	if _, text := startTerminal(t, c, 72).end(); strings.Contains(text, "\x1b") {
		t.Errorf("colours in spite of NO_COLOR: %q", text)
	}
}

func TestTerminalMessages(t *testing.T) {
	dir := privateShm(t)
	mustRun(t, dir, "create", "/q")
	mustRun(t, dir, "send", "/q", strings.Repeat("pears ", 100), "-p", "high", "--key", "k1")
	text := colours.ReplaceAllString(lookAt(t, dir, 90, "peek", "/q"), "")
	if !strings.Contains(text, "PRIO") || !strings.Contains(text, "600 B") || !strings.Contains(text, "…  {key=k1}") {
		t.Errorf("peek: %q", text)
	}
	if text := lookAt(t, dir, 90, "recv", "/q"); strings.Count(text, "pears") != 100 {
		t.Errorf("recv cut the body: %q", text)
	}
}

func TestTerminalConfirm(t *testing.T) {
	dir := privateShm(t)
	mustRun(t, dir, "send", "/q", "x", "--create")
	for _, c := range []struct {
		args     []string
		question string
		answer   string
		code     int
		left     string
	}{
		{[]string{"purge", "/q"}, "Remove all 1 message in /q? [y/N] ", "n\n", 1, "1"},
		{[]string{"purge", "/q"}, "[y/N] ", "\n", 1, "1"},
		{[]string{"purge", "/q"}, "[y/N] ", "\x04", 1, "1"},   // end of input
		{[]string{"purge", "/q"}, "[y/N] ", "\x03", 130, "1"}, // Ctrl-C
		{[]string{"rm", "/q"}, "Remove /q with 1 message? [y/N] ", "no\n", 1, "1"},
		{[]string{"purge", "/q"}, "[y/N] ", "y\n", 0, "0"},
		{[]string{"rm", "/q"}, "Remove /q with 0 messages? [y/N] ", "yes\n", 0, ""},
	} {
		x := startTerminal(t, command(t, dir, c.args...), 100)
		x.until(c.question)
		x.typed(c.answer)
		code, text := x.end()
		if code != c.code {
			t.Errorf("%v %q: exit code %d, not %d: %q", c.args, c.answer, code, c.code, text)
		}
		out := mustRun(t, dir, "ls", "--kind", "engine", "--columns", "messages")
		if got := strings.TrimSpace(strings.TrimPrefix(out, "MESSAGES")); got != c.left {
			t.Errorf("%v %q: %q messages left, not %q", c.args, c.answer, got, c.left)
		}
	}
	mustRun(t, dir, "create", "/q")
	lookAt(t, dir, 100, "rm", "/q", "--yes") // would wait for an answer for ever
}

func TestTerminalSend(t *testing.T) {
	dir := privateShm(t)
	mustRun(t, dir, "create", "/q")
	code, text := startTerminal(t, command(t, dir, "send", "/q"), 100).end()
	if code != exitUsage || !strings.Contains(text, "standard input is a terminal") {
		t.Errorf("exit code %d: %q", code, text)
	}
	x := startTerminal(t, command(t, dir, "send", "/q", "-"), 100)
	x.typed("typed\n\x04")
	if code, text := x.end(); code != 0 {
		t.Errorf("exit code %d: %q", code, text)
	}
	if got := mustRun(t, dir, "recv", "/q"); got != "typed\n\n" {
		t.Errorf("%q", got)
	}
}

func TestTerminalCtrlC(t *testing.T) {
	dir := privateShm(t)
	mustRun(t, dir, "create", "/q")
	x := startTerminal(t, command(t, dir, "recv", "/q"), 100)
	x.until("BODY")
	x.typed("\x03")
	if code, text := x.end(); code != exitSignal+2 {
		t.Errorf("recv: exit code %d: %q", code, text)
	}
	x = startTerminal(t, command(t, dir, "stat", "/q", "--watch"), 100)
	x.until("path")
	mustRun(t, dir, "send", "/q", "x")
	x.until("1 of 65,536")
	x.typed("\x03")
	code, text := x.end()
	if code != exitSignal+2 || !strings.Contains(text, "A\x1b[J") {
		t.Errorf("stat --watch: exit code %d, or not in place: %q", code, text)
	}
}

func TestTerminalProgress(t *testing.T) {
	dir := privateShm(t)
	mustRun(t, dir, "create", "/q", "--max-messages", "100")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c := command(t, dir, "send", "/q", "--lines")
	c.Stdin = r
	x := startTerminal(t, c, 100)
	r.Close()
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if _, err := w.WriteString("line\n"); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	code, text := x.end()
	if code != 0 || !regexp.MustCompile(`sent 1[0-9], .*/s`).MatchString(text) || !strings.HasSuffix(text, "\x1b[K") {
		t.Errorf("exit code %d: %q", code, text)
	}
}
