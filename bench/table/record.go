package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/bench"
)

// The file of results: comments begin with #, those before the first command are of the machine; a command line begins with $ and
// what it printed follows, a line of JSON a subject.

// run runs the row's command and returns what goes into the file.
func (r row) run(ctx context.Context, o options, progress io.Writer) (string, error) {
	args := append([]string{"bench"}, strings.Fields(r.args)...)
	args = append(args, "--rounds", strconv.Itoa(o.rounds), "--target", o.target.String(), "--json")
	cmd := exec.CommandContext(ctx, o.kumquat, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) } // it ends its children and removes its queues
	cmd.WaitDelay = 10 * time.Second
	var out, notes bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, io.MultiWriter(&notes, progress)
	before := times()
	err := cmd.Run()
	after := times()
	text := fmt.Sprintf("$ kumquat %s\n", strings.Join(args, " "))
	for _, line := range strings.Split(strings.TrimSpace(notes.String()), "\n") {
		if line != "" {
			text += "# " + line + "\n"
		}
	}
	if stolen := after.share(before, after.stolen-before.stolen); stolen >= 0.01 {
		text += fmt.Sprintf("# other machines of the host took %.0f %% of the processors' time\n", 100*stolen)
	}
	return text + out.String(), err
}

// parse reads a file of results: the lines under each command, by its arguments up to --rounds, and the head.
func parse(r io.Reader) (got map[string][]bench.Result, head []string, err error) {
	got = map[string][]bench.Result{}
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	command := ""
	for n := 1; s.Scan(); n++ {
		line := s.Text()
		switch {
		case strings.HasPrefix(line, "$ kumquat bench "):
			command, _, _ = strings.Cut(strings.TrimPrefix(line, "$ kumquat bench "), " --rounds ")
			got[command] = nil // of a command that was run twice the last counts
		case strings.HasPrefix(line, "#"):
			if command == "" {
				head = append(head, line)
			}
		case strings.HasPrefix(line, "{"):
			var x bench.Result
			if err := json.Unmarshal([]byte(line), &x); err != nil {
				return nil, nil, fmt.Errorf("line %d: %w", n, err)
			}
			got[command] = append(got[command], x)
		case line != "":
			return nil, nil, fmt.Errorf("line %d is neither a comment, a command nor a result", n)
		}
	}
	return got, head, s.Err()
}

// head describes when, where and what is measured.
func head(o options) []string {
	hosted := "no hypervisor"
	cpu := ""
	info, _ := os.ReadFile("/proc/cpuinfo") // where it is missing the line says less
	for line := range strings.Lines(string(info)) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "model name":
			cpu = strings.TrimSpace(value)
		case "flags":
			if strings.Contains(value, " hypervisor") {
				hosted = "a virtual machine"
			}
		}
	}
	kernel := ""
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Machine[:])
	}
	isolation := ""
	if text, err := os.ReadFile("/sys/devices/system/cpu/vulnerabilities/meltdown"); err == nil && strings.Contains(string(text), "PTI") {
		isolation = " with page-table isolation"
	} else if err == nil {
		isolation = " without page-table isolation"
	}
	revision := ""
	if o.revision != "" {
		revision = "kumquat " + o.revision + ", "
	}
	peers := ""
	for _, p := range [][2]string{{"g++", "#"}, {"Boost", "boost/version.hpp\nBOOST_LIB_VERSION"}, {"ZeroMQ", "zmq.h\nZMQ_VERSION_MAJOR.ZMQ_VERSION_MINOR.ZMQ_VERSION_PATCH"}} {
		if v := nativeVersion(p[1]); v != "" {
			peers += ", " + p[0] + " " + v
		}
	}
	return []string{
		"# " + time.Now().UTC().Format("2006-01-02 15:04 UTC"),
		fmt.Sprintf("# %d processors (%s), %s, %s%s", runtime.NumCPU(), cpu, hosted, kernel, isolation),
		fmt.Sprintf("# %s%s%s", revision, runtime.Version(), peers),
		fmt.Sprintf("# medians of %d alternating rounds of %v or more", o.rounds, o.target),
	}
}

// nativeVersion asks the preprocessor for a header's macros; "#" asks for the compiler's own version. It is empty where one of the
// two is not there.
func nativeVersion(of string) string {
	if of == "#" {
		out, err := exec.Command("g++", "-dumpfullversion").Output()
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(out))
	}
	header, macro, _ := strings.Cut(of, "\n")
	cmd := exec.Command("g++", "-E", "-P", "-xc++", "-")
	cmd.Stdin = strings.NewReader("#include <" + header + ">\nVERSION " + strings.ReplaceAll(macro, ".", " . ") + "\n")
	out, err := cmd.Output()
	if err != nil {
		return ""
	}
	_, value, _ := strings.Cut(string(out), "VERSION ")
	return strings.NewReplacer(" ", "", `"`, "", "_", ".", "\n", "").Replace(value)
}

// cpuTimes are the first numbers of /proc/stat, in ticks since the start of the machine.
type cpuTimes struct{ all, idle, stolen uint64 }

func times() (t cpuTimes) {
	text, _ := os.ReadFile("/proc/stat") // without it nothing is said of idle and stolen time
	line, _, _ := strings.Cut(string(text), "\n")
	for i, field := range strings.Fields(line) {
		n, _ := strconv.ParseUint(field, 10, 64)
		switch i {
		case 0, 9, 10: // the name; guests are within user
			continue
		case 4, 5:
			t.idle += n
		case 8:
			t.stolen += n
		}
		t.all += n
	}
	return t
}

// share returns part of the time since before.
func (t cpuTimes) share(before cpuTimes, part uint64) float64 {
	if t.all == before.all {
		return 0
	}
	return float64(part) / float64(t.all-before.all)
}

// quietShare is how idle a quiet machine is.
const quietShare = 0.95

// quiet waits until the machine has been idle for two seconds, and returns how idle it was at last; 1 if it is not to look.
func quiet(ctx context.Context, atMost time.Duration) float64 {
	idle := 1.0
	for begin := time.Now(); time.Since(begin) < atMost; {
		before := times()
		select {
		case <-ctx.Done():
			return idle
		case <-time.After(2 * time.Second):
		}
		after := times()
		if idle = after.share(before, after.idle-before.idle); idle >= quietShare {
			break
		}
	}
	return idle
}
