package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/kumquat-mq/kumquat"
)

func watchCommand(a *app) *cobra.Command {
	var asJSON bool
	var n countValue
	c := &cobra.Command{
		Use:   "watch NAME... [flags]",
		Short: "Print what happens to queues",
		Long: `Print what happens to queues, a line for each event: messages that were sent, received, dropped or expired since the last line (they
are counted, not told one by one), processes that opened or closed the queue or died with it open, a lock that was taken over from
a process that had died or was stopped, the removal of the queue.

The kernel counts nothing: a queue of its own is looked at ten times a second, and told is by how much it grew or shrank at least.

It ends when it is stopped, or when all of the queues are removed (exit code 3). Read permission is enough.`,
		Example: `  kumquat watch /orders
  kumquat watch /orders /images/input --json`,
		Args:              arguments(1, -1),
		ValidArgsFunction: queueNames(-1),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print each event as one line of JSON")
	c.Flags().VarP(&n, "count", "n", "end after this many events, 0: never")
	c.RunE = func(cmd *cobra.Command, args []string) error { return runWatch(cmd.Context(), a, args, asJSON, n.n) }
	return c
}

// happening is an event of one of the queues, or why it is watched no longer.
type happening struct {
	queue string
	event kumquat.Event
	err   error
	over  bool
}

func runWatch(parent context.Context, a *app, names []string, asJSON bool, want int) error {
	ctx, cancel := context.WithCancel(parent)
	all := make(chan happening)
	running := 0
	defer func() {
		cancel()
		for running > 0 { // each of them uses a queue that is closed next
			if h := <-all; h.over {
				running--
			}
		}
	}()
	for _, name := range names {
		q, err := observe(ctx, name)
		if err != nil {
			return err
		}
		running++
		go func() {
			defer q.Close()
			for e, err := range watchOf(ctx, q) {
				all <- happening{queue: name, event: e, err: err}
			}
			all <- happening{queue: name, over: true}
		}()
	}
	for seen := 0; running > 0; {
		h := <-all
		switch {
		case h.over:
			running--
			continue
		case h.err != nil:
			return h.err
		}
		if asJSON {
			a.out.Write(line(eventOf(h.queue, &h.event)))
		} else {
			fmt.Fprintln(a.out, a.eventLine(h.queue, &h.event, len(names) > 1))
		}
		if err := a.out.Flush(); err != nil {
			return fmt.Errorf("writing to standard output: %w", err)
		}
		if seen++; seen == want {
			return nil
		}
	}
	if parent.Err() != nil {
		return parent.Err()
	}
	return fmt.Errorf("watch: %w", kumquat.ErrRemoved)
}

func (a *app) eventLine(queue string, e *kumquat.Event, named bool) string {
	when := e.Time.UTC().Format(time.RFC3339Nano)
	if a.outTerm {
		when = a.paint(e.Time.Local().Format("15:04:05.000"), faint)
	}
	s := when
	if named {
		s += " " + escape(queue)
	}
	kind := string(e.Kind)
	switch e.Kind {
	case kumquat.EventDied, kumquat.EventTakeover, kumquat.EventRemoved, kumquat.EventDropped:
		kind = a.paint(kind, amber)
	}
	s += " " + kind
	switch {
	case e.Participant != nil:
		s += " " + escape(describe(e.Participant))
	case e.N > 0:
		s += " " + a.countText(int64(e.N))
	}
	return s + fmt.Sprintf(", %s waiting", a.countText(int64(e.Messages)))
}
