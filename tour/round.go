package tour

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/kumquat-mq/kumquat"
)

const (
	producers  = 2
	consumers  = 4  // two victims, two survivors
	maxHandles = 16 // the tour's own and the children's
)

// record is what is known of a file.
type record struct {
	round   int
	skipped bool
	sent    report // Kind is empty: not sent
	again   report // as sent once more; Kind is empty: it was not
	arrived []arrival
}

// arrival is the report of a consumer that is done with a message.
type arrival struct {
	report
	survivor bool
	resent   bool // it came after the message was sent again
}

// round sends the files with these indices through a queue of their own. With signals it kills and stops consumers.
func (t *tour) round(ctx context.Context, indices []int, number int) (err error) {
	largest := int64(1)
	for _, i := range indices {
		largest = max(largest, t.files[i].size)
		t.record[i].round = number
	}
	name := newName()
	q, err := kumquat.Open(ctx, name, &kumquat.Options{Create: true, Exclusive: true,
		MaxMessages: len(indices), MaxSize: int(largest), MaxHandles: maxHandles})
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, kumquat.Remove(context.WithoutCancel(ctx), name), q.Close())
	}()
	t.say("queue", fields{"queue": name, "max_messages": len(indices), "max_size": largest},
		"queue: %s, made for %s of up to %s", name, count(len(indices), "message"), size(largest))
	r := &round{tour: t, q: q, indices: indices, largest: largest, crew: newCrew(largest)}
	defer r.end()
	if err := r.fillUp(ctx); err != nil || r.n == 0 {
		return err
	}
	if number == 0 {
		err = r.drainWithSignals(ctx)
	} else {
		err = r.drainPlainly(ctx)
	}
	if err != nil {
		return err
	}
	return r.inspect(ctx)
}

// round is one filling and emptying of a queue.
type round struct {
	*tour
	*crew
	q       *kumquat.Queue
	indices []int
	largest int64
	n       int // sent
	done    int // arrived
	again   int // sent once more
	lastGot int64
}

// fillUp sends all files. Nobody receives meanwhile.
func (r *round) fillUp(ctx context.Context) error {
	begin := time.Now()
	var bytes int64
	r.on = func(p *proc, x report) error {
		i := x.Index
		if i < 0 || i >= len(r.record) || r.record[i].sent.Kind != "" {
			return &Failure{[]string{fmt.Sprintf("%s reported a file twice, or one that there is not: %d", p, i)}}
		}
		if x.Kind == notSent {
			r.record[i].skipped = true
			r.skip(skipped{r.files[i].path, x.Text})
			return nil
		}
		r.record[i].sent = x
		r.n++
		bytes += x.Size
		return nil
	}
	shares := make([][]job, producers)
	for n, i := range r.indices {
		shares[n%producers] = append(shares[n%producers], job{i, []byte(r.files[i].path), kinds[r.files[i].kind].priority})
	}
	var pids []string
	for n, jobs := range shares {
		p, err := r.start(fmt.Sprintf("producer %d", n+1), order{Role: roleOut, Queue: r.q.Name(), Folder: r.folder, Files: jobs, Max: r.largest})
		if err != nil {
			return err
		}
		pids = append(pids, fmt.Sprint(p.pid()))
	}
	if err := r.until(ctx, "the producers had sent all files", r.allEnded); err != nil {
		return err
	}
	took := time.Since(begin)
	r.fill.files, r.fill.bytes, r.fill.time = r.fill.files+r.n, r.fill.bytes+bytes, r.fill.time+took
	st, err := r.q.Stat(ctx)
	if err != nil {
		return err
	}
	if st.Messages != r.n {
		r.wrong("%d files were sent, but the queue holds %d messages", r.n, st.Messages)
	}
	r.say("fill", fields{"producers": producers, "sent": r.n, "bytes": bytes, "seconds": took.Seconds(), "waiting": st.Messages},
		"fill: %d producers (pids %s) sent %s; %d of at most %d are in the queue", producers, strings.Join(pids, ", "), rate(r.n, bytes, took),
		st.Messages, st.MaxMessages)
	return nil
}

func (r *round) allEnded() bool {
	return !slices.ContainsFunc(r.all, func(p *proc) bool { return !p.ended })
}

