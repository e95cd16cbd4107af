package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kumquat-mq/kumquat"
)

type sendFlags struct {
	priority   priorityValue
	typ        typeValue
	lines      bool
	zero       bool
	delay, ttl time.Duration
	headers    []string
	id, key    string
	mime       string
	timeout    time.Duration
	nonblock   bool
	create     bool
}

func sendCommand(a *app) *cobra.Command {
	var o sendFlags
	o.typ = 1
	c := &cobra.Command{
		Use:   "send NAME [BODY|-] [flags]",
		Short: "Send a message, or each line of the input",
		Long: `Send a message.

The body is the second argument; if that is - or missing, all of standard input. With --lines each line of standard input is a
message, without its newline; with --zero each piece that ends in a zero byte is one. They are sent together where they come fast,
and at once where the input pauses.

A full queue makes it wait, as long as --timeout says; with --nonblock it fails at once. When it fails in the middle of the input
it says how many messages were sent: those are in the queue, in order, and none behind them.`,
		Example: `  kumquat send /orders 'two pears' -p high
  kumquat send /images/input --create < photo.jpg
  find . -type f -print0 | kumquat send /files --zero
  tail -f app.log | kumquat send /log --lines --ttl 1h`,
		Args:              arguments(1, 2),
		ValidArgsFunction: queueNames(1),
	}
	f := c.Flags()
	f.VarP(&o.priority, "priority", "p", "priority: 0 to 32767, critical, high, normal or low")
	f.Var(&o.typ, "type", "message type, above 0")
	f.BoolVar(&o.lines, "lines", false, "send each line of standard input")
	f.BoolVar(&o.zero, "zero", false, "send each piece of standard input that ends in a zero byte")
	f.DurationVar(&o.delay, "delay", 0, "deliver it only after this time, as 10s")
	f.DurationVar(&o.ttl, "ttl", 0, "drop it if it was not received after this time")
	f.StringArrayVar(&o.headers, "header", nil, "add the header `K=V`; may be given more than once")
	f.StringVar(&o.id, "id", "", "name of the message; the queue does not interpret it")
	f.StringVar(&o.key, "key", "", "key: receivers can select by it")
	f.StringVar(&o.mime, "content-type", "", "media type of the body")
	f.DurationVar(&o.timeout, "timeout", 0, "wait for room at most this long (default: for ever)")
	f.BoolVar(&o.nonblock, "nonblock", false, "do not wait for room")
	f.BoolVar(&o.create, "create", false, "create the queue, with the defaults of create, if it is missing")
	c.MarkFlagsMutuallyExclusive("lines", "zero")
	c.MarkFlagsMutuallyExclusive("timeout", "nonblock")
	completeBands(c, "priority")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		var timeout *time.Duration
		if cmd.Flags().Changed("timeout") {
			timeout = &o.timeout
		}
		return runSend(cmd.Context(), a, &o, timeout, args)
	}
	return c
}

// like returns the message that all of this call have in common.
func (o *sendFlags) like() (kumquat.Message, error) {
	m := kumquat.Message{Priority: int(o.priority), Type: int64(o.typ), ID: o.id, Key: o.key, ContentType: o.mime}
	for _, h := range o.headers {
		k, v, ok := strings.Cut(h, "=")
		if !ok || k == "" {
			return m, usagef("--header %q is not KEY=VALUE", h)
		}
		if m.Headers == nil {
			m.Headers = map[string]string{}
		}
		m.Headers[k] = v
	}
	return m, nil
}

func runSend(ctx context.Context, a *app, o *sendFlags, timeout *time.Duration, args []string) error {
	many := o.lines || o.zero
	fromInput := len(args) == 1 || args[1] == "-"
	switch {
	case many && !fromInput:
		return usagef("--lines and --zero read standard input: a BODY cannot be given too")
	case fromInput && !many && len(args) == 1 && a.inTerm:
		return usagef("no BODY given, and standard input is a terminal: give a BODY, or - to type one")
	case o.delay < 0, o.ttl < 0, o.timeout < 0:
		return usagef("a time below 0 was given")
	}
	like, err := o.like()
	if err != nil {
		return err
	}
	q, err := open(ctx, args[0], &kumquat.Options{Create: o.create})
	if err != nil {
		return err
	}
	defer q.Close()
	s := newSender(q, like)
	s.delay, s.ttl, s.try, s.timeout = o.delay, o.ttl, o.nonblock, timeout
	if !fromInput {
		return s.one(ctx, []byte(args[1]))
	}
	in, err := newInput(ctx, a.in)
	if err != nil {
		return err
	}
	defer in.Close()
	most := &limit{ctx: ctx, q: q}
	if !many {
		body, err := in.readWhole(most)
		if err != nil {
			return err
		}
		return s.one(ctx, body)
	}
	sep, noun := byte('\n'), "line"
	if o.zero {
		sep, noun = 0, "piece"
	}
	s.tell = a.progress("sent", 0, a.inTerm)
	err = splitStream(in, sep,
		func(n int) error {
			over, max, err := most.exceeded(n)
			if over {
				err = tooLong{fmt.Sprintf("%s %d of the input", noun, s.sent+1), max}
			}
			return err
		},
		func(piece []byte) error { return s.add(ctx, piece) },
		func() error { return s.flush(ctx) })
	if errors.Is(err, kumquat.ErrTooLarge) && !errors.As(err, &tooLong{}) {
		err = toldError{fmt.Sprintf("%s %d of the input", noun, s.sent+1), err}
	}
	s.tell.end()
	if err != nil {
		return toldError{fmt.Sprintf("%s sent", plural(s.sent, "message")), err}
	}
	return nil
}
