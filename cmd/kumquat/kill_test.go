package main

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
)

// numbered is a body that tells its number and whether it is whole. It is text: what else move cannot always find the end of again, if
// others use the queue of the kernel too.
func numbered(r *rand.Rand, n int) []byte {
	var tail []byte
	for range r.IntN(20) {
		tail = utf8.AppendRune(tail, []rune("aé☃𝄞\x00\U0010ffff")[r.IntN(6)])
	}
	return fmt.Appendf(nil, "%d %d %08x %s", n, len(tail), crc32.ChecksumIEEE(tail), tail)
}

func numberOf(body []byte) (int, error) {
	f := strings.SplitN(string(body), " ", 4)
	if len(f) != 4 {
		return 0, fmt.Errorf("body %q", body)
	}
	n, err := strconv.Atoi(f[0])
	if fmt.Sprint(len(f[3])) != f[1] || fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(f[3]))) != f[2] {
		err = fmt.Errorf("body %q is not whole", body)
	}
	return n, err
}

// kernelName makes a queue of the kernel for the test, or names one of the engine, and removes it afterwards.
func kernelName(t *testing.T, dir, kind, role string) string {
	t.Helper()
	name := map[string]string{
		"engine":        "/" + role,
		"posix":         fmt.Sprintf("posix:/kumquat-cmd-%d-%s", os.Getpid(), role),
		"sysv":          fmt.Sprintf("sysv:0x4c%06x", (os.Getpid()<<3|len(role)&7)&0xffffff),
		"sysv+priority": fmt.Sprintf("sysv+priority:0x4d%06x", (os.Getpid()<<3|len(role)&7)&0xffffff),
	}[kind]
	args := []string{"create", name}
	if kind == "posix" || kind == "engine" {
		args = append(args, "--max-messages", "10", "--max-size", "200")
	}
	mustRun(t, dir, args...)
	t.Cleanup(func() { mustRun(t, dir, "rm", name) })
	return name
}

// TestKilledMoves kills move again and again while messages run through it from a producer to a consumer, and accounts for every one:
// none is lost, none is damaged, and there are no more doubles than kills.
func TestKilledMoves(t *testing.T) {
	for _, route := range [][2]string{{"posix", "engine"}, {"engine", "posix"}, {"sysv", "engine"}, {"engine", "engine"}, {"posix", "sysv+priority"}, {"sysv+priority", "posix"}} {
		t.Run(route[0]+" to "+route[1], func(t *testing.T) { killMoves(t, route[0], route[1]) })
	}
}

const moveKills = 25

func killMoves(t *testing.T, fromKind, toKind string) {
	dir := privateShm(t)
	t.Setenv("KUMQUAT_SHM", dir)
	from, to := kernelName(t, dir, fromKind, "from"), kernelName(t, dir, toKind, "into")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	ctx, stop := context.WithCancel(context.Background())
	src, err := kumquat.Open(ctx, from, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := kumquat.Open(ctx, to, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()

	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	sent, produced := 0, make(chan struct{})
	enough := make(chan struct{})
	wg.Go(func() { // the producer
		defer close(produced)
		p := rand.New(rand.NewPCG(seed, 2))
		for {
			select {
			case <-enough:
				return
			default:
			}
			if err := src.Send(ctx, kumquat.Message{Body: numbered(p, sent)}); err != nil {
				if ctx.Err() == nil {
					t.Errorf("send: %v", err)
				}
				return
			}
			sent++
		}
	})
	got := map[int]int{}
	var mu sync.Mutex
	arrived := make(chan struct{}, 1)
	wg.Go(func() { // the consumer
		for {
			m, err := dst.Receive(ctx)
			if err != nil {
				if ctx.Err() == nil {
					t.Errorf("receive: %v", err)
				}
				return
			}
			n, err := numberOf(m.Body)
			if err != nil {
				t.Error(err)
				continue
			}
			mu.Lock()
			got[n]++
			mu.Unlock()
			select {
			case arrived <- struct{}{}:
			default:
			}
		}
	})
	for range moveKills {
		select {
		case <-arrived:
		default:
		}
		c := command(t, dir, "move", from, to)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-arrived: // it is at work
		case <-time.After(2 * time.Second):
		}
		time.Sleep(time.Duration(r.IntN(2000)) * time.Microsecond)
		c.Process.Kill()
		c.Wait()
	}
	close(enough)
	for done := false; !done; { // those that wait for room in the source need a mover
		mustRun(t, dir, "move", from, to)
		select {
		case <-produced:
			done = true
		default:
		}
	}
	mustRun(t, dir, "move", from, to)
	count := func() (n, doubles int) {
		mu.Lock()
		defer mu.Unlock()
		for _, k := range got {
			n, doubles = n+1, doubles+k-1
		}
		return n, doubles
	}
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if n, _ := count(); n == sent {
			break
		}
	}
	n, doubles := count()
	t.Logf("%d messages, %d kills, %d arrived twice", sent, moveKills, doubles)
	if n != sent || doubles > moveKills {
		t.Errorf("%d messages were sent and %d arrived, %d of them twice after %d kills", sent, n, doubles, moveKills)
	}
	if left, _ := filepath.Glob(dir + "/" + journalPrefix + "*"); len(left) > 0 {
		t.Errorf("journals are left: %v", left)
	}
}

