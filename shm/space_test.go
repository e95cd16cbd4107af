package shm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
	"golang.org/x/sys/unix"
)

const insideVar = "KUMQUAT_TEST_INSIDE"

// inMountNamespace runs the calling test again in a mount namespace of its own, where it may mount what it likes; what it mounts ends
// with it. It returns true inside. Without root a user namespace is tried.
func inMountNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideVar) != "" {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		return true
	}
	args := []string{"-test.run=^" + t.Name() + "$", "-test.v"}
	if testing.Short() {
		args = append(args, "-test.short")
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), insideVar+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		one := []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER, UidMappings: one,
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}}
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Skipf("needs root, or unprivileged user namespaces, to mount a small tmpfs: %v", err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("inside: %v\n%s", err, out.String())
	}
	for line := range strings.Lines(out.String()) {
		if strings.Contains(line, "SKIP") {
			t.Log(line)
		}
	}
	return false
}

// mountTmpfs mounts a tmpfs of size KiB.
func mountTmpfs(t testing.TB, kib int) Driver {
	t.Helper()
	dir, err := os.MkdirTemp("", "kumquat-space-")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("kumquat", dir, "tmpfs", 0, fmt.Sprintf("size=%dk", kib)); err != nil {
		_ = os.Remove(dir)
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
		_ = os.Remove(dir)
	})
	return Driver{Dir: dir}
}

func freePages(t testing.TB, d Driver) int {
	t.Helper()
	var s unix.Statfs_t
	if err := unix.Statfs(d.Dir, &s); err != nil {
		t.Fatal(err)
	}
	return int(s.Bavail * uint64(s.Bsize) / pageSize)
}

// leaveFree fills the file system by another file until n pages are free, or gives back that many.
func leaveFree(t testing.TB, d Driver, n int) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(d.Dir, "filler"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if have := freePages(t, d); have > n {
		err = unix.Fallocate(int(f.Fd()), 0, st.Size(), int64(have-n)*pageSize)
	} else {
		err = f.Truncate(max(0, st.Size()-int64(n-have)*pageSize))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// noSpaceText checks that the error tells how much is free and what to do.
func noSpaceText(t testing.TB, err error) {
	t.Helper()
	if !errors.Is(err, driver.ErrNoSpace) || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("on a full file system: %v", err)
	}
	for _, s := range []string{"KiB free", "receive or purge", "kumquat ls", "remount"} {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("the text of ErrNoSpace lacks %q: %v", s, err)
		}
	}
}

func TestFullTmpfs(t *testing.T) {
	t.Parallel()
	if !inMountNamespace(t) {
		return
	}
	for _, kib := range []int{64, 256, 1 << 10, 8 << 10, 64 << 10} {
		for _, body := range []int{0, 100, 3000, 40000} {
			t.Run(fmt.Sprintf("%dKiB/body%d", kib, body), func(t *testing.T) { fillTmpfs(t, mountTmpfs(t, kib), body) })
		}
	}
}

