package sysv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// opened makes a queue by the driver, removed at the end of the test.
func opened(t testing.TB, d driver.Driver, o driver.Options) (*handle, string) {
	t.Helper()
	name := freeKey(t).String()
	o.Create = true
	q, err := d.Open(t.Context(), name, &o)
	want(t, err, nil)
	t.Cleanup(func() {
		_ = q.Close() // the test may have closed it
		if err := d.Remove(context.Background(), name); err != nil && !errors.Is(err, driver.ErrNotFound) {
			t.Error(err)
		}
	})
	return q.(*handle), name
}

func TestNames(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a,b")
	want(t, os.WriteFile(file, nil, 0o600), nil)
	ftok := func(id int) Key {
		k, err := Ftok(file, id)
		want(t, err, nil)
		return k
	}
	for _, c := range []struct {
		name string
		want place
		err  error
	}{
		{"0x41000001", place{0x41000001, -1}, nil},
		{"0xff000001", place{-0x00ffffff, -1}, nil},
		{"0x1", place{1, -1}, nil},
		{"id:0", place{0, 0}, nil},
		{"id:65537", place{0, 65537}, nil},
		{file + ",1", place{ftok(1), -1}, nil},
		{file + ",255", place{ftok(255), -1}, nil},
		{file + ",0x41", place{ftok('A'), -1}, nil},
		{file + ",A", place{ftok('A'), -1}, nil},
		{file + "x,1", place{}, driver.ErrNotFound},
		{file + ",0", place{}, driver.ErrInvalid}, {file + ",256", place{}, driver.ErrInvalid}, {file + ",AB", place{}, driver.ErrInvalid},
		{file + ",", place{}, driver.ErrInvalid}, {"/tmp", place{}, driver.ErrInvalid}, {"", place{}, driver.ErrInvalid},
		{"0x0", place{}, driver.ErrInvalid}, {"0x100000000", place{}, driver.ErrInvalid}, {"0X41", place{}, driver.ErrInvalid},
		{"0x", place{}, driver.ErrInvalid}, {"0x+1", place{}, driver.ErrInvalid}, {"0x 1", place{}, driver.ErrInvalid}, {"0x1_0", place{}, driver.ErrInvalid},
		{"id:", place{}, driver.ErrInvalid}, {"id:-1", place{}, driver.ErrInvalid}, {"id:2147483648", place{}, driver.ErrInvalid},
		{",1", place{}, driver.ErrInvalid}, {"a\x00,1", place{}, driver.ErrInvalid}, {"65537", place{}, driver.ErrInvalid},
	} {
		p, err := parseName(c.name)
		want(t, err, c.err)
		if err == nil && p != c.want {
			t.Errorf("%q is %+v, want %+v", c.name, p, c.want)
		}
	}
}

func FuzzNames(f *testing.F) {
	for _, s := range []string{"0x41000001", "id:7", "/tmp,A", "0x", ",,", "0xffffffff,1", "id:99999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parseName(s)
		if err != nil {
			var e syscall.Errno
			if !errors.As(err, &e) {
				t.Errorf("%q: %v has no errno", s, err)
			}
			return
		}
		name := nameOf(&Status{Key: p.key, ID: max(0, p.id)})
		if again, err := parseName(name); err != nil || again != p {
			t.Errorf("%q is %+v; as %q it is %+v, %v", s, p, name, again, err)
		}
	})
}

func FuzzList(f *testing.F) {
	if b, err := os.ReadFile(procFile); err == nil {
		f.Add(b)
	}
	f.Add([]byte("names\n1090519041 3 640 5 1 7 8 0 0 0 0 1 2 3\n-1 4 600 0 0 0 0 1 1 1 1 0 0 3\n"))
	f.Add([]byte("\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if all, err := parseList(b); err == nil && len(all) > bytes.Count(b, []byte("\n")) {
			t.Errorf("%d queues in %q", len(all), b)
		}
	})
}

