package shm

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

func init() { roles["mutate"] = mutateRole }

// mutateRole: DIR OVERFLOW FIRST COUNT. Uses damaged files, one for each seed; names each seed on standard output before it begins.
func mutateRole(args []string) int {
	t := &roleTB{}
	defer t.cleanup()
	d := Driver{Dir: args[0]}
	overflow, _ := strconv.Atoi(args[1])
	first, _ := strconv.ParseUint(args[2], 10, 64)
	count, _ := strconv.ParseUint(args[3], 10, 64)
	s := takeSample(t, driver.Overflow(overflow))
	if t.failed {
		return 1
	}
	path := fileOf(d, "/damaged")
	u := &caller{buf: make([]byte, s.layout.maxSize+1)}
	stop := make(chan struct{})
	defer close(stop)
	go u.watch(stop)
	bad := 0
	hole := fence(s.layout.size)
	fences, fenced, opened, inHole := 0, 0, 0, true
	for seed := first; seed < first+count; seed++ {
		fmt.Println("seed", seed)
		u.fail = func(format string, a ...any) {
			bad++
			fmt.Fprintf(os.Stderr, "seed %d: %s\n", seed, fmt.Sprintf(format, a...))
		}
		u.r = rand.New(rand.NewPCG(seed, 1))
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err == nil {
			err = s.write(f)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		u.f = f
		for range u.r.IntN(4) {
			s.mutate(f, u.r)
		}
		if u.reopen(d, "/damaged"); u.q != nil {
			opened++
			if inHole = u.q.base == hole; inHole {
				fenced++
			}
			u.round(false)
			for range 6 {
				for range 1 + u.r.IntN(3) {
					s.mutate(f, u.r)
				}
				u.round(false)
			}
		}
		u.close()
		if fences < 100 && !inHole { // something else was put there, or a handle that met a fault keeps its addresses
			fences++
			hole, inHole = fence(s.layout.size), true
		}
		if u.slowest > 300*time.Millisecond {
			fmt.Fprintln(os.Stderr, "slow: seed", seed, u.slow, u.slowest)
			u.slowest = 0
		}
		_ = f.Close()
		if bad > 10 {
			break
		}
	}
	fmt.Println("opened", opened, "fenced", fenced, "slowest", u.slowest, u.slow)
	for i, n := range u.done {
		if i < len(operations) {
			fmt.Println("done", n, operations[i].name)
		}
	}
	if bad > 0 {
		return 1
	}
	return 0
}

// roleTB lets a role use what is written for tests.
type roleTB struct {
	testing.TB
	failed   bool
	cleanups []func()
}

func (t *roleTB) Helper()          {}
func (t *roleTB) Cleanup(f func()) { t.cleanups = append(t.cleanups, f) }
func (t *roleTB) Fatal(a ...any)   { fmt.Fprintln(os.Stderr, a...); t.cleanup(); os.Exit(1) }
func (t *roleTB) Fatalf(f string, a ...any) {
	t.Fatal(fmt.Sprintf(f, a...))
}
func (t *roleTB) Errorf(f string, a ...any) {
	t.failed = true
	fmt.Fprintf(os.Stderr, f+"\n", a...)
}
func (t *roleTB) Logf(string, ...any) {}
func (t *roleTB) TempDir() string {
	dir, err := os.MkdirTemp("", "kumquat")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
func (t *roleTB) cleanup() {
	for i := len(t.cleanups) - 1; i >= 0; i-- {
		t.cleanups[i]()
	}
	t.cleanups = nil
}

// TestHostileBytes lets thousands of damaged files be used. Whatever a file says, a call returns in time with a known error, and
// nothing outside the mapping is touched. A failure names its seed: KUMQUAT_TEST_SEED replays it.
func TestHostileBytes(t *testing.T) {
	t.Parallel()
	files := uint64(800) // each is changed some 13 times
	first := uint64(1)
	if testing.Short() {
		files = 200
	}
	if s := os.Getenv("KUMQUAT_TEST_SEED"); s != "" {
		first, _ = strconv.ParseUint(s, 10, 64)
		files = 1
	}
	var wg sync.WaitGroup
	for _, overflow := range []driver.Overflow{driver.Block, driver.DropLowest} {
		d := shmDir(t)
		p := startPeer(t, "mutate", nil, d.Dir, fmt.Sprint(overflow), fmt.Sprint(first), fmt.Sprint(files))
		wg.Add(1)
		go func() { // they wait most of the time
			defer wg.Done()
			last, rest := "", []string(nil)
			for {
				s, err := p.out.ReadString('\n')
				if err != nil {
					break
				}
				if strings.HasPrefix(s, "seed ") {
					last = strings.TrimSpace(s)
					continue
				}
				rest = append(rest, strings.TrimSpace(s))
			}
			if err := p.wait(); err != nil {
				t.Errorf("overflow %d, %s: %v\n%s", overflow, last, err, p.tail())
				return
			}
			t.Logf("overflow %d: %d files, %s\n%s", overflow, files, strings.Join(rest, ", "), p.tail())
			if files > 100 {
				for _, s := range rest {
					if strings.HasPrefix(s, "done 0 ") {
						t.Errorf("never done well: %s", s)
					}
				}
			}
		}()
	}
	wg.Wait()
}

func init() {
	roles["scribble"] = scribbleRole
	roles["suffer"] = sufferRole
}

// scribbleRole: FILE OVERFLOW. Writes into a queue's file until it is killed: damage, and now and then the whole sample, so that life
// can go on.
func scribbleRole(args []string) int {
	t := &roleTB{}
	overflow, _ := strconv.Atoi(args[1])
	s := takeSample(t, driver.Overflow(overflow))
	t.cleanup() // it will be killed
	f, err := os.OpenFile(args[0], os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = s.write(f)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("ready")
	_, _ = bufioLine()
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 2))
	for {
		for range 1 + r.IntN(200) {
			s.mutate(f, r)
			if r.IntN(4) == 0 {
				time.Sleep(time.Duration(r.IntN(100)) * time.Microsecond)
			}
		}
		err := s.restore(f)
		if _, e := os.Stat(args[0]); err == nil && e != nil { // who met a removed flag has finished the removal
			_ = f.Close()
			if f, err = os.OpenFile(args[0], os.O_RDWR|os.O_CREATE, 0o600); err == nil {
				err = s.write(f)
			}
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
}

func bufioLine() (string, error) {
	var b [1]byte
	var s []byte
	for {
		if _, err := io.ReadFull(os.Stdin, b[:]); err != nil || b[0] == '\n' {
			return string(s), err
		}
		s = append(s, b[0])
	}
}

// sufferRole: FILE SECONDS. Uses the queue from several goroutines and two handles while somebody scribbles.
func sufferRole(args []string) int {
	seconds, _ := strconv.ParseFloat(args[1], 64)
	d := Driver{Dir: filepath.Dir(args[0])}
	until := time.Now().Add(time.Duration(seconds * float64(time.Second)))
	stop, ended, slow := make(chan struct{}), make(chan int), make(chan string, 3)
	defer close(stop)
	var bad atomic.Int32
	for i := range 3 {
		go func() {
			rounds := 0
			seed := uint64(time.Now().UnixNano()) + uint64(i)
			us := [2]*caller{}
			for j := range us { // two goroutines of one handle and one of another
				us[j] = &caller{buf: make([]byte, sampleOptions.MaxSize+1), r: rand.New(rand.NewPCG(seed, uint64(j)))}
				us[j].fail = func(format string, a ...any) {
					bad.Add(1)
					fmt.Fprintf(os.Stderr, format+"\n", a...)
				}
				go us[j].watch(stop)
			}
			for time.Now().Before(until) && bad.Load() < 10 {
				us[0].reopen(d, nameOf(filepath.Base(args[0])))
				if us[0].q == nil {
					time.Sleep(100 * time.Microsecond)
					continue
				}
				us[1].q = us[0].q
				both := make(chan struct{})
				go func() {
					for range 5 {
						us[1].round(false)
					}
					close(both)
				}()
				for range 5 {
					us[0].round(false)
					rounds++
				}
				if us[0].r.IntN(2) == 0 {
					<-both
				}
				us[0].close() // sometimes under the other's hands
				<-both
			}
			slow <- fmt.Sprint(us[0].slow, " ", us[0].slowest.Round(time.Millisecond), ", ", us[1].slow, " ", us[1].slowest.Round(time.Millisecond))
			ended <- rounds
		}()
	}
	n := 0
	for range 3 {
		n += <-ended
	}
	fmt.Println("rounds", n, "slowest:", <-slow, "-", <-slow, "-", <-slow)
	if bad.Load() > 0 {
		return 1
	}
	return 0
}

// TestHostileWriter has a process write into the file all the time while another one uses it.
func TestHostileWriter(t *testing.T) {
	t.Parallel()
	seconds := "4"
	if testing.Short() {
		seconds = "0.5"
	}
	for _, overflow := range []driver.Overflow{driver.Block, driver.DropOldest} {
		file := fileOf(shmDir(t), "/scribbled")
		w := startPeer(t, "scribble", nil, file, fmt.Sprint(overflow))
		w.line()
		w.say("go")
		p := startPeer(t, "suffer", nil, file, seconds)
		said := p.line()
		if err := p.wait(); err != nil {
			t.Fatalf("%v\n%s", err, p.tail())
		}
		if strings.HasPrefix(said, "rounds 0 ") {
			t.Error("the queue could never be opened")
		}
		t.Logf("overflow %d: %s", overflow, said)
		w.kill()
	}
}
