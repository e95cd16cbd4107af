package posix

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// asNobody runs f on a thread of another user, which ends with it.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to become another user")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if _, err := unix.SetfsgidRetGid(65534); err != nil {
			t.Error(err)
		}
		if _, err := unix.SetfsuidRetUid(65534); err != nil { // takes the capabilities over files away as well
			t.Error(err)
		}
		if now, _ := unix.SetfsuidRetUid(-1); now != 65534 {
			t.Log("left out what another user sees: this user namespace has no other user")
			return
		}
		f()
	}()
	<-done
}

// Everything that List says, where the file system is not mounted, where it is, and where what is mounted is that of another
// namespace.
func TestList(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	if list, err := List(); err != nil || len(list) != 0 {
		t.Fatalf("a new namespace has %+v, %v", list, err)
	}
	names := []string{"/b", "/a", "/c c"}
	var qs []*Queue
	for i, n := range names {
		q := open(t, n, ReadWrite|CreateFlag|ExclusiveFlag, 0o640, &Attr{MaxMessages: i + 1, MaxSize: 100})
		send(t, q, strings.Repeat("x", 10*i), i)
		qs = append(qs, q)
	}
	if err := qs[1].NotifySignal(unix.SIGUSR1, 0); err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		list, err := List()
		if err != nil || len(list) != 3 {
			t.Fatalf("%s: %+v, %v", when, list, err)
		}
		for i, want := range []int{1, 0, 2} {
			x := list[i]
			if x.Name != names[want] || x.MaxMessages != want+1 || x.MaxSize != 100 || x.Messages != 1 || x.Bytes != int64(10*want) || x.Mode != 0o640 ||
				x.UID != os.Geteuid() || x.GID != os.Getegid() || x.Err != nil || x.Unlinked {
				t.Errorf("%s: %+v", when, x)
			}
			if want == 1 && (x.NotifyPID != os.Getpid() || x.NotifySig != unix.SIGUSR1 || x.NotifyKind != NotifyBySignal) {
				t.Errorf("%s: notification %+v", when, x)
			}
			if y, err := qs[want].Stat(); err != nil || y != x {
				t.Errorf("%s: Stat says %+v, %v; List %+v", when, y, err, x)
			}
			if y, err := Stat(x.Name); err != nil || y != x {
				t.Errorf("%s: Stat says %+v, %v; List %+v", when, y, err, x)
			}
		}
	}
	check("not mounted")
	dir, err := os.MkdirTemp("", "kumquat") // not t.TempDir: other users must get there
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	at := filepath.Join(dir, "a queue") // a space, which mountinfo escapes
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(at, 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Skipf("no right to change mounts: %v", err)
	}
	if err := unix.Mount("none", at, "mqueue", 0, ""); err != nil {
		t.Skipf("no right to mount the queues: %v", err)
	}
	defer unix.Unmount(at, unix.MNT_DETACH)
	if m := mounts(); !slices.Contains(m, at) {
		t.Errorf("%q is not among the mounts %q", at, m)
	}
	check("mounted")
	f, err := os.Open(at)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if !isOwn(f) {
		t.Error("the mount of this namespace is not taken for its own")
	}
	// Without the right to mount, what is mounted serves. Without that, the error says how to mount.
	asNobody(t, func() {
		dropAdmin(t)
		list, err := List()
		if err != nil || len(list) != 3 {
			t.Errorf("another user sees %+v, %v", list, err)
		}
		for _, x := range list {
			if x.Name == "/a" {
				continue // this process is registered there: it is read by the handle, whoever asks
			}
			if !errors.Is(x.Err, driver.ErrPermission) || x.Mode != 0o640 || x.UID != 0 || x.Messages != 0 {
				t.Errorf("another user sees %+v", x)
			}
		}
		if _, err := Stat("/b"); !errors.Is(err, driver.ErrPermission) {
			t.Errorf("another user's stat: %v", err)
		}
		if err := Unlink("/a"); !errors.Is(err, driver.ErrPermission) || !errors.Is(err, unix.EACCES) {
			t.Errorf("another user's unlink: %v", err)
		}
		all, err := ReadHolders()
		if err != nil || !slices.Contains(all.Hidden, os.Getpid()) && len(all.Hidden) == 0 {
			t.Errorf("another user may inspect all: %+v, %v", all, err)
		}
	})
	if err := unix.Unmount(at, 0); err != nil && err != unix.EBUSY {
		t.Fatal(err)
	}
	_ = f.Close()
	_ = unix.Unmount(at, unix.MNT_DETACH)
	asNobody(t, func() {
		dropAdmin(t)
		_, err := List()
		if len(mounts()) == 0 && (!errors.Is(err, ErrNotMounted) || !errors.Is(err, driver.ErrUnsupported) || !strings.Contains(err.Error(), "mount -t mqueue none /dev/mqueue")) {
			t.Errorf("not mounted: %v", err)
		}
	})
}

