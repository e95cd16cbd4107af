package posix

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// The names: what POSIX and the kernel take, and the number for each they do not.
func TestNames(t *testing.T) {
	for _, c := range []struct {
		name string
		want syscall.Errno
	}{
		{"", unix.EINVAL}, {"x", unix.EINVAL}, {"x/y", unix.EINVAL}, {"/", unix.ENOENT}, {"/.", unix.EACCES}, {"/..", unix.EACCES},
		{"/a/b", unix.EACCES}, {"//a", unix.EACCES}, {"/a/", unix.EACCES}, {"/a\x00b", unix.EINVAL},
		{"/" + strings.Repeat("x", 256), unix.ENAMETOOLONG}, {"/" + strings.Repeat("x", 5000), unix.ENAMETOOLONG},
	} {
		_, err := Open(c.name, ReadWrite|CreateFlag, 0o600, nil)
		isErrno(t, "open "+c.name, err, c.want)
		_, err2 := Stat(c.name)
		err3 := Unlink(c.name)
		isErrno(t, "unlink "+c.name, err3, c.want)
		for _, err := range []error{err, err2, err3} {
			if !errors.Is(err, driver.ErrInvalid) || errors.Is(err, driver.ErrPermission) || errors.Is(err, driver.ErrNotFound) {
				t.Errorf("%.20q: %v, want ErrInvalid", c.name, err)
			}
		}
	}
	// Anything else is a name, the longest and the strange ones too.
	for _, name := range []string{"/" + strings.Repeat("x", 255), "/...", "/ ", "/\xff\n\\", "/ü"} {
		name := name
		t.Cleanup(func() { _ = Unlink(name) })
		q := open(t, name, ReadWrite|CreateFlag|ExclusiveFlag, 0o600, &Attr{MaxMessages: 1, MaxSize: 1})
		send(t, q, "x", 1)
		x, err := Stat(name)
		if err != nil || x.Name != name || x.Messages != 1 {
			t.Errorf("stat %q: %+v, %v", name, x, err)
		}
		if err := Unlink(name); err != nil {
			t.Errorf("unlink %q: %v", name, err)
		}
	}
}

// Every flag of mq_open, alone and together.
func TestOpenFlags(t *testing.T) {
	name := freshName(t)
	one := &Attr{MaxMessages: 2, MaxSize: 16}
	for _, flags := range []int{ReadOnly, WriteOnly, ReadWrite, ExclusiveFlag} {
		_, err := Open(name, flags, 0o600, one)
		isErrno(t, "open what is not there", err, unix.ENOENT)
		if !errors.Is(err, driver.ErrNotFound) {
			t.Error(err)
		}
	}
	q := open(t, name, ReadWrite|CreateFlag|ExclusiveFlag|NonblockFlag, 0o600|fs.ModeDir, one)
	_, err := Open(name, ReadWrite|CreateFlag|ExclusiveFlag, 0o600, one)
	isErrno(t, "exclusive", err, unix.EEXIST)
	// O_CREAT on a queue that is there ignores mode and attributes, even such as no queue could have.
	p := open(t, name, ReadWrite|CreateFlag, 0, &Attr{MaxMessages: -5, MaxSize: math.MaxInt})
	if a, err := p.Attr(); err != nil || a != (Attr{false, 2, 16, 0}) {
		t.Errorf("attributes %+v, %v", a, err)
	}
	if a, err := q.Attr(); err != nil || a != (Attr{true, 2, 16, 0}) { // each open has its own O_NONBLOCK
		t.Errorf("attributes %+v, %v", a, err)
	}
	// Access mode 3 is taken on creation and refused on what is there.
	_, err = Open(name, 3, 0, nil)
	isErrno(t, "access mode 3", err, unix.EINVAL)
	other := freshName(t)
	neither := open(t, other, 3|CreateFlag, 0o600, one)
	isErrno(t, "send by neither", neither.Send(nil, 0), unix.EBADF)

	r, w := open(t, name, ReadOnly, 0, nil), open(t, name, WriteOnly, 0, nil)
	buf := make([]byte, 16)
	isErrno(t, "send by a reader", r.Send([]byte("x"), 0), unix.EBADF)
	isErrno(t, "timed send by a reader", r.TimedSend([]byte("x"), 0, time.Now().Add(time.Hour)), unix.EBADF)
	_, _, err = w.Receive(buf)
	isErrno(t, "receive by a writer", err, unix.EBADF)
	if !errors.Is(err, driver.ErrPermission) || errors.Is(err, driver.ErrClosed) {
		t.Errorf("%v is not what it should be", err)
	}
	send(t, w, "x", 3)
	take(t, r, "x", 3)
}

