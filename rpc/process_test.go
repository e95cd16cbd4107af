package rpc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
)

// Each side sees the other as the kernel states it.
func TestPeers(t *testing.T) {
	ctx := withTime(t)
	p := startChild(t, nil, "server", "/peers")
	p.expect("ready")
	c := dial(t, "/peers", nil)
	if s := c.Server(); s.PID != p.cmd.Process.Pid || s.UID != os.Getuid() || s.GID != os.Getgid() {
		t.Errorf("the server is %+v, its pid %d", s, p.cmd.Process.Pid)
	}
	if v := must[[3]int](t)(Call[[3]int](ctx, c, "who", 0)); v != [3]int{os.Getpid(), os.Getuid(), os.Getgid()} {
		t.Errorf("the server sees %v", v)
	}
	p.end()
	closesWithin(t, c.Server().Gone(), soon, "the end of the server")
	if err := c.Err(); !errors.Is(err, ErrStopped) {
		t.Error(err)
	}
	if _, err := Call[int](ctx, c, "add", []int{1}); !errors.Is(err, kumquat.ErrNotFound) {
		t.Error(err)
	}
}

// All calls under way end at once when their server is killed; the client removes what it left, and finds the next server by itself.
func TestServerKilled(t *testing.T) {
	ctx := withTime(t)
	for _, args := range [][]string{{"/mortal"}, {"-isolate", "/mortal"}} {
		p := startChild(t, nil, "server", args...)
		p.expect("ready")
		c := dial(t, "/mortal", nil)
		const calls = 50
		ends := make(chan error, calls+1)
		for i := range calls {
			go func() { _, err := Call[int](ctx, c, "block", i); ends <- err }()
		}
		for range min(calls, isolatedWorkers) {
			if s := p.line(); !strings.HasPrefix(s, "blocks") {
				t.Fatal(s)
			}
		}
		n := c.cur.Load()
		eventually(t, 5*time.Second, "all sent", func() bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			return len(n.waiting) == calls && len(n.followers) == calls-1
		})
		at := time.Now()
		p.kill()
		for range calls {
			if err := <-ends; !errors.Is(err, ErrDied) || !errors.Is(err, unix.ECONNRESET) {
				t.Fatal(err)
			}
		}
		if d := time.Since(at); d > soon {
			t.Errorf("the calls ended after %v", d)
		}
		closesWithin(t, c.Server().Gone(), soon, "the notice")
		if err := c.Err(); !errors.Is(err, ErrDied) {
			t.Error(err)
		}
		if _, err := Call[int](ctx, c, "add", []int{1}); !errors.Is(err, kumquat.ErrNotFound) {
			t.Error(err)
		}
		// Of an isolated client's server it does not know the common queue: that is left to the next server.
		eventually(t, soon, "its queues removed", func() bool { return len(queuesIn()) == len(args)-1 })
		next := startChild(t, nil, "server", args...)
		next.expect("ready")
		if q := queuesIn(); len(q) != 1 {
			t.Errorf("left: %v", q)
		}
		if v := must[int](t)(Call[int](ctx, c, "add", []int{1, 2})); v != 3 {
			t.Error(v)
		}
		if c.Server().PID != next.cmd.Process.Pid {
			t.Error("that is not the next server")
		}
		_ = c.Close()
		next.end()
	}
}

// queuesIn are the queues that are there, without sockets and locks.
func queuesIn() (qs []string) {
	for _, f := range inFolder() {
		if strings.HasPrefix(f, "kmq.") {
			qs = append(qs, f)
		}
	}
	return qs
}