func (r *round) wrong(format string, args ...any) {
	r.off = append(r.off, fmt.Sprintf(format, args...))
}

// startConsumers starts them all and waits until each has the queue open. HoldAt is for the first two.
func (r *round) startConsumers(ctx context.Context, holdAt int, pace time.Duration) ([]*proc, error) {
	crew := make([]*proc, consumers)
	var pids []string
	for n := range crew {
		o := order{Role: roleIn, Queue: r.q.Name(), Max: r.largest}
		if n < 2 {
			o.HoldAt = holdAt
		} else {
			o.Pace = pace
		}
		var err error
		if crew[n], err = r.start(fmt.Sprintf("consumer %d", n+1), o); err != nil {
			return nil, err
		}
		pids = append(pids, fmt.Sprint(crew[n].pid()))
	}
	r.on = func(p *proc, x report) error {
		i := x.Index
		if i < 0 || i >= len(r.record) || r.record[i].sent.Kind == "" {
			return &Failure{[]string{fmt.Sprintf("%s received a message that was never sent: %d", p, i)}}
		}
		if x.Text != "" {
			r.wrong("%s received %s with SHA-256 %s, but %s", p, show(r.files[i].path), x.SHA, x.Text)
		}
		survivor := p == crew[2] || p == crew[3]
		r.record[i].arrived = append(r.record[i].arrived, arrival{x, survivor, r.record[i].again.Kind != ""})
		r.done++
		r.lastGot = max(r.lastGot, x.Got)
		return nil
	}
	err := r.until(ctx, "the consumers had opened the queue", func() bool {
		return !slices.ContainsFunc(crew, func(p *proc) bool { return !p.ready })
	})
	text := fmt.Sprintf("consumers: %d, pids %s", consumers, strings.Join(pids, ", "))
	if pace > 0 {
		text += fmt.Sprintf("; 3 and 4 pause %s at each file, so that there is a middle to kill and stop in", ms(pace))
	}
	r.say("consumers", fields{"consumers": consumers, "pace_seconds": pace.Seconds()}, "%s", text)
	return crew, err
}

// finishAll ends these children in good order.
func (r *round) finishAll(ctx context.Context, who []*proc) error {
	for _, p := range who {
		p.finish()
	}
	return r.until(ctx, "the consumers had ended", func() bool {
		return !slices.ContainsFunc(who, func(p *proc) bool { return !p.ended })
	})
}

func (r *round) sumDrain(begin int64) string {
	var bytes int64
	for _, i := range r.indices {
		for _, a := range r.record[i].arrived {
			bytes += a.Size
		}
	}
	took := time.Duration(max(r.lastGot-begin, 0))
	r.drain.files, r.drain.bytes, r.drain.time = r.drain.files+r.done, r.drain.bytes+bytes, r.drain.time+took
	return rate(r.done, bytes, took)
}

func (r *round) drainPlainly(ctx context.Context) error {
	crew, err := r.startConsumers(ctx, 0, 0)
	if err != nil {
		return err
	}
	begin := now()
	for _, p := range crew {
		p.command(cmdGo)
	}
	if err := r.until(ctx, "all files had arrived", func() bool { return r.done >= r.n }); err != nil {
		return err
	}
	if err := r.finishAll(ctx, crew); err != nil {
		return err
	}
	r.say("drain", fields{"received": r.done}, "drain: %d consumers received %s", consumers, r.sumDrain(begin))
	return nil
}