// The queue made without attributes has the defaults of the system.
func TestDefaults(t *testing.T) {
	q := open(t, freshName(t), ReadWrite|CreateFlag|ExclusiveFlag, 0o600, nil)
	l := ReadLimits()
	if a, err := q.Attr(); err != nil || a != (Attr{false, l.DefaultMessages, l.DefaultSize, 0}) {
		t.Errorf("attributes %+v, %v; the defaults are %+v", a, err, l)
	}
	for _, a := range []Attr{{MaxMessages: 0, MaxSize: 1}, {MaxMessages: 1, MaxSize: 0}, {MaxMessages: -1, MaxSize: 1}, {MaxMessages: 1, MaxSize: -1},
		{MaxMessages: math.MinInt, MaxSize: math.MinInt}} {
		_, err := Open(freshName(t), ReadWrite|CreateFlag, 0o600, &a)
		isErrno(t, "attributes below 1", err, unix.EINVAL)
		if !errors.Is(err, driver.ErrInvalid) || errors.Is(err, driver.ErrLimit) {
			t.Errorf("%+v: %v", a, err)
		}
	}
}

// O_EXCL is atomic: of many processes' and goroutines' races exactly one wins each.
func TestExclusive(t *testing.T) {
	name := freshName(t)
	for range 50 {
		var wg sync.WaitGroup
		var mu sync.Mutex
		won := 0
		for range 8 {
			wg.Go(func() {
				q, err := Open(name, ReadWrite|CreateFlag|ExclusiveFlag, 0o600, &Attr{MaxMessages: 1, MaxSize: 1})
				if err == nil {
					mu.Lock()
					won++
					mu.Unlock()
					_ = q.Close()
				} else {
					isErrno(t, "the others", err, unix.EEXIST)
				}
			})
		}
		wg.Wait()
		if won != 1 {
			t.Fatalf("%d won", won)
		}
		if err := Unlink(name); err != nil {
			t.Fatal(err)
		}
	}
}