// What the kernel knows is in the list, of queues that may not be read too.
func TestList(t *testing.T) {
	q, name := opened(t, Driver(), driver.Options{MaxMessages: 5, MaxSize: 20, Mode: 0o640})
	put(t, q.q, 3, "abc")
	put(t, q.q, 3, "de")
	gets(t, q.q, 3, 0, "abc", 3)
	anonymous := private(t, 0)
	all, err := List()
	want(t, err, nil)
	st, err := q.q.Stat()
	want(t, err, nil)
	found := 0
	for _, s := range all {
		switch s.ID {
		case q.q.ID():
			found++
			s.Sequence = st.Sequence // that is not in the file
			if s != st {
				t.Errorf("listed %+v, the kernel says %+v", s, st)
			}
			if s.SendPID != os.Getpid() || s.RecvPID != os.Getpid() || s.Messages != 1 || s.Bytes != 2 || s.QBytes != 100 || s.Mode != 0o640&^umask() {
				t.Errorf("%+v", s)
			}
		case anonymous.ID():
			found++
			if s.Key != Private || s.Mode != 0 || s.QBytes < 0 {
				t.Errorf("%+v", s)
			}
		}
	}
	if found != 2 {
		t.Errorf("%d of 2 are listed: %v", found, all)
	}
	d := Driver()
	anonymousName := fmt.Sprintf("id:%d", anonymous.ID())
	for pattern, n := range map[string]int{name: 1, name[:6] + "*": 1, "id:*": 1, anonymousName: 1, "0x[0-9a-f]*": 1, "nothing": 0, name + "0": 0, "": 2, "**": 2, "*": 2} {
		l, err := d.List(t.Context(), pattern)
		want(t, err, nil)
		k := 0
		for _, i := range l {
			if i.Name == name && i.Messages == 1 && i.Bytes == 2 && i.MaxMessages == 5 && i.MaxSize == 20 && i.UID == os.Geteuid() || i.Name == anonymousName {
				k++
			}
		}
		if k != n {
			t.Errorf("%q lists %d of these, want %d: %+v", pattern, k, n, l)
		}
	}
	_, err = d.List(t.Context(), "[")
	want(t, err, driver.ErrInvalid)
	want(t, d.Remove(t.Context(), anonymousName), nil)
	want(t, d.Remove(t.Context(), anonymousName), driver.ErrNotFound)
	_, err = d.Open(t.Context(), anonymousName, &driver.Options{})
	want(t, err, driver.ErrNotFound)
	p, err := d.Open(t.Context(), fmt.Sprintf("id:%d", q.q.ID()), &driver.Options{})
	want(t, err, nil)
	m, err := p.Receive(t.Context(), driver.Filter{}, true)
	if err != nil || string(m.Body) != "de" || m.Type != 3 {
		t.Errorf("%+v, %v", m, err)
	}
	want(t, p.Close(), nil)
}

// With types: what each filter takes, and what msgrcv has no way to say.
func TestFilters(t *testing.T) {
	q, _ := opened(t, Driver(), driver.Options{MaxMessages: 50, MaxSize: 10})
	ctx := t.Context()
	for _, c := range []struct {
		f     driver.Filter
		takes string
		err   error
	}{
		{driver.Filter{}, "3a1b2c1d3e", nil},
		{driver.Filter{Type: 1}, "1b1d", nil},
		{driver.Filter{Type: 9}, "", nil},
		{driver.Filter{TypeAtMost: 2}, "1b1d2c", nil},
		{driver.Filter{TypeAtMost: 1<<63 - 1}, "1b1d2c3a3e", nil},
		{driver.Filter{NotType: 3}, "1b2c1d", nil},
		{driver.Filter{Type: 2, TypeAtMost: 3, NotType: 1}, "2c", nil},
		{driver.Filter{TypeAtMost: 2, NotType: 2}, "1b1d", nil},
		{driver.Filter{TypeAtMost: 2, NotType: 7}, "1b1d2c", nil},
		{driver.Filter{TypeAtMost: 3, NotType: 2}, "", driver.ErrUnsupported},
		{driver.Filter{Key: "k"}, "", driver.ErrUnsupported},
		{driver.Filter{MinPriority: 1}, "", driver.ErrUnsupported},
		{driver.Filter{Type: 3, TypeAtMost: 2}, "", driver.ErrInvalid},
		{driver.Filter{Type: 3, NotType: 3}, "", driver.ErrInvalid},
	} {
		for _, s := range []string{"3a", "1b", "2c", "1d", "3e"} {
			want(t, q.Send(ctx, driver.Message{Body: []byte(s), Type: int64(s[0] - '0')}, true), nil)
		}
		peeked := ""
		for m, err := range q.Peek(ctx, driver.PeekOptions{Filter: c.f}) {
			if errors.Is(err, unix.ENOSYS) {
				peeked = c.takes // a kernel without MSG_COPY
			} else if want(t, err, c.err); err == nil {
				peeked += string(m.Body)
			}
		}
		if peeked != c.takes {
			t.Errorf("%+v: peek shows %q, want %q", c.f, peeked, c.takes)
		}
		took := ""
		for {
			ready, stop, err := q.Ready(c.f, func() {})
			stop()
			m, err2 := q.Receive(ctx, c.f, true)
			if err2 != nil {
				if c.err == nil {
					want(t, err, nil)
					want(t, err2, driver.ErrEmpty)
				} else {
					want(t, err, c.err)
					want(t, err2, c.err)
				}
				if ready {
					t.Errorf("%+v: ready, but there was nothing", c.f)
				}
				break
			}
			took += string(m.Body)
			if !ready || m.Type != int64(m.Body[0]-'0') || m.Priority != 0 {
				t.Errorf("%+v: %+v, ready %t", c.f, m, ready)
			}
		}
		if took != c.takes {
			t.Errorf("%+v: took %q, want %q", c.f, took, c.takes)
		}
		n, err := q.Purge(ctx, driver.Filter{})
		if want(t, err, nil); n != 5-len(took)/2 {
			t.Errorf("%+v: %d were left", c.f, n)
		}
	}
	n, err := q.Purge(ctx, driver.Filter{Key: "k"})
	want(t, err, driver.ErrUnsupported)
	if n != 0 {
		t.Error(n)
	}
	for _, m := range []driver.Message{{Type: 1, Priority: 1}, {Type: 1, ID: "i"}, {Type: 1, Headers: map[string]string{"a": ""}}, {Type: 1, NotBefore: time.Now()}, {Type: 1, Expires: time.Now()}} {
		want(t, q.Send(ctx, m, true), driver.ErrUnsupported)
	}
	want(t, q.SendBytes(ctx, nil, 1, true), driver.ErrUnsupported)
}