// dropAdmin takes all capabilities from this thread, which ends soon.
func dropAdmin(t *testing.T) {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capset(&header, &data[0]); err != nil {
		t.Error(err)
	}
}

// A folder of queues of another namespace is told from this one's.
func TestForeignMount(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	q := open(t, "/here", ReadWrite|CreateFlag|ExclusiveFlag, 0o600, &Attr{MaxMessages: 1, MaxSize: 1})
	f, err := ownMount()
	if err != nil {
		t.Skipf("no right to mount the queues: %v", err)
	}
	defer f.Close()
	runtime.LockOSThread() // and never unlocked: the thread that is in another namespace ends with the test
	if err := unix.Unshare(unix.CLONE_NEWIPC); err != nil {
		t.Skipf("no right to make a namespace: %v", err)
	}
	if isOwn(f) {
		t.Error("a folder of another namespace was taken for this one's")
	}
	if list, err := List(); err != nil || len(list) != 0 {
		t.Errorf("the new namespace has %+v, %v", list, err)
	}
	if x, err := q.Stat(); err != nil || x.Name != "/here" { // an open handle goes on
		t.Errorf("%+v, %v", x, err)
	}
}

// Who has a queue open: other processes, this one, those that receive or send only; and queues without a name.
func TestHolders(t *testing.T) {
	q := fresh(t, 1, 8)
	x, err := q.Stat()
	if err != nil {
		t.Fatal(err)
	}
	p := startRole(t, "hold", nil, q.Name())
	p.expect("open")
	fd, err := q.FD()
	if err != nil {
		t.Fatal(err)
	}
	h, err := ReadHolders()
	if err != nil {
		t.Fatal(err)
	}
	hs := h.Of(x)
	if len(hs) != 2 {
		t.Fatalf("holders: %+v", hs)
	}
	for _, o := range hs {
		switch o.PID {
		case os.Getpid():
			if !o.Receives || !o.Sends || len(o.FDs) != 2 || !slices.Contains(o.FDs, fd) {
				t.Errorf("this process: %+v", o)
			}
		case p.cmd.Process.Pid:
			if !o.Receives || o.Sends || len(o.FDs) != 1 || o.UID != os.Geteuid() || o.User == "" || o.State == "" || !strings.Contains(o.Command, q.Name()) {
				t.Errorf("the other: %+v", o)
			}
		default:
			t.Errorf("a stranger: %+v", o)
		}
	}
	if err := Unlink(q.Name()); err != nil {
		t.Fatal(err)
	}
	h, err = ReadHolders()
	if err != nil || !slices.ContainsFunc(h.Unlinked, func(u Info) bool { return u.Inode == x.Inode && u.Name == q.Name() && u.Unlinked }) {
		t.Errorf("unlinked: %+v, %v", h.Unlinked, err)
	}
	if len(h.Of(x)) != 2 {
		t.Errorf("holders after unlink: %+v", h.Of(x))
	}
	p.say("end")
	if err := p.wait(); err != nil {
		t.Fatal(err)
	}
	if h, err = ReadHolders(); err != nil || len(h.Of(x)) != 1 {
		t.Errorf("holders after one ended: %+v, %v", h.Of(x), err)
	}
}

func init() {
	roles["hold"] = func(args []string) int {
		if _, err := Open(args[0], ReadOnly, 0, nil); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Println("open")
		_, _ = os.Stdin.Read(make([]byte, 1))
		return 0
	}
}