// Lengths and priorities: what is in bounds, what is not, and that a refused call changes nothing.
func TestBounds(t *testing.T) {
	q := fresh(t, 3, 64)
	buf := make([]byte, 64)
	for _, p := range []int{-1, 32_768, math.MaxInt32, math.MinInt, math.MaxInt, math.MaxUint32 >> 1} {
		err := q.Send(nil, p)
		isErrno(t, "priority", err, unix.EINVAL)
		if !errors.Is(err, driver.ErrInvalid) {
			t.Errorf("priority %d: %v", p, err)
		}
		isErrno(t, "timed, priority", q.TimedSend(nil, p, time.Now()), unix.EINVAL)
		isErrno(t, "context, priority", q.SendContext(t.Context(), nil, p), unix.EINVAL)
	}
	for _, n := range []int{65, 1000, rawMax, rawMax + 1, 1 << 24, 1<<24 + 1} {
		err := q.Send(make([]byte, n), 0)
		isErrno(t, "length", err, unix.EMSGSIZE)
		command := fmt.Sprintf("sysctl -w fs.mqueue.msgsize_max=%d", n)
		if !errors.Is(err, driver.ErrTooLarge) || !strings.Contains(err.Error(), " 64 ") || strings.Contains(err.Error(), command) != (n > sysctl("msgsize_max") && n <= hardSize) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if a, _ := q.Attr(); a.Messages != 0 {
		t.Fatalf("%d messages are there", a.Messages)
	}
	// A message of no bytes is one.
	send(t, q, "", 0)
	send(t, q, strings.Repeat("y", 64), 32_767)
	// The buffer must hold msgsize, not the message.
	for _, n := range []int{0, 1, 63} {
		_, _, err := q.Receive(buf[:n])
		isErrno(t, "short buffer", err, unix.EMSGSIZE)
		_, _, err = q.TimedReceive(buf[:n], time.Time{})
		isErrno(t, "timed, short buffer", err, unix.EMSGSIZE)
		_, _, err = q.ReceiveContext(t.Context(), buf[:n])
		isErrno(t, "context, short buffer", err, unix.EMSGSIZE)
		if !errors.Is(err, driver.ErrTooLarge) {
			t.Error(err)
		}
	}
	take(t, q, strings.Repeat("y", 64), 32_767)
	take(t, q, "", 0)
	_, _, err := q.TryReceive(buf)
	isErrno(t, "empty", err, unix.EAGAIN)
	// A short buffer is refused before an empty queue is.
	_, _, err = q.TryReceive(buf[:63])
	isErrno(t, "empty, short buffer", err, unix.EMSGSIZE)
}

// Priority, then the order of sends.
func TestOrder(t *testing.T) {
	q := fresh(t, 10, 8)
	for i, p := range []int{5, 0, 32_767, 5, 0, 32_767, 31} {
		send(t, q, string(rune('a'+i)), p)
	}
	for _, x := range []struct {
		s string
		p int
	}{{"c", 32_767}, {"f", 32_767}, {"g", 31}, {"a", 5}, {"d", 5}, {"b", 0}, {"e", 0}} {
		take(t, q, x.s, x.p)
	}
}

// O_NONBLOCK: of one description, changed by mq_setattr alone, which returns what was before and takes nothing else.
func TestNonblock(t *testing.T) {
	q := fresh(t, 1, 8)
	buf := make([]byte, 8)
	if old, err := q.SetNonblock(true); err != nil || old != (Attr{false, 1, 8, 0}) {
		t.Fatalf("old attributes %+v, %v", old, err)
	}
	_, _, err := q.Receive(buf)
	isErrno(t, "receive", err, unix.EAGAIN)
	if !errors.Is(err, driver.ErrEmpty) {
		t.Error(err)
	}
	_, _, err = q.TimedReceive(buf, time.Now().Add(time.Hour))
	isErrno(t, "timed receive", err, unix.EAGAIN)
	send(t, q, "x", 0)
	err = q.Send(nil, 0)
	isErrno(t, "send", err, unix.EAGAIN)
	if !errors.Is(err, driver.ErrFull) {
		t.Error(err)
	}
	isErrno(t, "timed send", q.TimedSend(nil, 0, time.Now().Add(time.Hour)), unix.EAGAIN)
	// A context waits whatever the flag says.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := q.SendContext(ctx, nil, 0); !errors.Is(err, driver.ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	// The flag is the kernel's: it is seen in the status flags, which another descriptor of the same description shares.
	fd, err := q.FD()
	if err != nil {
		t.Fatal(err)
	}
	if fl, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || fl&unix.O_NONBLOCK == 0 {
		t.Errorf("status flags %#x, %v", fl, err)
	}
	if fl, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || fl&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %#x, %v", fl, err)
	}
	if old, err := q.SetNonblock(false); err != nil || old != (Attr{true, 1, 8, 1}) {
		t.Errorf("old attributes %+v, %v", old, err)
	}
	if fl, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || fl&unix.O_NONBLOCK != 0 {
		t.Errorf("status flags %#x, %v", fl, err)
	}
	// mq_setattr from elsewhere, by a descriptor of the same description: the handle heeds it. It changes no other attribute, and
	// other flags are refused.
	if e := mqGetSetAttr(fd, &kernelAttr{flags: unix.O_NONBLOCK, maxmsg: 77, msgsize: 77, curmsgs: 77}, nil); e != 0 {
		t.Error(e)
	}
	if a, err := q.Attr(); err != nil || a != (Attr{true, 1, 8, 1}) {
		t.Errorf("attributes %+v, %v", a, err)
	}
	isErrno(t, "send", q.Send(nil, 0), unix.EAGAIN)
	if e := mqGetSetAttr(fd, &kernelAttr{flags: unix.O_APPEND}, nil); e != unix.EINVAL {
		t.Errorf("another flag: %v", e)
	}
	if a, _ := q.Attr(); !a.Nonblock {
		t.Error("a refused mq_setattr changed the flag")
	}
}