// The options: what is honoured, what is refused and why.
func TestOptions(t *testing.T) {
	d, ctx := Driver(), t.Context()
	l, _, err := GetLimits()
	want(t, err, nil)
	name := freeKey(t).String()
	for _, c := range []struct {
		o    driver.Options
		err  error
		says string
	}{
		{driver.Options{Create: true, MaxMessages: 1, MaxSize: l.MaxSize + 1}, driver.ErrLimit, "sysctl -w kernel.msgmax="},
		{driver.Options{Create: true, MaxMessages: 1 << 40, MaxSize: 1 << 30}, driver.ErrLimit, ""},
		{driver.Options{Create: true, Envelope: true, MaxMessages: 1, MaxSize: l.MaxSize}, driver.ErrLimit, "MaxSize and envelope"},
		{driver.Options{Create: true, Overflow: driver.DropOldest}, driver.ErrUnsupported, "Overflow"},
		{driver.Options{Create: true, Headroom: driver.Headroom{Percent: 1}}, driver.ErrUnsupported, "Headroom"},
		{driver.Options{Create: true, Durability: driver.Always}, driver.ErrUnsupported, "Durability"},
		{driver.Options{}, driver.ErrNotFound, name},
	} {
		_, err := d.Open(ctx, name, &c.o)
		if want(t, err, c.err); !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %q does not say %q", c.o, err, c.says)
		}
	}
	_, err = d.Open(ctx, "id:1", &driver.Options{Create: true})
	want(t, err, driver.ErrInvalid)
	if all, err := List(); err != nil || len(all) > 0 && ownSpace {
		t.Fatalf("queues are there after calls that failed: %v, %v", all, err)
	}

	// A body that can never fit does not wait for ever, however the queue was opened.
	q, name := opened(t, d, driver.Options{MaxMessages: 2, MaxSize: 10})
	want(t, q.Send(ctx, driver.Message{Type: 1, Body: make([]byte, 11)}, false), driver.ErrTooLarge, unix.EMSGSIZE)
	want(t, q.Close(), nil)
	p, err := d.Open(ctx, name, &driver.Options{}) // knows msg_qbytes alone
	want(t, err, nil)
	st, err := p.Stat(ctx)
	if err != nil || st.MaxMessages != 20 || st.MaxSize != 20 {
		t.Errorf("%+v, %v", st, err)
	}
	want(t, p.Send(ctx, driver.Message{Type: 1, Body: make([]byte, 21)}, false), driver.ErrTooLarge)
	want(t, p.Send(ctx, driver.Message{Type: 1, Body: make([]byte, 21)}, true), driver.ErrTooLarge)
	for range 3 {
		want(t, p.Send(ctx, driver.Message{Type: 1, Body: []byte("x")}, true), nil)
	}
	want(t, p.Close(), nil)
	p, err = d.Open(ctx, name, &driver.Options{Create: true, MaxMessages: 2, MaxSize: 10}) // who says the same as its maker keeps to it
	want(t, err, nil)
	want(t, p.Send(ctx, driver.Message{Type: 1}, true), driver.ErrFull)
	want(t, p.Close(), nil)
	p, err = d.Open(ctx, name, &driver.Options{Create: true, MaxMessages: 3, MaxSize: 10}) // and who says something else does not
	want(t, err, nil)
	want(t, p.Send(ctx, driver.Message{Type: 1}, true), nil)
	want(t, p.Close(), nil)
}