// The contexts of a killed client's handlers end at once, its queues are removed, its one-way calls are carried out.
func TestClientKilled(t *testing.T) {
	for _, isolate := range []bool{false, true} {
		var mu sync.Mutex
		told := map[string]int{}
		s := NewServer(&ServerOptions{Isolate: isolate, Log: quiet})
		gone := make(chan (<-chan struct{}), 16)
		addMethods(s, func(format string, a ...any) {
			mu.Lock()
			defer mu.Unlock()
			told[fmt.Sprintf(format, a...)]++
		})
		Handle(s, "block", func(ctx context.Context, n int) (int, error) {
			gone <- PeerFrom(ctx).Gone()
			<-ctx.Done()
			mu.Lock()
			defer mu.Unlock()
			told["ended "+kindOf(context.Cause(ctx))]++
			return 0, ctx.Err()
		})
		hold := make(chan struct{})
		Handle(s, "note", func(ctx context.Context, n string) (int, error) { // the first waits until the client is dead
			<-hold
			mu.Lock()
			defer mu.Unlock()
			told["notes"]++
			return 0, ctx.Err()
		})
		serve(t, s, "/hospice")
		before := len(queuesIn())
		p := startChild(t, nil, "client", "/hospice", "")
		p.expect("ok")
		fmt.Fprintln(p.in, "block 8")
		p.expect("ok")
		var g <-chan struct{}
		for range 8 {
			g = <-gone
		}
		fmt.Fprintln(p.in, "notes 300")
		p.expect("ok")
		if n := len(s.Peers()); n != 1 || s.Peers()[0].PID != p.cmd.Process.Pid {
			t.Errorf("%d peers", n)
		}
		p.kill()
		closesWithin(t, g, soon, "the notice")
		eventually(t, soon, "all handlers ended", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return told["ended died"] == 8
		})
		close(hold)
		eventually(t, 5*time.Second, "the one-way calls carried out", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return told["notes"] == 300
		})
		eventually(t, 5*time.Second, "forgotten", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return len(s.sessions) == 0
		})
		eventually(t, 5*time.Second, "its queues removed", func() bool { return len(queuesIn()) == before })
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A stopped server is not dead: calls wait for their deadline, and what expired meanwhile is never carried out.
func TestServerStopped(t *testing.T) {
	ctx := withTime(t)
	p := startChild(t, nil, "server", "/sleeper")
	p.expect("ready")
	c := dial(t, "/sleeper", nil)
	must[int64](t)(Call[int64](ctx, c, "count", 0))
	p.signal(unix.SIGSTOP)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
			defer cancel()
			at := time.Now()
			if _, err := Call[int64](short, c, "count", 0); !errors.Is(err, kumquat.ErrTimeout) || time.Since(at) > 100*time.Millisecond+soon {
				t.Errorf("%v: %v", time.Since(at), err)
			}
		})
	}
	patient := make(chan int64, 1)
	go func() { v, _ := Call[int64](ctx, c, "count", 0); patient <- v }()
	wg.Wait()
	if err := c.Err(); err != nil {
		t.Errorf("a stopped server passes for %v", err)
	}
	p.signal(unix.SIGCONT)
	if n := <-patient; n != 2 {
		t.Errorf("the call that waited is number %d: expired ones were carried out", n)
	}
	if n := must[int64](t)(Call[int64](ctx, c, "count", 0)); n != 3 {
		t.Errorf("the next call is number %d", n)
	}
	_ = c.Close()
	p.end()
}

// A client that is stopped in the midst of its calls holds nobody up, and finds its replies when it goes on.
func TestClientStopped(t *testing.T) {
	ctx := withTime(t)
	s := NewServer(nil)
	addMethods(s, func(string, ...any) {})
	serve(t, s, "/patient")
	p := startChild(t, nil, "client", "/patient", "")
	p.expect("ok")
	fmt.Fprintln(p.in, "sleep 900")
	p.expect("ok")
	p.signal(unix.SIGSTOP)
	c := dial(t, "/patient", nil)
	for i := range 200 {
		short, cancel := context.WithTimeout(ctx, 5*time.Second)
		if v := must[int](t)(Call[int](short, c, "add", []int{i, 1})); v != i+1 {
			t.Error(v)
		}
		cancel()
	}
	if n := len(s.Peers()); n != 2 {
		t.Errorf("%d clients are connected: the stopped one was given up", n)
	}
	p.signal(unix.SIGCONT)
	p.expect("answered ok")
	p.end()
}

