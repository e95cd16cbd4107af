package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/kumquat-mq/kumquat/tour"
)

// TestMain lets the test binary be the command too: scripts run it under the name kumquat, and the tour starts it again.
func TestMain(m *testing.M) {
	tour.Child()
	// A process with the race detector waits a second before it ends, and there are hundreds.
	os.Setenv("GORACE", raceOptions)
	testscript.Main(noLeaks{m}, map[string]func(){"kumquat": main})
}

const raceOptions = "atexit_sleep_ms=0"

// noLeaks fails the tests if a goroutine is left after them.
type noLeaks struct{ m *testing.M }

func (n noLeaks) Run() int {
	code := n.m.Run()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// shm makes a private folder of queues in memory.
func shm() (string, error) { return os.MkdirTemp("/dev/shm", "kumquat-command-test-") }

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			dir, err := shm()
			if err != nil {
				return err
			}
			e.Defer(func() { os.RemoveAll(dir) })
			e.Setenv("KUMQUAT_SHM", dir)
			e.Setenv("GORACE", raceOptions)
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"code":      scriptCode,
			"await":     scriptAwait,
			"awaitfile": scriptAwaitFile,
			"json":      scriptJSON,
		},
		Deadline: time.Now().Add(2 * time.Minute),
	})
}

// scriptCode runs a program that must end with an exit code: code 4 kumquat recv /q --timeout 0.
func scriptCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N program args…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, not %d", got, want)
	}
}

// scriptAwait waits until a field of a queue has a value: await /q messages 3.
func scriptAwait(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: await queue field value")
	}
	await(ts, ts.Getenv("KUMQUAT_SHM"), args[0], args[1], args[2])
}

// patience is how long tests wait for what must come.
const patience = 20 * time.Second

// await waits until a field of a queue, as stat --json has it, has a value.
func await(t interface{ Fatalf(string, ...any) }, dir, queue, field, want string) {
	var out []byte
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		c := exec.Command(os.Args[0], "stat", queue, "--json")
		c.Args[0] = "kumquat"
		c.Env = append(os.Environ(), "KUMQUAT_SHM="+dir)
		var err error
		if out, err = c.Output(); err != nil {
			continue // not created yet
		}
		var m map[string]any
		if err := json.Unmarshal(out, &m); err != nil {
			t.Fatalf("%v in %q", err, out)
		}
		if fmt.Sprint(m[field]) == want {
			return
		}
	}
	t.Fatalf("%s of %s did not become %s: %s", field, queue, want, out)
}

// scriptAwaitFile waits until a line of a file matches: awaitfile events removed.
func scriptAwaitFile(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: awaitfile file expression")
	}
	awaitFile(ts, ts.MkAbs(args[0]), regexp.MustCompile("(?m)"+args[1]))
}

func awaitFile(t interface{ Fatalf(string, ...any) }, name string, re *regexp.Regexp) {
	var got []byte
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		got, _ = os.ReadFile(name) // it may not be there yet
		if re.Match(got) {
			return
		}
	}
	t.Fatalf("%s does not match %s: %s", name, re, got)
}

// scriptJSON checks that each line of a file, or of stdout, is JSON whose field has a value that matches: json stdout kind ^sent$.
func scriptJSON(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: json file field expression")
	}
	re := regexp.MustCompile(args[2])
	dec := json.NewDecoder(filepathReader(ts, args[0]))
	n := 0
	for ; dec.More(); n++ {
		var m map[string]any
		ts.Check(dec.Decode(&m))
		if v := fmt.Sprint(m[args[1]]); !re.MatchString(v) {
			ts.Fatalf("object %d: %s is %q, which does not match %s", n+1, args[1], v, args[2])
		}
	}
	if n == 0 {
		ts.Fatalf("no JSON there")
	}
}

// binary returns a copy of this program, under the name kumquat, that every user can run.
func binary(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kumquat-bin-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "kumquat")
	if err := errors.Join(os.WriteFile(path, data, 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

// privateShm makes a folder of queues for one test.
func privateShm(t *testing.T) string {
	t.Helper()
	dir, err := shm()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// command returns the command with arguments, run as a process of its own on the queues in dir.
func command(t *testing.T, dir string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(self)
	c.Args = append([]string{"kumquat"}, args...)
	c.Env = append(os.Environ(), "KUMQUAT_SHM="+dir)
	return c
}

// must runs the command and returns its standard output.
func mustRun(t *testing.T, dir string, args ...string) string {
	t.Helper()
	c := command(t, dir, args...)
	c.Stderr = os.Stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("kumquat %v: %v", args, err)
	}
	return string(out)
}
