package differ

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
)

// own are the numbers by which an error of the kernel's queues may match more than the engine's of the same sentinel: the kernel has
// several for it, and the kernel's queues pass on which one it was. The other way round there is no exception.
var own = map[string][]syscall.Errno{
	"invalid":   {unix.EACCES, unix.ENOENT, unix.ENAMETOOLONG},
	"removed":   {unix.EINVAL},                           // msgsnd, msgrcv and msgctl say it of an identifier that is no more
	"too large": {unix.EINVAL},                           // msgsnd says it of more than msgmax
	"limit":     {unix.EINVAL, unix.ENOSPC, unix.ENOMEM}, // mq_open, msgget
}

// same reports whether two answers are the same to a program that tests them with errors.Is: the same sentinel and numbers.
func same(kernel, engine answer) bool {
	if kernel.Text != engine.Text && kernel.Err == "" || kernel.Err != engine.Err {
		return false
	}
	for _, n := range engine.Also {
		if !slices.Contains(kernel.Also, n) {
			return false
		}
	}
	for _, n := range kernel.Also {
		if !slices.Contains(engine.Also, n) && !slices.Contains(own[kernel.Err], n) {
			return false
		}
	}
	return true
}

// is reports whether an answer is the one that the reference foretells.
func (w want) is(a answer) bool { return a.Err == w.err && (w.err != "" || a.Text == w.text) }

// compare goes through two records call by call and returns what differs.
func compare(kernel, engine []entry) (differences []string) {
	for i := range kernel {
		k, e := &kernel[i], &engine[i]
		tell := func(what string) {
			differences = append(differences, fmt.Sprintf("%v: %s\n      kernel: %v\n      engine: %v\n      reference: %s", &k.do, what, k.got, e.got, k.want))
		}
		switch {
		case k.only && !k.want.is(k.got):
			tell("the kernel's queue does not refuse what it cannot do")
		case k.only:
		case k.ran != e.ran:
			tell("carried out on one side only")
		case !k.ran:
		case k.want.orphan || k.want.declared:
			if !k.want.is(k.got) || !e.want.is(e.got) {
				tell(fmt.Sprintf("where a difference is declared; of the engine's the reference says: %s", e.want))
			}
		case !same(k.got, e.got):
			tell("they differ")
		case !k.want.is(k.got):
			tell("both differ from the reference")
		}
	}
	return differences
}

func (w want) String() string {
	if w.err != "" {
		return w.err
	}
	return "ok " + w.text
}

var serial atomic.Int64

// stand is where programs run: a crew and a pair of names.
type stand struct {
	t      testing.TB
	pair   *pair
	users  *users
	crew   *crew
	kernel side
	engine side
}

func newStand(t testing.TB, p *pair, u *users) *stand {
	s := &stand{t: t, pair: p, users: u}
	n := serial.Add(1)
	s.kernel = side{kernel: true, url: fmt.Sprintf("%skumquat-differ-%d-%d", p.scheme, os.Getpid(), n)}
	if p.counted {
		s.kernel.url = fmt.Sprintf("%s0x%08x", p.scheme, 0x44000000|uint32(os.Getpid()&0xffff)<<8|uint32(n&0xff))
	}
	s.engine = side{url: fmt.Sprintf("/differ/%d", n)}
	var err error
	if s.crew, err = newCrew(t, s.users); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.clear)
	return s
}

// clear removes what a program left.
func (s *stand) clear() {
	for _, url := range []string{s.kernel.url, s.engine.url} {
		if url == s.engine.url { // one of mode 0200 its owner must open up first; root need not
			_ = os.Chmod(filepath.Join(os.Getenv("KUMQUAT_SHM"), "kmq."+strings.ReplaceAll(url[1:], "/", "%2F")), 0o600) // most are gone
		}
		if err := kumquat.Remove(context.Background(), url); err != nil && !errors.Is(err, kumquat.ErrNotFound) {
			s.t.Error(err)
		}
	}
}

// try runs a program on both sides and returns what differs. A call that hangs is a difference.
func (s *stand) try(p *program) (differences []string, kernel, engine []entry) {
	for _, x := range []struct {
		side side
		to   *[]entry
	}{{s.kernel, &kernel}, {s.engine, &engine}} {
		record, err := s.crew.run(p, x.side)
		*x.to = record
		if err != nil {
			differences = append(differences, fmt.Sprintf("%s: %v", x.side.url, err))
			for i := range record {
				if e := &record[i]; e.got.Err == silence {
					differences = append(differences, fmt.Sprintf("%v: %v; reference: %v", &e.do, e.got.Err, e.want))
				}
			}
			s.renew()
		}
		s.clear()
		if err != nil {
			return differences, kernel, engine
		}
	}
	return compare(kernel, engine), kernel, engine
}

// renew starts new processes in place of those of which one hangs.
func (s *stand) renew() {
	patience := s.crew.patience
	s.crew.broken = true
	err := s.crew.stop()
	c, e := newCrew(s.t, s.users)
	if err = errors.Join(err, e); err != nil {
		s.t.Error(err)
	}
	if e == nil {
		c.patience = patience
		s.crew = c
	}
}