// drainWithSignals empties the queue while one consumer is killed and one is stopped.
func (r *round) drainWithSignals(ctx context.Context) error {
	// The victims receive some, keep the last of them in hand and wait: so both signals meet a consumer at work, however fast or slow
	// the machine is. From 18 files on it is their third.
	holdAt := 1
	if r.n >= 18 {
		holdAt = 3
	}
	rest := max(r.n-2*holdAt, 0)
	pace := pauseFor(rest)
	crew, err := r.startConsumers(ctx, holdAt, pace)
	if err != nil {
		return err
	}
	kill, stop, survivors := crew[0], crew[1], crew[2:]
	if r.n < 6 {
		r.say("few", fields{"files": r.n}, "few: with %s there is little to see; with 6 or more both victims hold one and the survivors have work",
			count(r.n, "file"))
	}
	begin := now()
	for n, p := range crew[:2] {
		p.command(cmdGo)
		if r.n <= n { // there is none for this one
			continue
		}
		if err := r.until(ctx, p.name+" had a message in hand", func() bool { return p.takes >= holdAt }); err != nil {
			return err
		}
	}
	before := r.done
	for _, p := range survivors {
		p.command(cmdGo)
	}

	if err := r.until(ctx, "a quarter of the files had arrived", func() bool { return r.done >= before+rest/4 }); err != nil {
		return err
	}
	killed := now()
	kill.doomed = true
	if err := kill.cmd.Process.Kill(); err != nil {
		return err
	}
	if err := r.until(ctx, "the killed consumer was dead", func() bool { return kill.ended }); err != nil {
		return err
	}
	if ws, ok := kill.state.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		r.wrong("%s was to die of SIGKILL, but: %s", kill, kill.state)
	}
	r.say("kill", fields{"pid": kill.pid(), "arrived": r.done, "of": r.n, "in_hand": r.inHand(kill)},
		"kill: %s got SIGKILL when %d of %d files had arrived; it took with it: %s", kill, r.done, r.n, r.inHand(kill))

	if err := r.until(ctx, "half of the files had arrived", func() bool { return r.done >= before+rest/2 }); err != nil {
		return err
	}
	stoppedAt := now()
	if err := stop.stop(ctx); err != nil {
		return err
	}
	r.say("stop", fields{"pid": stop.pid(), "arrived": r.done, "of": r.n, "in_hand": r.inHand(stop), "who": r.who(ctx, stop.pid())},
		"stop: %s got SIGSTOP when %d of %d files had arrived; it had in hand: %s%s", stop, r.done, r.n, r.inHand(stop), r.who(ctx, stop.pid()))

	hands := 0
	for _, p := range []*proc{kill, stop} {
		if p.inHand >= 0 {
			hands++
		}
	}
	if err := r.until(ctx, "the survivors had received all the others", func() bool { return r.done >= r.n-hands }); err != nil {
		return err
	}
	if err := r.finishAll(ctx, survivors); err != nil {
		return err
	}
	r.measure(killed, stoppedAt, rest, pace)
	r.say("drain", fields{"received": r.done}, "drain: consumers 3 and 4 went on and emptied the queue; so far received %s", r.sumDrain(begin))

	held := stop.inHand
	if err := stop.cont(); err != nil {
		return err
	}
	slept := time.Duration(now() - stoppedAt)
	stop.command(cmdOn)
	if err := r.until(ctx, "the stopped consumer had reported what it held", func() bool { return stop.inHand < 0 }); err != nil {
		return err
	}
	what := "and waits for more, unharmed"
	if held >= 0 {
		what = "and reported " + show(r.files[held].path) + ", unharmed"
	}
	r.say("wake", fields{"pid": stop.pid(), "stopped_seconds": slept.Seconds()}, "wake: %s got SIGCONT after %s %s", stop, ms(slept), what)
	if err := r.sendAgain(ctx, kill, stop); err != nil {
		return err
	}
	return r.finishAll(ctx, []*proc{stop})
}

// pauseFor returns how long the survivors pause at each of so many files: enough for them to take 400 ms, nothing where they take
// about as long anyhow.
func pauseFor(files int) time.Duration {
	if files == 0 {
		return 0
	}
	d := 2 * 400 * time.Millisecond / time.Duration(files)
	if d < 100*time.Microsecond {
		return 0
	}
	return min(d, 50*time.Millisecond).Round(10 * time.Microsecond)
}

func (r *round) inHand(p *proc) string {
	if p.inHand < 0 || p.inHand >= len(r.files) {
		return "nothing"
	}
	return show(r.files[p.inHand].path)
}

// who tells what the queue shows of a process.
func (r *round) who(ctx context.Context, pid int) string {
	if !r.q.Can(kumquat.Inspecting) {
		return ""
	}
	list, err := r.q.Who(ctx)
	if err != nil {
		return ""
	}
	for _, p := range list {
		if p.PID == pid && p.Visible {
			return fmt.Sprintf("; the queue shows it in state %s", p.State)
		}
	}
	return ""
}