// More than kernel.msgmnb needs a capability; without it the error says what to do, and no queue is left behind.
func TestTooLarge(t *testing.T) {
	if !ownSpace || os.Getuid() != 0 {
		t.Skip("lowers kernel.msgmnb and gives up CAP_SYS_RESOURCE: needs root and an IPC namespace of its own")
	}
	old := fmt.Sprint(sysctl("msgmnb"))
	if err := os.WriteFile("/proc/sys/kernel/msgmnb", []byte("1000"), 0); err != nil {
		t.Skipf("needs to set kernel.msgmnb: %v", err)
	}
	defer os.WriteFile("/proc/sys/kernel/msgmnb", []byte(old), 0)
	key := freeKey(t).String()
	p := startPeer(t, "too large", key)
	if got := p.line(); !strings.Contains(got, "limit reached") || !strings.Contains(got, "sysctl -w kernel.msgmnb=1010") {
		t.Errorf("it says %q", got)
	}
	_, err := Driver().Open(t.Context(), key, &driver.Options{})
	want(t, err, driver.ErrNotFound)
}

func init() {
	roles["too large"] = func(args []string) int {
		if err := syscall.Setreuid(65534, 65534); err != nil {
			fmt.Println(err)
			return 1
		}
		_, err := Driver().Open(context.Background(), args[0], &driver.Options{Create: true, MaxMessages: 101, MaxSize: 10})
		fmt.Println(err)
		if !errors.Is(err, driver.ErrLimit) || !errors.Is(err, unix.EPERM) {
			return 1
		}
		return 0
	}
}

// Another user may do what the mode says and nothing else.
func TestPermissions(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("plays another user: needs root")
	}
	var ids []string
	for _, mode := range []fs.FileMode{0o600, 0o604, 0o602, 0o606} {
		q := private(t, mode)
		put(t, q, 1, "x")
		ids = append(ids, fmt.Sprint(q.ID()))
	}
	p := startPeer(t, "other user", ids...)
	for _, w := range []string{
		"send 13 receive 13 stat 13 any 0 set 1 remove 1 copy 13 ready 13 wait 13",
		"send 13 receive 0 stat 0 any 0 set 1 remove 1 copy 42 ready 0 wait 110",
		"send 0 receive 13 stat 13 any 0 set 1 remove 1 copy 13 ready 13 wait 13",
		"send 0 receive 0 stat 0 any 0 set 1 remove 1 copy 0 ready 0 wait 110",
	} {
		if got := p.line(); got != w && !strings.Contains(got, " copy 38 ") { // ENOSYS: no MSG_COPY
			t.Errorf("got  %s\nwant %s", got, w)
		}
	}

	owned, _ := opened(t, Driver(), driver.Options{MaxMessages: 2, MaxSize: 10, Mode: 0o600})
	st, err := owned.q.Stat()
	want(t, err, nil)
	other := 65534
	_, err = Driver().Open(t.Context(), st.Key.String(), &driver.Options{Owner: &other})
	want(t, err, driver.ErrPermission)
	// A queue that another user shall own is not made: there was one, of the wrong owner, before the error.
	absent := freeKey(t).String()
	for _, c := range []struct {
		name string
		o    driver.Options
		errs []error
	}{
		{absent, driver.Options{Create: true, Owner: &other}, []error{driver.ErrPermission, unix.EACCES}},
		{absent, driver.Options{Create: true, Exclusive: true, Owner: &other, MaxMessages: 3, MaxSize: 3}, []error{driver.ErrPermission, unix.EACCES}},
		{absent, driver.Options{}, []error{driver.ErrNotFound}},
		{st.Key.String(), driver.Options{Create: true, Owner: &other}, []error{driver.ErrPermission, unix.EACCES}},
		{st.Key.String(), driver.Options{Create: true, Exclusive: true, Owner: &other}, []error{driver.ErrExists, unix.EEXIST}},
	} {
		_, err := Driver().Open(t.Context(), c.name, &c.o)
		want(t, err, c.errs...)
	}
	want(t, owned.q.Set(Change{UID: &other}), nil)
	for _, o := range []driver.Options{{Owner: &other}, {Create: true, Owner: &other}} {
		h, err := Driver().Open(t.Context(), st.Key.String(), &o)
		want(t, err, nil)
		want(t, h.Close(), nil)
	}
	_, err = Driver().Open(t.Context(), st.Key.String(), &driver.Options{Create: true, Exclusive: true, Owner: &other})
	want(t, err, driver.ErrExists)
}