// A move that dies between the system call that took a message and the note of its length leaves enough to find it again, also if the
// body ends like the fill behind it.
func TestJournalFindsTheLength(t *testing.T) {
	for _, kind := range []string{"posix", "sysv", "sysv+priority"} {
		t.Run(kind, func(t *testing.T) {
			dir := privateShm(t)
			t.Setenv("KUMQUAT_SHM", dir)
			from, to := kernelName(t, dir, kind, "from"), kernelName(t, dir, "engine", "into")
			for i, tail := range []int{-1, 0, 1, 2, 3} { // −1: an empty body
				want := leaveInHand(t, from, to, i, tail)
				mustRun(t, dir, "send", from, "behind")
				mustRun(t, dir, "recv", from)
				if out := mustRun(t, dir, "move", "--resume"); out != "1\n" {
					t.Fatalf("--resume sent %q", out)
				}
				q, err := kumquat.Open(context.Background(), to, nil)
				if err != nil {
					t.Fatal(err)
				}
				m, err := q.TryReceive()
				q.Close()
				if err != nil || string(m.Body) != string(want.Body) || m.Priority != want.Priority || m.Type != want.Type {
					t.Errorf("tail %d: %d %d %q, %v, not %d %d %q", tail, m.Priority, m.Type, m.Body, err, want.Priority, want.Type, want.Body)
				}
			}
		})
	}
}

// leaveInHand takes a message out of a queue into a journal as move does it, and does what a kill right behind the system call does: it
// forgets the result.
func leaveInHand(t *testing.T, from, to string, i, tail int) kumquat.Message {
	t.Helper()
	ctx := context.Background()
	q, err := kumquat.Open(ctx, from, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	src, err := newSource(ctx, q, kumquat.Filter{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := &route{From: from, To: to, IPC: ipcNamespace()}
	j, err := openJournal(journalPaths(r)[0], r)
	if err != nil {
		t.Fatal(err)
	}
	m := kumquat.Message{Type: 1}
	if tail >= 0 {
		m.Body = fmt.Appendf(nil, "message %d", i)
		fill := make([]byte, len(m.Body)+tail)
		fillBytes(j.head.seed, fill)
		m.Body = append(m.Body, fill[len(m.Body):]...)
	}
	switch kindOf(from) {
	case posixKind:
		m.Priority = 5 + i
	case sysvKind:
		if isByPriority(from) {
			m.Priority = 32767 * (i & 1)
		} else {
			m.Type = int64(7 + i)
		}
	}
	if err := q.TrySend(m); err != nil {
		t.Fatal(err)
	}
	if err := src.take(ctx, j); err != nil {
		t.Fatal(err)
	}
	if kindOf(from) == sysvKind { // as the kernel left it
		*j.mtype() = m.Type
		if isByPriority(from) {
			*j.mtype() = int64(lowestType - m.Priority)
		}
		j.head.priority = noPriority
	}
	j.head.length = 0
	j.set(isTaking)
	die(t, j)
	return m
}

// die leaves a journal as the death of its process does: as it is, without its lock.
func die(t *testing.T, j *journal) {
	t.Helper()
	if err := errors.Join(unix.Munmap(j.mem), j.f.Close()); err != nil {
		t.Fatal(err)
	}
}

// What move cannot send goes back, and what nobody took is not sent twice.
func TestMoveGivesBack(t *testing.T) {
	dir := privateShm(t)
	t.Setenv("KUMQUAT_SHM", dir)
	mustRun(t, dir, "create", "/full", "--max-messages", "1")
	mustRun(t, dir, "send", "/full", "there")
	from := kernelName(t, dir, "posix", "from")
	mustRun(t, dir, "send", from, "x", "-p", "7")
	start(t, command(t, dir, "move", from, "/full", "--nonblock")).ends(exitFull, "(?s)kumquat: 0 messages moved: .*queue full.*")
	start(t, command(t, dir, "move", from, "/full", "--timeout", "20ms")).ends(exitEmpty, "(?s)kumquat: 0 messages moved: .*")
	r := start(t, command(t, dir, "move", from, "/full"))
	await(t, dir, from, "messages", "0")
	r.stop(syscall.SIGINT, 130, "(?s)kumquat: 0 messages moved: stopped by SIGINT\n")
	if out := mustRun(t, dir, "recv", from, "--json"); !strings.Contains(out, `"priority":7`) || !strings.Contains(out, `"body":"x"`) {
		t.Errorf("what was given back: %s", out)
	}
	// An intention alone is no message: the one that is still in the queue is moved once.
	mustRun(t, dir, "create", "/from")
	mustRun(t, dir, "send", "/from", "once", "--key", "k", "-p", "3")
	ctx := context.Background()
	q, err := kumquat.Open(ctx, "/from", nil)
	if err != nil {
		t.Fatal(err)
	}
	rt := &route{From: "/from", To: from, IPC: ipcNamespace()}
	j, err := openJournal(journalPaths(rt)[0], rt)
	if err != nil {
		t.Fatal(err)
	}
	for m, err := range q.Peek(ctx, kumquat.PeekOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		s, err := q.Stat(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if j.head.inode, err = inode(s.Path); err != nil {
			t.Fatal(err)
		}
		if err := j.write(&m, isIntending); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	die(t, j)
	if out := mustRun(t, dir, "move", "/from", from, "--strip"); out != "1\n" {
		t.Errorf("moved %q", out)
	}
	var exit *exec.ExitError
	out, err := command(t, dir, "recv", from, "-n", "2", "--timeout", "0").Output()
	if !errors.As(err, &exit) || exit.ExitCode() != exitEmpty || string(out) != "once\n" {
		t.Errorf("received %q, %v", out, err)
	}
}
