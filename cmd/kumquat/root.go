package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kumquat-mq/kumquat"
)

const rootLong = `Message queues for the processes of this machine.

A queue has a name like /orders or /images/input and is made with create, or by the first send with --create. Messages have a
priority (0 to 32767, higher first; critical, high, normal and low stand for 28, 20, 10 and 2) and leave in the order of sending
inside one priority. A queue outlives the processes that use it and is gone after a reboot.

The kernel's own queues have names too: posix:/orders is a POSIX queue (mq_open), sysv:0x41000001 and sysv:PATH,ID are System V queues
(msgget, ftok), and sysv+priority:0x41000001 is one whose types are used as priorities. All commands take them, as far as the kernel
allows.

Tables are for terminals; elsewhere the output is plain text, or JSON lines with --json.`

// usageTail is shown under the flags of every command.
func usageTail() string {
	var b strings.Builder
	b.WriteString("\nExit codes:\n")
	for _, l := range exitLines() {
		fmt.Fprintf(&b, "  %-6s %s\n", l[0], l[1])
	}
	return b.String()
}

// newRoot makes the tree of commands.
func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:           "kumquat",
		Short:         "Message queues for the processes of this machine",
		Long:          rootLong,
		Version:       versionText(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
				return fmt.Errorf("unknown command %q; is %q meant?", args[0], s[0])
			}
			return fmt.Errorf("unknown command %q", args[0])
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintf(a.err, "%s\n\n%s", cmd.Short, cmd.UsageString())
			return fmt.Errorf("no command given")
		},
	}
	root.SuggestionsMinimumDistance = 2
	root.CompletionOptions.DisableDefaultCmd = true
	root.DisableAutoGenTag = true
	root.InitDefaultVersionFlag() // so that the manual has it too
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetUsageTemplate(strings.TrimRight(root.UsageTemplate(), "\n") + "\n" + usageTail())
	root.AddGroup(
		&cobra.Group{ID: "messages", Title: "Messages:"},
		&cobra.Group{ID: "queues", Title: "Queues:"},
		&cobra.Group{ID: "look", Title: "Looking on:"},
		&cobra.Group{ID: "more", Title: "More:"})
	for group, cmds := range map[string][]*cobra.Command{
		"messages": {sendCommand(a), recvCommand(a), peekCommand(a), moveCommand(a), copyCommand(a), purgeCommand(a)},
		"queues":   {createCommand(a), lsCommand(a), statCommand(a), rmCommand(a)},
		"look":     {whoCommand(a), watchCommand(a), checkCommand(a), doctorCommand(a)},
		"more":     {tourCommand(a), benchCommand(a), helpCommand(a), completionCommand(a), versionCommand(a)},
	} {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	for _, c := range root.Commands() {
		if c.Name() == "help" {
			root.SetHelpCommand(c)
		}
		prepare(a, c)
	}
	return root
}

// prepare marks the moment when a command begins, so that what failed before it is an error of usage.
func prepare(a *app, c *cobra.Command) {
	c.DisableFlagsInUseLine = true
	inner := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		a.started = true
		err := inner(cmd, args)
		if u, ok := err.(usageError); ok && u.path == "" {
			u.path = cmd.CommandPath()
			err = u
		}
		return err
	}
}

// arguments is the check of a command that takes min to max of them, −1: any number.
func arguments(min, max int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < min:
			return fmt.Errorf("%s is missing: %s", strings.Trim(strings.Fields(cmd.Use)[1], "."), cmd.UseLine())
		case max >= 0 && len(args) > max:
			return fmt.Errorf("too many arguments, from %q on: %s", args[max], cmd.UseLine())
		}
		return nil
	}
}

// groupError says in our words that flags exclude each other.
func groupError(err error) error {
	_, set, ok := strings.Cut(err.Error(), "none of the others can be; [")
	set, _, closed := strings.Cut(set, "]")
	if !ok || !closed {
		return err
	}
	return fmt.Errorf("only one of --%s can be given", strings.Join(strings.Fields(set), ", --"))
}

// open opens the queue and adds to an error what helps against it.
func open(ctx context.Context, name string, o *kumquat.Options) (*kumquat.Queue, error) {
	q, err := kumquat.Open(ctx, name, o)
	if err != nil {
		return nil, withHint(err, name)
	}
	return q, nil
}

// observe opens the queue for those who only look.
func observe(ctx context.Context, name string) (*kumquat.Queue, error) {
	return open(ctx, name, &kumquat.Options{ReadOnly: true})
}
