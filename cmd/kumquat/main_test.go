package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/tour"
)

// TestMain lets the test binary be the command too: scripts run it under the name kumquat, and the tour starts it again.
//
// The tests run in an IPC namespace of their own, if that is allowed: they see no queues of the kernel but their own there, cannot
// touch those of others, and what they should leave behind in a crash goes with it.
func TestMain(m *testing.M) {
	tour.Child()
	switch ns := os.Getenv(joinVar); {
	case ns != "":
		joinSpace(ns)
	case filepath.Base(os.Args[0]) != "kumquat" && os.Getenv(spaceVar) == "":
		enterSpace()
	}
	// A process with the race detector waits a second before it ends, and there are hundreds.
	os.Setenv("GORACE", raceOptions)
	testscript.Main(noLeaks{m}, map[string]func(){"kumquat": main})
}

const (
	spaceVar = "KUMQUAT_TEST_IPC"  // "own": in an IPC namespace of the tests; "shared": that was not allowed
	joinVar  = "KUMQUAT_TEST_JOIN" // the IPC namespace of a script, which its commands enter
)

// joinSpace starts this program over in an IPC namespace that is there already.
func joinSpace(ns string) {
	runtime.LockOSThread()
	os.Unsetenv(joinVar)
	f, err := os.Open(ns)
	if err == nil {
		err = unix.Setns(int(f.Fd()), unix.CLONE_NEWIPC)
	}
	if err == nil {
		err = syscall.Exec("/proc/self/exe", os.Args, os.Environ())
	}
	fmt.Fprintf(os.Stderr, "entering the IPC namespace of the script: %v\n", err)
	os.Exit(99)
}

// newSpace makes an IPC namespace and returns its path in /proc, or nothing if that is not allowed. It ends with the test.
func newSpace(e *testscript.Env) string {
	c := exec.Command("sleep", "1000")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWIPC, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the child ends with the thread that started it
	if c.Start() != nil {
		return ""
	}
	e.Defer(func() {
		c.Process.Kill()
		c.Wait()
	})
	return fmt.Sprintf("/proc/%d/ns/ipc", c.Process.Pid)
}

// enterSpace starts this program over in a new IPC namespace. It returns only if that is impossible.
func enterSpace() {
	runtime.LockOSThread() // the namespace is this thread's, and that of what it executes
	if err := unix.Unshare(unix.CLONE_NEWIPC); err == nil {
		for name, n := range map[string]string{"kernel/msgmnb": "1000000", "kernel/msgmax": "100000", "fs/mqueue/msg_max": "1000"} {
			_ = os.WriteFile("/proc/sys/"+name, []byte(n), 0) // where that is refused the tests do with less
		}
		os.Setenv(spaceVar, "own")
		_ = syscall.Exec("/proc/self/exe", os.Args, os.Environ())
	}
	os.Setenv(spaceVar, "shared")
	runtime.UnlockOSThread()
	// A thread of a program cannot enter a user namespace alone, so a new process does; the fuzzer's own have descriptors to lose.
	if slices.ContainsFunc(os.Args, func(arg string) bool { return strings.HasPrefix(arg, "-test.fuzzworker") }) {
		return
	}
	uid, gid := os.Getuid(), os.Getgid()
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Args[0] = os.Args[0]
	c.Env = append(os.Environ(), spaceVar+"=own")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWIPC, Pdeathsig: syscall.SIGKILL,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}},
	}
	if c.Start() != nil {
		return
	}
	_ = c.Wait() // its exit code says it
	if code := c.ProcessState.ExitCode(); code >= 0 {
		os.Exit(code)
	}
	os.Exit(2)
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
	var alone sync.Map // script → whether it has an IPC namespace to itself
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
			// Those that look at all of the kernel's queues are alone with them, where that is allowed.
			name := strings.TrimPrefix(filepath.Base(e.WorkDir), "script-")
			if i := slices.Index([]string{"kernel", "unused", "move"}, name); i >= 0 {
				e.Setenv("KEY", fmt.Sprintf("0x4b%06x", (os.Getpid()<<2|i+1)&0xffffff)) // of the System V queues of the script
				ns := newSpace(e)
				e.Setenv(joinVar, ns)
				alone.Store(name, ns != "")
			}
			return nil
		},
		Condition: func(cond string) (bool, error) {
			name, is := strings.CutPrefix(cond, "alone:")
			ok, _ := alone.Load(name)
			switch {
			case is:
				return ok == true, nil
			case cond == "root":
				return os.Getuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"code":      scriptCode,
			"await":     scriptAwait,
			"awaitfile": scriptAwaitFile,
			"json":      scriptJSON,
			"awaitwho":  scriptAwaitWho,
			"inspect":   scriptInspect,
			"blind":     scriptBlind,
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
	await(ts, ts.Getenv("KUMQUAT_SHM"), args[0], args[1], args[2], joinVar+"="+ts.Getenv(joinVar))
}

// patience is how long tests wait for what must come.
const patience = 20 * time.Second

// await waits until a field of a queue, as stat --json has it, has a value.
func await(t interface{ Fatalf(string, ...any) }, dir, queue, field, want string, env ...string) {
	var out []byte
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		c := exec.Command(os.Args[0], "stat", queue, "--json")
		c.Args[0] = "kumquat"
		c.Env = append(append(os.Environ(), "KUMQUAT_SHM="+dir), env...)
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

// scriptAwaitWho waits until who tells something of a queue: awaitwho sysv:0x1 'waits to receive'.
func scriptAwaitWho(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: awaitwho queue text")
	}
	var out []byte
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		c := exec.Command(os.Args[0], "who", args[0])
		c.Args[0] = "kumquat"
		c.Env = append(os.Environ(), "KUMQUAT_SHM="+ts.Getenv("KUMQUAT_SHM"), joinVar+"="+ts.Getenv(joinVar))
		if out, _ = c.Output(); strings.Contains(string(out), args[1]) {
			return
		}
	}
	ts.Fatalf("who %s does not say %q: %s", args[0], args[1], out)
}

// scriptInspect runs the command where every process can be inspected: those that even this root may not look into, as the first one of
// some containers, get an empty folder over their place in /proc.
func scriptInspect(ts *testscript.TestScript, neg bool, args []string) {
	script := `for p in /proc/[0-9]*; do
		if ! read _ 2>/dev/null <$p/syscall && [ -d $p/task ]; then mount -t tmpfs none $p || exit 99; fi
	done
	exec "$@"`
	if neg || len(args) < 2 {
		ts.Fatalf("usage: inspect program args…")
	}
	ts.Check(ts.Exec("unshare", append([]string{"--mount", "sh", "-c", script, "sh"}, args...)...))
}

// scriptBlind runs the command in a PID namespace of its own, from which it sees itself only.
func scriptBlind(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: blind program args…")
	}
	// The namespace of the script is entered first: the path to it leads nowhere in the other /proc.
	all := []string{"--ipc=" + ts.Getenv(joinVar), "env", "-u", joinVar, "unshare", "--pid", "--fork", "--mount-proc"}
	ts.Check(ts.Exec("nsenter", append(all, args...)...))
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
