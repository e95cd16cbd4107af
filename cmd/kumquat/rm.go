package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kumquat-mq/kumquat"
)

func rmCommand(a *app) *cobra.Command {
	var yes, dry, force, asJSON, onlyUnused, neverUsed bool
	var kinds kindsValue
	c := &cobra.Command{
		Use:     "rm NAME... [flags]",
		Aliases: []string{"remove"},
		Short:   "Remove queues",
		Long: `Remove queues with all their messages. Names may be patterns as for ls. Those who wait on a removed queue are told, and can no
longer use it; a queue made afterwards under the name is another one.

(A POSIX queue of the kernel lives on, without its name, for those who have it open.)

On a terminal it asks first, unless --yes is given. If one cannot be removed, the others still are.

With --unused it removes queues that nobody uses, of those that are named or of all: a queue of the engine or a POSIX queue that no
process has open, a System V queue that no process waits at and whose last sender and receiver are gone. They may hold messages: look
before you say yes. It shows them first. What cannot be inspected counts as used: --dry-run shows such queues too, and says why.
Processes of other users can be inspected by root only; those in other PID namespaces, only from outside of all.
System V does not tell who made a queue: one that nobody has sent to or received from yet counts as unused only with --never-used.`,
		Example: `  kumquat rm /orders
  kumquat rm '/images/*' --dry-run
  kumquat rm 'sysv:0x4100*' --dry-run
  kumquat rm --unused --kind posix,sysv --dry-run`,
		Args: func(cmd *cobra.Command, args []string) error {
			if onlyUnused {
				return nil
			}
			return arguments(1, -1)(cmd, args)
		},
		ValidArgsFunction: queueNames(-1),
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.Flags().BoolVar(&dry, "dry-run", false, "print the names that would be removed, and remove nothing")
	c.Flags().BoolVar(&force, "if-exists", false, "a queue that is not there is no error")
	c.Flags().BoolVar(&onlyUnused, "unused", false, "only queues that nobody uses; without a NAME: of all queues")
	c.Flags().BoolVar(&neverUsed, "never-used", false, "with --unused: System V queues too that nobody has used since they were made")
	c.Flags().Var(&kinds, "kind", "with --unused: which kinds of queues: engine, posix, sysv (default: all)")
	c.Flags().BoolVar(&asJSON, "json", false, "with --unused: print each queue as one line of JSON")
	completeWords(c, "kind", kindNames...)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if onlyUnused {
			return runUnused(cmd.Context(), a, args, &unusedFlags{kinds: kinds, neverUsed: neverUsed, yes: yes, dry: dry, asJSON: asJSON, ifExists: force})
		}
		for _, f := range []string{"never-used", "kind", "json"} {
			if cmd.Flags().Changed(f) {
				return usagef("--%s goes with --unused only", f)
			}
		}
		return runRm(cmd.Context(), a, args, yes, dry, force)
	}
	return c
}

func runRm(ctx context.Context, a *app, args []string, yes, dry, force bool) error {
	var first error
	fail := func(err error) {
		if first == nil {
			first = err
		}
		a.say(errorText(ctx, err))
	}
	var names []string
	messages := 0
	for _, arg := range args {
		infos, err := kumquat.List(ctx, arg)
		switch {
		case err != nil:
			return err
		case len(infos) == 0 && force:
		case len(infos) == 0 && isPattern(arg):
			fail(fmt.Errorf("remove %s: %w matches", arg, kumquat.ErrNotFound))
		case len(infos) == 0:
			fail(fmt.Errorf("remove %s: %w", arg, kumquat.ErrNotFound))
		}
		for _, info := range infos {
			if !slices.Contains(names, info.Name) {
				names = append(names, info.Name)
				messages += info.Messages
			}
		}
	}
	if dry {
		for _, n := range names {
			fmt.Fprintln(a.out, escape(n))
		}
	} else if len(names) > 0 {
		question := fmt.Sprintf("Remove %s with %s?", names[0], plural(messages, "message"))
		if len(names) > 1 {
			question = fmt.Sprintf("Remove %s with %s?", plural(len(names), "queue"), plural(messages, "message"))
		}
		ok, err := a.confirm(ctx, yes, question)
		if err != nil {
			return err
		}
		if !ok {
			return a.declined()
		}
		for _, n := range names {
			if err := kumquat.Remove(ctx, n); err != nil {
				fail(err)
			}
		}
	}
	if first != nil {
		return quietError{exitCode(ctx, first)}
	}
	return nil
}
