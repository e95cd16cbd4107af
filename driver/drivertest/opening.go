package drivertest

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
)

func isAny(err error, targets ...error) bool {
	return slices.ContainsFunc(targets, func(x error) bool { return errors.Is(err, x) })
}

// Open, Create, Exclusive, Remove and List: what is there, what is not, and that shaping a queue that exists changes nothing.
func opening(s *suite, t *testing.T) {
	ctx := waiting(t)
	url := s.URL(t)
	_, err := kumquat.Open(ctx, url, nil)
	want(t, err, kumquat.ErrNotFound)
	want(t, kumquat.Remove(ctx, url), kumquat.ErrNotFound)
	listed := func() []kumquat.Info {
		t.Helper()
		l, err := kumquat.List(ctx, url)
		want(t, err, nil)
		return l
	}
	if l := listed(); len(l) != 0 {
		t.Errorf("listed before it is there: %+v", l)
	}
	q := s.queue(t, kumquat.Options{MaxMessages: 3, MaxSize: 10})
	url = q.Name()
	_, err = kumquat.Open(ctx, url, &kumquat.Options{Create: true, Exclusive: true})
	want(t, err, kumquat.ErrExists)
	p, err := kumquat.Open(ctx, url, &kumquat.Options{Create: true, MaxMessages: 99, MaxSize: 99})
	want(t, err, nil)
	if st := stat(t, p); st.MaxMessages != 3 || st.MaxSize != 10 {
		t.Errorf("opening reshaped the queue: %d of %d bytes", st.MaxMessages, st.MaxSize)
	}
	if p.Name() != url {
		t.Errorf("Name %q, want %q", p.Name(), url)
	}
	send(t, q, s.text("a", 0))
	if l := listed(); len(l) != 1 || l[0].Name != url || l[0].Messages != 1 || l[0].MaxMessages != 3 || l[0].Err != nil {
		t.Errorf("listed: %+v", l)
	}
	want(t, p.Close(), nil)
	// A queue lives on when nobody has it open.
	want(t, q.Close(), nil)
	p = s.again(t, q)
	takes(t, p, kumquat.Filter{}, "a")
	want(t, kumquat.Remove(ctx, url), nil)
	if l := listed(); len(l) != 0 {
		t.Errorf("listed after its removal: %+v", l)
	}
	q = s.queue(t, kumquat.Options{}) // the defaults
	if st := stat(t, q); s.MaxMessages == 0 && st.MaxMessages != 65_536 || s.MaxSize == 0 && st.MaxSize != 64<<10 {
		t.Errorf("the defaults are %d messages of %d bytes", st.MaxMessages, st.MaxSize)
	}
}