// Every limit, reached for real: the number, the sentinel, and a text with the limit, its value and the command.
func TestLimits(t *testing.T) {
	if !inNamespace(t, "msg_max=20", "msgsize_max=10000", "msg_default=5", "msgsize_default=2000", "queues_max=30") {
		return
	}
	l := ReadLimits()
	if l.MaxMessages != 20 || l.MaxSize != 10_000 || l.DefaultMessages != 5 || l.DefaultSize != 2000 || l.MaxQueues != 30 || l.Queues != 0 || l.UsedBytes != 0 || l.Bytes <= 0 {
		t.Fatalf("limits: %+v", l)
	}
	q := open(t, "/default", ReadWrite|CreateFlag, 0o600, nil)
	if a, err := q.Attr(); err != nil || a != (Attr{false, 5, 2000, 0}) {
		t.Errorf("a queue without attributes: %+v, %v", a, err)
	}
	if l := ReadLimits(); l.Queues != 1 || l.UsedBytes != Footprint(5, 2000) {
		t.Errorf("one queue is there, and the limits say %+v", l)
	}
	says := func(err error, number error, parts ...string) {
		t.Helper()
		if !errors.Is(err, driver.ErrLimit) || !errors.Is(err, number) {
			t.Fatalf("%v, want ErrLimit and %v", err, number)
		}
		for _, p := range parts {
			if !strings.Contains(err.Error(), p) {
				t.Errorf("%q does not say %q", err, p)
			}
		}
	}
	create := func(a *Attr) error { _, err := Open("/over", ReadWrite|CreateFlag, 0o600, a); return err }
	if !l.Privileged {
		says(create(&Attr{MaxMessages: 21, MaxSize: 1}), unix.EINVAL, "21", "fs.mqueue.msg_max = 20", "sysctl -w fs.mqueue.msg_max=21")
		says(create(&Attr{MaxMessages: 1, MaxSize: 10_001}), unix.EINVAL, "fs.mqueue.msgsize_max = 10000", "sysctl -w fs.mqueue.msgsize_max=10001")
	}
	says(create(&Attr{MaxMessages: 65_537, MaxSize: 1}), unix.EINVAL, "65536")
	says(create(&Attr{MaxMessages: 1, MaxSize: 16<<20 + 1}), unix.EINVAL, "16777216")

	// RLIMIT_MSGQUEUE, by the exact number of bytes: what Footprint says is what the kernel counts.
	need := Footprint(20, 10_000)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MSGQUEUE, &old); err != nil {
		t.Fatal(err)
	}
	set := func(n int64) {
		t.Helper()
		if err := unix.Prlimit(0, unix.RLIMIT_MSGQUEUE, &unix.Rlimit{Cur: uint64(n), Max: old.Max}, nil); err != nil {
			t.Fatal(err)
		}
	}
	defer func() { _ = unix.Prlimit(0, unix.RLIMIT_MSGQUEUE, &old, nil) }()
	alone := func() int64 { // what other namespaces' queues of this user take is unknown, so find it
		var lo, hi int64 = 0, bytesOf(old.Max)
		for lo < hi {
			mid := (lo + hi) / 2
			set(mid)
			if p, err := Open("/probe", ReadWrite|CreateFlag|ExclusiveFlag, 0o600, &Attr{MaxMessages: 1, MaxSize: 1}); err == nil {
				_ = Unlink("/probe")
				_ = p.Close()
				hi = mid
			} else {
				lo = mid + 1
			}
		}
		return lo - Footprint(1, 1)
	}
	used := alone()
	if used < Footprint(5, 2000) {
		t.Fatalf("%d bytes are in use, and one queue alone takes %d", used, Footprint(5, 2000))
	}
	set(used + need - 1)
	says(create(&Attr{MaxMessages: 20, MaxSize: 10_000}), unix.EMFILE, fmt.Sprint(need), "RLIMIT_MSGQUEUE", fmt.Sprint(used+need-1), "ulimit -q ", "prlimit")
	set(used + need)
	if err := create(&Attr{MaxMessages: 20, MaxSize: 10_000}); err != nil {
		t.Errorf("a queue of just the bytes that are left: %v", err)
	}
	if err := Unlink("/over"); err != nil {
		t.Fatal(err)
	}
	set(bytesOf(old.Max))

	// The descriptors of the process: the same number, another limit.
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	var held []int
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(fd + 20), Max: files.Max}, nil); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		held = append(held, fd)
		fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC)
	}
	_, err = Open("/over", ReadWrite|CreateFlag, 0o600, &Attr{MaxMessages: 1, MaxSize: 1})
	nerr := q.NotifyFunc(func() {})
	_, _, terr := q.TimedReceive(make([]byte, 2000), time.Now().Add(time.Hour))
	_, werr := q.watch.subscribe(context.Background(), q)
	for _, h := range held {
		_ = unix.Close(h)
	}
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &files, nil); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{err, nerr, terr, werr} {
		says(err, unix.EMFILE, "RLIMIT_NOFILE", "ulimit -n")
	}
	if c, err := q.Arrivals(t.Context()); err != nil || c == nil { // the failures left nothing registered
		t.Error(err)
	}

	// The number of queues. CAP_SYS_RESOURCE is not held to it.
	var last error
	for i := range 40 {
		var p *Queue
		if p, last = Open(fmt.Sprintf("/many-%d", i), ReadWrite|CreateFlag, 0o600, &Attr{MaxMessages: 1, MaxSize: 1}); last != nil {
			break
		}
		_ = p.Close()
	}
	if !l.Privileged {
		says(last, unix.ENOSPC, "fs.mqueue.queues_max = 30", "sysctl -w fs.mqueue.queues_max=60")
	}
}

