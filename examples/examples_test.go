// Package examples has programs to learn from, one in each folder; README.md is the course that goes with them. Its tests run every
// program on the engine and on each of the kernel's queues that can do what it shows.
package examples

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/shm"
)

// example is what the test knows of a program. What it prints on the engine stands in output.txt in its folder.
type example struct {
	name string
	// parts: the output comes from several processes, each of which prints when it comes to it. The lines of each, told by what
	// stands before the first ": ", are compared in their order.
	parts bool
	// blur matches what no two runs have in common: all but its first group becomes N.
	blur *regexp.Regexp
	// sums is a pattern with a number, and what all those numbers of the output must come to.
	sums map[string]int
	// differs has, for a kind of queue, the declared differences: what the engine prints, and what is printed instead.
	differs map[string][]string
	// cannot has the kinds of queues that cannot do what the program shows: it says so (ErrUnsupported) with status 1.
	cannot []string
}

// left is the exit status of the wrapper if the program has left a queue behind.
const left = 99

var programs string // the folder of the programs that TestMain has built

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == wrapper {
		os.Exit(wrap(os.Args[2:]))
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "kumquat-examples-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		programs = dir
		status := m.Run()
		if err := goleak.Find(); err != nil && status == 0 {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return status
	}())
}

// build builds all programs, once.
func build(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("left out by -short: other processes run the examples, so it has nothing to add")
	}
	if entries, err := os.ReadDir(programs); err != nil || len(entries) > 0 {
		return
	}
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", programs, "./...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
}

// available skips the test if this kernel has no queues of that kind.
func available(t *testing.T, kind string) {
	t.Helper()
	if kind == "sysv+priority" && !slices.Contains(kumquat.Schemes(), kind) {
		t.Skip("needs the driver of sysv+priority: queues, which package kumquat has not registered")
	}
	url := map[string]string{"": "/example/none", "posix": "posix:/example.none", "sysv": "sysv:0x4b000001", "sysv+priority": "sysv+priority:0x4b000001"}[kind]
	_, err := kumquat.Open(t.Context(), url, nil)
	if errors.Is(err, syscall.ENOSYS) || errors.Is(err, syscall.EPERM) {
		t.Skipf("needs a kernel that allows %s queues: %v", kind, err)
	}
	if !errors.Is(err, kumquat.ErrNotFound) {
		t.Fatal(err)
	}
}

// command is the command line of a program, inside a wrapper that looks afterwards whether it has left a queue.
func command(t *testing.T, kind string, args ...string) (cmd *exec.Cmd, stdout, stderr *bytes.Buffer) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "kumquat-examples-") // for the engine's queues
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	if kind != "" {
		kind += ":"
	}
	args = append([]string{wrapper, filepath.Join(programs, args[0]), "-on", kind}, args[1:]...)
	cmd = exec.CommandContext(ctx, self, args...)
	cmd.Env = append(os.Environ(), shm.EnvDir+"="+dir, mountVar+"="+t.TempDir())
	cmd.SysProcAttr = namespace(t)
	cmd.WaitDelay = time.Second
	stdout, stderr = new(bytes.Buffer), new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	return cmd, stdout, stderr
}

// A loop of sends takes the place of a batch, and stops where the room ends.
var noBatches = []string{
	"6 more: full, 0 sent", "6 more: full, 2 sent",
	"received 2: a5       a6      ", "received 4: a5       a6       b1       b2      ",
}

var noHeadroom = []string{
	"6 low ones, then it is full for them", "8 low ones, then it is full for them",
	"but not for the critical one, and it comes out first: stop the flood", "and for the critical one too: priority inversion",
}

// limits has what the kernel gives to a queue that asks for nothing, and refuses one that asks for much. What the limit is depends on
// the machine and on the user, so it is blurred.
func limits(defaults string) []string {
	return []string{
		"defaults: 65536 messages of 65536 bytes at most, mode -rw-------", "defaults: " + defaults + " at most, mode -rw-------",
		"large: 1000 messages of 4096 bytes at most, mode -rw-------",
		"large: ErrLimit, and its text says which one, and how to raise it:\n\tkumquat: open …",
	}
}

var (
	posixLimits = limits("10 messages of 8192 bytes")
	sysvLimits  = limits("16384 messages of 8192 bytes") // empty ones: 16,384 is a number of bytes and bounds the messages as well
)

var examples = []example{
	{name: "producer-consumer", parts: true},
	{name: "priorities", cannot: []string{"sysv"}},
	{name: "timeout"},
	{name: "notification", cannot: []string{"sysv", "sysv+priority"}, differs: map[string][]string{
		"posix": {
			"monday: told by a value in a channel", "monday: told by the signal \"user defined signal 1\"",
			"tuesday: told by a value in a channel", "tuesday: told by the signal \"user defined signal 1\"",
		},
	}},
	{name: "request-response", parts: true},
	{name: "types", cannot: []string{"posix", "sysv+priority"}},
	{name: "attributes", blur: regexp.MustCompile(`(\t)kumquat: open .*`),
		differs: map[string][]string{"posix": posixLimits, "sysv": sysvLimits, "sysv+priority": sysvLimits}},
	{name: "pool", blur: regexp.MustCompile(`(consumer \d: )\d+|\d+\.\d`), sums: map[string]int{`consumer \d: (\d+)`: 24}},
	{name: "select", parts: true},
	{name: "batching", differs: map[string][]string{"posix": noBatches, "sysv": noBatches, "sysv+priority": noBatches}},
	{name: "filtering", parts: true, cannot: []string{"posix", "sysv+priority"}},
	{name: "pipeline", parts: true},
	{name: "bands", cannot: []string{"sysv"}, differs: map[string][]string{"posix": noHeadroom, "sysv+priority": noHeadroom}},
}