// What is outside its bounds is ErrInvalid, and nothing is done.
func arguments(s *suite, t *testing.T) {
	ctx := waiting(t)
	for _, name := range slices.Concat(s.BadNames, []string{"", "orders", "nosuchscheme:x", ":x", "UPPER:x"}) {
		_, err := kumquat.Open(ctx, name, &kumquat.Options{Create: true})
		want(t, err, kumquat.ErrInvalid)
		want(t, kumquat.Remove(ctx, name), kumquat.ErrInvalid)
		if msg := err.Error(); name != "" && !strings.HasPrefix(msg, "kumquat: open ") {
			t.Errorf("the error says %q", msg)
		}
	}
	url, minus := s.URL(t), -1
	for _, o := range []kumquat.Options{
		{Exclusive: true}, {Owner: &minus},
		{Create: true, MaxMessages: -1}, {Create: true, MaxMessages: 16_000_001}, {Create: true, MaxSize: -1}, {Create: true, MaxHandles: -1},
		{Create: true, MaxHandles: 4097}, {Create: true, Overflow: 77}, {Create: true, Durability: 77}, {Create: true, Mode: fs.ModeSetuid | 0o600},
		{Create: true, Headroom: kumquat.Headroom{Percent: 100}}, {Create: true, Headroom: kumquat.Headroom{Percent: -1}},
		{Create: true, Headroom: kumquat.Headroom{Percent: 1, Priority: 32768}},
	} {
		_, err := kumquat.Open(ctx, url, &o)
		want(t, err, kumquat.ErrInvalid)
	}
	_, err := kumquat.Open(ctx, url, nil)
	want(t, err, kumquat.ErrNotFound)

	q := s.queue(t, kumquat.Options{MaxMessages: 3})
	for _, m := range []kumquat.Message{{Priority: -1}, {Priority: kumquat.MaxPriority + 1}, {Type: -1}} {
		want(t, q.TrySend(m), kumquat.ErrInvalid)
		want(t, q.Send(ctx, m), kumquat.ErrInvalid)
		want(t, q.TrySendBatch([]kumquat.Message{{}, m}), kumquat.ErrInvalid)
	}
	for _, fs := range [][]kumquat.Filter{
		{kumquat.Type(-1)}, {kumquat.MinPriority(-1)}, {kumquat.MinPriority(kumquat.MaxPriority + 1)}, {kumquat.Type(1), kumquat.Type(2)},
		{kumquat.Key("a"), kumquat.Key("b")}, {kumquat.Not(1), kumquat.Not(2)}, {kumquat.Type(3), kumquat.TypeAtMost(2)}, {kumquat.Type(3), kumquat.Not(3)},
	} {
		_, err := q.TryReceive(fs...)
		want(t, err, kumquat.ErrInvalid)
		_, err = q.ReceiveBatch(ctx, 2, fs...)
		want(t, err, kumquat.ErrInvalid)
	}
	var none context.Context
	want(t, q.Send(none, s.text("a", 0)), kumquat.ErrInvalid)
	_, err = q.Receive(none)
	want(t, err, kumquat.ErrInvalid)
	if n := stat(t, q).Messages; n != 0 {
		t.Errorf("%d messages were sent by calls that failed", n)
	}
}

// Handles come and go, as many as MaxHandles says at once, and their places are used again.
func handles(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 3, MaxHandles: 5})
	limit := stat(t, q).MaxHandles
	var hs []*kumquat.Queue
	if limit == 5 {
		for range 4 {
			hs = append(hs, s.again(t, q))
		}
		_, err := kumquat.Open(waiting(t), q.Name(), nil)
		want(t, err, kumquat.ErrLimit)
		for _, h := range hs {
			send(t, h, s.text("x", 0))
			takes(t, q, kumquat.Filter{}, "x")
			want(t, h.Close(), nil)
		}
	}
	for range 100 {
		h := s.again(t, q)
		send(t, h, s.text("x", 0))
		takes(t, q, kumquat.Filter{}, "x")
		send(t, q, s.text("y", 0))
		takes(t, h, kumquat.Filter{}, "y")
		want(t, h.Close(), nil)
	}
}

// Mode is what the umask leaves of it, 0600 if unsaid. (The umask is the process's: this one runs alone.)
func modes(s *suite, t *testing.T) {
	old := unix.Umask(0o027)
	defer unix.Umask(old)
	for _, c := range []struct{ mode, want fs.FileMode }{{0, 0o600}, {0o666, 0o640}, {0o777, 0o750}, {0o600, 0o600}} {
		q := s.queue(t, kumquat.Options{MaxMessages: 1, Mode: c.mode})
		if m := stat(t, q).Mode; m != c.want {
			t.Errorf("mode %#o under umask 027 became %#o, want %#o", c.mode, m, c.want)
		}
	}
}

