package main

import (
	"bufio"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"
)

// TestLinesThroughput moves 200,000 lines through a queue and prints how fast. On a quiet machine with two cores it is above two
// million a second, the start of the processes left out; the bound here only finds what is wrong by an order of magnitude.
func TestLinesThroughput(t *testing.T) {
	const n = 200_000
	atLeast := 100_000.0
	if raceEnabled {
		atLeast = 0
	}
	dir := privateShm(t)
	mustRun(t, dir, "create", "/q")
	recv := command(t, dir, "recv", "/q", "-n", strconv.Itoa(n), "--raw")
	out, err := recv.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	recv.Stderr = os.Stderr
	if err := recv.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, dir, "/q", "receivers", "1")
	seq := exec.Command("seq", "1", strconv.Itoa(n))
	send := command(t, dir, "send", "/q", "--lines")
	send.Stderr = os.Stderr
	if send.Stdin, err = seq.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := send.Start(); err != nil {
		t.Fatal(err)
	}
	if err := seq.Start(); err != nil {
		t.Fatal(err)
	}
	var first time.Duration
	lines := bufio.NewScanner(out)
	for i := 1; i <= n; i++ {
		if !lines.Scan() {
			t.Fatalf("line %d is missing: %v", i, lines.Err())
		}
		if i == 1 {
			first = time.Since(begin)
		}
		if got := lines.Text(); got != strconv.Itoa(i) {
			t.Fatalf("line %d is %q", i, got)
		}
	}
	took := time.Since(begin)
	if lines.Scan() {
		t.Errorf("one line too many: %q", lines.Text())
	}
	for _, c := range []*exec.Cmd{seq, send, recv} {
		if err := c.Wait(); err != nil {
			t.Errorf("%v: %v", c.Args, err)
		}
	}
	rate := float64(n) / took.Seconds()
	t.Logf("%d lines in %v: %.2f M lines/s; after the first line (%v): %.2f M lines/s", n, took.Round(time.Millisecond), rate/1e6,
		first.Round(time.Millisecond), float64(n)/(took-first).Seconds()/1e6)
	if rate < atLeast {
		t.Errorf("%.0f lines/s, less than %.0f", rate, atLeast)
	}
}
