package shm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/kumquat-mq/kumquat/driver"
	"golang.org/x/sys/unix"
)

func threads() int {
	es, _ := os.ReadDir("/proc/self/task")
	return len(es)
}

func cpuTime() time.Duration {
	var r unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func init() { roles["crowd"] = crowdRole }

// crowdRole: DIR QUEUES GOROUTINES FILTERED SECONDS. Blocks so many goroutines in Receive, idles, then wakes all by sends.
func crowdRole(args []string) int {
	d := Driver{Dir: args[0]}
	n := make([]int, 3)
	for i := range n {
		n[i], _ = strconv.Atoi(args[1+i])
	}
	queues, goroutines, filtered := n[0], n[1], n[2] != 0
	seconds, _ := strconv.ParseFloat(args[4], 64)
	ctx := context.Background()
	qs := make([]*Queue, queues)
	for i := range qs {
		q, err := d.OpenQueue(ctx, fmt.Sprintf("/crowd/%d", i), &driver.Options{Create: true, MaxMessages: 100, MaxSize: 100, MaxHandles: 4})
		if err != nil {
			fmt.Println(err)
			return 1
		}
		qs[i] = q
	}
	var woken, failed atomic.Int32
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Add(1)
		go func() {
			defer wg.Done()
			f := driver.Filter{}
			if filtered {
				f.Type = int64(1 + g/queues)
			}
			if _, err := qs[g%queues].Receive(ctx, f, false); err != nil {
				fmt.Fprintln(os.Stderr, err)
				failed.Add(1)
			}
			woken.Add(1)
		}()
	}
	for blocked := int32(0); int(blocked) < goroutines; time.Sleep(10 * time.Millisecond) {
		blocked = 0
		for _, q := range qs {
			blocked += int32(q.ops.Load())
		}
	}
	time.Sleep(time.Second) // until all have found their place to sleep
	before, most := cpuTime(), threads()
	begun := time.Now()
	for time.Since(begun) < time.Duration(seconds*float64(time.Second)) {
		time.Sleep(500 * time.Millisecond)
		most = max(most, threads())
	}
	idle := float64(cpuTime()-before) / float64(time.Since(begun))
	begun = time.Now()
	for g := range goroutines {
		if err := qs[g%queues].Send(ctx, driver.Message{Type: int64(1 + g/queues)}, true); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	wg.Wait()
	fmt.Printf("%d %.4f %d %d %d\n", most, idle, time.Since(begun).Milliseconds(), woken.Load(), failed.Load())
	return 0
}

// Ten thousand goroutines that wait for messages hold few threads and hardly any time of a processor.
func TestCrowd(t *testing.T) {
	t.Parallel()
	seconds := "5"
	if testing.Short() {
		seconds = "0.5"
	}
	peers := map[string]*peer{}
	for _, filtered := range []string{"0", "1"} { // both at once: they sleep most of the time
		peers[filtered] = startPeer(t, "crowd", nil, shmDir(t).Dir, "1000", "10000", filtered, seconds)
	}
	for filtered, p := range peers {
		var most, ms, woken, failed int
		var idle float64
		s := p.line()
		if _, err := fmt.Sscan(s, &most, &idle, &ms, &woken, &failed); err != nil {
			t.Fatalf("%q: %v\n%s", s, err, p.tail())
		}
		if err := p.wait(); err != nil {
			t.Fatalf("%v\n%s", err, p.tail())
		}
		t.Logf("filtered %s: %d threads, %.2f %% of a processor, all woken in %d ms", filtered, most, 100*idle, ms)
		if most > 64 {
			t.Errorf("10,000 blocked goroutines (filtered %s) hold %d threads, the most is 64", filtered, most)
		}
		if idle >= 0.01 && !testing.Short() && !raceEnabled {
			t.Errorf("10,000 blocked goroutines (filtered %s) use %.2f %% of a processor, the most is 1", filtered, 100*idle)
		}
		if woken != 10_000 || failed > 0 || ms > 20_000 {
			t.Errorf("%d of 10,000 were woken, %d failed, in %d ms", woken, failed, ms)
		}
	}
}

// A queue for ten million messages opens at once, and what is not used costs nothing.
func TestTenMillion(t *testing.T) {
	d := shmDir(t)
	ctx := context.Background()
	o := &driver.Options{Create: true, MaxMessages: 10_000_000, MaxSize: 1024, MaxHandles: 64}
	best := time.Hour
	for range 5 {
		begun := time.Now()
		q, err := d.OpenQueue(ctx, "/many", o)
		took := time.Since(begun)
		if err != nil {
			t.Fatal(err)
		}
		best = min(best, took)
		if err := q.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if best > 10*time.Millisecond {
		t.Errorf("opening takes %v, the most is 10 ms", best)
	}
	q := openQueue(t, d, "/many", nil)
	const n = 5000
	for i := range n {
		sendBody(t, q, fmt.Sprint(i, strings.Repeat("x", i%1000)), i%3)
	}
	for p := 2; p >= 0; p-- {
		for i := range n {
			if i%3 != p {
				continue
			}
			if want := fmt.Sprint(i, strings.Repeat("x", i%1000)); tryBody(t, q) != want {
				t.Fatalf("message %d is another one", i)
			}
		}
	}
	mustBeSound(t, q)
	if s, err := q.Stat(ctx); err != nil || s.Resident > 32<<20 {
		t.Errorf("%d bytes are resident, %v", s.Resident, err)
	}
	t.Logf("opened in %v", best)
}

func available() uint64 {
	b, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(b)) {
		var kib uint64
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	return 0
}

// Messages of 1 GiB pass through a queue made for few of them, and their memory comes back.
func TestGibibyte(t *testing.T) {
	const size = 1 << 30
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	if raceEnabled {
		t.Skip("the race detector's shadow of 1 GiB is too much")
	}
	t.Parallel()
	d := shmDir(t)
	var s unix.Statfs_t
	if err := unix.Statfs(d.Dir, &s); err != nil || s.Bavail*uint64(s.Bsize) < 3*size || available() < 6*size {
		t.Skipf("needs 6 GiB of memory and 3 GiB in %s: %d MiB and %d MiB are there", d.Dir, available()>>20, s.Bavail*uint64(s.Bsize)>>20)
	}
	ctx := context.Background()
	q := openQueue(t, d, "/huge", &driver.Options{Create: true, MaxMessages: 2, MaxSize: size, MaxHandles: 8})
	p, err := unix.MmapPtr(-1, 0, nil, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Skipf("no memory: %v", err)
	}
	defer func() { _ = unix.MunmapPtr(p, size) }()
	body := unsafe.Slice((*byte)(p), size)
	stamp := func(n byte) {
		for i := 0; i < size; i += pageSize {
			body[i], body[i+1], body[i+pageSize-1] = n, byte(i>>20), byte(i>>12)
		}
	}
	const small = size / 16
	for i, n := range []int{size, small} {
		stamp(byte(i + 1))
		if err := q.SendBytes(ctx, body[:n], i, true); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.SendBytes(ctx, body[:1], 5, true); !errors.Is(err, driver.ErrFull) {
		t.Errorf("a third message: %v", err)
	}
	for i := 1; i >= 0; i-- {
		want := []int{size, small}[i]
		clear(body[:want])
		n, prio, err := q.ReceiveInto(ctx, body, true)
		if err != nil || n != want || prio != i {
			t.Fatalf("%d bytes, priority %d, %v", n, prio, err)
		}
		for j := 0; j < n; j += pageSize {
			if body[j] != byte(i+1) || body[j+1] != byte(j>>20) || body[j+pageSize-1] != byte(j>>12) {
				t.Fatalf("byte %d is wrong", j)
			}
		}
	}
	if s, err := q.Stat(ctx); err != nil || s.Resident > 8<<20 {
		t.Errorf("%d KiB stay resident, %v", s.Resident>>10, err)
	}
	mustBeSound(t, q)
}

// What a queue costs before it is used, and where its sizes end.
func TestIdleAndLimits(t *testing.T) {
	t.Parallel()
	d := shmDir(t)
	ctx := context.Background()
	for i, o := range []driver.Options{{}, {MaxMessages: 1, MaxSize: 1, MaxHandles: 1}, {MaxMessages: 10_000_000}, {MaxMessages: 2, MaxSize: 1 << 30}, {MaxHandles: 4096}} {
		o.Create = true
		name := fmt.Sprintf("/idle%d", i)
		resident := func(when string) {
			var st unix.Stat_t
			if err := unix.Stat(fileOf(d, name), &st); err != nil || st.Blocks*512 > 64<<10 {
				t.Errorf("%+v, %s: %d bytes are resident, the most is 65536 (%v)", o, when, st.Blocks*512, err)
			}
		}
		q := openQueue(t, d, name, &o)
		resident("created")
		if o.MaxHandles != 1 {
			openQueue(t, d, name, nil)
			resident("opened again")
		}
		ro := openQueue(t, d, name, &driver.Options{ReadOnly: true})
		if _, err := ro.Stat(ctx); err != nil {
			t.Error(err)
		}
		mustBeSound(t, q)
		resident("looked at")
		if _, err := q.Receive(ctx, driver.Filter{}, true); !errors.Is(err, driver.ErrEmpty) {
			t.Error(err)
		}
		resident("found empty")
	}
	for _, c := range []struct {
		o    driver.Options
		want error
	}{
		{driver.Options{MaxMessages: 16_000_000, MaxSize: 2 << 20, MaxHandles: 8}, driver.ErrLimit},
		{driver.Options{MaxMessages: 10_000, MaxSize: maxBody}, driver.ErrLimit},
		{driver.Options{MaxMessages: 16_000_001}, driver.ErrInvalid},
		{driver.Options{MaxMessages: -1}, driver.ErrInvalid},
		{driver.Options{MaxSize: maxBody + 1}, driver.ErrInvalid},
		{driver.Options{MaxHandles: 4097}, driver.ErrInvalid},
		{driver.Options{MaxMessages: 16_000_000, MaxSize: 1 << 19, MaxHandles: 8}, nil},
		{driver.Options{MaxMessages: 2, MaxSize: maxBody, MaxHandles: 8}, nil},
	} {
		c.o.Create = true
		q, err := d.OpenQueue(ctx, "/limits", &c.o)
		if !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", c.o, err, c.want)
		}
		if c.want == driver.ErrLimit && !strings.Contains(fmt.Sprint(err), "16") {
			t.Errorf("the text does not say the limit: %v", err)
		}
		if err == nil {
			sendBody(t, q, "x", 1)
			if tryBody(t, q) != "x" {
				t.Errorf("%+v does not work", c.o)
			}
			_ = q.Close()
			if err := d.Remove(ctx, "/limits"); err != nil {
				t.Error(err)
			}
		}
	}
}

func init() { roles["hold"] = holdRole }

// holdRole: DIR NAME HOW. Opens the queue and holds slots in the way that HOW says, for ever; or for "work" does everything at random.
func holdRole(args []string) int {
	d := Driver{Dir: args[0]}
	ctx := context.Background()
	q, err := d.OpenQueue(ctx, args[1], nil)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	if args[2] == "work" {
		fmt.Println("ready")
		return work(q)
	}
	switch args[2] {
	case "reserve":
		for range 3 {
			if _, err = q.Reserve(ctx, 10); err != nil {
				break
			}
		}
	case "borrow":
		for err == nil {
			_, err = q.Borrow(ctx, driver.Filter{}, true)
		}
		if errors.Is(err, driver.ErrEmpty) {
			err = nil
		}
	case "sent":
		for range 3 {
			if err = q.SendBytes(ctx, []byte("left"), 5, true); err != nil {
				break
			}
		}
	}
	fmt.Println(kindOfError(err))
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	return 0
}

// work does every kind of operation until it is killed.
func work(q *Queue) int {
	ctx := context.Background()
	for g := range 3 {
		go func() {
			r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), uint64(g)))
			body := make([]byte, q.maxSize)
			for {
				m := driver.Message{Body: body[:r.IntN(len(body))], Priority: r.IntN(4), Type: 1 + r.Int64N(2)}
				var err error
				switch r.IntN(9) {
				case 0, 1:
					err = q.Send(ctx, m, true)
				case 2:
					err = q.SendBatch(ctx, []driver.Message{m, m}, true)
				case 3, 4:
					_, err = q.Receive(ctx, driver.Filter{}, true)
				case 5:
					_, err = q.ReceiveBatch(ctx, nil, driver.Filter{Type: 1}, 3, true)
				case 6:
					var l driver.Loan
					if l, err = q.Borrow(ctx, driver.Filter{}, true); err == nil {
						err = l.Release()
					}
				case 7:
					var p driver.Reservation
					if p, err = q.Reserve(ctx, r.IntN(100)); err == nil {
						if err = p.Commit(ctx, m, true); err != nil {
							err = errors.Join(err, p.Abort())
						}
					}
				case 8:
					_, err = q.Purge(ctx, driver.Filter{Type: 2})
				}
				if k := kindOfError(err); k != "ok" && k != "full" && k != "empty" && k != "too large" {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
			}
		}()
	}
	select {}
}