// The timed calls: a past deadline matters to a call that would wait only, a bad one always, a far one is far.
func TestDeadlines(t *testing.T) {
	q := fresh(t, 1, 8)
	buf := make([]byte, 8)
	recv := func(d time.Time) error { _, _, err := q.TimedReceive(buf, d); return err }
	past := time.Now().Add(-time.Hour)
	bad := []time.Time{time.Unix(-1, 0), time.Unix(-5, 999_999_999), time.Date(1, 1, 2, 0, 0, 0, 0, time.UTC)}
	for _, d := range []time.Time{past, time.Unix(0, 0), time.Unix(0, 1)} {
		isErrno(t, "receive, past", recv(d), unix.ETIMEDOUT)
	}
	for _, d := range bad {
		isErrno(t, "receive, bad deadline", recv(d), unix.EINVAL)
		isErrno(t, "send, bad deadline, room", q.TimedSend(nil, 0, d), unix.EINVAL)
	}
	isErrno(t, "send, past, room", q.TimedSend([]byte("a"), 0, past), 0)
	err := q.TimedSend([]byte("b"), 9, past)
	isErrno(t, "send, past, full", err, unix.ETIMEDOUT)
	if !errors.Is(err, driver.ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	isErrno(t, "receive, past, something there", recv(past), 0)
	if string(buf[:1]) != "a" {
		t.Errorf("received %q", buf[:1])
	}
	begin := time.Now()
	isErrno(t, "receive, soon", recv(begin.Add(40*time.Millisecond)), unix.ETIMEDOUT)
	if d := time.Since(begin); d < 40*time.Millisecond {
		t.Errorf("a deadline 40 ms away was over after %v", d)
	}
	for _, d := range []time.Time{time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), time.Unix(1<<40, 0), {}} {
		done := make(chan error, 1)
		go func() { done <- recv(d) }()
		inside(t, os.Getpid(), unix.SYS_MQ_TIMEDRECEIVE, 1)
		send(t, q, "z", 0)
		isErrno(t, "receive, far", <-done, 0)
	}
}

// Unlinking frees the name at once; who has the queue open keeps it, and a new queue of the name is another one.
func TestUnlink(t *testing.T) {
	name := freshName(t)
	q := open(t, name, ReadWrite|CreateFlag|ExclusiveFlag, 0o600, &Attr{MaxMessages: 2, MaxSize: 8})
	send(t, q, "old", 1)
	done := make(chan error, 1)
	isErrno(t, "unlink", Unlink(name), 0)
	err := Unlink(name)
	isErrno(t, "unlink again", err, unix.ENOENT)
	if !errors.Is(err, driver.ErrNotFound) {
		t.Error(err)
	}
	_, err = Open(name, ReadWrite, 0, nil)
	isErrno(t, "open", err, unix.ENOENT)
	n := open(t, name, ReadWrite|CreateFlag|ExclusiveFlag, 0o600, &Attr{MaxMessages: 3, MaxSize: 9})
	send(t, n, "new", 1)
	take(t, q, "old", 1)
	go func() { _, _, err := q.Receive(make([]byte, 8)); done <- err }()
	send(t, q, "more", 1)
	isErrno(t, "receive from the unlinked queue", <-done, 0)
	take(t, n, "new", 1)
	if x, err := q.Stat(); err != nil || !x.Unlinked || x.MaxMessages != 2 {
		t.Errorf("stat: %+v, %v", x, err)
	}
	if x, err := Stat(name); err != nil || x.Unlinked || x.MaxMessages != 3 {
		t.Errorf("stat: %+v, %v", x, err)
	}
}

// poll(2): an empty queue is writable only, a full one readable only, else both; read(2) gives the status line.
func TestPoll(t *testing.T) {
	q := fresh(t, 2, 8)
	fd, err := q.FD()
	if err != nil {
		t.Fatal(err)
	}
	state := func() int16 {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLOUT}}
		if _, err := unix.Poll(fds, 0); err != nil {
			t.Fatal(err)
		}
		return fds[0].Revents
	}
	for i, want := range []int16{unix.POLLOUT, unix.POLLIN | unix.POLLOUT, unix.POLLIN} {
		if got := state(); got != want {
			t.Errorf("%d messages: %#x, want %#x", i, got, want)
		}
		if i < 2 {
			send(t, q, "abc", 0)
		}
	}
	b := make([]byte, 200)
	f, err := q.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := f.Read(b)
	if err != nil || !strings.HasPrefix(string(b[:n]), "QSIZE:6 ") {
		t.Errorf("read gave %q, %v", b[:n], err)
	}
}
