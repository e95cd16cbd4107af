package shm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

func init() {
	roles["lease-all"] = leaseAllRole
	roles["lease-work"] = leaseWorkRole
	roles["lease-one"] = leaseOneRole
}

// leaseAllRole: DIR N. Leases N messages for an hour, says so, and waits to be killed.
func leaseAllRole(args []string) int {
	q, err := Driver{Dir: args[0]}.OpenQueue(context.Background(), "/leases", nil)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	n, _ := strconv.Atoi(args[1])
	ls, err := q.LeaseBatch(context.Background(), nil, driver.Filter{}, time.Hour, n, true)
	fmt.Println(len(ls), err)
	select {}
}

// leaseOneRole: DIR LEASE. Leases a message, and for every line of standard input acknowledges, extends, retries and releases it, and
// says of each whether the lease was lost.
func leaseOneRole(args []string) int {
	ctx := context.Background()
	q, err := Driver{Dir: args[0]}.OpenQueue(ctx, "/leases", nil)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	d, _ := time.ParseDuration(args[1])
	l, err := q.Lease(ctx, driver.Filter{}, d, true)
	fmt.Println(string(l.Message.Body), err)
	for {
		if _, err := bufioLine(); err != nil {
			return 0
		}
		fmt.Println(errors.Is(q.Extend(ctx, &l, time.Hour), driver.ErrLeaseLost), errors.Is(q.Retry(ctx, &l, 0), driver.ErrLeaseLost),
			errors.Is(q.Release(ctx, &l), driver.ErrLeaseLost), errors.Is(q.Ack(ctx, &l), driver.ErrLeaseLost))
	}
}

// A stopped process keeps its lease until its time. Then others get the message, and what the process does when it goes on changes
// nothing, though it be leased again at that moment.
func TestLeaseOfTheStopped(t *testing.T) {
	d := shmDir(t)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	q := openQueue(t, d, "/leases", &driver.Options{Create: true, MaxMessages: 10, MaxSize: 64, MaxHandles: 4})
	const length = 400 * time.Millisecond
	sendBody(t, q, "a", 1)
	began := time.Now()
	p := startPeer(t, "lease-one", nil, d.Dir, length.String())
	if s := p.line(); s != "a <nil>" {
		t.Fatalf("the peer leased %s", s)
	}
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	l, err := q.Lease(ctx, driver.Filter{}, time.Hour, false)
	if took := time.Since(began); err != nil || l.Message.Attempt != 1 || took < length {
		t.Fatalf("leased %q, attempt %d, %v, after %v", l.Message.Body, l.Message.Attempt, err, took)
	}
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	p.say("end it")
	if s := p.line(); s != "true true true true" {
		t.Errorf("the one that was stopped: lost %s", s)
	}
	if st, err := q.Stat(ctx); err != nil || st.Leased != 1 || st.Messages != 1 {
		t.Errorf("%d messages, %d leased, %v", st.Messages, st.Leased, err)
	}
	if err := q.Ack(ctx, &l); err != nil {
		t.Error(err)
	}
	mustBeSound(t, q)
}

