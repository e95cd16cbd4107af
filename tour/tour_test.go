package tour

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kumquat-mq/kumquat"
)

func TestMain(m *testing.M) {
	Child()
	goleak.VerifyTestMain(m)
}

// makeFolder makes n files of all kinds, some hidden, some empty, in folders, and a symbolic link, which is none of them.
func makeFolder(t *testing.T, n int) string {
	t.Helper()
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(1, uint64(n)))
	exts := []string{".go", ".md", ".bin", ".yml", ""}
	for i := range n {
		sub := []string{".", "a", ".hidden", "a/b c"}[i%4]
		body := make([]byte, r.IntN(20_000)*(i%9)/8)
		for j := range body {
			body[j] = byte(r.Uint32())
		}
		write(t, filepath.Join(dir, sub, fmt.Sprintf("f%d%s", i, exts[i%len(exts)])), body)
	}
	if err := os.Symlink("/etc", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t *testing.T, path string, body []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, body, 0o644); err != nil {
		t.Fatal(err)
	}
}

// run makes a tour and returns what it wrote. It fails the test if anything is left behind.
func run(t *testing.T, ctx context.Context, o Options) (string, error) {
	t.Helper()
	var out bytes.Buffer
	o.Out = &out
	err := Run(ctx, o)
	if c := children(t); len(c) > 0 {
		t.Errorf("processes are left: %v", c)
	}
	list, lerr := kumquat.List(context.Background(), fmt.Sprintf("%s%d-*", prefix, os.Getpid()))
	if lerr != nil || len(list) > 0 {
		t.Errorf("queues are left: %v, %v", list, lerr)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("\n" + out.String())
		}
	})
	return out.String(), err
}

// children returns the process ids of this process's children, zombies included.
func children(t *testing.T) (pids []string) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(tasks) == 0 {
		t.Skip("needs a kernel that lists children in /proc")
	}
	for _, f := range tasks {
		b, err := os.ReadFile(f)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) { // the thread has ended
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, strings.Fields(string(b))...)
	}
	return pids
}

func wantLines(t *testing.T, out string, lines ...string) {
	t.Helper()
	for _, want := range lines {
		found := false
		for line := range strings.Lines(out) {
			line = strings.TrimSuffix(line, "\n")
			found = found || line == want || strings.HasSuffix(want, "…") && strings.HasPrefix(line, strings.TrimSuffix(want, "…"))
		}
		if !found {
			t.Errorf("no line %q in\n%s", want, out)
		}
	}
}

func TestTour(t *testing.T) {
	dir := makeFolder(t, 300)
	write(t, filepath.Join(dir, "big.bin"), bytes.Repeat([]byte("kumquat "), 300_000)) // read in place
	write(t, filepath.Join(dir, "no utf-8 \xff\n.go"), []byte("name"))
	write(t, filepath.Join(dir, strings.Repeat("deep/", 700)[:200]+strings.Repeat("n", 200)), nil)
	out, err := run(t, t.Context(), Options{Folder: dir})
	if err != nil {
		t.Fatal(err)
	}
	wantLines(t, out, "files: 303", "fill: 2 producers…", "kill: consumer 1…", "stop: consumer 2…", "wake: consumer 2…", "again: …", "hold-up: …", "proved: each of 303 files…")
	if strings.Contains(out, "had in hand: nothing") || strings.Contains(out, "took with it: nothing") {
		t.Errorf("a victim held nothing:\n%s", out)
	}
}

// TestFewFiles: too few files to show everything are still sent, received and proved.
func TestFewFiles(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 5} {
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			out, err := run(t, t.Context(), Options{Folder: makeFolder(t, n)})
			if err != nil {
				t.Fatal(err)
			}
			wantLines(t, out, fmt.Sprintf("files: %d", n))
			switch n {
			case 0:
				wantLines(t, out, "nothing to prove…")
			default:
				wantLines(t, out, "few: …", "kill: …", "stop: …", "wake: …", "again: …")
			}
		})
	}
}

// TestHugeBodies makes the consumers hash in place, where the message lies in the queue, and the victims die and sleep with a loan.
func TestHugeBodies(t *testing.T) {
	dir := t.TempDir()
	for i := range 8 {
		write(t, filepath.Join(dir, fmt.Sprintf("f%d", i)), bytes.Repeat([]byte{byte(i)}, 17<<20))
	}
	out, err := run(t, t.Context(), Options{Folder: dir})
	if err != nil {
		t.Fatal(err)
	}
	wantLines(t, out, "files: 8", "again: …")
}

// TestRounds gives the tour less memory than the files need: they go in rounds, and a file larger than all of it stays out.
func TestRounds(t *testing.T) {
	dir := makeFolder(t, 100)
	write(t, filepath.Join(dir, "huge"), make([]byte, 9<<20))
	out, err := run(t, t.Context(), Options{Folder: dir, room: baseCost + 600<<10})
	if err != nil {
		t.Fatal(err)
	}
	wantLines(t, out, "files: 100", "rounds: the files are sent in…", "left out: huge: 9.0 MiB are more than the room…")
	if n := strings.Count(out, "\nfill: "); n < 2 {
		t.Errorf("%d rounds", n)
	}
}

