// Package torture kills and stops the processes that use queues, thousands of times, and accounts for every message.
//
// Run plays rounds. A round is the life of one queue: worker processes send and receive by every way the library has, are killed
// (SIGKILL) and stopped (SIGSTOP, SIGCONT) at random moments and replaced, and write down what they did where it survives them
// (record.go). Then the queue is emptied and judged:
//
//	lost            a message whose send returned is gone, and no killed receiver can have had it in its hand
//	doubled         a message was received twice, or a Seq or Taken was given twice
//	invented        a message was received that was not sent, or whose send said that it was not
//	damaged         a message is not, bit for bit, what was sent
//	out of order    FIFO within a priority is broken, over all senders and receivers, or the places of sends or takes contradict time
//	passed over     a message was there before a receive began, had priority over what that received, and was taken later
//	over capacity   more messages were in the queue than it takes
//
// Besides: the file must be sound afterwards (Check), and take exactly MaxMessages again. Every round follows from the seed and its
// number, but for the moments at which things happen.
//
// Workers are this program again: it must call Child at the start of main or TestMain.
package torture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
)

// Config says how much to torture.
type Config struct {
	Seed     uint64        // of everything; 0: a random one
	Rounds   int           // at least so many rounds; 0: 1
	Signals  int           // and until at least so many processes were killed or stopped
	Time     time.Duration // no round is begun after this time, however many were; 0: no limit
	Parallel int           // rounds at the same time; 0: as many as processors
	Only     *int          // not nil: the round with this number, again and again
	Dir      string        // a tmpfs; all is done in a new folder in it. Empty: /dev/shm
	Keep     string        // folder for the evidence of failed rounds; empty: the folder of temporary files
	HoldUp   time.Duration // a longer hold-up is a failure (plus four times what the machine delays a bystander); 0: 5 s
	Log      io.Writer     // gets a line for what is worth it; nil: nothing
}

// Tally is what happened in all rounds.
type Tally struct {
	Rounds, Killed, Stopped  int
	Holders                  int // of these, caught while they had the lock
	Takeovers, Nested        int // Nested: from takers that were caught inside theirs; there may have been more
	Sent, Perhaps, Received  int // Perhaps: of Sent, committed by senders that died in the call
	Removed, InHand          int // by overflow policy and expiry; taken by receivers that died in the call
	Lost, Doubled, Invented  int
	Damaged, OutOfOrder      int
	PassedOver, OverCapacity int
	Failed                   int // rounds
	HoldUp                   time.Duration
	HoldUpIn                 string          // the round
	HoldUps                  []time.Duration // of each round
	Bystander                time.Duration   // the longest delay of a thread that has nothing to do with queues
	Took                     time.Duration
	Seed                     uint64
}

// String is the report, some lines.
func (t *Tally) String() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("rounds: %d in %.1f s (seed %d)", t.Rounds, t.Took.Seconds(), t.Seed)
	line("killed: %d, stopped: %d, caught with the lock in their hands: %d, takeovers: %d, of these from takers caught inside theirs: %d",
		t.Killed, t.Stopped, t.Holders, t.Takeovers, t.Nested)
	line("sent: %d (%d by senders that died in the call), received: %d, dropped or expired: %d, in the hand of the dead: %d",
		t.Sent, t.Perhaps, t.Received, t.Removed, t.InHand)
	line("lost: %d, doubled: %d, invented: %d, damaged: %d, out of order: %d, passed over: %d, over capacity: %d",
		t.Lost, t.Doubled, t.Invented, t.Damaged, t.OutOfOrder, t.PassedOver, t.OverCapacity)
	ups := slices.Sorted(slices.Values(t.HoldUps))
	if len(ups) > 0 {
		line("longest hold-up of the survivors: %.1f ms (%s); in half of the rounds below %.1f ms, in 99 of 100 below %.1f ms",
			float64(t.HoldUp)/1e6, t.HoldUpIn, float64(ups[len(ups)/2])/1e6, float64(ups[(len(ups)-1)*99/100])/1e6)
		line("meanwhile the machine kept a thread waiting that only sleeps: %.1f ms at most", float64(t.Bystander)/1e6)
	}
	return b.String()
}

func (t *Tally) add(x *Tally) {
	t.Rounds++
	t.Killed += x.Killed
	t.Stopped += x.Stopped
	t.Holders += x.Holders
	t.Takeovers += x.Takeovers
	t.Nested += x.Nested
	t.Sent += x.Sent
	t.Perhaps += x.Perhaps
	t.Received += x.Received
	t.Removed += x.Removed
	t.InHand += x.InHand
	t.Lost += x.Lost
	t.Doubled += x.Doubled
	t.Invented += x.Invented
	t.Damaged += x.Damaged
	t.OutOfOrder += x.OutOfOrder
	t.PassedOver += x.PassedOver
	t.OverCapacity += x.OverCapacity
	t.HoldUps = append(t.HoldUps, x.HoldUp)
	if x.HoldUp > t.HoldUp {
		t.HoldUp, t.HoldUpIn = x.HoldUp, x.HoldUpIn
	}
}

// folderPrefix and a process id name the private folder, so that one whose process is gone can be known.
const folderPrefix = "kumquat-torture."

