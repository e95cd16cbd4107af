package sysv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// Every rule of msgrcv(2) for choosing a message. The queue holds, in the order of sends, type and body of each.
func TestReceiveRules(t *testing.T) {
	type sent struct {
		typ  int64
		body string
	}
	const most = 1<<63 - 1
	mixed := []sent{{3, "a"}, {1, "b"}, {2, "c"}, {1, "d"}, {3, "e"}, {most, "f"}, {2, "g"}}
	for _, c := range []struct {
		name  string
		queue []sent
		typ   int64
		flags int
		takes string // bodies in the order in which they come
		then  error  // when no more match
	}{
		{"0 takes in the order of sends, whatever the types", mixed, 0, 0, "abcdefg", unix.ENOMSG},
		{"a type takes its own, first in first out", mixed, 1, 0, "bd", unix.ENOMSG},
		{"a type that is not there", mixed, 7, 0, "", unix.ENOMSG},
		{"the highest type", mixed, most, 0, "f", unix.ENOMSG},
		{"at most: the lowest type first, first in first out inside", mixed, -3, 0, "bdcgae", unix.ENOMSG},
		{"at most 2", mixed, -2, 0, "bdcg", unix.ENOMSG},
		{"at most 1", mixed, -1, 0, "bd", unix.ENOMSG},
		{"at most the highest", mixed, -most, 0, "bdcgaef", unix.ENOMSG},
		{"at most, with the lowest number of all", mixed, -most - 1, 0, "bdcgaef", unix.ENOMSG},
		{"at most, nothing so low", []sent{{5, "a"}, {9, "b"}}, -4, 0, "", unix.ENOMSG},
		{"except a type", mixed, 3, Except, "bcdfg", unix.ENOMSG},
		{"except a type that is not there", mixed, 7, Except, "abcdefg", unix.ENOMSG},
		{"except the only one", []sent{{4, "a"}, {4, "b"}}, 4, Except, "", unix.ENOMSG},
		{"except means nothing with 0", mixed, 0, Except, "abcdefg", unix.ENOMSG},
		{"except means nothing below 0", mixed, -2, Except, "bdcg", unix.ENOMSG},
		{"bodies of no bytes keep their place", []sent{{1, ""}, {1, "x"}, {1, ""}}, 1, 0, "x", unix.ENOMSG},
		{"an empty queue", nil, 0, 0, "", unix.ENOMSG},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := private(t, 0o600)
			for _, m := range c.queue {
				put(t, q, m.typ, m.body)
			}
			took, left := "", int64(len(c.queue))
			buf := make([]byte, 10)
			var err error
			for err == nil {
				var n int
				if n, _, err = q.Receive(t.Context(), buf, c.typ, c.flags|NoWait); err == nil {
					took += string(buf[:n])
					left--
				}
			}
			want(t, err, c.then, driver.ErrEmpty)
			if took != c.takes {
				t.Errorf("took %q, want %q", took, c.takes)
			}
			if st, err := q.Stat(); err != nil || st.Messages != left {
				t.Errorf("%d messages are left, %v, want %d", st.Messages, err, left)
			}
		})
	}
}

// E2BIG leaves the message at its place; MSG_NOERROR cuts it and the rest is lost.
func TestTooLong(t *testing.T) {
	q := private(t, 0o600)
	put(t, q, 5, "eleven byte")
	put(t, q, 6, "b")
	for range 2 {
		_, _, err := q.Receive(t.Context(), make([]byte, 10), 0, NoWait)
		want(t, err, unix.E2BIG, driver.ErrTooLarge)
		_, _, err = q.Receive(t.Context(), nil, 5, 0) // the call that could wait does not
		want(t, err, unix.E2BIG)
	}
	gets(t, q, 6, 0, "b", 6)
	buf := make([]byte, 4)
	n, typ, err := q.Receive(t.Context(), buf, 0, NoWait|NoError)
	if err != nil || string(buf[:n]) != "elev" || typ != 5 {
		t.Fatalf("got %q of type %d, %v", buf[:n], typ, err)
	}
	fails(t, q, 0, 0, unix.ENOMSG)
	put(t, q, 7, "x")
	if n, typ, err = q.Receive(t.Context(), nil, 0, NoWait|NoError); n != 0 || typ != 7 || err != nil {
		t.Fatalf("got %d bytes of type %d, %v", n, typ, err)
	}
	// A message that is longer than what is tried first (64 KiB), into a buffer that is longer and one that is not.
	if l, _, err := GetLimits(); err != nil || l.MaxSize < 200_000 {
		t.Skipf("needs kernel.msgmax of 200,000; it is %d here (%v) and no namespace of the tests' own was allowed", l.MaxSize, err)
	}
	big := make([]byte, 200_000)
	for i := range big {
		big[i] = byte(i * 7)
	}
	for _, c := range []struct{ room, flags, n int }{{200_000, 0, 200_000}, {300_000, 0, 200_000}, {199_999, NoError, 199_999}, {70_000, NoError, 70_000}, {100, NoError, 100}} {
		want(t, q.Send(t.Context(), 1, big, 0), nil)
		buf := make([]byte, c.room)
		_, _, err := q.Receive(t.Context(), make([]byte, 199_999), 0, 0)
		want(t, err, unix.E2BIG)
		n, _, err := q.Receive(t.Context(), buf, 0, c.flags)
		if err != nil || n != c.n || string(buf[:n]) != string(big[:n]) {
			t.Fatalf("room for %d: %d bytes, %v", c.room, n, err)
		}
	}
}