// leaseWorkRole: DIR LEASE SEED. Leases, works a moment, and acknowledges, gives back or forgets, until it is killed. It writes what
// it has acknowledged, after the call has returned.
func leaseWorkRole(args []string) int {
	ctx := context.Background()
	q, err := Driver{Dir: args[0]}.OpenQueue(ctx, "/leases", nil)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	d, _ := time.ParseDuration(args[1])
	seed, _ := strconv.ParseUint(args[2], 10, 64)
	r := rand.New(rand.NewPCG(seed, 7))
	for {
		ls, err := q.LeaseBatch(ctx, nil, driver.Filter{}, d, 1+r.IntN(8), false)
		if err != nil {
			fmt.Println("!", err)
			return 1
		}
		for i := range ls {
			l := &ls[i]
			if r.IntN(6) == 0 {
				time.Sleep(2 * time.Millisecond)
			}
			what := r.IntN(20)
			switch {
			case what == 0:
				err = q.Retry(ctx, l, time.Duration(r.IntN(20))*time.Millisecond)
			case what == 1:
				err = q.Release(ctx, l)
			case what == 2:
				err = nil // forgotten: it comes back when its time is over
			case what == 3:
				if err = q.Extend(ctx, l, d); err == nil {
					err = q.Release(ctx, l)
				}
			default:
				if err = q.Ack(ctx, l); err == nil {
					_, _ = os.Stdout.WriteString("+" + string(l.Message.Body) + "\n")
				}
			}
			if errors.Is(err, driver.ErrLeaseLost) {
				_, _ = os.Stdout.WriteString("-" + string(l.Message.Body) + "\n")
			} else if err != nil {
				fmt.Println("!", err)
				return 1
			}
		}
	}
}

// What a process had leased comes back within 250 ms of its death: to one that waits, in the order of the sends, each counted as failed
// once; and to a handle that is opened in its place.
func TestLeasesOfTheDead(t *testing.T) {
	const n = 10_000
	d := shmDir(t)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	q := openQueue(t, d, "/leases", &driver.Options{Create: true, MaxMessages: n, MaxSize: 64, MaxHandles: 4})
	for i := range n {
		sendBody(t, q, strconv.Itoa(i), i%3)
	}
	for _, blocked := range []bool{true, false} {
		p := startPeer(t, "lease-all", nil, d.Dir, strconv.Itoa(n))
		if got := p.line(); got != fmt.Sprintf("%d <nil>", n) {
			t.Fatalf("the peer leased %s", got)
		}
		if m, err := q.Receive(ctx, driver.Filter{}, true); !errors.Is(err, driver.ErrEmpty) {
			t.Fatalf("received %q, %v, of what another has leased", m.Body, err)
		}
		got := make(chan error, 1)
		var back []driver.Lease
		take := func(try bool) (err error) {
			back, err = q.LeaseBatch(ctx, back[:0], driver.Filter{}, time.Hour, n, try)
			return err
		}
		if blocked {
			go func() { got <- take(false) }()
			for doing := uint64(0); doing != opWaitReceive; time.Sleep(time.Millisecond) {
				doing = load(p64(q.entry, pDoing)) >> opShift
			}
		}
		if err := p.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = p.wait() // from here on the kernel has dropped the lock
		died := time.Now()
		if !blocked {
			go func() {
				err := take(true)
				for errors.Is(err, driver.ErrEmpty) {
					time.Sleep(time.Millisecond)
					err = take(true)
				}
				got <- err
			}()
		}
		if err := <-got; err != nil {
			t.Fatal(err)
		}
		took := time.Since(died)
		t.Logf("blocked %v: %d messages came back %v after the death", blocked, len(back), took)
		if took > 250*time.Millisecond && !raceEnabled {
			t.Errorf("blocked %v: they came back after %v", blocked, took)
		}
		if len(back) != n {
			t.Fatalf("blocked %v: %d of %d came back", blocked, len(back), n)
		}
		want := 1
		if !blocked {
			want = 2
		}
		last := -1
		for i := range back {
			m := &back[i].Message
			at, _ := strconv.Atoi(string(m.Body))
			if m.Attempt != want || i > 0 && back[i-1].Message.Priority < m.Priority || i > 0 && back[i-1].Message.Priority == m.Priority && at <= last {
				t.Fatalf("blocked %v: message %d is %d of priority %d, attempt %d (after %d), want attempt %d", blocked, i, at, m.Priority, m.Attempt, last, want)
			}
			last = at
		}
		for i := range back {
			if err := q.Release(ctx, &back[i]); err != nil {
				t.Fatal(err)
			}
		}
		mustBeSound(t, q)
	}
	if st, err := q.Stat(ctx); err != nil || st.Messages != n || st.Leased != 0 {
		t.Errorf("%d messages, %d leased, %v", st.Messages, st.Leased, err)
	}
}

