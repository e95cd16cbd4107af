package shm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
	"golang.org/x/sys/unix"
)

// within fails the test with what if f takes longer than d.
func within(t testing.TB, d time.Duration, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(d):
		t.Fatalf("%s takes longer than %v", what, d)
	}
}

// filled opens a queue with messages that need every part of the file.
func filled(t testing.TB, d Driver, name string) *Queue {
	t.Helper()
	q := openQueue(t, d, name, &driver.Options{Create: true, MaxMessages: 30, MaxSize: 9000, MaxHandles: 4})
	for i := range 10 {
		m := driver.Message{Body: make([]byte, i*900), Priority: i * 3000, Type: 1, ID: "a", Headers: map[string]string{"k": string(make([]byte, i*100))}}
		if i%3 == 0 {
			m.Expires = time.Now().Add(time.Hour)
		}
		if err := q.Send(context.Background(), m, true); err != nil {
			t.Fatal(err)
		}
	}
	return q
}

// A file that is cut while a process has it mapped gives ErrCorrupt in every operation, and no signal ends the process.
func TestTruncatedEveryOperation(t *testing.T) {
	t.Parallel()
	d := shmDir(t)
	n := 0
	for _, cut := range []string{"0", "page", "half", "slots", "0 and back"} {
		for i := range operations {
			op := &operations[i]
			n++
			name := fmt.Sprintf("/cut%d", n)
			q := filled(t, d, name)
			tryBody(t, q)
			size := int64(q.size)
			f, err := os.OpenFile(fileOf(d, name), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			to := map[string]int64{"0": 0, "page": pageSize, "half": size / 2, "slots": int64(q.slotsAt)}[cut]
			if err := f.Truncate(to); err != nil {
				t.Fatal(err)
			}
			if cut == "0 and back" {
				if err := f.Truncate(size); err != nil {
					t.Fatal(err)
				}
			}
			_ = f.Close()
			u := &caller{q: q, r: rand.New(rand.NewPCG(1, uint64(i))), buf: make([]byte, 9000), fail: func(format string, a ...any) {
				t.Errorf("cut to %s: %s", cut, fmt.Sprintf(format, a...))
			}}
			for range 2 {
				within(t, callLimit, op.name, func() { err = u.call(op.name, func() error { return op.do(u) }) })
				if to <= pageSize && cut != "0 and back" && !errors.Is(err, driver.ErrCorrupt) && op.name != "peek" && op.name != "check" {
					t.Errorf("%s, cut to %s: %v", op.name, cut, err)
				}
			}
			within(t, callLimit, "close", func() { err = q.Close() })
			if err != nil && kindOfError(err) == "" {
				t.Errorf("close after %s, cut to %s: %v", op.name, cut, err)
			}
			if q.SendBytes(context.Background(), nil, 0, true) == nil {
				t.Errorf("a closed handle sends")
			}
			if cut != "0 and back" {
				if _, err := d.OpenQueue(context.Background(), name, nil); !errors.Is(err, driver.ErrCorrupt) {
					t.Errorf("open of a file cut to %s: %v", cut, err)
				}
			}
			if err := d.Remove(context.Background(), name); err != nil {
				t.Errorf("remove of a file cut to %s: %v", cut, err)
			}
		}
	}
}

// Those who sleep when the file is cut come back with ErrCorrupt, and Close ends although they were in the middle of things.
func TestTruncatedUnderSleepers(t *testing.T) {
	t.Parallel()
	d := shmDir(t)
	ctx := context.Background()
	for _, to := range []int64{0, pageSize} {
		empty := openQueue(t, d, "/empty", &driver.Options{Create: true, MaxMessages: 4, MaxSize: 100})
		full := openQueue(t, d, "/full", &driver.Options{Create: true, MaxMessages: 4, MaxSize: 100})
		for range 4 {
			sendBody(t, full, "x", 1)
		}
		calls := map[string]func() error{
			"receive":          func() error { _, err := empty.Receive(ctx, driver.Filter{}, false); return err },
			"receive again":    func() error { _, err := empty.Receive(ctx, driver.Filter{}, false); return err },
			"filtered receive": func() error { _, err := empty.Receive(ctx, driver.Filter{Type: 3}, false); return err },
			"receive into":     func() error { _, _, err := empty.ReceiveInto(ctx, make([]byte, 100), false); return err },
			"receive batch":    func() error { _, err := empty.ReceiveBatch(ctx, nil, driver.Filter{}, 3, false); return err },
			"borrow":           func() error { _, err := empty.Borrow(ctx, driver.Filter{}, false); return err },
			"send":             func() error { return full.SendBytes(ctx, nil, 1, false) },
			"send again":       func() error { return full.SendBytes(ctx, nil, 1, false) },
			"send batch":       func() error { return full.SendBatch(ctx, make([]driver.Message, 3), false) },
			"watch": func() (last error) {
				for _, err := range empty.Watch(ctx) {
					last = err
				}
				return last
			},
			"notify": func() error {
				c, err := empty.Notify(ctx)
				if err == nil {
					for range c {
					}
					err = empty.usable()
				}
				return err
			},
		}
		woken := make(chan struct{})
		if ready, _, err := empty.Ready(driver.Filter{}, func() { close(woken) }); ready || err != nil {
			t.Fatal(ready, err)
		}
		fd, err := empty.FD()
		if err != nil {
			t.Fatal(err)
		}
		type result struct {
			name string
			err  error
		}
		results := make(chan result)
		for name, f := range calls {
			go func() { results <- result{name, f()} }()
		}
		waitUntil(t, "sleepers", func() bool { return empty.ops.Load() >= 6 && full.ops.Load() >= 3 })
		time.Sleep(30 * time.Millisecond)
		for _, name := range []string{"/empty", "/full"} {
			if err := os.Truncate(fileOf(d, name), to); err != nil {
				t.Fatal(err)
			}
		}
		late := time.After(callLimit)
		for range calls {
			select {
			case r := <-results:
				if !errors.Is(r.err, driver.ErrCorrupt) {
					t.Errorf("%s of a file cut to %d: %v", r.name, to, r.err)
				}
			case <-late:
				t.Fatal("not all sleepers came back")
			}
		}
		select {
		case <-woken:
		case <-late:
			t.Error("Ready's wake was not called")
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 5000); n != 1 {
			t.Errorf("the descriptor does not become readable: %d, %v", n, err)
		}
		for _, q := range []*Queue{empty, full} {
			within(t, callLimit, "close", func() { err = q.Close() })
			if err != nil {
				t.Errorf("close: %v", err)
			}
		}
		for _, name := range []string{"/empty", "/full"} {
			if err := d.Remove(ctx, name); err != nil {
				t.Errorf("remove: %v", err)
			}
		}
	}
}

func waitUntil(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(callLimit); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not in time", what)
		}
	}
}