// mustBeExact fills the queue to its capacity, finds it full, and empties it: then every slot is free.
func mustBeExact(t *testing.T, q *Queue) {
	t.Helper()
	ctx := context.Background()
	for n := 0; ; n++ {
		if _, err := q.Receive(ctx, driver.Filter{}, true); errors.Is(err, driver.ErrEmpty) {
			break
		} else if err != nil {
			t.Fatalf("receive: %v", err)
		}
		if n > int(q.max) {
			t.Fatalf("more than %d messages were there", q.max)
		}
	}
	for i := range int(q.max) {
		if err := q.SendBytes(ctx, bytes.Repeat([]byte{byte(i)}, i%200%int(q.maxSize)), i%3, true); err != nil {
			t.Fatalf("message %d of %d: %v", i+1, q.max, err)
		}
	}
	if err := q.SendBytes(ctx, nil, 1, true); !errors.Is(err, driver.ErrFull) {
		t.Fatalf("more than %d messages: %v", q.max, err)
	}
	if n, err := q.Purge(ctx, driver.Filter{}); err != nil || n != int(q.max) {
		t.Fatalf("%d of %d purged, %v", n, q.max, err)
	}
}

// A handle more than MaxHandles is refused; when one closes or dies its place, and all slots it held, are there again.
func TestHandles(t *testing.T) {
	t.Parallel()
	d := shmDir(t)
	ctx := context.Background()
	for _, handles := range []int{1, 2, 4} {
		for _, how := range []string{"reserve", "borrow", "sent", "nothing"} {
			name := fmt.Sprintf("/handles%d%s", handles, how)
			first := openQueue(t, d, name, &driver.Options{Create: true, MaxMessages: 3, MaxSize: 300, MaxHandles: handles})
			if how == "borrow" {
				for range 3 {
					sendBody(t, first, "for the borrower", 1)
				}
			}
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			var ps []*peer
			for range handles {
				p := startPeer(t, "hold", nil, d.Dir, name, how)
				if s := p.line(); s != "ok" && (how != "sent" || s != "full") {
					t.Fatalf("%s: %s", how, s)
				}
				ps = append(ps, p)
			}
			_, err := d.OpenQueue(ctx, name, nil)
			if !errors.Is(err, driver.ErrLimit) || !strings.Contains(err.Error(), fmt.Sprintf("MaxHandles is %d", handles)) {
				t.Fatalf("one handle too many: %v", err)
			}
			ro := openQueue(t, d, name, &driver.Options{ReadOnly: true}) // observers take no place
			if s, err := ro.Stat(ctx); err != nil || s.Handles != handles {
				t.Errorf("%d handles, %v", s.Handles, err)
			}
			for _, p := range ps {
				p.kill()
			}
			// Each place of the dead is taken once, so that each is cleared.
			var qs []*Queue
			for range handles {
				q, err := d.OpenQueue(ctx, name, nil)
				if err != nil {
					t.Fatalf("MaxHandles %d, %s: no place of the dead can be taken: %v", handles, how, err)
				}
				qs = append(qs, q)
			}
			if how == "sent" {
				for range 3 {
					if s := tryBody(t, qs[0]); s != "left" {
						t.Fatalf("MaxHandles %d: what the dead had sent is lost: %q", handles, s)
					}
				}
			}
			mustBeExact(t, qs[handles-1])
			mustHaveAllFree(t, qs[0])
			mustBeSound(t, ro)
			for _, q := range qs {
				if err := q.Close(); err != nil {
					t.Error(err)
				}
			}
			q, err := d.OpenQueue(ctx, name, nil)
			if err != nil {
				t.Fatalf("after a close: %v", err)
			}
			_ = q.Close()
		}
	}
}