// TestExamples runs each program on each kind of queue: only the URL is another, and so is nothing that it prints but for what is
// declared above.
func TestExamples(t *testing.T) {
	build(t)
	for _, e := range examples {
		for _, kind := range []string{"", "posix", "sysv", "sysv+priority"} {
			t.Run(e.name+" on "+kind, func(t *testing.T) {
				available(t, kind)
				cmd, stdout, stderr := command(t, kind, e.name)
				err := cmd.Run()
				if slices.Contains(e.cannot, kind) {
					if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(stderr.String(), kumquat.ErrUnsupported.Error()) {
						t.Errorf("it ended with %v and said %q; want status 1 and %q", err, stderr, kumquat.ErrUnsupported)
					}
					return
				}
				if err != nil || stderr.Len() > 0 {
					t.Errorf("%v\n%s", err, stderr)
				}
				want, err := os.ReadFile(filepath.Join(e.name, "output.txt"))
				if err != nil {
					t.Fatal(err)
				}
				expect := e.declared(t, kind, string(want))
				if got := e.normal(stdout.String()); got != e.normal(expect) {
					t.Errorf("it printed\n%s\nwant\n%s", got, e.normal(expect))
				}
				for pattern, want := range e.sums {
					sum := 0
					for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(stdout.String(), -1) {
						n, err := strconv.Atoi(m[1])
						if err != nil {
							t.Fatal(err)
						}
						sum += n
					}
					if sum != want {
						t.Errorf("the numbers of %q come to %d, not to %d:\n%s", pattern, sum, want, stdout)
					}
				}
			})
		}
	}
}

// declared puts the declared differences into what the engine prints. One that is not there is a mistake in the table.
func (e *example) declared(t *testing.T, kind, s string) string {
	t.Helper()
	for d := range slices.Chunk(e.differs[kind], 2) {
		if !strings.Contains(s, d[0]+"\n") {
			t.Fatalf("output.txt has no %q", d[0])
		}
		s = strings.ReplaceAll(s, d[0]+"\n", d[1]+"\n")
	}
	return s
}

func (e *example) normal(s string) string {
	if e.blur != nil {
		s = e.blur.ReplaceAllString(s, "${1}N")
	}
	if e.parts {
		lines := strings.Split(strings.TrimSuffix(s, "\n"), "\n")
		slices.SortStableFunc(lines, func(a, b string) int {
			a, _, _ = strings.Cut(a, ": ")
			b, _, _ = strings.Cut(b, ": ")
			return strings.Compare(a, b)
		})
		s = strings.Join(lines, "\n") + "\n"
	}
	return s
}

// TestCourse: every folder has its test and its place in the course, and the course's table says of each kind of queue what the test
// knows of it.
func TestCourse(t *testing.T) {
	course, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range entries {
		if !x.IsDir() || x.Name() == "lab" {
			continue
		}
		if !slices.ContainsFunc(examples, func(e example) bool { return e.name == x.Name() }) {
			t.Errorf("no test runs %s", x.Name())
		}
	}
	for _, e := range examples {
		if !strings.Contains(string(course), "\ngo run ./examples/"+e.name+"\n") {
			t.Errorf("README.md does not show %s", e.name)
		}
		row := regexp.MustCompile(`(?m)^\| \[` + e.name + `\]\(.*\) \| .* \| (.*) \| (.*) \| (.*) \|$`).FindStringSubmatch(string(course))
		if row == nil {
			t.Errorf("README.md has no row for %s", e.name)
			continue
		}
		for i, kind := range []string{"", "posix", "sysv"} {
			if cannot := strings.HasPrefix(row[i+1], "no"); cannot != slices.Contains(e.cannot, kind) {
				t.Errorf("README.md says of %s on %s: %q", e.name, kind, row[i+1])
			}
		}
	}
}

// TestInterrupt ends a server by SIGINT, as Ctrl-C does, while it waits. Its queue must be gone, and a second server can start.
func TestInterrupt(t *testing.T) {
	build(t)
	for _, kind := range []string{"", "posix", "sysv", "sysv+priority"} {
		t.Run("on "+kind, func(t *testing.T) {
			available(t, kind)
			cmd, _, stderr := command(t, kind, "request-response", "-role", "server")
			out := make(chan []byte, 16)
			cmd.Stdout = chanWriter(out)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			select {
			case <-out: // it has created its queue
			case <-time.After(30 * time.Second):
				t.Error("the server does not begin")
			}
			start := time.Now()
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Error(err)
			}
			err := cmd.Wait()
			if cmd.ProcessState.ExitCode() != 130 {
				t.Errorf("it ended with %v after %v; want status 130\n%s", err, time.Since(start), stderr)
			}
		})
	}
}

// chanWriter hands on what is written to it, and drops what nobody takes.
type chanWriter chan []byte

func (c chanWriter) Write(b []byte) (int, error) {
	select {
	case c <- bytes.Clone(b):
	default:
	}
	return len(b), nil
}