// What a server and its clients leave that are killed together, the next client or server removes.
func TestLeftovers(t *testing.T) {
	ctx := withTime(t)
	for _, next := range []string{"client", "server"} {
		p := startChild(t, nil, "server", "/lost")
		p.expect("ready")
		c := startChild(t, nil, "client", "/lost", "")
		c.expect("ok")
		c.kill()
		c = startChild(t, nil, "client", "/lost", "")
		c.expect("ok")
		c.signal(unix.SIGSTOP) // so that it cannot clear up
		p.kill()
		c.kill()
		if len(queuesIn()) != 2 {
			t.Fatalf("left: %v", inFolder())
		}
		if next == "client" {
			time.Sleep(freshTime + 100*time.Millisecond) // younger ones might be just being made
			if _, err := Dial(ctx, "/lost", nil); !errors.Is(err, kumquat.ErrNotFound) {
				t.Error(err)
			}
			if q := queuesIn(); len(q) != 0 {
				t.Errorf("left: %v", q)
			}
		}
		s := NewServer(nil)
		if err := s.Listen(ctx, "/lost"); err != nil {
			t.Fatal(err)
		}
		if q := queuesIn(); len(q) != 1 {
			t.Errorf("left: %v", q)
		}
		if err := NewServer(nil).Listen(ctx, "/lost"); !errors.Is(err, kumquat.ErrExists) {
			t.Errorf("a second server: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if f := inFolder(); len(f) != 0 {
			t.Errorf("left: %v", f)
		}
	}
}

// A server that stops lets calls finish; one that is closed ends them.
func TestStop(t *testing.T) {
	ctx := withTime(t)
	for _, hard := range []bool{false, true} {
		s := NewServer(nil)
		started := make(chan struct{}, 10)
		Handle(s, "work", func(ctx context.Context, ms int) (int, error) {
			started <- struct{}{}
			select {
			case <-time.After(time.Duration(ms) * time.Millisecond):
				return ms, nil
			case <-ctx.Done():
				return 0, context.Cause(ctx)
			}
		})
		if err := s.Serve(ctx); !errors.Is(err, kumquat.ErrInvalid) {
			t.Errorf("Serve without Listen: %v", err)
		}
		if err := s.Listen(ctx, "/stops"); err != nil {
			t.Fatal(err)
		}
		run, cancel := context.WithCancel(ctx)
		defer cancel()
		over := make(chan error, 1)
		go func() { over <- s.Serve(run) }()
		c := dial(t, "/stops", nil)
		ends := make(chan error, 10)
		for range 10 {
			go func() { _, err := Call[int](ctx, c, "work", 300); ends <- err }()
		}
		for range 10 {
			<-started
		}
		at := time.Now()
		if hard {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		} else {
			cancel()
			eventually(t, soon, "told", func() bool { return c.cur.Load().bye.Load() })
			if _, err := Call[int](ctx, c, "work", 0); !errors.Is(err, kumquat.ErrNotFound) {
				t.Errorf("a call to a server that stops: %v", err)
			}
		}
		for range 10 {
			err := <-ends
			if hard && !errors.Is(err, ErrStopped) || !hard && err != nil {
				t.Error(err)
			}
		}
		if err := <-over; err != nil {
			t.Error(err)
		}
		switch d := time.Since(at); {
		case hard && d > soon, !hard && d > 300*time.Millisecond+soon:
			t.Errorf("the end took %v", d)
		}
		if err := s.Close(); !errors.Is(err, kumquat.ErrClosed) {
			t.Errorf("a second end: %v", err)
		}
		_ = c.Close()
		if f := inFolder(); len(f) != 0 {
			t.Errorf("left: %v", f)
		}
	}
}

// A server that never listened, or never served, can be closed; afterwards it does neither.
func TestCloseEarly(t *testing.T) {
	ctx := withTime(t)
	s := NewServer(nil)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Listen(ctx, "/early"); !errors.Is(err, kumquat.ErrInvalid) {
		t.Error(err)
	}
	if err := s.Close(); !errors.Is(err, kumquat.ErrClosed) {
		t.Error(err)
	}
	s = NewServer(nil)
	if err := s.Listen(ctx, "/early"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Serve(ctx); !errors.Is(err, kumquat.ErrInvalid) {
		t.Error(err)
	}
	if f := inFolder(); len(f) != 0 {
		t.Errorf("left: %v", f)
	}
}

// Who is turned away is told why; the limits hold and are given back.
func TestTurnedAway(t *testing.T) {
	ctx := withTime(t)
	var refuse bool
	s := NewServer(&ServerOptions{MaxClients: 2, Log: quiet, Allow: func(p *Peer) error {
		if refuse {
			return fmt.Errorf("process %d is not on the list", p.PID)
		}
		return nil
	}})
	serve(t, s, "/door")
	a, b := dial(t, "/door", nil), dial(t, "/door", nil)
	var e *Error
	if _, err := Dial(ctx, "/door", nil); !errors.Is(err, kumquat.ErrLimit) || !errors.As(err, &e) || e.Code != ResourceExhausted {
		t.Errorf("the third client: %v", err)
	}
	_, _ = a.Close(), b.Close()
	refuse = true
	eventually(t, time.Second, "room again", func() bool {
		_, err := Dial(ctx, "/door", nil)
		return errors.Is(err, kumquat.ErrPermission) && strings.Contains(err.Error(), "not on the list")
	})
	for _, name := range []string{"", "door", "/", "/a//b", "/a/../b", "/*", "/" + strings.Repeat("x", 200)} {
		if _, err := Dial(ctx, name, nil); !errors.Is(err, kumquat.ErrInvalid) {
			t.Errorf("dial %q: %v", name, err)
		}
		if err := NewServer(nil).Listen(ctx, name); !errors.Is(err, kumquat.ErrInvalid) {
			t.Errorf("listen %q: %v", name, err)
		}
	}
	for _, o := range []ServerOptions{{Workers: -1}, {MaxClients: 5000}, {Mode: os.ModeDir}, {MaxSize: -1}, {MaxRequests: -1}} {
		if err := NewServer(&o).Listen(ctx, "/x"); !errors.Is(err, kumquat.ErrInvalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	for _, n := range []int{-1, maxOutstanding + 1} {
		if _, err := Dial(ctx, "/door", &ClientOptions{Outstanding: n}); !errors.Is(err, kumquat.ErrInvalid) {
			t.Error(err)
		}
	}
}

// A client that damages its queues, or says what is not so, loses its own connection and nothing else.
func TestVandal(t *testing.T) {
	ctx := withTime(t)
	s := NewServer(&ServerOptions{Isolate: true, Log: quiet})
	addMethods(s, func(string, ...any) {})
	serve(t, s, "/vandalized")
	c := dial(t, "/vandalized", nil)
	replies := c.cur.Load().replies.Name()
	p := startChild(t, nil, "client", "/vandalized", "")
	p.expect("ok")
	check := func() {
		t.Helper()
		for i := range 20 {
			if v := must[int](t)(Call[int](ctx, c, "add", []int{i, 1})); v != i+1 {
				t.Error(v)
			}
		}
	}
	fmt.Fprintln(p.in, "vandalize "+replies)
	p.expect("ok")
	check()
	fmt.Fprintln(p.in, "who")
	p.expect(fmt.Sprintf("[%d %d %d] ok", p.cmd.Process.Pid, os.Getuid(), os.Getgid()))
	fmt.Fprintln(p.in, "truncate")
	p.expect("ok")
	eventually(t, 5*time.Second, "disconnected", func() bool { return len(s.Peers()) == 1 })
	check()
}

// A server whose queue of requests is removed under its feet ends and says so.
func TestQueueRemoved(t *testing.T) {
	ctx := withTime(t)
	s := NewServer(&ServerOptions{Log: quiet})
	started := make(chan struct{})
	Handle(s, "block", func(ctx context.Context, _ int) (int, error) { close(started); <-ctx.Done(); return 0, ctx.Err() })
	if err := s.Listen(ctx, "/removed"); err != nil {
		t.Fatal(err)
	}
	s.o.Drain = 50 * time.Millisecond
	over := make(chan error, 1)
	go func() { over <- s.Serve(ctx) }()
	c := dial(t, "/removed", nil)
	end := make(chan error, 1)
	go func() { _, err := Call[int](ctx, c, "block", 0); end <- err }()
	<-started
	if err := kumquat.Remove(ctx, c.cur.Load().requests.Name()); err != nil {
		t.Fatal(err)
	}
	if err := <-over; !errors.Is(err, kumquat.ErrRemoved) {
		t.Error(err)
	}
	if err := <-end; !errors.Is(err, ErrStopped) {
		t.Error(err)
	}
	_ = c.Close()
	if f := inFolder(); len(f) != 0 {
		t.Errorf("left: %v", f)
	}
}

// Three users: the server's and two others.
const (
	ownerID    = 41001
	strangerID = 41003
	otherID    = 41004
)

func asUser(uid int) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid), NoSetGroups: false}}
}

