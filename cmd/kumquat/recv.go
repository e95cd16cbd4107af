package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/kumquat-mq/kumquat"
)

type recvFlags struct {
	filterFlags
	n                 countValue
	follow            bool
	raw, asJSON, zero bool
	dump, command     string
	timeout           time.Duration
}

func recvCommand(a *app) *cobra.Command {
	var o recvFlags
	o.n = countValue{1, 1}
	c := &cobra.Command{
		Use:   "recv NAME [flags]",
		Short: "Receive messages",
		Long: `Receive messages: the highest priority first, the oldest first among equals.

It takes -n messages, never more, and waits for each as long as --timeout says (0: not at all). If that ends before it has them
all, it has printed those it got and the exit code is 4. With --follow it receives until it is stopped.

On a terminal each message is a line with its priority, type, time and body, in which control characters are escaped. Elsewhere,
and with --raw, it is the body and a newline; with --zero the body and a zero byte; with --json one line of JSON, whose "body" is
text, or "body_base64" where the body is no UTF-8. --dump writes each body into a new file of the folder, 000001 and so on, and
prints its name. --exec runs sh -c CMD for each message, one after the other, with the body on standard input and KUMQUAT_QUEUE,
KUMQUAT_PRIORITY, KUMQUAT_TYPE, KUMQUAT_SEQ, KUMQUAT_SENDER, KUMQUAT_ATTEMPT, KUMQUAT_ID, KUMQUAT_KEY, KUMQUAT_GROUP,
KUMQUAT_CORRELATION_ID, KUMQUAT_REPLY_TO, KUMQUAT_CONTENT_TYPE, KUMQUAT_ENQUEUED and KUMQUAT_HEADERS (JSON) in its environment;
it stops when CMD fails.

A message is taken before it is written. If writing fails, recv stops at once and says which messages it had in hand.`,
		Example: `  kumquat recv /orders
  kumquat recv /orders -n 100 --timeout 2s --json
  kumquat recv /log --follow --raw >> app.log
  kumquat recv /images/input --follow --exec 'convert - "out-$KUMQUAT_SEQ.png"'`,
		Args:              arguments(1, 1),
		ValidArgsFunction: queueNames(1),
	}
	f := c.Flags()
	f.VarP(&o.n, "count", "n", "how many messages to receive")
	f.BoolVar(&o.follow, "follow", false, "receive until stopped")
	f.BoolVar(&o.raw, "raw", false, "print each body and a newline, as it is, also on a terminal")
	f.BoolVar(&o.asJSON, "json", false, "print each message as one line of JSON")
	f.BoolVar(&o.zero, "zero", false, "print each body and a zero byte")
	f.StringVar(&o.dump, "dump", "", "write each body into a new file in this `FOLDER`")
	f.StringVar(&o.command, "exec", "", "run sh -c `CMD` for each message, with the body on its standard input")
	o.filterFlags.add(c)
	f.DurationVar(&o.timeout, "timeout", 0, "wait for each message at most this long, 0: not at all (default: for ever)")
	c.MarkFlagsMutuallyExclusive("raw", "json", "zero", "dump", "exec")
	c.MarkFlagsMutuallyExclusive("follow", "count")
	must(c.MarkFlagDirname("dump"))
	c.RunE = func(cmd *cobra.Command, args []string) error {
		r := &receiver{filter: o.filter(), want: o.n.n}
		if o.follow {
			r.want = -1
		}
		if cmd.Flags().Changed("timeout") {
			if o.timeout < 0 {
				return usagef("--timeout is below 0")
			}
			r.timeout = &o.timeout
		}
		return runRecv(cmd.Context(), a, &o, r, args[0])
	}
	return c
}

func runRecv(ctx context.Context, a *app, o *recvFlags, r *receiver, name string) error {
	q, err := open(ctx, name, nil)
	if err != nil {
		return err
	}
	defer q.Close()
	r.q = q
	out, err := a.sink(o, name)
	if err != nil {
		return err
	}
	r.tell = a.progress("received", max(r.want, 0), a.outTerm || o.command != "")
	err = r.run(ctx, out)
	r.tell.end()
	return err
}

// sink returns where the messages go.
func (a *app) sink(o *recvFlags, queue string) (sink, error) {
	switch {
	case o.dump != "":
		return newDump(a, o.dump)
	case o.command != "":
		return &execSink{a: a, queue: queue, command: o.command}, nil
	}
	s := &streamSink{w: a.file, encode: rawLine}
	switch {
	case o.asJSON:
		s.encode = jsonLine
	case o.zero:
		s.encode = rawZero
	case !o.raw && a.outTerm:
		fmt.Fprintln(a.out, a.paint(messageHead, bold))
		if err := a.out.Flush(); err != nil {
			return nil, err
		}
		s.most = 1
		s.encode = func(b []byte, m *kumquat.Message) []byte { return append(append(b, a.messageLine(m, 0)...), '\n') }
	}
	return s, nil
}
