package main

import (
	"context"
	"fmt"
	"iter"
	"regexp"

	"github.com/spf13/cobra"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/driver"
	"github.com/kumquat-mq/kumquat/sysv"
)

type peekFlags struct {
	filterFlags
	n, skip           countValue
	grep              string
	raw, asJSON, zero bool
}

func peekCommand(a *app) *cobra.Command {
	var o peekFlags
	c := &cobra.Command{
		Use:   "peek NAME [flags]",
		Short: "Show messages without taking them",
		Long: `Show the messages that wait, in the order in which they would be received, without taking them. Delayed ones come last.

Read permission is enough, and nobody is held up. The forms of the output are those of recv, but on a terminal a body is cut to
the width of the line. The exit code is 4 if there is no message, or none that matches.

System V queues are read by MSG_COPY, in the order of sending, or with --at-most by type. POSIX queues cannot be looked into.`,
		Example: `  kumquat peek /orders
  kumquat peek /orders --grep 'pears?' -n 10
  kumquat peek /orders --json --min-priority high`,
		Args:              arguments(1, 1),
		ValidArgsFunction: queueNames(1),
	}
	f := c.Flags()
	f.StringVar(&o.grep, "grep", "", "only messages whose body matches this regular `EXPRESSION` (RE2)")
	f.VarP(&o.n, "count", "n", "show at most this many, 0: all")
	f.Var(&o.skip, "skip", "leave out this many of those that match")
	f.BoolVar(&o.raw, "raw", false, "print each body and a newline, as it is, also on a terminal")
	f.BoolVar(&o.asJSON, "json", false, "print each message as one line of JSON")
	f.BoolVar(&o.zero, "zero", false, "print each body and a zero byte")
	o.filterFlags.add(c)
	c.MarkFlagsMutuallyExclusive("raw", "json", "zero")
	c.RunE = func(cmd *cobra.Command, args []string) error { return runPeek(cmd.Context(), a, &o, args[0]) }
	return c
}

func runPeek(ctx context.Context, a *app, o *peekFlags, name string) error {
	opt := kumquat.PeekOptions{Filter: o.filter(), Skip: o.skip.n, Limit: o.n.n}
	if o.grep != "" {
		re, err := regexp.Compile(o.grep)
		if err != nil {
			return usagef("--grep: %w", err)
		}
		opt.Match = re.Match
	}
	look, done, err := peeker(ctx, name)
	if err != nil {
		return err
	}
	defer done()
	encode := rawLine
	switch {
	case o.asJSON:
		encode = jsonLine
	case o.zero:
		encode = rawZero
	case !o.raw && a.outTerm:
		width := max(a.width()-len(messageHead)+len("BODY"), 20)
		encode = func(b []byte, m *kumquat.Message) []byte { return append(append(b, a.messageLine(m, width)...), '\n') }
		fmt.Fprintln(a.out, a.paint(messageHead, bold))
	}
	n := 0
	var b []byte
	for m, err := range look(ctx, opt) {
		if err != nil {
			return err
		}
		n++
		b = encode(b[:0], &m)
		if _, err := a.out.Write(b); err != nil {
			return fmt.Errorf("writing to standard output: %w", err)
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case n == 0:
		a.note("no message waits, or none that matches")
		return quietError{exitEmpty}
	}
	return nil
}

// peek is Queue.Peek.
type peek func(context.Context, kumquat.PeekOptions) iter.Seq2[kumquat.Message, error]

// peeker opens a queue to look into it. System V messages have no time of sending, so their driver does not promise Peeking, but what
// it has will do for people.
func peeker(ctx context.Context, name string) (peek, func() error, error) {
	q, err := observe(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	switch kind, rest := split(name); {
	case kind == posixKind:
		q.Close()
		return nil, nil, hintError{fmt.Errorf("peek %s: %w: the kernel shows nothing of a POSIX queue but its first message, to who takes it", name,
			kumquat.ErrUnsupported), "kumquat stat " + shellWord(name) + " shows how many messages wait; kumquat move takes them out into a queue that can be looked into"}
	case kind == sysvKind:
		if err := q.Close(); err != nil {
			return nil, nil, err
		}
		d := sysv.Driver()
		if isByPriority(name) {
			d = sysv.PriorityDriver()
		}
		k, err := d.Open(ctx, rest, &driver.Options{ReadOnly: true})
		if err != nil {
			return nil, nil, err
		}
		return k.(driver.Peeker).Peek, k.Close, nil
	}
	return q.Peek, q.Close, nil
}
