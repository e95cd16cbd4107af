package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

func TestMain(m *testing.M) {
	Child()
	goleak.VerifyTestMain(m)
}

// tiny is a run that takes next to no time.
func tiny(workload string, peers ...string) Config {
	return Config{Workload: workload, Rounds: 1, Target: 2 * time.Millisecond, Patience: 20 * time.Second, Peers: append([]string{}, peers...)}
}

// run runs c with its queues in a folder of the test's and checks that nothing is left there.
func run(t *testing.T, c Config) []Result {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("KUMQUAT_SHM", dir)
	c.Note = func(text string) { t.Log(text) }
	var rs []Result
	if err := Run(t.Context(), c, func(r Result) { rs = append(rs, r) }); err != nil {
		t.Fatal(err)
	}
	if left := entries(t, dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	return rs
}

func entries(t *testing.T, dir string) (names []string) {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names
}

// check looks at the results of one contest: ours, then the peers in their order.
func check(t *testing.T, rs []Result, unit string, peers ...string) {
	t.Helper()
	var got []string
	for _, r := range rs {
		got = append(got, r.Subject)
		if r.Unit != unit {
			t.Errorf("%s: unit %q instead of %q", r.Subject, r.Unit, unit)
		}
		if r.Min <= 0 || r.Median < r.Min || r.Max < r.Median {
			t.Errorf("%s: min %v, median %v, max %v", r.Subject, r.Min, r.Median, r.Max)
		}
		if r.Ratio <= 0 {
			t.Errorf("%s: ratio %v", r.Subject, r.Ratio)
		}
	}
	if want := append([]string{"kumquat"}, peers...); !slices.Equal(got, want) {
		t.Errorf("subjects %v instead of %v", got, want)
	}
}

func TestThroughput(t *testing.T) {
	peers := []string{"posix", "sysv", "sysv-types", "pipe", "unix", "gochan", "kumquat-message", "memcpy"}
	c := tiny(Throughput, peers...)
	c.Priorities = []int{8}
	rs := run(t, c)
	check(t, rs, PerSecond, peers...)
	for _, r := range rs {
		has := slices.Contains([]string{"kumquat", "kumquat-message", "posix", "sysv-types"}, r.Subject)
		if want := 1 + 7*b2i(has); r.Priorities != want {
			t.Errorf("%s: %d priorities instead of %d", r.Subject, r.Priorities, want)
		}
		if r.Rounds < 1 || r.Size != 64 || r.Capacity != 1024 || r.Producers != 1 || r.Consumers != 1 || r.Workload != Throughput {
			t.Errorf("%+v", r)
		}
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestLargeBodies(t *testing.T) {
	c := tiny(Throughput, "posix", "sysv", "pipe", "unix")
	c.Sizes = []int{65536}
	c.Capacity = []int{4}
	check(t, run(t, c), PerSecond, "posix", "sysv", "pipe", "unix")
}

func TestLatency(t *testing.T) {
	rs := run(t, tiny(Latency, "cacheline", "futex", "posix", "gochan"))
	if len(rs) != 9 {
		t.Fatalf("%d results instead of 9", len(rs))
	}
	check(t, rs[:5], Microseconds, "cacheline", "futex", "posix", "gochan")
	check(t, rs[5:], Microseconds, "futex", "posix", "gochan")
	for i, r := range rs {
		if want := []string{modeSpin, modeSleep}[b2i(i >= 5)]; r.Mode != want {
			t.Errorf("%s: mode %q instead of %q", r.Subject, r.Mode, want)
		}
		if n := len(r.Distribution); n == 0 || r.Distribution[n-1][0] != 100 {
			t.Errorf("%s: distribution %v", r.Subject, r.Distribution)
		}
		for j := 1; j < len(r.Distribution); j++ {
			if r.Distribution[j][1] < r.Distribution[j-1][1] {
				t.Errorf("%s: distribution falls: %v", r.Subject, r.Distribution)
			}
		}
	}
}

func TestWake(t *testing.T) {
	check(t, run(t, tiny(Wake, "futex", "pipe")), Microseconds, "futex", "pipe")
}

func TestScale(t *testing.T) {
	c := tiny(Scale, "posix", "zmq")
	c.Producers, c.Consumers, c.Load = 2, 3, 1
	var notes []string
	t.Setenv("KUMQUAT_SHM", t.TempDir())
	c.Note = func(text string) { notes = append(notes, text) }
	var rs []Result
	if err := Run(t.Context(), c, func(r Result) { rs = append(rs, r) }); err != nil {
		t.Fatal(err)
	}
	check(t, rs, PerSecond, "posix")
	if rs[0].Producers != 2 || rs[0].Consumers != 3 || rs[0].Load != 1 {
		t.Errorf("%+v", rs[0])
	}
	if len(notes) != 1 || !strings.HasPrefix(notes[0], "zmq: skipped") {
		t.Errorf("notes %q", notes)
	}
}

// Ours at one priority and between two processes is what the ratios of ours with more are told against.
func TestOursBesideOurs(t *testing.T) {
	c := tiny(Scale, "kumquat-one", "kumquat-pair")
	c.Producers, c.Consumers, c.Priorities = 2, 2, []int{8}
	rs := run(t, c)
	check(t, rs, PerSecond, "kumquat-one", "kumquat-pair")
	if r := rs[1]; r.Priorities != 1 || r.Producers != 2 || r.Consumers != 2 {
		t.Errorf("%+v", r)
	}
	if r := rs[2]; r.Priorities != 8 || r.Producers != 1 || r.Consumers != 1 {
		t.Errorf("%+v", r)
	}
	c.Producers, c.Consumers, c.Priorities = 1, 1, []int{1}
	if got, err := c.prepared(); err != nil {
		t.Error(err)
	} else if contests, unfit := got.plan(); len(contests[0].peers) != 0 || len(unfit) != 2 {
		t.Errorf("peers %+v, unfit %q", contests[0].peers, unfit)
	}
}

// In a queue that stays deep the rate is that of the slower side, over more than one stop.
func TestDepthStays(t *testing.T) {
	s, err := newSession(t.Context(), setup{Subject: "kumquat", Label: "kumquat", Size: 8, Priorities: 1, Producers: 1, Consumers: 1, Capacity: 64, Batch: 1,
		Waiting: 1000, WaitType: 1}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close(true)
	if err := s.fill(t.Context()); err != nil {
		t.Fatal(err)
	}
	const count = 1<<18 + 5 // one stop
	before := s.arrived
	begin := time.Now()
	o, err := s.run(t.Context(), count, 0)
	took := time.Since(begin)
	if err != nil {
		t.Fatal(err)
	}
	if stops := (s.arrived - before) / 2; stops != 2 {
		t.Errorf("%d phases instead of 2", stops)
	}
	if o.elapsed <= 0 || o.elapsed > took || math.Abs(o.rate*o.elapsed.Seconds()/count-1) > 1e-6 {
		t.Errorf("%v of %v, %.0f a second", o.elapsed, took, o.rate)
	}
}

// A peer whose queue cannot hold the waiting messages is left out; it is not waited for.
func TestDepthTooMuchForPeer(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MSGQUEUE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Max == unix.RLIM_INFINITY || os.Geteuid() == 0 && unix.Setrlimit(unix.RLIMIT_MSGQUEUE, &unix.Rlimit{Cur: limit.Cur, Max: limit.Max + 1}) == nil {
		t.Skip("no limit of POSIX queues holds here: CAP_SYS_RESOURCE")
	}
	c := tiny(Depth, "posix")
	c.Depths = []int{30000}
	check(t, run(t, c), PerSecond)
}

func TestUnused(t *testing.T) {
	for name, c := range map[string]Config{
		"processes": {Workload: Latency, Producers: 2},
		"depth":     {Workload: Throughput, Depths: []int{5}},
	} {
		if texts := c.unused(); len(texts) != 1 {
			t.Errorf("%s: %q", name, texts)
		}
	}
	if texts := (&Config{Workload: Scale, Producers: 4, Consumers: 4}).unused(); len(texts) > 0 {
		t.Errorf("%q", texts)
	}
}

func TestDepth(t *testing.T) {
	c := tiny(Depth, "kumquat-shallow")
	c.Depths = []int{3000, 10}
	rs := run(t, c)
	check(t, rs, PerSecond, "kumquat-shallow")
	if rs[0].Waiting != 3000 || rs[1].Waiting != 10 {
		t.Errorf("%d and %d waiting", rs[0].Waiting, rs[1].Waiting)
	}
}

func TestFilter(t *testing.T) {
	c := tiny(Filter, "kumquat-none", "sysv")
	c.Depths = []int{500}
	check(t, run(t, c), PerSecond, "kumquat-none", "sysv")
}

func TestBatch(t *testing.T) {
	c := tiny(Batch, "kumquat-single")
	c.Batch = 7
	rs := run(t, c)
	check(t, rs, PerSecond, "kumquat-single")
	if rs[0].Batch != 7 || rs[1].Batch != 0 {
		t.Errorf("batches of %d and %d", rs[0].Batch, rs[1].Batch)
	}
	c.Workload, c.Producers, c.Consumers, c.Priorities = Throughput, 2, 3, []int{8} // a batch may hold the end marks of several consumers
	if rs = run(t, c); rs[0].Batch != 7 || rs[0].Producers != 2 || rs[1].Batch != 0 {
		t.Errorf("%+v", rs)
	}
	for workload, want := range map[string]int{Throughput: 1, Batch: 16} {
		if c, err := (Config{Workload: workload}).prepared(); err != nil || c.Batch != want {
			t.Errorf("%s: batches of %d by default, %v", workload, c.Batch, err)
		}
	}
}

func TestCapacity(t *testing.T) {
	rs := run(t, tiny(Capacity, "posix"))
	if len(rs) != 4 {
		t.Fatalf("%d results instead of 4", len(rs))
	}
	check(t, rs[:2], PerSecond, "posix")
	check(t, rs[2:], PerSecond, "posix")
	if rs[1].Capacity != 10 || rs[3].Capacity != 1 {
		t.Errorf("capacities %d and %d", rs[1].Capacity, rs[3].Capacity)
	}
}

func TestNative(t *testing.T) {
	if _, err := exec.LookPath("g++"); err != nil {
		t.Skip("g++ is not installed: boost and zmq are not measured")
	}
	for _, peer := range []string{"boost", "zmq"} {
		if _, err := nativePeer(t.Context(), peer); err != nil {
			t.Logf("%s is not measured: %v", peer, err)
			continue
		}
		check(t, run(t, tiny(Throughput, peer)), PerSecond, peer)
		rs := run(t, tiny(Latency, peer))
		if len(rs) != 4 || rs[1].Subject != peer || rs[3].Subject != peer {
			t.Errorf("latencies: %+v", rs)
		}
		check(t, run(t, tiny(Wake, peer)), Microseconds, peer)
	}
	left, err := filepath.Glob(fmt.Sprintf("/dev/shm/kumquat-bench-%d-*", os.Getpid()))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// A peer that cannot run is told of and left out; the others are measured.
func TestFailingPeer(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("PATH", t.TempDir())
	t.Setenv("KUMQUAT_SHM", t.TempDir())
	c := tiny(Throughput, "boost", "pipe")
	var notes []string
	c.Note = func(text string) { notes = append(notes, text) }
	var rs []Result
	if err := Run(t.Context(), c, func(r Result) { rs = append(rs, r) }); err != nil {
		t.Fatal(err)
	}
	check(t, rs, PerSecond, "pipe")
	if len(notes) != 1 || !strings.Contains(notes[0], "boost: skipped") || !strings.Contains(notes[0], "g++ is not installed") {
		t.Errorf("notes %q", notes)
	}
}

func TestCancel(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("KUMQUAT_SHM", dir)
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("enough")
	c := tiny(Throughput, "pipe")
	c.Target = time.Hour
	c.Patience = time.Hour
	c.Load = 1
	c.Progress = func(string) { time.AfterFunc(300*time.Millisecond, func() { cancel(stop) }) }
	if err := Run(ctx, c, func(Result) {}); !errors.Is(err, stop) {
		t.Errorf("error %v", err)
	}
	if left := entries(t, dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
		t.Errorf("a child is left: wait4 gives %d, %v", pid, err)
	}
}

func TestCheck(t *testing.T) {
	for name, c := range map[string]Config{
		"workload": {Workload: "sleep"},
		"size":     {Workload: Throughput, Sizes: []int{7}},
		"peer":     {Workload: Throughput, Peers: []string{"rabbit"}},
		"load":     {Workload: Throughput, Load: -1},
		"batch":    {Workload: Latency, Batch: 2},
	} {
		if err := c.Check(); !errors.Is(err, driver.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, w := range Workloads() {
		if err := (Config{Workload: w.Name}).Check(); err != nil {
			t.Errorf("%s: %v", w.Name, err)
		}
		if len(defaultPeers[w.Name]) == 0 {
			t.Errorf("%s has no peers", w.Name)
		}
	}
}

func TestRatio(t *testing.T) {
	for _, c := range []struct {
		unit               string
		ours, theirs, want float64
	}{
		{PerSecond, 30, 10, 3},
		{PerSecond, 10, 20, 0.5},
		{Microseconds, 2, 5, 2.5}, // the smaller latency is the better one
		{Microseconds, 9, 2, 2. / 9},
	} {
		if got := ratio(c.unit, c.ours, c.theirs); got != c.want {
			t.Errorf("ratio(%s, %v, %v) = %v, not %v", c.unit, c.ours, c.theirs, got, c.want)
		}
	}
}

func TestMedian(t *testing.T) {
	v := []float64{9, 1, 5}
	if m := median(v); m != 5 || v[0] != 9 {
		t.Errorf("median %v, values %v", m, v)
	}
	if m := median([]float64{4, 1, 2, 9}); m != 3 {
		t.Errorf("median of four %v", m)
	}
	if m := middle([]uint32{3000, 1000, 2000}); m != 2 {
		t.Errorf("middle %v µs", m)
	}
}

func TestRounded(t *testing.T) {
	for in, want := range map[float64]float64{1234567: 1235000, 0.123456: 0.1235, 7: 7, 0: 0} {
		if got := rounded(in); got != want {
			t.Errorf("rounded(%v) = %v, not %v", in, got, want)
		}
	}
}

func TestDistribution(t *testing.T) {
	h := newHistogram()
	for i := range int64(1000) {
		if err := h.RecordValue(1000 * (i + 1)); err != nil {
			t.Fatal(err)
		}
	}
	at := map[float64]float64{}
	for _, d := range distribution(h) {
		at[d[0]] = d[1]
	}
	if m := at[50]; m < 499 || m > 501.5 {
		t.Errorf("the median of 1 to 1000 µs is %v", m)
	}
	if m := at[100]; m < 1000 || m > 1001 {
		t.Errorf("the maximum of 1 to 1000 µs is %v", m)
	}
	if _, there := at[99.99]; there {
		t.Error("1000 samples have no percentile 99.99")
	}
}

func TestJSON(t *testing.T) {
	b, err := json.Marshal(Result{Subject: "posix", Size: 64, Priorities: 8, Median: 1, Min: 1, Max: 1, Unit: PerSecond, Ratio: 30})
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"subject":"posix","size":64,"priorities":8,"median":1,"min":1,"max":1,"unit":"msg/s","ratio":30,`
	if !strings.HasPrefix(string(b), want) {
		t.Errorf("%s does not begin with %s", b, want)
	}
}

// Plot gives the plotting program the file's absolute name and the results as JSON lines.
func TestPlot(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, plotProgram)
	if err := os.WriteFile(program, []byte("#!/bin/sh\ncat > \"$1\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Chdir(dir)
	if err := Plot(t.Context(), "x.svg", []Result{{Subject: "a"}, {Subject: "b"}}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "x.svg"))
	if err != nil || strings.Count(string(b), "\n") != 2 || !strings.Contains(string(b), `"subject":"b"`) {
		t.Errorf("%q, %v", b, err)
	}
	if err := Plot(t.Context(), "x.pdf", []Result{{}}); !errors.Is(err, driver.ErrInvalid) {
		t.Errorf("x.pdf: %v", err)
	}
	if err := CheckPlot(t.Context(), "none/x.svg"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("none/x.svg: %v", err)
	}
	t.Setenv("PATH", "")
	if err := CheckPlot(t.Context(), "x.svg"); !errors.Is(err, driver.ErrUnsupported) || !strings.Contains(err.Error(), "go install") {
		t.Errorf("without Go: %v", err)
	}
}

// Where there is Go, and this source tree, nothing has to be installed for a plot.
func TestPlotFromSource(t *testing.T) {
	download := exec.Command("go", "mod", "download")
	download.Dir = "plot"
	if out, err := download.CombinedOutput(); err != nil {
		t.Logf("%v: %s", err, out)
		t.Skip("needs the modules of bench/plot")
	}
	t.Setenv("PATH", filepath.Dir(goProgram(t))) // no kumquat-plot that somebody installed
	file := filepath.Join(t.TempDir(), "x.svg")
	if err := CheckPlot(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	if err := Plot(t.Context(), file, run(t, tiny(Throughput, "pipe"))); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(b), "<svg") || !strings.Contains(string(b), ">pipe<") {
		t.Errorf("%.100q, %v", b, err)
	}
}

func goProgram(t *testing.T) string {
	name, err := exec.LookPath("go")
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestPhaseLines(t *testing.T) {
	p := phase{Verb: "run", Count: -1, Start: 3, Last: 2, Ends: 4, Group: 16, Pause: time.Millisecond, Type: 2}
	if got, err := parsePhase(p.line()); err != nil || got != p {
		t.Errorf("%+v, %v", got, err)
	}
	d := done{Count: 5, First: 6, Last: 7, Samples: 8, Mallocs: 9}
	if got, err := parseDone(d.line()); err != nil || got != d {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := parseDone("error no queue\n"); err == nil || err.Error() != "no queue" {
		t.Errorf("error %v", err)
	}
}
