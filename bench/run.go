package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Run measures what c says and hands out each result when its contest is over. A peer that fails is told of by c.Note and left
// out; our own failure ends the run, as does ctx. Then all processes are ended and all queues removed.
func Run(ctx context.Context, c Config, out func(Result)) error {
	asked, unused := c.Peers != nil, c.unused()
	c, err := c.prepared()
	if err != nil {
		return err
	}
	for range c.Load {
		k, err := busyKid()
		if err != nil {
			return fmt.Errorf("starting a busy process: %w", err)
		}
		defer func() {
			_ = k.cmd.Process.Kill()
			_ = k.cmd.Wait()
		}()
	}
	for _, text := range unused {
		c.Note(text)
	}
	contests, unfit := c.plan()
	for _, text := range unfit {
		if asked || !strings.Contains(text, isFloor) { // by default each floor is where it belongs
			c.Note(text)
		}
	}
	told := map[string]bool{}
	for _, g := range contests {
		results, err := c.hold(ctx, g, told)
		if err != nil {
			return err
		}
		for _, r := range results {
			out(r)
		}
	}
	return nil
}

func busyKid() (*kid, error) {
	cmd, err := again(`{"Role":"` + roleBusy + `"}`)
	if err != nil {
		return nil, err
	}
	k := &kid{cmd: cmd, lines: make(chan string, 1)}
	return k, k.start()
}

// entrant is a setup in a contest, with what it has reached so far.
type entrant struct {
	setup
	count   int // messages of a round, once calibrated
	values  []float64
	ratios  []float64
	mallocs []float64
	hist    *hdrhistogram.Histogram
}

func (e *entrant) unit() string {
	if e.flow() {
		return PerSecond
	}
	return Microseconds
}

// hold runs all rounds of a contest.
func (c *Config) hold(ctx context.Context, g contest, told map[string]bool) ([]Result, error) {
	note := func(text string) {
		if !told[text] {
			told[text] = true
			c.Note(text)
		}
	}
	ours := &entrant{setup: g.ours, hist: newHistogram()}
	var peers []*entrant
	for _, s := range g.peers {
		peers = append(peers, &entrant{setup: s, hist: newHistogram()})
	}
	for round := range c.Rounds {
		progress := func(e *entrant) {
			c.Progress(fmt.Sprintf("round %d of %d: %s%s", round+1, c.Rounds, e.Label, e.shape()))
		}
		if len(peers) == 0 {
			progress(ours)
			if _, err := c.measure(ctx, ours, note); err != nil {
				return nil, fmt.Errorf("%s%s: %w", ours.Label, ours.shape(), err)
			}
		}
		left := peers[:0]
		for _, p := range peers {
			progress(ours)
			o, err := c.measure(ctx, ours, note)
			if err != nil {
				return nil, fmt.Errorf("%s%s: %w", ours.Label, ours.shape(), err)
			}
			progress(p)
			v, err := c.measure(ctx, p, note)
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			if err != nil {
				note(fmt.Sprintf("%s: skipped%s: %v", p.Label, p.shape(), err))
				continue
			}
			p.ratios = append(p.ratios, ratio(p.unit(), o, v))
			left = append(left, p)
		}
		peers = left
	}
	results := []Result{c.result(ours)}
	for _, p := range peers {
		results = append(results, c.result(p))
	}
	return results, nil
}

func (c *Config) result(e *entrant) Result {
	r := Result{Subject: e.Label, Size: e.Size, Priorities: e.Priorities, Unit: e.unit(), Ratio: 1, Workload: c.Workload, Mode: e.Mode,
		Producers: e.Producers, Consumers: e.Consumers, Capacity: e.Capacity, Waiting: e.Waiting, Load: c.Load, Rounds: len(e.values)}
	if e.Batch > 1 {
		r.Batch = e.Batch
	}
	r.Median, r.Min, r.Max = rounded(median(e.values)), e.values[0], e.values[0]
	for _, v := range e.values {
		r.Min, r.Max = min(r.Min, v), max(r.Max, v)
	}
	r.Min, r.Max = rounded(r.Min), rounded(r.Max)
	if len(e.ratios) > 0 {
		r.Ratio = rounded(median(e.ratios))
	}
	r.Allocs = float64(int(median(e.mallocs)*100+0.5)) / 100
	r.Distribution = distribution(e.hist)
	return r
}

// measure runs one round of e in new processes.
func (c *Config) measure(ctx context.Context, e *entrant, note func(string)) (float64, error) {
	if e.Mode == modeBinding {
		return c.measureBinding(ctx, e)
	}
	s, err := newSession(ctx, e.setup, c.Patience)
	if err != nil {
		return 0, err
	}
	ok := false
	defer func() { s.close(!ok) }()
	for _, text := range s.notes {
		note(text)
	}
	if e.Waiting > 0 {
		if err := s.fill(ctx); err != nil {
			return 0, fmt.Errorf("filling the queue: %w", err)
		}
	}
	group := 0
	if !e.flow() {
		group = 1
		if e.Mode == modeSpin {
			group = 16 // so that reading the clock does not count
		}
	}
	if e.count == 0 {
		if e.count, err = c.calibrate(ctx, s, group); err != nil {
			return 0, err
		}
	} else if _, err := s.run(ctx, e.warmUp(), group); err != nil {
		return 0, err
	}
	o, err := c.counted(ctx, s, e, group)
	if err != nil {
		return 0, err
	}
	v := o.rate
	if !e.flow() {
		v = middle(o.samples) / float64(group)
		if group > 1 { // single ones for the distribution
			if o, err = s.run(ctx, e.warmUp(), 1); err != nil {
				return 0, err
			}
		}
		for _, n := range o.samples {
			if err := e.hist.RecordValue(int64(n)); err != nil {
				return 0, err
			}
		}
	}
	if v <= 0 {
		return 0, errors.New("too fast to measure")
	}
	e.values = append(e.values, v)
	e.mallocs = append(e.mallocs, o.mallocs)
	ok = true
	return v, nil
}

// counted makes the run that counts. Where it is over too soon, since something held the calibration up, it is made again with more
// messages, which the rounds to come keep.
func (c *Config) counted(ctx context.Context, s *session, e *entrant, group int) (outcome, error) {
	for {
		o, err := s.run(ctx, e.count, group)
		if err != nil || o.elapsed >= c.Target/2 || e.count >= 1<<30 {
			return o, err
		}
		e.count = int(float64(e.count)*min(16, float64(c.Target)/float64(o.elapsed))) + 1
	}
}

// warmUp is the number of messages that go before the counted ones. It differs from their number: a floor tells numbers apart. Of
// messages that lie in the queue all come out once: a process that touches memory for the first time pays for its page tables.
func (e *entrant) warmUp() int {
	n := max(e.count/8, 32) + e.count%2
	if e.lying() {
		n = max(n, e.Waiting+1)
	}
	return n
}

// calibrate finds how many messages take as long as they should, and warms everything up.
func (c *Config) calibrate(ctx context.Context, s *session, group int) (int, error) {
	n := 64
	for {
		begin := time.Now()
		o, err := s.run(ctx, n, group)
		if err != nil {
			return 0, err
		}
		took := max(o.elapsed, time.Since(begin)/2) // a lull between two messages must not fool it
		if (took >= c.Target/8 || n >= 1<<30) && (n >= s.Waiting || !s.lying()) {
			return max(int(float64(n)*float64(c.Target)/float64(took)), 33), nil
		}
		n *= max(2, min(16, int(c.Target/4/max(took, 1))))
	}
}