// MSG_COPY looks at a place and takes nothing; its combinations with other flags and errors are its own.
func TestCopy(t *testing.T) {
	q := private(t, 0o600)
	_, _, err := q.Receive(t.Context(), nil, 0, NoWait|Copy)
	if errors.Is(err, unix.ENOSYS) {
		want(t, err, driver.ErrUnsupported)
		t.Skip("needs a kernel with MSG_COPY (CONFIG_CHECKPOINT_RESTORE)")
	}
	want(t, err, unix.ENOMSG, driver.ErrEmpty)
	put(t, q, 9, "first")
	put(t, q, 2, "second")
	for range 2 {
		gets(t, q, 0, Copy, "first", 9)
		gets(t, q, 1, Copy, "second", 2)
	}
	fails(t, q, 2, Copy, unix.ENOMSG)
	fails(t, q, -1, Copy, unix.ENOMSG)
	_, _, err = q.Receive(t.Context(), make([]byte, 10), 0, Copy)
	want(t, err, unix.EINVAL, driver.ErrInvalid) // not without IPC_NOWAIT
	fails(t, q, 0, Copy|Except, unix.EINVAL, driver.ErrInvalid)
	_, _, err = q.Receive(t.Context(), make([]byte, 3), 0, NoWait|Copy)
	want(t, err, unix.E2BIG, driver.ErrTooLarge)
	_, _, err = q.Receive(t.Context(), make([]byte, 3), 0, NoWait|Copy|NoError)
	want(t, err, unix.EINVAL, driver.ErrInvalid)
	if st, err := q.Stat(); err != nil || st.Messages != 2 {
		t.Errorf("%d messages, %v, want 2", st.Messages, err)
	}
	gets(t, q, 0, 0, "first", 9)
}

// What is full: the bytes of the bodies, or as many messages as there are bytes.
func TestFull(t *testing.T) {
	q := private(t, 0o600)
	roomFor(t, q, 10)
	put(t, q, 1, "123456")
	want(t, q.Send(t.Context(), 1, []byte("12345"), NoWait), unix.EAGAIN, driver.ErrFull)
	put(t, q, 1, "1234")
	want(t, q.Send(t.Context(), 1, []byte("1"), NoWait), unix.EAGAIN)
	for i := range 8 { // 2 are in: 10 fit
		if err := q.Send(t.Context(), 1, nil, NoWait); err != nil {
			t.Fatalf("message %d of no bytes: %v", i, err)
		}
	}
	want(t, q.Send(t.Context(), 1, nil, NoWait), unix.EAGAIN, driver.ErrFull)
	if st, err := q.Stat(); err != nil || st.Messages != 10 || st.Bytes != 10 || st.QBytes != 10 {
		t.Errorf("%+v, %v", st, err)
	}
	roomFor(t, q, 11) // more room lets more in, less takes nothing away
	want(t, q.Send(t.Context(), 1, []byte("x"), NoWait), nil)
	roomFor(t, q, 0)
	want(t, q.Send(t.Context(), 1, nil, NoWait), unix.EAGAIN)
	gets(t, q, 0, 0, "123456", 1)
}