// Workers that lease are killed and stopped at any moment. Every message is acknowledged once: none twice, none lost but those whose
// worker was killed between its acknowledgement and its word of it.
func TestLeasesUnderSignals(t *testing.T) {
	if testing.Short() {
		t.Skip("kills and stops processes for some seconds")
	}
	const workers = 3
	n, leaseTime := 6000, 120*time.Millisecond
	if raceEnabled {
		n = 3000
	}
	d := shmDir(t)
	ctx, cancel := context.WithTimeout(context.Background(), 120*time.Second)
	defer cancel()
	q := openQueue(t, d, "/leases", &driver.Options{Create: true, MaxMessages: 500, MaxSize: 64, MaxHandles: workers + 6})
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	acked, lost := map[string]int{}, 0
	var mu sync.Mutex
	var readers sync.WaitGroup
	start := func() *peer {
		p := startPeer(t, "lease-work", nil, d.Dir, leaseTime.String(), strconv.FormatUint(r.Uint64(), 10))
		readers.Add(1)
		go func() {
			defer readers.Done()
			for {
				s, err := p.out.ReadString('\n')
				if err != nil {
					return
				}
				mu.Lock()
				switch s[0] {
				case '+':
					acked[s[1:len(s)-1]]++
				case '-':
					lost++
				default:
					t.Errorf("worker: %s", s)
				}
				mu.Unlock()
			}
		}()
		return p
	}
	var ps [workers]*peer
	for i := range ps {
		ps[i] = start()
	}
	sent := make(chan error, 1)
	go func() {
		for i := range n {
			if err := q.Send(ctx, driver.Message{Body: []byte(strconv.Itoa(i)), Priority: i % 4, Type: 1}, false); err != nil {
				sent <- err
				return
			}
			if i%64 == 0 {
				time.Sleep(20 * time.Millisecond) // so that there is something to kill at every time
			}
		}
		sent <- nil
	}()
	kills, stops := 0, 0
	for done := false; !done; {
		select {
		case err := <-sent:
			if err != nil {
				t.Fatalf("seed %d: send: %v", seed, err)
			}
			done = true
		case <-time.After(time.Duration(5+r.IntN(60)) * time.Millisecond):
			i := r.IntN(workers)
			if r.IntN(2) == 0 {
				ps[i].kill()
				ps[i] = start()
				kills++
				continue
			}
			_ = ps[i].cmd.Process.Signal(syscall.SIGSTOP)
			time.Sleep(time.Duration(r.IntN(200)) * time.Millisecond) // often longer than a lease
			_ = ps[i].cmd.Process.Signal(syscall.SIGCONT)
			stops++
		}
	}
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		st, err := q.Stat(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if st.Messages == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("seed %d: %d messages are left, %d leased, %d delayed", seed, st.Messages, st.Leased, st.Delayed)
		}
	}
	for _, p := range ps {
		p.kill()
	}
	readers.Wait()
	for b, k := range acked {
		if k != 1 {
			t.Errorf("seed %d: message %s was acknowledged %d times", seed, b, k)
		}
	}
	// Each kill can have fallen between an acknowledgement and its line.
	if missing := n - len(acked); missing < 0 || missing > kills+workers {
		t.Errorf("seed %d: %d of %d messages were not told of, %d workers were killed", seed, missing, n, kills)
	}
	if kills < 3 || stops < 3 {
		t.Errorf("only %d kills and %d stops", kills, stops)
	}
	mustBeSound(t, q)
	// The room is whole again.
	for i := range 501 {
		if err := q.SendBytes(ctx, nil, 0, true); (err == nil) != (i < 500) {
			t.Fatalf("seed %d: message %d of 500 at the end: %v", seed, i+1, err)
		}
	}
	t.Logf("leases summary: %d messages, %d acknowledged and told, %d leases found lost, %d kills, %d stops", n, len(acked), lost, kills, stops)
}
