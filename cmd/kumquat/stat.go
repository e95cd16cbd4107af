package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/kumquat-mq/kumquat"
)

func statCommand(a *app) *cobra.Command {
	var asJSON, watch bool
	c := &cobra.Command{
		Use:   "stat NAME [flags]",
		Short: "Show the state of a queue",
		Long: `Show the state of a queue: what it holds, what went through it, how it was made, who waits.

With --watch it shows it again whenever something happens, at most ten times a second: in place on a terminal, else as a line
with the time and the numbers, or as a line of JSON. It ends when it is stopped, or when the queue is removed (exit code 3).

Of the kernel's queues it shows what the kernel knows; it keeps no counts of what went through them.`,
		Example: `  kumquat stat /orders
  kumquat stat /orders --watch
  kumquat stat /orders --json | jq .messages`,
		Args:              arguments(1, 1),
		ValidArgsFunction: queueNames(1),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one line of JSON")
	c.Flags().BoolVar(&watch, "watch", false, "go on and show what changes")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		q, err := observe(ctx, args[0])
		if err != nil {
			return err
		}
		defer q.Close()
		if watch {
			return a.watchStat(ctx, q, asJSON)
		}
		r, err := rowOf(ctx, q)
		if err != nil {
			return err
		}
		if asJSON {
			a.countUsers(&r)
			a.out.Write(line(jsonOfRow(&r)))
			return nil
		}
		a.printRow(&r, nil)
		return nil
	}
	return c
}

// printRow prints the state of a queue of any kind and returns the number of lines.
func (a *app) printRow(r *row, last *sample) int {
	if r.posix != nil || r.sysv != nil {
		return a.printKernelStat(r)
	}
	return a.printStat(r.Name, &r.Stats, last)
}

// printStat prints s as lines of a name and a value, and returns their number. With last it adds the rates since then.
func (a *app) printStat(name string, s *kumquat.Stats, last *sample) int {
	lines := 0
	put := func(label, format string, args ...any) {
		fmt.Fprintf(a.out, "%s %s\n", a.paint(fmt.Sprintf("%-12s", label), faint), escape(fmt.Sprintf(format, args...)))
		lines++
	}
	n := func(v uint64) string { return a.countText(int64(v)) }
	rate := func(now, then uint64) string {
		if last == nil || last.at.IsZero() || now < then {
			return ""
		}
		return "  " + humanize.SIWithDigits(float64(now-then)/time.Since(last.at).Seconds(), 1, "") + "/s"
	}
	var then kumquat.Stats
	if last != nil {
		then = last.s
	}
	put("name", "%s", name)
	put("messages", "%s of %s", n(uint64(s.Messages)), n(uint64(s.MaxMessages)))
	put("delayed", "%s", n(uint64(s.Delayed)))
	put("limit", "%s", percentText((&row{Info: kumquat.Info{Stats: *s}}).fill()))
	put("bytes", "%s", a.bytesText(s.Bytes))
	put("priorities", "%s", rangeText(s))
	put("oldest", "%s", orNone(a.timeText(s.OldestEnqueued)))
	put("sent", "%s%s", n(s.Sent), rate(s.Sent, then.Sent))
	put("received", "%s%s", n(s.Received), rate(s.Received, then.Received))
	put("dropped", "%s%s", n(s.Dropped), rate(s.Dropped, then.Dropped))
	put("expired", "%s%s", n(s.Expired), rate(s.Expired, then.Expired))
	put("handles", "%d of %d, %d waiting to receive, %d to send", s.Handles, s.MaxHandles, s.Receivers, s.Senders)
	put("takeovers", "%s", n(s.Takeovers))
	put("max size", "%s", a.bytesText(int64(s.MaxSize)))
	put("max batch", "%d", s.MaxBatch)
	put("overflow", "%s", overflowName(s.Overflow))
	put("headroom", "%s", orNone(headroomText(s.Headroom)))
	put("durability", "%s", durabilityNames[s.Durability])
	put("mode", "%s", modeText(s))
	put("owner", "%s", userName(s.UID))
	put("created", "%s", orNone(a.timeText(s.Created)))
	put("resident", "%s", a.bytesText(s.Resident))
	put("path", "%s", orNone(s.Path))
	return lines
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func rangeText(s *kumquat.Stats) string {
	switch {
	case s.Messages == 0 || s.LowestPriority < 0:
		return "none"
	case s.LowestPriority == s.HighestPriority:
		return fmt.Sprint(s.LowestPriority)
	}
	return fmt.Sprintf("%d to %d", s.LowestPriority, s.HighestPriority)
}

// sample is an earlier state, for rates.
type sample struct {
	at time.Time
	s  kumquat.Stats
}

const (
	repaintEvery = 100 * time.Millisecond
	rateOver     = time.Second // rates are counted over this time or more
)

// watchStat shows the state whenever an event of the queue says that it changed.
func (a *app) watchStat(ctx context.Context, q *kumquat.Queue, asJSON bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	changed := make(chan struct{}, 1)
	ended := make(chan error, 1)
	go func() {
		defer close(changed)
		for _, err := range watchOf(ctx, q) {
			if err != nil {
				ended <- err
				return
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	defer func() {
		cancel(nil)
		for range changed { // the watcher uses the queue: it must be gone before the queue is closed
		}
	}()
	lines := 0
	var last sample
	for {
		r, err := rowOf(ctx, q)
		if err != nil {
			return goneError(err)
		}
		s := r.Stats
		switch {
		case asJSON:
			a.out.Write(line(jsonOfRow(&r)))
		case a.outTerm:
			if lines > 0 {
				fmt.Fprintf(a.out, "\x1b[%dA\x1b[J", lines)
			}
			lines = a.printRow(&r, &last)
		case inKernel(q.Name()):
			fmt.Fprintf(a.out, "%s messages %d bytes %d limit %s\n", time.Now().UTC().Format(time.RFC3339Nano), s.Messages, s.Bytes, percentText(r.fill()))
		default:
			fmt.Fprintf(a.out, "%s messages %d sent %d received %d dropped %d expired %d handles %d\n", time.Now().UTC().Format(time.RFC3339Nano),
				s.Messages, s.Sent, s.Received, s.Dropped, s.Expired, s.Handles)
		}
		if err := a.out.Flush(); err != nil {
			return fmt.Errorf("writing to standard output: %w", err)
		}
		if now := time.Now(); now.Sub(last.at) >= rateOver {
			last = sample{now, s}
		}
		if s.Removed {
			return fmt.Errorf("stat %s: %w", q.Name(), kumquat.ErrRemoved)
		}
		if err := a.nextChange(ctx, changed, ended); err != nil {
			if errors.Is(err, errWatchEnded) {
				return fmt.Errorf("stat %s: %w", q.Name(), kumquat.ErrRemoved)
			}
			return err
		}
	}
}

var errWatchEnded = errors.New("the queue is watched no longer")

// nextChange waits for the next change, and a moment more for others that come with it.
func (a *app) nextChange(ctx context.Context, changed <-chan struct{}, ended <-chan error) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-ended:
		return err
	case _, ok := <-changed:
		if !ok {
			select {
			case err := <-ended:
				return err
			default:
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return errWatchEnded
		}
	}
	t := time.NewTimer(repaintEvery)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