// shrink leaves out operations of a program that fails, as long as it still does: halves first, then less, then one by one.
func (s *stand) shrink(p *program, differences []string) (*program, []string) {
	usual := s.crew.patience
	s.crew.patience = min(usual, 2*time.Second)
	defer func() { s.crew.patience = usual }()
	hangs := hang(differences)
	end := time.Now().Add(time.Minute)
	for n := max(len(p.ops)/2, 1); ; {
		shrunk := false
		for from := 0; from < len(p.ops) && time.Now().Before(end); {
			q := *p
			q.ops = slices.Delete(slices.Clone(p.ops), from, min(from+n, len(p.ops)))
			if d, _, _ := s.try(&q); len(d) > 0 && hang(d) == hangs {
				p, differences, shrunk = &q, d, true
			} else {
				from += n
			}
		}
		if n == 1 && !shrunk || time.Now().After(end) {
			return p, differences
		}
		n = max(n/2, 1)
	}
}

// hang reports whether a call that hangs is among the differences.
func hang(differences []string) bool {
	return slices.ContainsFunc(differences, func(d string) bool { return strings.Contains(d, errHangs.Error()) })
}

// repeats runs a program that failed three times more and returns the differences of one that fails again, nil if none does.
func (s *stand) repeats(p *program) []string {
	for range 3 {
		if d, _, _ := s.try(p); len(d) > 0 {
			return d
		}
	}
	return nil
}

// report tells of a program that fails, in its shortest form.
func (s *stand) report(p *program, differences []string) {
	q, d := s.shrink(p, differences)
	s.t.Errorf("the kernel's queue and the engine differ; KUMQUAT_DIFFER_SEED=%d -run '%s' runs this again\n%v  %s", p.seed, s.t.Name(), q,
		strings.Join(d, "\n  "))
}

// seeds returns the first seed, and how many programs to run of n that are for make test.
func seeds(t *testing.T, n int) (uint64, int) {
	if s := os.Getenv("KUMQUAT_DIFFER_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 0, 64)
		if err != nil {
			t.Fatalf("KUMQUAT_DIFFER_SEED=%q is not a seed", s)
		}
		return seed, 1
	}
	if s := os.Getenv("KUMQUAT_DIFFER_PROGRAMS"); s != "" {
		all, err := strconv.Atoi(s)
		if err != nil || all < 1 {
			t.Fatalf("KUMQUAT_DIFFER_PROGRAMS=%q is not a number of programs", s)
		}
		n = max(1, n*all/usualPrograms)
	} else if testing.Short() {
		n = max(1, n/20)
	}
	return rand.Uint64N(1 << 40), n
}

// usualPrograms is the sum of what the pairs run in make test.
const usualPrograms = 900 + 900 + 400 + 400 + 300 + 3*50

// programs runs programs of a pair, on several stands at once.
func programs(t *testing.T, p *pair, usual, stands int) {
	first, n := seeds(t, usual)
	began := time.Now()
	var next, failed, once, ops, waits, orphans atomic.Int64
	errs := map[string]int{}
	var mu sync.Mutex
	var group sync.WaitGroup
	for range min(stands, n) {
		s := newStand(t, p, newUsers())
		group.Go(func() {
			for i := next.Add(1) - 1; i < int64(n) && failed.Load() < 3; i = next.Add(1) - 1 {
				pr := newProgram(p, first+uint64(i))
				d, kernel, _ := s.try(pr)
				if len(d) > 0 {
					switch again := s.repeats(pr); {
					case again != nil:
						failed.Add(1)
						s.report(pr, again)
					default: // the machine held somebody up, or a fault hides; many of them are a fault
						t.Logf("differ summary: %s: seed %d differed once and not in three more runs\n%v  %s", p.name, pr.seed, pr, strings.Join(d, "\n  "))
						if once.Add(1) >= 3 {
							failed.Add(1)
							t.Errorf("%s: three programs differed once, see above", p.name)
						}
					}
				}
				mu.Lock()
				for j := range kernel {
					if e := &kernel[j]; e.ran {
						ops.Add(1)
						errs[e.got.Err]++
						if e.do.Wait == waitBlock && e.got.Err == "" {
							waits.Add(1)
						}
						if e.want.orphan {
							orphans.Add(1)
						}
					}
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	t.Logf("differ summary: %s: %d programs from seed %d, %d calls on each side, %d of them on removed queues, %d waited until they were served, in %.1f s; answers %v",
		p.name, n, first, ops.Load(), orphans.Load(), waits.Load(), time.Since(began).Seconds(), errs)
}

// TestPrograms runs random programs of several processes on a kernel queue and on the engine.
func TestPrograms(t *testing.T) {
	for _, p := range pairs {
		t.Run(p.name, func(t *testing.T) { programs(t, p, p.usual, 2) })
	}
}

// TestLargePrograms does it with queues that the kernel's usual limits do not allow.
func TestLargePrograms(t *testing.T) {
	if !inNamespace(t, "fs/mqueue/msg_max=100", "fs/mqueue/msgsize_max=65536", "kernel/msgmax=65536", "kernel/msgmnb=1000000") {
		return
	}
	for _, p := range pairs[:3] {
		programs(t, p.large(), 50, 1) // two at once could come near RLIMIT_MSGQUEUE
	}
}