// fillTmpfs sends until there is no space, then does on the full file system all that must work there.
func fillTmpfs(t *testing.T, d Driver, size int) {
	ctx := context.Background()
	q, err := d.OpenQueue(ctx, "/full", &driver.Options{Create: true, MaxMessages: 1_000_000})
	if errors.Is(err, driver.ErrNoSpace) && freePages(t, d) < 12 {
		noSpaceText(t, err)
		t.Skip("too small for any queue")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Close() })
	other := openQueue(t, d, "/full", nil)
	body := func(i int) []byte {
		b := bytes.Repeat([]byte{byte(i)}, size)
		if size >= 4 {
			copy(b, fmt.Sprintf("%04d", i%10000))
		}
		return b
	}
	// One message sits in the heap all the time: who claims another looks there too.
	timed := q.Send(ctx, driver.Message{Type: 1, Priority: 3, Body: []byte("timed"), Expires: time.Now().Add(time.Hour)}, true)
	sent := 0
	for ; ; sent++ {
		if sent == 200_000 {
			t.Skip("all fits")
		}
		if err = q.SendBytes(ctx, body(sent), 7, true); err != nil {
			break
		}
	}
	noSpaceText(t, err)
	if sent == 0 {
		t.Skip("no room for a message")
	}
	leaveFree(t, d, 0)
	for range 3 { // the same answer again, whatever is tried
		noSpaceText(t, q.Send(ctx, driver.Message{Body: body(0), Type: 1}, false))
	}
	if r, err := q.Reserve(ctx, size+1); err == nil {
		if err := r.Abort(); err != nil {
			t.Error(err)
		}
	} else if !errors.Is(err, driver.ErrNoSpace) {
		t.Errorf("reserve: %v", err)
	}

	// A holder that stops in the middle is replaced, without a new page.
	takeOver(t, q, other)
	takeOver(t, other, q)

	got := 0
	receive := func(h *Queue) {
		t.Helper()
		f := driver.Filter{}
		if got%7 == 5 { // an index of its own may have to grow
			f.Type = 1
		}
		m, err := h.Receive(ctx, f, true)
		if err != nil {
			t.Fatalf("receive %d of %d: %v", got, sent, err)
		}
		if !bytes.Equal(m.Body, body(got)) {
			t.Fatalf("message %d is another one: %.20q", got, m.Body)
		}
		got++
	}
	for i := range 4 { // what was received makes room, at once, for whoever sends next
		if got == sent {
			break
		}
		receive([]*Queue{q, other}[i%2])
		if err := []*Queue{q, other}[i/2].SendBytes(ctx, body(sent), 7, true); err != nil {
			t.Fatalf("send after a receive, on a full file system: %v", err)
		}
		sent++
	}
	half := got + (sent-got)/2
	for got < half {
		receive(q)
	}
	takeOver(t, q, other)
	for got < sent {
		receive(other)
	}
	if timed == nil {
		if s := tryBody(t, q); s != "timed" {
			t.Errorf("the timed message is %.20q", s)
		}
	}
	if s := tryBody(t, q); s != "" {
		t.Errorf("one too many: %.20q", s)
	}
	mustBeSound(t, q)
	if freePages(t, d) > 0 {
		t.Errorf("something gave pages back: the test does not test what it should")
	}
	if err := d.Remove(ctx, "/full"); err != nil {
		t.Fatalf("remove: %v", err)
	}
	if err := q.SendBytes(ctx, nil, 0, true); !errors.Is(err, driver.ErrRemoved) {
		t.Errorf("send into a removed queue: %v", err)
	}
	for _, h := range []*Queue{q, other} {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}
	again, err := d.OpenQueue(ctx, "/full", &driver.Options{Create: true})
	if err != nil {
		t.Fatalf("create where a removed queue gave its pages back: %v", err)
	}
	_ = again.Close()
}

