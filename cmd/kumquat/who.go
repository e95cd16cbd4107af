package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/kumquat-mq/kumquat"
)

func whoCommand(a *app) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "who NAME [flags]",
		Short: "Show which processes have a queue open",
		Long: `Show each process that has the queue open: its id, command, user, systemd unit or container, its state as ps shows it (R runs,
S sleeps, D waits for a disk, T is stopped, Z is a zombie, ? cannot be seen from here, dead is dead), what it does or waits for and
since when, how many places it holds, how many messages it sent and received.

Of a POSIX queue it shows who has it open, for receiving, sending or both; of a System V queue who waits at it, and who sent and
received last. Processes of other users can be inspected by root only.

What a process says of itself is not verified. A process in another PID namespace, as in a container, is shown with the id that it
has there.`,
		Example: `  kumquat who /orders
  kumquat who /orders --json
  kumquat who sysv:0x41000001`,
		Args:              arguments(1, 1),
		ValidArgsFunction: queueNames(1),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print each process as one line of JSON, with its last operations")
	c.RunE = func(cmd *cobra.Command, args []string) error { return runWho(cmd.Context(), a, args[0], asJSON) }
	return c
}

func runWho(ctx context.Context, a *app, name string, asJSON bool) error {
	q, err := observe(ctx, name)
	if err != nil {
		return err
	}
	defer q.Close()
	if inKernel(name) {
		return a.whoKernel(ctx, q, asJSON)
	}
	ps, err := q.Who(ctx)
	if err != nil {
		return err
	}
	if asJSON {
		for i := range ps {
			a.out.Write(line(participantOf(&ps[i])))
		}
		return nil
	}
	if len(ps) == 0 {
		a.note("nobody has %s open", name)
		return nil
	}
	g := grid{
		heads: []string{"PID", "COMMAND", "USER", "UNIT", "STATE", "DOING", "SINCE", "HOLDS", "SENT", "RECEIVED"},
		right: []bool{true, false, false, false, false, false, false, true, true, true},
		warn:  map[int]bool{},
	}
	elsewhere := false
	for i := range ps {
		p := &ps[i]
		state := p.State
		if !p.Alive {
			state = "dead"
		}
		pid := strconv.Itoa(p.PID)
		if p.PID == 0 {
			pid = "?"
		}
		if p.Namespace {
			pid += "*"
			elsewhere = true
		}
		doing := p.Doing
		if p.ReadOnly {
			doing += " (looks on)"
		}
		g.warn[i] = !p.Alive || p.State == "T" || p.State == "Z"
		g.rows = append(g.rows, []string{pid, p.Command, p.User, p.Unit, state, doing, a.timeText(p.Since), strconv.Itoa(p.Holds),
			a.countText(int64(p.Sent)), a.countText(int64(p.Received))})
	}
	a.print(g)
	if elsewhere {
		fmt.Fprintln(a.err, "kumquat: * lives in another PID namespace: the id is the one it has there")
	}
	return nil
}

// describe names a process in a sentence.
func describe(p *kumquat.Participant) string {
	s := fmt.Sprintf("process %d", p.PID)
	if p.Namespace {
		s += " of another PID namespace"
	}
	if p.Command != "" {
		s += " (" + p.Command + ")"
	}
	return s
}