// Processes are killed at any instruction of any operation, hundreds of times, on queues with places for few: nothing leaks.
func TestKilledHoldersLeakNothing(t *testing.T) {
	t.Parallel()
	rounds := 60
	if testing.Short() {
		rounds = 8
	}
	d := shmDir(t)
	ctx := context.Background()
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 5))
	for _, handles := range []int{2, 3, 4} {
		name := fmt.Sprintf("/leak%d", handles)
		most := []int{1, 2, 10}[handles-2]
		openQueue(t, d, name, &driver.Options{Create: true, MaxMessages: most, MaxSize: 300, MaxHandles: handles})
		// One place is ours for good, the others go to those who are killed.
		for round := range rounds {
			var ps []*peer
			for range handles - 1 {
				ps = append(ps, startPeer(t, "hold", nil, d.Dir, name, "work"))
			}
			for _, p := range ps {
				if s := p.line(); s != "ready" {
					t.Fatalf("round %d: %s", round, s)
				}
			}
			time.Sleep(time.Duration(r.IntN(6000)) * time.Microsecond)
			for _, p := range ps {
				p.kill()
				if p.errs.Len() > 0 {
					t.Fatalf("round %d: %s", round, p.tail())
				}
			}
			var qs []*Queue
			for range handles - 1 {
				q, err := d.OpenQueue(ctx, name, nil)
				if err != nil {
					t.Fatalf("MaxHandles %d, round %d: no place of the dead can be taken: %v", handles, round, err)
				}
				qs = append(qs, q)
			}
			mustBeExact(t, qs[0])
			mustHaveAllFree(t, qs[0])
			mustBeSound(t, qs[0])
			for _, q := range qs {
				if err := q.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if t.Failed() {
				t.Fatalf("MaxHandles %d, round %d", handles, round)
			}
		}
	}
}