// Owner pins the queue to a user; a handle for observing does not send or receive; the mode decides for everybody else.
func permissions(s *suite, t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	ctx := waiting(t)
	q := s.queue(t, kumquat.Options{MaxMessages: 3, Mode: 0o644})
	me, other := os.Geteuid(), os.Geteuid()+1
	p, err := kumquat.Open(ctx, q.Name(), &kumquat.Options{Owner: &me})
	want(t, err, nil)
	want(t, p.Close(), nil)
	_, err = kumquat.Open(ctx, q.Name(), &kumquat.Options{Owner: &other})
	want(t, err, kumquat.ErrPermission)
	// Owner with Create: what we make we own, so a queue for somebody else is not made; Exclusive looks at the name alone.
	absent := s.URL(t)
	for _, c := range []struct {
		name string
		o    kumquat.Options
		err  error
	}{
		{q.Name(), kumquat.Options{Create: true, Owner: &other}, kumquat.ErrPermission},
		{q.Name(), kumquat.Options{Create: true, Exclusive: true, Owner: &other}, kumquat.ErrExists},
		{q.Name(), kumquat.Options{Create: true, Exclusive: true, Owner: &me}, kumquat.ErrExists},
		{absent, kumquat.Options{Create: true, Owner: &other}, kumquat.ErrPermission},
		{absent, kumquat.Options{Create: true, Exclusive: true, Owner: &other}, kumquat.ErrPermission},
		{absent, kumquat.Options{}, kumquat.ErrNotFound},
	} {
		if _, err := kumquat.Open(ctx, c.name, &c.o); !errors.Is(err, c.err) {
			t.Errorf("open %s with %+v: %v, want %v", c.name, c.o, err, c.err)
		}
	}

	send(t, q, s.text("a", 0))
	observe := func(p *kumquat.Queue) {
		t.Helper()
		want(t, p.TrySend(s.text("b", 0)), kumquat.ErrPermission)
		want(t, p.TrySendBytes(nil, 0), kumquat.ErrPermission)
		_, err := p.TryReceive()
		want(t, err, kumquat.ErrPermission)
		if s.can(kumquat.Purging) {
			_, err = p.Purge(ctx)
			want(t, err, kumquat.ErrPermission)
		}
		if s.can(kumquat.ZeroCopy) {
			_, err = p.Reserve(ctx, 1)
			want(t, err, kumquat.ErrPermission)
			_, err = p.TryBorrow()
			want(t, err, kumquat.ErrPermission)
		}
		if n := stat(t, p).Messages; n != 1 {
			t.Errorf("an observer sees %d messages, want 1", n)
		}
		if s.can(kumquat.Peeking) {
			n := 0
			for m, err := range p.Peek(ctx, kumquat.PeekOptions{}) {
				if want(t, err, nil); string(m.Body) == "a" {
					n++
				}
			}
			if n != 1 {
				t.Errorf("an observer peeks at %d messages, want 1", n)
			}
		}
		if s.can(kumquat.Inspecting) {
			ps, err := p.Who(ctx)
			if want(t, err, nil); len(ps) < 1 {
				t.Error("an observer sees nobody")
			}
			_, err = p.Check(ctx)
			want(t, err, nil)
		}
		want(t, p.Close(), nil)
	}
	p, err = kumquat.Open(ctx, q.Name(), &kumquat.Options{ReadOnly: true})
	want(t, err, nil)
	observe(p)
	if me == 0 {
		private := s.queue(t, kumquat.Options{MaxMessages: 3, Mode: 0o600})
		err := asUser(65534, func() {
			for _, x := range []struct {
				name string
				o    *kumquat.Options
				err  error
			}{
				{private.Name(), nil, kumquat.ErrPermission}, {private.Name(), &kumquat.Options{ReadOnly: true}, kumquat.ErrPermission},
				{private.Name(), &kumquat.Options{Create: true}, kumquat.ErrPermission},
				{private.Name(), &kumquat.Options{Create: true, Exclusive: true}, kumquat.ErrExists},
				{private.Name(), &kumquat.Options{Create: true, Exclusive: true, Owner: &me}, kumquat.ErrExists},
				{absent, &kumquat.Options{Create: true, Owner: &me}, kumquat.ErrPermission}, {absent, nil, kumquat.ErrNotFound},
				{q.Name(), nil, kumquat.ErrPermission}, {q.Name(), &kumquat.Options{ReadOnly: true}, nil},
			} {
				p, err := kumquat.Open(ctx, x.name, x.o)
				if !errors.Is(err, x.err) && err != x.err {
					t.Errorf("open %s with %+v as another user: %v, want %v", x.name, x.o, err, x.err)
				}
				if err == nil {
					observe(p)
				}
			}
			if err := kumquat.Remove(ctx, q.Name()); !errors.Is(err, kumquat.ErrPermission) {
				t.Errorf("remove as another user: %v", err)
			}
		})
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
			t.Skipf("needs another user: this user namespace has none (%v)", err)
		}
		want(t, err, nil)
	}
	takes(t, q, kumquat.Filter{}, "a")
}