// Every page that any operation asks for is refused once: the operation fails with ErrNoSpace and leaves nothing behind, and works when
// there is space again.
func TestFallocateFails(t *testing.T) {
	t.Parallel()
	if !inMountNamespace(t) {
		return
	}
	d := mountTmpfs(t, 4<<10)
	ctx := context.Background()
	o := &driver.Options{Create: true, MaxMessages: 700, MaxSize: 20_000, MaxHandles: 8}
	steps := []struct {
		name string
		do   func(q *Queue) error
	}{
		{"inline", func(q *Queue) error { return q.SendBytes(ctx, []byte("x"), 1, true) }},
		{"body", func(q *Queue) error { return q.SendBytes(ctx, make([]byte, 15_000), 1, true) }},
		{"metadata", func(q *Queue) error {
			return q.Send(ctx, driver.Message{Type: 1, ID: strings.Repeat("i", 3000), Body: make([]byte, 5000)}, true)
		}},
		{"another priority", func(q *Queue) error { return q.SendBytes(ctx, nil, 30_000, true) }},
		{"timed", func(q *Queue) error {
			return q.Send(ctx, driver.Message{Type: 1, Expires: time.Now().Add(time.Hour)}, true)
		}},
		{"batch", func(q *Queue) error {
			ms := make([]driver.Message, 8)
			for i := range ms {
				ms[i] = driver.Message{Type: 1, Priority: i * 4000, Body: make([]byte, i*2000)}
			}
			return q.SendBatch(ctx, ms, true)
		}},
		{"reserve", func(q *Queue) error {
			r, err := q.Reserve(ctx, 9000)
			if err != nil {
				return err
			}
			copy(r.Bytes(), "hello")
			if err := r.Commit(ctx, driver.Message{Type: 1, Priority: 20_000, NotBefore: time.Now().Add(-time.Second)}, true); err != nil {
				if e := r.Abort(); e != nil {
					return errors.Join(err, e)
				}
				return err
			}
			return nil
		}},
		{"many", func(q *Queue) error {
			for range 600 {
				if err := q.SendBytes(ctx, nil, 1, true); err != nil {
					return err
				}
			}
			return nil
		}},
	}
	refused := 0
	for free := 0; free < 90; free++ {
		if testing.Short() && free%7 != 0 {
			continue
		}
		for _, s := range steps {
			leaveFree(t, d, 200)
			q := openQueue(t, d, "/points", o)
			leaveFree(t, d, free)
			err := s.do(q)
			before, serr := q.Stat(ctx)
			if serr != nil {
				t.Fatal(serr)
			}
			if err != nil {
				refused++
				noSpaceText(t, err)
				if before.Messages > 0 && s.name != "many" {
					t.Fatalf("%s with %d pages: refused, but there are %d messages", s.name, free, before.Messages)
				}
			}
			mustBeSound(t, q)
			for n := 0; ; n++ { // on the full file system
				m, err := q.Receive(ctx, driver.Filter{TypeAtMost: int64(n % 3)}, true)
				if errors.Is(err, driver.ErrEmpty) {
					if n != before.Messages {
						t.Fatalf("%s with %d pages: %d of %d messages received", s.name, free, n, before.Messages)
					}
					break
				}
				if err != nil {
					t.Fatalf("%s with %d pages: receive: %v", s.name, free, err)
				}
				_ = m
			}
			leaveFree(t, d, 500)
			if err := s.do(q); err != nil {
				t.Fatalf("%s, with space again: %v", s.name, err)
			}
			mustBeSound(t, q)
			if n, err := q.Purge(ctx, driver.Filter{}); err != nil || n == 0 {
				t.Fatalf("purge: %d, %v", n, err)
			}
			mustHaveAllFree(t, q)
			if err := q.Close(); err != nil {
				t.Fatal(err)
			}
			if err := d.Remove(ctx, "/points"); err != nil {
				t.Fatal(err)
			}
		}
	}
	// And the opening itself.
	for free := 0; free < 30; free++ {
		leaveFree(t, d, free)
		q, err := d.OpenQueue(ctx, "/points", o)
		if err != nil {
			refused++
			noSpaceText(t, err)
			if es, _ := os.ReadDir(d.Dir); len(es) != 1 {
				t.Fatalf("a failed create leaves %v", es)
			}
			if free > 16 {
				t.Fatalf("an idle queue needs more than %d pages", free)
			}
			continue
		}
		leaveFree(t, d, 0)
		var more []*Queue
		for {
			h, err := d.OpenQueue(ctx, "/points", nil)
			if err != nil {
				if !errors.Is(err, driver.ErrNoSpace) && !errors.Is(err, driver.ErrLimit) {
					t.Fatal(err)
				}
				break
			}
			more = append(more, h)
		}
		if len(more) < 3 {
			t.Errorf("only %d more handles fit the pages that create provides", len(more))
		}
		for _, h := range append(more, q) {
			if err := h.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Remove(ctx, "/points"); err != nil {
			t.Fatal(err)
		}
	}
	if refused < 100 && !testing.Short() {
		t.Errorf("only %d operations were refused", refused)
	}
}

// mustHaveAllFree fails the test unless every slot of an empty queue whose handles hold nothing is free.
func mustHaveAllFree(t testing.TB, q *Queue) {
	t.Helper()
	for s := range min(load(q.high), q.slots) {
		if w := load(q.stateOf(s)); kindOf(w) != kindFree {
			t.Errorf("slot %d of an empty queue is not free: kind %d, owner %d, word %#x", s, kindOf(w), ownerOf(w), w)
		}
	}
}

// A message of each of the 32,768 priorities needs the heads of all lists, in two areas; on the full file system all of them come out
// in order.
func TestAllPrioritiesOnFullTmpfs(t *testing.T) {
	t.Parallel()
	if !inMountNamespace(t) {
		return
	}
	ctx := context.Background()
	for _, kib := range []int{1 << 10, 16 << 10} {
		t.Run(fmt.Sprintf("%dKiB", kib), func(t *testing.T) {
			d := mountTmpfs(t, kib)
			q := openQueue(t, d, "/prio", &driver.Options{Create: true, MaxMessages: 40_000, MaxSize: 64})
			other := openQueue(t, d, "/prio", nil)
			sent := map[int]bool{}
			for i := range driver.MaxPriority + 1 {
				p := i * 12_347 % (driver.MaxPriority + 1)
				err := q.SendBytes(ctx, []byte(fmt.Sprint(p)), p, true)
				if err != nil {
					noSpaceText(t, err)
					continue // another priority may have its page
				}
				sent[p] = true
			}
			if kib >= 16<<10 && len(sent) != driver.MaxPriority+1 || len(sent) < 100 {
				t.Fatalf("only %d of the priorities could be sent", len(sent))
			}
			leaveFree(t, d, 0)
			takeOver(t, q, other)
			last := driver.MaxPriority + 1
			for n := 0; n < len(sent); n++ {
				m, err := other.Receive(ctx, driver.Filter{}, true)
				if err != nil {
					t.Fatalf("receive %d of %d: %v", n, len(sent), err)
				}
				if m.Priority >= last || !sent[m.Priority] || string(m.Body) != fmt.Sprint(m.Priority) {
					t.Fatalf("priority %d came after %d, with %q", m.Priority, last, m.Body)
				}
				last = m.Priority
				if n == len(sent)/2 {
					takeOver(t, other, q)
				}
			}
		})
	}
}

// Large bodies give their pages back when they are received.
func TestLargeBodiesOnSmallTmpfs(t *testing.T) {
	t.Parallel()
	if !inMountNamespace(t) {
		return
	}
	ctx := context.Background()
	d := mountTmpfs(t, 64<<10)
	q := openQueue(t, d, "/large", &driver.Options{Create: true, MaxMessages: 100, MaxSize: 20 << 20, MaxHandles: 4})
	idle := freePages(t, d)
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	for round := range 4 {
		n := 0
		var err error
		for ; ; n++ {
			body[0] = byte(n)
			if err = q.SendBytes(ctx, body, 1, true); err != nil {
				break
			}
		}
		noSpaceText(t, err)
		if n != 3 {
			t.Fatalf("round %d: %d bodies of 16 MiB fit 64 MiB", round, n)
		}
		for i := range n {
			m, err := q.Receive(ctx, driver.Filter{}, true)
			if err != nil || len(m.Body) != len(body) || m.Body[0] != byte(i) || !bytes.Equal(m.Body[1:], body[1:]) {
				t.Fatalf("body %d: %d bytes, %v", i, len(m.Body), err)
			}
		}
		if left := freePages(t, d); left < idle-800 {
			t.Fatalf("round %d: %d of %d free pages came back", round, left, idle)
		}
	}
	mustBeSound(t, q)
	mustHaveAllFree(t, q)
}
