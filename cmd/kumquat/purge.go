package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/kumquat-mq/kumquat"
)

func purgeCommand(a *app) *cobra.Command {
	var filter filterFlags
	var yes, asJSON bool
	c := &cobra.Command{
		Use:   "purge NAME [flags]",
		Short: "Remove messages from a queue",
		Long: `Remove the messages that wait, delayed ones too, or those that match, and print their number. Messages that are sent while it runs
stay. The queue stays. Of the kernel's queues, System V knows the types and POSIX no selection at all.

On a terminal it asks first, unless --yes is given.`,
		Example: `  kumquat purge /orders
  kumquat purge /orders --type 7 --yes`,
		Args:              arguments(1, 1),
		ValidArgsFunction: queueNames(1),
	}
	filter.add(c)
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.Flags().BoolVar(&asJSON, "json", false, "print one line of JSON")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return runPurge(cmd.Context(), a, args[0], filter.filter(), yes, asJSON)
	}
	return c
}

func runPurge(ctx context.Context, a *app, name string, f kumquat.Filter, yes, asJSON bool) error {
	q, err := open(ctx, name, nil)
	if err != nil {
		return err
	}
	defer q.Close()
	s, err := q.Stat(ctx)
	if err != nil {
		return err
	}
	which := "all"
	if !f.Any() {
		which = "those that match of"
	}
	ok, err := a.confirm(ctx, yes, fmt.Sprintf("Remove %s %s in %s?", which, plural(s.Messages, "message"), name))
	if err != nil {
		return err
	}
	if !ok {
		return a.declined()
	}
	n, err := a.purge(ctx, q, f, s)
	switch {
	case asJSON:
		a.out.Write(line(map[string]any{"name": name, "purged": n}))
	case a.outTerm:
		fmt.Fprintf(a.out, "%s removed\n", plural(n, "message"))
	default:
		fmt.Fprintln(a.out, n)
	}
	return err
}

// purge purges, and shows on a terminal how far it is: the queue's own count of dropped messages tells, or of those that are left.
func (a *app) purge(ctx context.Context, q *kumquat.Queue, f kumquat.Filter, before kumquat.Stats) (int, error) {
	tell := a.progress("removed", before.Messages, false)
	if tell == nil {
		return q.Purge(ctx, f)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				s, err := q.Stat(ctx)
				switch {
				case err != nil:
				case inKernel(q.Name()): // which does not count what it drops
					tell.show(max(before.Messages-s.Messages, 0))
				default:
					tell.show(int(s.Dropped - before.Dropped))
				}
			}
		}
	}()
	n, err := q.Purge(ctx, f)
	close(stop)
	<-stopped
	tell.end()
	return n, err
}