// asUser runs f as another effective user and group: those of one thread, by raw system calls, since package syscall changes all
// threads. (The file system user alone, as of setfsuid(2), means nothing to the queues of System V.) It returns why it could not.
func asUser(id uintptr, f func()) (err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		set := func(call, id uintptr) bool {
			if err != nil {
				return false
			}
			const keep = ^uintptr(0)
			if _, _, e := unix.RawSyscall(call, keep, id, keep); e != 0 {
				err = e
			}
			return err == nil
		}
		group, user := uintptr(os.Getegid()), uintptr(os.Geteuid())
		defer func() {
			if err == nil {
				runtime.UnlockOSThread() // else the thread ends with the goroutine
			}
		}()
		if !set(unix.SYS_SETRESGID, id) {
			return
		}
		defer func() { set(unix.SYS_SETRESGID, group) }()
		if !set(unix.SYS_SETRESUID, id) {
			return
		}
		defer func() { set(unix.SYS_SETRESUID, user) }()
		f()
	}()
	<-done
	return err
}

// What is declared to be missing says so, in Can and by ErrUnsupported; what is not declared is there.
func abilities(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 3})
	ctx := waiting(t)
	for _, a := range s.rest {
		if !q.Can(a) {
			t.Errorf("Can(%v) is false, and the harness does not declare it", a)
		}
	}
	for _, a := range []kumquat.Ability{kumquat.Transactions, 200} {
		if q.Can(a) {
			t.Errorf("Can(%v) is true", a)
		}
	}
	refuses := func(o kumquat.Options) error {
		o.Create = true
		_, err := kumquat.Open(ctx, s.URL(t), &o)
		return err
	}
	if !q.Can(kumquat.Durable) {
		want(t, refuses(kumquat.Options{Durability: kumquat.Always}), kumquat.ErrUnsupported)
	}
	calls := map[kumquat.Ability]func() error{
		kumquat.Batches:     func() error { return q.TrySendBatch(make([]kumquat.Message, 2)) },
		kumquat.Bytes:       func() error { _, _, err := q.TryReceiveInto(nil); return err },
		kumquat.ZeroCopy:    func() error { _, err := q.Reserve(ctx, 1); return err },
		kumquat.Purging:     func() error { _, err := q.Purge(ctx); return err },
		kumquat.Notifying:   func() error { _, err := q.Notify(ctx); return err },
		kumquat.Descriptors: func() error { _, err := q.FD(); return err },
		kumquat.Inspecting:  func() error { _, err := q.Who(ctx); return err },
		kumquat.Filters: func() error {
			_, err := q.TryReceive(kumquat.Type(2), kumquat.Key("k"), kumquat.MinPriority(1))
			return err
		},
		kumquat.Metadata:  func() error { return q.TrySend(kumquat.Message{ID: "id"}) },
		kumquat.Delays:    func() error { return q.TrySend(kumquat.Message{NotBefore: farAway}) },
		kumquat.Expiry:    func() error { return q.TrySend(kumquat.Message{Expires: farAway}) },
		kumquat.Dropping:  func() error { return refuses(kumquat.Options{Overflow: kumquat.DropLowest}) },
		kumquat.Headrooms: func() error { return refuses(kumquat.Options{Headroom: kumquat.Headroom{Percent: 10, Priority: 9}}) },
		kumquat.Peeking: func() error {
			for _, err := range q.Peek(ctx, kumquat.PeekOptions{}) {
				return err
			}
			return nil
		},
		kumquat.Watching: func() error {
			for _, err := range q.Watch(ctx) {
				return err
			}
			return nil
		},
		kumquat.Selecting: func() error {
			if !s.can(kumquat.Descriptors) {
				_, err := kumquat.Select(ctx, q)
				return err
			}
			return kumquat.ErrUnsupported // the descriptor serves instead
		},
	}
	for _, a := range s.Cannot {
		if q.Can(a) {
			t.Errorf("Can(%v) is true, though the harness declares that it is missing", a)
		}
		if f := calls[a]; f != nil {
			if err := f(); !errors.Is(err, kumquat.ErrUnsupported) {
				t.Errorf("%v: error %v, want ErrUnsupported", a, err)
			}
		}
	}
	empty(t, q, kumquat.Filter{})
}