// measure finds how long the survivors were held up once the signals had been sent: the longest time that one of them waited in
// Receive, and the longest time in which none of them took anything.
func (r *round) measure(killed, stopped int64, rest int, pace time.Duration) {
	var takes []arrival
	for _, i := range r.indices {
		for _, a := range r.record[i].arrived {
			if a.survivor {
				takes = append(takes, a)
			}
		}
	}
	slices.SortFunc(takes, func(a, b arrival) int { return cmp.Compare(a.Got, b.Got) })
	for n, a := range takes {
		if a.Got < killed {
			continue
		}
		r.signalled = true
		r.longWait = max(r.longWait, time.Duration(a.Got-a.Asked))
		since := killed // before the first take there is none to count from
		if n > 0 {
			since = takes[n-1].Got
		}
		r.gap = max(r.gap, time.Duration(a.Got-since))
	}
	r.paced = pace
	if r.n >= 6 && (len(takes) == 0 || takes[len(takes)-1].Got < stopped) {
		r.say("late", nil, "late: the survivors had received all that was left before the stop (%s): the machine is busy, or there are few files",
			count(rest, "file"))
	}
}

// sendAgain finds what was sent and not reported, which must be just what the killed consumer had in hand, sends it again and has
// the consumer that was stopped receive it.
func (r *round) sendAgain(ctx context.Context, kill, stop *proc) error {
	var missing []int
	var names []string
	for _, i := range r.indices {
		if r.record[i].sent.Kind != "" && len(r.record[i].arrived) == 0 {
			missing = append(missing, i)
			names = append(names, show(r.files[i].path))
		}
	}
	if len(missing) > 1 || len(missing) == 1 && missing[0] != kill.inHand || len(missing) == 0 && kill.inHand >= 0 {
		r.wrong("sent and not reported are %q, but the killed consumer had in hand: %s", names, r.inHand(kill))
	}
	for _, i := range missing {
		j := job{i, []byte(r.files[i].path), kinds[r.files[i].kind].priority}
		x, err := sendFile(ctx, r.q, filepath.Join(r.folder, r.files[i].path), j, r.largest)
		var bad *fileError
		if errors.As(err, &bad) {
			r.record[i].skipped = true
			r.say("skip", fields{"file": r.files[i].path, "why": bad.Error()}, "left out: %s cannot be sent again: %s", show(r.files[i].path), bad)
			continue
		}
		if err != nil {
			return err
		}
		r.record[i].again = x
		r.again++
		want := r.done + 1
		if err := r.until(ctx, "what the killed consumer held had arrived", func() bool { return r.done >= want }); err != nil {
			return err
		}
		r.say("again", fields{"file": r.files[i].path, "by": stop.pid()},
			"again: %s, which the killed consumer took with it, was sent again by the tour and received by %s", show(r.files[i].path), stop)
	}
	return nil
}

// inspect checks what the queue says of itself when all is over.
func (r *round) inspect(ctx context.Context) error {
	st, err := r.q.Stat(ctx)
	if err != nil {
		return err
	}
	all := uint64(r.n + r.again)
	if st.Messages != 0 || st.Sent != all || st.Received != all || st.Dropped != 0 || st.Expired != 0 {
		r.wrong("the queue should be empty after %d sends and receives, but counts %d waiting, %d sent, %d received, %d dropped, %d expired",
			all, st.Messages, st.Sent, st.Received, st.Dropped, st.Expired)
	}
	if !r.q.Can(kumquat.Inspecting) {
		return nil
	}
	rep, err := r.q.Check(ctx)
	if err != nil {
		return err
	}
	debris := 0
	for _, p := range rep.Problems {
		if p.Broken {
			r.wrong("check: %s: %s", p.Where, p.Text)
		} else {
			debris++
		}
	}
	r.say("check", fields{"checked": rep.Checked, "debris": debris, "takeovers": st.Takeovers},
		"check: %s of the queue's file looked at, %d left by the dead, %d takeovers of the lock", count(rep.Checked, "fact"), debris, st.Takeovers)
	return nil
}