// Arguments out of bounds are EINVAL, and nothing is done.
func TestArguments(t *testing.T) {
	q := private(t, 0o600)
	var max int
	if l, _, err := GetLimits(); err != nil {
		t.Fatal(err)
	} else {
		max = l.MaxSize
	}
	for _, typ := range []int64{0, -1, -1 << 63} {
		want(t, q.Send(t.Context(), typ, nil, 0), unix.EINVAL, driver.ErrInvalid)
	}
	want(t, q.Send(t.Context(), 1, make([]byte, max+1), 0), unix.EINVAL, driver.ErrTooLarge)
	want(t, q.Send(t.Context(), 1, make([]byte, 64<<20), 0), unix.EINVAL, driver.ErrTooLarge)
	want(t, q.Send(t.Context(), 1, nil, Except), unix.EINVAL, driver.ErrInvalid)
	_, _, err := q.Receive(t.Context(), nil, 0, 1)
	want(t, err, driver.ErrInvalid)
	_, _, err = q.Ready(0, NoError, func() {})
	want(t, err, driver.ErrInvalid)
	_, err = Get(Private, NoWait, 0o600)
	want(t, err, unix.EINVAL, driver.ErrInvalid)
	for _, id := range []int{-1, 1 << 31} {
		_, err = FromID(id)
		want(t, err, driver.ErrInvalid)
	}
	minus, bytes, mode := -1, int64(-1), fs.ModeSetuid
	for _, c := range []Change{{UID: &minus}, {GID: &minus}, {QBytes: &bytes}, {Mode: &mode}} {
		want(t, q.Set(c), unix.EINVAL, driver.ErrInvalid)
	}
	if st, err := q.Stat(); err != nil || st.Messages != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	if cap(q.take(0).b) > header+rawMax {
		t.Error("a handle keeps the buffer of a message that was too long")
	}
}

// freeKey returns a key that no queue has.
func freeKey(t testing.TB) Key {
	t.Helper()
	for k := Key(0x4b540000); k < 0x4b550000; k++ {
		if _, e := msgget(k, 0); e == unix.ENOENT {
			return k
		}
	}
	t.Fatal("no key is free")
	return 0
}

// msgget: what is there, what is not, and that a queue made anew is another one.
func TestGet(t *testing.T) {
	key := freeKey(t)
	_, err := Get(key, 0, 0)
	want(t, err, unix.ENOENT, driver.ErrNotFound)
	_, err = Get(key, Exclusive, 0o600) // IPC_EXCL alone means nothing
	want(t, err, unix.ENOENT)
	q, err := Get(key, Create|Exclusive, 0o640)
	want(t, err, nil)
	defer q.Close()
	defer q.Remove()
	_, err = Get(key, Create|Exclusive, 0o640)
	want(t, err, unix.EEXIST, driver.ErrExists)
	p, err := Get(key, Create, 0o600)
	want(t, err, nil)
	defer p.Close()
	st, err := p.Stat()
	if err != nil || p.ID() != q.ID() || st.Key != key || st.Mode != 0o640 || st.UID != os.Geteuid() || st.CUID != os.Geteuid() || st.GID != os.Getegid() {
		t.Errorf("%+v, %v", st, err)
	}
	if d := time.Since(st.Changed); d < -time.Second || d > time.Minute || !st.LastSend.IsZero() || !st.LastRecv.IsZero() || st.SendPID != 0 || st.RecvPID != 0 {
		t.Errorf("the times of a new queue: %+v", st)
	}
	put(t, q, 1, "abc")
	gets(t, p, 0, 0, "abc", 1)
	st, err = q.Stat()
	if err != nil || st.LastSend.IsZero() || st.LastRecv.IsZero() || st.SendPID != os.Getpid() || st.RecvPID != os.Getpid() || st.Messages != 0 || st.Bytes != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	want(t, q.Remove(), nil)
	want(t, q.Remove(), unix.EINVAL, driver.ErrRemoved)
	for _, h := range []*Queue{p, q} { // a removed identifier is EINVAL for those who come later
		want(t, h.Send(t.Context(), 1, nil, 0), unix.EINVAL, driver.ErrRemoved)
		fails(t, h, 0, 0, unix.EINVAL, driver.ErrRemoved)
		_, err = h.Stat()
		want(t, err, unix.EINVAL, driver.ErrRemoved)
		want(t, h.Set(Change{}), driver.ErrRemoved)
		_, _, err = h.Ready(0, 0, func() {})
		want(t, err, driver.ErrRemoved)
	}
	n, err := Get(key, Create|Exclusive, 0o600)
	want(t, err, nil)
	defer n.Close()
	defer n.Remove()
	if n.ID() == q.ID() {
		t.Error("a queue made anew has the old identifier")
	}
	a, b := private(t, 0o600), private(t, 0o600)
	if a.ID() == b.ID() {
		t.Error("IPC_PRIVATE gave one queue twice")
	}
}