// The file is cut, and the handle closed, while goroutines are in the middle of sends and receives.
func TestTruncatedInUse(t *testing.T) {
	t.Parallel()
	if raceEnabled {
		t.Skip("the race detector does atomic operations in C, where a fault that comes in the middle of one ends the process")
	}
	d := shmDir(t)
	rounds := 150
	if testing.Short() {
		rounds = 30
	}
	for i := range rounds {
		q := openQueue(t, d, "/busy", &driver.Options{Create: true, MaxMessages: 10, MaxSize: 9000, MaxHandles: 2})
		var wg sync.WaitGroup
		var n atomic.Int64
		for g := range 4 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				body := make([]byte, g*2500)
				for {
					var err error
					if g%2 == 0 {
						err = q.SendBytes(context.Background(), body, g, false)
					} else {
						_, err = q.Receive(context.Background(), driver.Filter{}, false)
					}
					if err != nil {
						if !errors.Is(err, driver.ErrCorrupt) && !errors.Is(err, driver.ErrClosed) {
							t.Errorf("round %d: %v", i, err)
						}
						return
					}
					n.Add(1)
				}
			}()
		}
		waitUntil(t, "work", func() bool { return n.Load() > 20 })
		close1 := func() { within(t, callLimit, "close", func() { _ = q.Close() }) }
		if i%2 == 0 {
			cut := make(chan struct{})
			go func() { defer close(cut); _ = os.Truncate(fileOf(d, "/busy"), 0) }()
			close1()
			<-cut
		} else {
			_ = os.Truncate(fileOf(d, "/busy"), pageSize)
			close1()
		}
		within(t, callLimit, "the end of all calls", wg.Wait)
		if err := os.Remove(fileOf(d, "/busy")); err != nil {
			t.Fatal(err)
		}
	}
}