// The bounds of Footprint, and what is beyond them.
func TestFootprint(t *testing.T) {
	if n := Footprint(10, 8192); wordSize == 8 && n != 10*(8192+48+48) {
		t.Errorf("10 × 8192: %d", n)
	}
	for _, c := range [][2]int{{math.MaxInt, math.MaxInt}, {math.MaxInt, 1}, {1, math.MaxInt}, {math.MaxInt32, math.MaxInt}} {
		if n := Footprint(c[0], c[1]); n != math.MaxInt64 && n <= 0 {
			t.Errorf("%v: %d", c, n)
		}
	}
	if Footprint(0, 5) != 0 || Footprint(-1, -1) != 0 {
		t.Error("what cannot be takes nothing")
	}
}

// Modes: per kind of access, by owner and others, less the umask; others' queues can neither be opened nor removed.
func TestModes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become another user")
	}
	old := unix.Umask(0)
	defer unix.Umask(old)
	for _, c := range []struct {
		mode                    os.FileMode
		read, write, readWrites unix.Errno
	}{
		{0o604, 0, unix.EACCES, unix.EACCES}, {0o602, unix.EACCES, 0, unix.EACCES}, {0o606, 0, 0, 0}, {0o660, unix.EACCES, unix.EACCES, unix.EACCES},
	} {
		q := open(t, freshName(t), ReadWrite|CreateFlag|ExclusiveFlag, c.mode, &Attr{MaxMessages: 1, MaxSize: 8})
		asNobody(t, func() {
			for flags, want := range map[int]unix.Errno{ReadOnly: c.read, WriteOnly: c.write, ReadWrite: c.readWrites} {
				p, err := Open(q.Name(), flags, 0, nil)
				isErrno(t, fmt.Sprintf("mode %#o, flags %d", c.mode, flags), err, want)
				if err == nil {
					_ = p.Close()
				} else if !errors.Is(err, driver.ErrPermission) {
					t.Error(err)
				}
			}
			isErrno(t, "unlink", Unlink(q.Name()), unix.EACCES)
		})
	}
	unix.Umask(0o077)
	q := open(t, freshName(t), ReadWrite|CreateFlag|ExclusiveFlag, 0o666, &Attr{MaxMessages: 1, MaxSize: 8})
	if x, err := q.Stat(); err != nil || x.Mode != 0o600 {
		t.Errorf("umask: %+v, %v", x, err)
	}
}
