package main

import (
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/kumquat-mq/kumquat"
)

func createCommand(a *app) *cobra.Command {
	var (
		messages countValue
		handles  countValue
		size     sizeValue
		mode     = modeValue(0o600)
		overflow overflowValue
		headroom headroomValue
		asJSON   bool
		existing bool
	)
	messages.min, handles.min = 1, 1
	messages.n, handles.n, size = 65536, 256, 64<<10
	c := &cobra.Command{
		Use:   "create NAME [flags]",
		Short: "Create a queue",
		Long: `Create a queue.

It takes no memory until messages are there. What it may hold is fixed for its life. The mode decides who may use it, as for
files: sending and receiving need read and write permission, looking on needs read permission. The umask applies.

When a queue is full, a send waits (block), fails (reject), or a message gives way: the oldest of all (drop-oldest), or the oldest
of the lowest priority if the new one is higher (drop-lowest). Headroom keeps a share of the places for messages of a priority and
above: 10%@25 keeps one place in ten for priority 25 and higher.

posix:/name and sysv:0xKEY are queues of the kernel. What they hold is bounded by its limits, and what is not said here it decides
itself: 10 messages of 8 KiB at first in a POSIX queue, 16 KiB in all in a System V queue. They know neither headroom nor dropping.`,
		Example: `  kumquat create /orders
  kumquat create /images/input --max-messages 500 --max-size 16MiB --mode 0660
  kumquat create /alarms --max-messages 1000 --overflow drop-lowest --headroom 10%@critical
  kumquat create posix:/orders --max-messages 10 --max-size 1KiB`,
		Args:              arguments(1, 1),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := c.Flags()
	f.Var(&messages, "max-messages", "how many messages it holds at most")
	f.Var(&size, "max-size", "the longest body, in bytes or as 64KiB")
	f.Var(&handles, "max-handles", "how many handles may be open at once")
	f.Var(&mode, "mode", "permission bits in octal, less the umask")
	f.Var(&overflow, "overflow", "what a send to the full queue does: block, reject, drop-oldest or drop-lowest")
	f.Var(&headroom, "headroom", "a share of the places for this priority and above, as 10%@25")
	f.BoolVar(&existing, "if-missing", false, "do nothing if the queue exists")
	f.BoolVar(&asJSON, "json", false, "print the queue as one line of JSON")
	completeWords(c, "overflow", overflowNames...)
	completeWords(c, "mode", "0600\tthis user only", "0640\tthe group may look on", "0660\tthe group too", "0666\tall users")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		o := &kumquat.Options{
			Create: true, Exclusive: !existing, Mode: fs.FileMode(mode), MaxMessages: messages.n, MaxSize: int(size), MaxHandles: handles.n,
			Overflow: kumquat.Overflow(overflow), Headroom: kumquat.Headroom(headroom),
		}
		if inKernel(args[0]) { // what is not said is the kernel's to decide
			for flag, n := range map[string]*int{"max-messages": &o.MaxMessages, "max-size": &o.MaxSize, "max-handles": &o.MaxHandles} {
				if !cmd.Flags().Changed(flag) {
					*n = 0
				}
			}
			if o.MaxHandles > 0 {
				return usagef("--max-handles is for queues of the engine: the kernel sets no such limit")
			}
		}
		q, err := open(ctx, args[0], o)
		if err != nil {
			return err
		}
		defer q.Close()
		r, err := rowOf(ctx, q)
		if err != nil {
			return err
		}
		for _, n := range hostNotes(&r.Stats) {
			a.note("note: %s", n)
		}
		if asJSON {
			fmt.Fprintf(a.out, "%s", line(jsonOfRow(&r)))
		}
		return nil
	}
	return c
}