// A handle that is closed sends away those who sleep in it, and from then on touches nothing: its addresses may be another queue's.
func TestCloseUnderUse(t *testing.T) {
	t.Parallel()
	d := shmDir(t)
	o := &driver.Options{Create: true, MaxMessages: 4, MaxSize: 100, MaxHandles: 2}
	victim := openQueue(t, d, "/victim", o)
	body := make([]byte, 100)
	for i := range 300 {
		q := openQueue(t, d, "/closed", o)
		calls := []func() error{
			func() error { _, err := q.Receive(context.Background(), driver.Filter{}, false); return err },
			func() error { _, err := q.Receive(context.Background(), driver.Filter{Type: 9}, false); return err },
			func() error { _, err := q.Purge(context.Background(), driver.Filter{}); return err },
			func() error { _, _, err := q.Ready(driver.Filter{}, func() {}); return err },
			func() error { return q.SendBatch(context.Background(), make([]driver.Message, 4), false) },
			func() error { return q.SendBytes(context.Background(), body, 1, false) },
			func() error {
				c, err := q.Notify(context.Background())
				if err == nil {
					for range c {
					}
				}
				return err
			},
		}
		var wg sync.WaitGroup
		for _, f := range calls {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for {
					if err := f(); err != nil {
						if !errors.Is(err, driver.ErrClosed) {
							t.Errorf("round %d: %v", i, err)
						}
						return
					}
				}
			}()
		}
		time.Sleep(time.Duration(i%10) * 100 * time.Microsecond)
		within(t, callLimit, "close", func() {
			if err := q.Close(); err != nil {
				t.Error(err)
			}
		})
		again := openQueue(t, d, "/other", o) // probably where the other was
		wg.Wait()
		mustBeSound(t, again)
		if s, err := again.Stat(context.Background()); err != nil || s.Messages != 0 {
			t.Fatalf("an untouched queue has %d messages, %v", s.Messages, err)
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
	mustBeSound(t, victim)
}

// Whatever lies where a queue should is refused, and removed only where that is safe.
func TestForeignFiles(t *testing.T) {
	t.Parallel()
	d := shmDir(t)
	ctx := context.Background()
	_ = filled(t, d, "/good").Close()
	good, err := os.ReadFile(fileOf(d, "/good"))
	if err != nil {
		t.Fatal(err)
	}
	header := func(change func(b []byte)) func(path string) error {
		return func(path string) error {
			b := append([]byte(nil), good...)
			change(b)
			return os.WriteFile(path, b, 0o600)
		}
	}
	cases := []struct {
		name   string
		make   func(path string) error
		open   string // how Open ends
		remove string
	}{
		{"empty", func(p string) error { return os.WriteFile(p, nil, 0o600) }, "corrupt", "ok"},
		{"text", func(p string) error { return os.WriteFile(p, []byte("this is no queue"), 0o600) }, "corrupt", "ok"},
		{"zeros", func(p string) error { return os.WriteFile(p, make([]byte, 1<<20), 0o600) }, "corrupt", "ok"},
		{"older", header(func(b []byte) { binary.LittleEndian.PutUint32(b[offVersion:], formatVersion-1) }), "corrupt", "ok"},
		{"newer", header(func(b []byte) { binary.LittleEndian.PutUint32(b[offVersion:], formatVersion+1) }), "corrupt", "ok"},
		{"checksum", header(func(b []byte) { b[offMax]++ }), "corrupt", "ok"},
		{"huge", header(func(b []byte) {
			binary.LittleEndian.PutUint64(b[offMax:], 1<<40)
			binary.LittleEndian.PutUint64(b[offSum:], headerSum(b))
		}), "corrupt", "ok"},
		{"short by a byte", func(p string) error { return os.WriteFile(p, good[:len(good)-1], 0o600) }, "corrupt", "ok"},
		{"longer", func(p string) error { return os.WriteFile(p, append(append([]byte(nil), good...), 1, 2, 3), 0o600) }, "ok", "ok"},
		{"removed flag", header(func(b []byte) { b[offRemoved] = 1 }), "not found", "not found"},
		{"folder", func(p string) error { return os.Mkdir(p, 0o700) }, "corrupt", "corrupt"},
		{"symlink", func(p string) error { return os.Symlink(fileOf(d, "/good"), p) }, "permission", "permission"},
		{"dangling symlink", func(p string) error { return os.Symlink("nowhere", p) }, "permission", "permission"},
		{"fifo", func(p string) error { return unix.Mkfifo(p, 0o600) }, "corrupt", "ok"},
		{"hard link", func(p string) error { return os.Link(fileOf(d, "/good"), p) }, "permission", "permission"},
		{"socket", func(p string) error { return unix.Mknod(p, unix.S_IFSOCK|0o600, 0) }, "corrupt", "ok"},
		{"device", func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) }, "corrupt", "ok"},
	}
	for _, c := range cases {
		path := fileOf(d, "/case")
		if err := c.make(path); err != nil {
			t.Logf("%s: not tried: %v", c.name, err)
			continue
		}
		for _, o := range []*driver.Options{nil, {ReadOnly: true}} {
			within(t, callLimit, "open", func() {
				q, err := d.OpenQueue(ctx, "/case", o)
				if kindOfError(err) != c.open {
					t.Errorf("%s: open: %v, want %s", c.name, err, c.open)
				}
				if err == nil {
					_ = q.Close()
				}
			})
			if c.open == "not found" && o == nil { // an opener has finished the removal
				if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s: still there", c.name)
				}
				_ = c.make(path)
			}
		}
		infos, err := d.List(ctx, "/case")
		if err != nil || len(infos) > 1 || len(infos) == 1 && kindOfError(infos[0].Err) != c.open {
			t.Errorf("%s: list: %+v, %v", c.name, infos, err)
		}
		if _, err := os.Lstat(path); err != nil {
			_ = c.make(path)
		}
		if err := d.Remove(ctx, "/case"); kindOfError(err) != c.remove {
			t.Errorf("%s: remove: %v, want %s", c.name, err, c.remove)
		}
		if _, err := os.Lstat(path); (err == nil) != (c.remove == "corrupt" || c.remove == "permission") {
			t.Errorf("%s: after remove: %v", c.name, err)
		}
		_ = os.Remove(path)
	}
	if got, err := os.ReadFile(fileOf(d, "/good")); err != nil || string(got) != string(good) {
		t.Errorf("what a link led to was changed: %v", err)
	}
	if _, err := (Driver{Dir: filepath.Join(d.Dir, "nowhere")}).OpenQueue(ctx, "/q", &driver.Options{Create: true}); !errors.Is(err, driver.ErrNotFound) {
		t.Errorf("a folder that is not there: %v", err)
	}
}