func init() {
	roles["other user"] = func(ids []string) int {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setregid(65534, 65534), syscall.Setreuid(65534, 65534)); err != nil {
			fmt.Println(err)
			return 1
		}
		number := func(err error) int {
			var e syscall.Errno
			if errors.Is(err, driver.ErrTimeout) {
				return int(unix.ETIMEDOUT)
			}
			if err != nil && !errors.As(err, &e) {
				return -1
			}
			if (e == unix.EACCES || e == unix.EPERM) != errors.Is(err, driver.ErrPermission) {
				return -2
			}
			return int(e)
		}
		for _, s := range ids {
			var id int
			_, _ = fmt.Sscan(s, &id)
			q, err := FromID(id)
			if err != nil {
				return 1
			}
			ctx := context.Background()
			buf := make([]byte, 8)
			send := q.Send(ctx, 2, []byte("y"), NoWait)
			_, _, receive := q.Receive(ctx, buf, 0, NoWait)
			_, stat := q.Stat()
			var k kernelQueue
			any := statAnyway(id, &k)
			mode := fs.FileMode(0o666)
			set := q.Set(Change{Mode: &mode})
			remove := q.Remove()
			_, _, cp := q.Receive(ctx, buf, 0, NoWait|Copy)
			_, stop, ready := q.Ready(0, 0, func() {})
			stop()
			short, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
			_, _, wait := q.Receive(short, buf, 77, 0)
			cancel()
			fmt.Println("send", number(send), "receive", number(receive), "stat", number(stat), "any", int(any), "set", number(set), "remove",
				number(remove), "copy", number(cp), "ready", number(ready), "wait", number(wait))
			_ = q.Close()
		}
		return 0
	}
}

// Two processes pass messages in both directions by the driver, and a sender that waits for a place is let in by another process's
// receive.
func TestTwoProcesses(t *testing.T) {
	for _, d := range []struct {
		name   string
		driver driver.Driver
	}{{"types", Driver()}, {"priorities", PriorityDriver()}} {
		t.Run(d.name, func(t *testing.T) {
			there, to := opened(t, d.driver, driver.Options{MaxMessages: 3, MaxSize: 16})
			back, from := opened(t, d.driver, driver.Options{MaxMessages: 3, MaxSize: 16})
			p := startPeer(t, "echo", d.name, to, from)
			ctx, cancel := context.WithTimeout(t.Context(), long)
			defer cancel()
			const total = 2000
			sent := make(chan error, 1)
			go func() {
				for i := range total {
					m := driver.Message{Type: 1, Body: fmt.Append(nil, i)[:i%2*len(fmt.Append(nil, i))]} // every other one has no bytes
					if err := there.Send(ctx, m, false); err != nil {
						sent <- err
						return
					}
				}
				sent <- nil
			}()
			for i := range total {
				m, err := back.Receive(ctx, driver.Filter{}, false)
				want(t, err, nil)
				if w := string(fmt.Append(nil, i)[:i%2*len(fmt.Append(nil, i))]); string(m.Body) != w {
					t.Fatalf("message %d: got %q, want %q", i, m.Body, w)
				}
			}
			want(t, get(t, sent), nil)
			want(t, d.driver.Remove(ctx, to), nil)
			if got := p.line(); !strings.Contains(got, driver.ErrRemoved.Error()) {
				t.Errorf("the peer ended with %s", got)
			}
		})
	}
}

func init() {
	roles["echo"] = func(args []string) int {
		d := Driver()
		if args[0] == "priorities" {
			d = PriorityDriver()
		}
		o := &driver.Options{Create: true, MaxMessages: 3, MaxSize: 16}
		from, err := d.Open(context.Background(), args[1], o)
		if err == nil {
			var to driver.Queue
			to, err = d.Open(context.Background(), args[2], o)
			for err == nil {
				var m driver.Message
				if m, err = from.Receive(context.Background(), driver.Filter{}, false); err == nil {
					err = to.Send(context.Background(), m, false)
				}
			}
		}
		fmt.Println(err)
		return 0
	}
}