// TestChanging writes to files, removes one and makes one grow after the scan.
func TestChanging(t *testing.T) {
	dir := makeFolder(t, 40)
	write(t, filepath.Join(dir, "later"), []byte("before"))
	write(t, filepath.Join(dir, "before"), []byte("first"))
	write(t, filepath.Join(dir, "gone"), []byte("soon"))
	write(t, filepath.Join(dir, "grown"), []byte("small"))
	out, err := run(t, t.Context(), Options{Folder: dir, at: func(step string, _ fields) {
		switch step {
		case "queue":
			write(t, filepath.Join(dir, "before"), []byte("second, longer"))
			write(t, filepath.Join(dir, "grown"), make([]byte, 1<<20))
			if err := os.Remove(filepath.Join(dir, "gone")); err != nil {
				t.Error(err)
			}
		case "fill":
			write(t, filepath.Join(dir, "later"), []byte("after"))
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	wantLines(t, out, "files: 42", "left out: gone: no such file or directory", "left out: grown: it has grown to 1.0 MiB since the scan",
		"changed: later was written to…")
	if strings.Contains(out, "changed: before") { // what arrived is what the disk has
		t.Errorf("a file that changed before it was sent is called changed:\n%s", out)
	}
}

// TestHeldFileGone removes the file that the killed consumer took with it, so that it cannot be sent again.
func TestHeldFileGone(t *testing.T) {
	dir := makeFolder(t, 40)
	held := ""
	out, err := run(t, t.Context(), Options{Folder: dir, at: func(step string, f fields) {
		if step == "kill" {
			held = f["in_hand"].(string)
			if err := os.Remove(filepath.Join(dir, held)); err != nil {
				t.Error(err)
			}
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	wantLines(t, out, "files: 39", "left out: "+held+" cannot be sent again: no such file or directory")
}

// TestInterrupted ends the tour at each of its steps: as Ctrl-C does, by the context.
func TestInterrupted(t *testing.T) {
	dir := makeFolder(t, 60)
	for _, step := range []string{"scan", "queue", "fill", "consumers", "kill", "stop", "drain", "wake", "again", "check"} {
		t.Run(step, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			begin := time.Now()
			_, err := run(t, ctx, Options{Folder: dir, at: func(s string, _ fields) {
				if s == step {
					cancel()
				}
			}})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("the error is %v", err)
			}
			if d := time.Since(begin); d > 20*time.Second {
				t.Errorf("it took %s", d)
			}
		})
	}
}

// TestSignal interrupts the tour by a signal to the process, in a process of its own.
func TestSignal(t *testing.T) {
	_, err := run(t, t.Context(), Options{Folder: makeFolder(t, 60), at: func(s string, _ fields) {
		if s == "stop" {
			if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
				t.Error(err)
			}
			time.Sleep(100 * time.Millisecond) // until the signal has become the end of the context
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
}

// TestChildDies kills a process that the tour does not expect to die.
func TestChildDies(t *testing.T) {
	var once sync.Once
	_, err := run(t, t.Context(), Options{Folder: makeFolder(t, 60), at: func(s string, _ fields) {
		if s == "kill" {
			once.Do(func() {
				for _, pid := range children(t) {
					n, err := strconv.Atoi(pid)
					if err != nil {
						t.Error(err)
					}
					if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}})
	var f *Failure
	if !errors.As(err, &f) && err == nil {
		t.Error("the tour did not notice")
	}
}

func TestJSON(t *testing.T) {
	out, err := run(t, t.Context(), Options{Folder: makeFolder(t, 30), JSON: true})
	if err != nil {
		t.Fatal(err)
	}
	steps := map[string]map[string]any{}
	for line := range strings.Lines(out) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		steps[m["step"].(string)] = m
	}
	if n := steps["files"]["files"]; n != 30.0 {
		t.Errorf("files is %v", n)
	}
	if ok := steps["result"]["ok"]; ok != true {
		t.Errorf("ok is %v", ok)
	}
}

func TestNoFolder(t *testing.T) {
	if _, err := run(t, t.Context(), Options{Folder: filepath.Join(t.TempDir(), "nowhere")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the error is %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, nil)
	if _, err := run(t, t.Context(), Options{Folder: file}); err == nil {
		t.Error("a file was taken for a folder")
	}
}

// TestStale: the queue of a tour that was killed is removed by the next one.
func TestStale(t *testing.T) {
	name := newName()
	q, err := kumquat.Open(t.Context(), name, &kumquat.Options{Create: true, MaxMessages: 1})
	if err != nil {
		t.Fatal(err)
	}
	removeStale(t.Context())
	if _, err := q.Stat(t.Context()); err != nil {
		t.Fatalf("a queue that is open was removed: %v", err)
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	removeStale(t.Context())
	if err := kumquat.Remove(t.Context(), name); !errors.Is(err, kumquat.ErrNotFound) {
		t.Errorf("the queue is still there: %v", err)
	}
}