// Run plays rounds until c says that it is enough, and returns what happened. The error joins one for each round that failed; it
// names the round's parameters, the seed, and the folder with the queue's file and the records. Run sets the environment variable
// KUMQUAT_SHM of this process while it runs.
func Run(ctx context.Context, c Config) (t Tally, err error) {
	for c.Seed == 0 {
		c.Seed = rand.Uint64() >> 16
	}
	if c.Parallel <= 0 {
		c.Parallel = runtime.NumCPU()
	}
	if c.HoldUp == 0 {
		c.HoldUp = 5 * time.Second
	}
	if c.Dir == "" {
		c.Dir = "/dev/shm"
	}
	if c.Log == nil {
		c.Log = io.Discard
	}
	c.Rounds = max(1, c.Rounds)
	t.Seed = c.Seed
	removeStale(c.Dir)
	dir := filepath.Join(c.Dir, folderPrefix+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	defer setenv("KUMQUAT_SHM", dir)()
	crew := newCrew(dir)
	defer crew.close()

	var bystander atomic.Int64
	stop := bystand(&bystander)
	defer stop()

	began := time.Now()
	var mu sync.Mutex
	var wg sync.WaitGroup
	next, errs := 0, []error(nil)
	take := func() (int, bool) {
		mu.Lock()
		defer mu.Unlock()
		enough := next >= c.Rounds && t.Killed+t.Stopped >= c.Signals
		if ctx.Err() != nil || enough || len(errs) >= 5 || c.Time > 0 && time.Since(began) > c.Time {
			return 0, false
		}
		next++
		return next - 1, true
	}
	for range c.Parallel {
		wg.Go(func() {
			for n, ok := take(); ok; n, ok = take() {
				x, err := play(ctx, &c, crew, &bystander, dir, n)
				if ctx.Err() != nil {
					return
				}
				mu.Lock()
				t.add(&x)
				if err != nil {
					t.Failed++
					errs = append(errs, err)
					fmt.Fprintln(c.Log, err)
				}
				if t.Rounds%50 == 0 {
					fmt.Fprintf(c.Log, "%d rounds in %.0f s: %d killed, %d stopped, %d takeovers\n", t.Rounds, time.Since(began).Seconds(), t.Killed, t.Stopped, t.Takeovers)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	stop()
	t.Bystander = time.Duration(bystander.Load())
	t.Took = time.Since(began)
	return t, errors.Join(append(errs, ctx.Err())...)
}

// bystand measures how late a thread runs, in ns, that sleeps a millisecond at a time: what the machine itself does to everybody.
func bystand(longest *atomic.Int64) (stop func()) {
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for last := now(); ; {
			select {
			case <-quit:
				return
			default:
			}
			ts := unix.NsecToTimespec(1_000_000)
			_ = unix.Nanosleep(&ts, nil) // a signal makes it shorter: no matter
			t := now()
			longest.Store(max(longest.Load(), t-last-1_000_000))
			last = t
		}
	}()
	var once sync.Once
	return func() {
		once.Do(func() { close(quit) })
		<-ended
	}
}

// play plays one round.
func play(ctx context.Context, c *Config, crew *crew, bystander *atomic.Int64, dir string, n int) (Tally, error) {
	number := n
	if c.Only != nil {
		number = *c.Only
	}
	p := newPlan(c.Seed, number)
	p.Queue = fmt.Sprintf("/round-%d-%d", n, number)
	r := &round{plan: p, crew: crew, dir: filepath.Join(dir, fmt.Sprintf("records-%d", n)), rng: rand.New(rand.NewPCG(p.Seed, 2))}
	if err := os.Mkdir(r.dir, 0o700); err != nil {
		return r.tally, err
	}
	err := r.run(ctx)
	// A machine that keeps others waiting too is given more time.
	if late := time.Duration(bystander.Load()); ctx.Err() == nil && err == nil && r.tally.HoldUp > c.HoldUp+4*late {
		err = failure("the survivors were held up for %v, a bystander for at most %v", r.tally.HoldUp, late)
	}
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("seed %d, %s: %w\nevidence: %s; try again with KUMQUAT_TORTURE_SEED=%d KUMQUAT_TORTURE_ONLY=%d",
			c.Seed, p.String(), err, r.keep(c.Keep, err), c.Seed, number)
	}
	return r.tally, errors.Join(err, remove(ctx, p.Queue), os.RemoveAll(r.dir))
}

func remove(ctx context.Context, name string) error {
	err := kumquat.Remove(context.WithoutCancel(ctx), name)
	if errors.Is(err, kumquat.ErrNotFound) {
		return nil
	}
	return err
}

// setenv sets a variable and returns what undoes it.
func setenv(key, value string) func() {
	old, was := os.LookupEnv(key)
	if err := os.Setenv(key, value); err != nil {
		panic(err) // only for keys that are none
	}
	return func() {
		if was {
			_ = os.Setenv(key, old)
		} else {
			_ = os.Unsetenv(key)
		}
	}
}

// removeStale removes the folders of runs that were killed themselves.
func removeStale(dir string) {
	found, _ := filepath.Glob(filepath.Join(dir, folderPrefix+"*"))
	for _, f := range found {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(f), folderPrefix))
		if err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			_ = os.RemoveAll(f)
		}
	}
}