// Users who do not trust each other: queues that only the two can open, identities as the kernel states them, and a socket whose mode
// says who may come.
func TestUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become three other users")
	}
	owner := fmt.Sprint(ownerID)
	p := startChild(t, asUser(ownerID), "server", "-mode", "666", "/public")
	p.expect("ready")
	unpinned := startChild(t, asUser(strangerID), "client", "/public", "")
	unpinned.expect("permission") // the server might be anybody's
	wrong := startChild(t, asUser(strangerID), "client", "/public", fmt.Sprint(otherID))
	wrong.expect("permission")
	a := startChild(t, asUser(strangerID), "client", "/public", owner)
	a.expect("ok")
	b := startChild(t, asUser(otherID), "client", "/public", owner)
	b.expect("ok")
	own := startChild(t, asUser(ownerID), "client", "/public", "")
	own.expect("ok")
	root := startChild(t, nil, "client", "/public", owner)
	root.expect("ok")
	for c, uid := range map[*child]int{a: strangerID, b: otherID, own: ownerID, root: 0} {
		fmt.Fprintln(c.in, "who")
		gid := uid
		c.expect(fmt.Sprintf("[%d %d %d] ok", c.cmd.Process.Pid, uid, gid))
	}
	fmt.Fprintln(a.in, "queues")
	queues := strings.Fields(a.line())
	if len(queues) != 2 {
		t.Fatal(queues)
	}
	for _, q := range queues {
		for c, want := range map[*child]string{a: "ok", b: "permission", own: "ok"} {
			fmt.Fprintln(c.in, "open "+q)
			c.expect(want)
		}
	}
	fmt.Fprintln(own.in, "queues")
	for _, q := range strings.Fields(own.line()) {
		fmt.Fprintln(a.in, "open "+q)
		a.expect("permission")
	}
	for _, c := range []*child{a, b, own, root} {
		c.end()
	}
	p.end()

	private := startChild(t, asUser(ownerID), "server", "/private")
	private.expect("ready")
	if st := must[os.FileInfo](t)(os.Stat(filepath.Join(os.Getenv(folderVar), "kmrpc.private"))); st.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode is %v", st.Mode())
	}
	refused := startChild(t, asUser(strangerID), "client", "/private", owner)
	refused.expect("permission")
	private.end()
}