// ftok(3): the formula, and what it asks of its arguments.
func TestFtok(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	_, err := Ftok(file, 1)
	want(t, err, unix.ENOENT, driver.ErrNotFound)
	want(t, os.WriteFile(file, nil, 0o600), nil)
	var st unix.Stat_t
	want(t, unix.Stat(file, &st), nil)
	for _, id := range []int{1, 'A', 255, 256 + 7, -1} {
		k, err := Ftok(file, id)
		if w := Key(int32(uint32(id&0xff)<<24 | uint32(st.Dev&0xff)<<16 | uint32(st.Ino&0xffff))); err != nil || k != w {
			t.Errorf("ftok of %d: %v, %v, want %v", id, k, err, w)
		}
	}
	for _, id := range []int{0, 256, -256} {
		_, err = Ftok(file, id)
		want(t, err, driver.ErrInvalid)
	}
	_, err = Ftok(filepath.Join(file, "below"), 1)
	want(t, err, driver.ErrNotFound)
	_, err = Ftok("a\x00b", 1)
	want(t, err, driver.ErrInvalid)
}

// IPC_SET: each field by itself, and who waits looks again.
func TestSet(t *testing.T) {
	q := private(t, 0o600)
	before, err := q.Stat()
	want(t, err, nil)
	mode, bytes := fs.FileMode(0o604), int64(500)
	want(t, q.Set(Change{Mode: &mode}), nil)
	want(t, q.Set(Change{QBytes: &bytes}), nil)
	uid, gid := os.Geteuid(), os.Getegid()
	want(t, q.Set(Change{UID: &uid, GID: &gid}), nil)
	after, err := q.Stat()
	w := before
	w.Mode, w.QBytes, w.Changed = mode, bytes, after.Changed
	if err != nil || after != w {
		t.Errorf("%+v, %v, want %+v", after, err, w)
	}
	// A sender that is asleep hears of more room, a receiver is not disturbed.
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	r := receiveLater(ctx, q, 5, 0)
	roomFor(t, q, 2)
	s := sendLater(ctx, q, 1, "abc")
	sleeping(t, 2)
	pending(t, s)
	roomFor(t, q, 3)
	want(t, get(t, s), nil)
	pending(t, r)
	roomFor(t, q, 4)
	put(t, q, 5, "x")
	if r := get(t, r); r.err != nil || r.body != "x" {
		t.Errorf("%+v", r)
	}
}

// Limits and usage are those of the sysctls and of the queues that are there.
func TestLimits(t *testing.T) {
	l, _, err := GetLimits()
	if w := (Limits{sysctl("msgmax"), sysctl("msgmnb"), sysctl("msgmni")}); err != nil || l != w {
		t.Errorf("%+v, %v, want %+v", l, err, w)
	}
	before, _, err := GetUsage()
	want(t, err, nil)
	q := private(t, 0o600)
	put(t, q, 1, "abc")
	put(t, q, 1, "")
	now, highest, err := GetUsage()
	if err != nil {
		t.Fatal(err)
	}
	if w := (Usage{before.Queues + 1, before.Messages + 2, before.Bytes + 3}); ownSpace && now != w {
		t.Errorf("%+v, want %+v", now, w)
	}
	var found Status
	for i := range highest + 1 {
		for _, any := range []bool{false, true} {
			if st, err := StatIndex(i, any); err != nil {
				want(t, err, driver.ErrNotFound)
			} else if st.ID == q.ID() {
				found = st
			}
		}
	}
	if st, err := q.Stat(); err != nil || found != st {
		t.Errorf("by index %+v, by identifier %+v, %v", found, st, err)
	}
	_, err = StatIndex(1<<20, false)
	want(t, err, driver.ErrNotFound)
	_, err = StatIndex(-1, true)
	want(t, err, driver.ErrNotFound)
}

// At kernel.msgmni the error says so, and a queue more fits when one has gone.
func TestTooManyQueues(t *testing.T) {
	if !ownSpace {
		t.Skip("fills the table of queues: needs an IPC namespace of its own, which was not allowed")
	}
	old := fmt.Sprint(sysctl("msgmni"))
	if err := os.WriteFile("/proc/sys/kernel/msgmni", []byte("3"), 0); err != nil {
		t.Skipf("needs to set kernel.msgmni: %v", err)
	}
	defer os.WriteFile("/proc/sys/kernel/msgmni", []byte(old), 0)
	private(t, 0o600)
	private(t, 0o600)
	last := private(t, 0o600)
	_, err := Get(Private, Create, 0o600)
	want(t, err, unix.ENOSPC, driver.ErrLimit)
	_, err = Driver().Open(t.Context(), freeKey(t).String(), &driver.Options{Create: true})
	want(t, err, unix.ENOSPC, driver.ErrLimit)
	want(t, last.Remove(), nil)
	private(t, 0o600)
}
