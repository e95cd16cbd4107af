package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kumquat-mq/kumquat/bench"
)

func init() {
	// The benchmark starts this binary again for its processes; such a process does not come back from here.
	bench.Child()
}

type benchFlags struct {
	bench.Config
	peers  []string
	asJSON bool
	plot   string
	pin    bool
}

func benchCommand(a *app) *cobra.Command {
	var o benchFlags
	c := &cobra.Command{
		Use:   "bench WORKLOAD [flags]",
		Short: "Measure the queues of this machine side by side",
		Long: `Measure our queue and its peers on this machine: separate processes, in turns, as many rounds as asked for.

The workloads:
` + list(bench.Workloads()) + `
The peers, beside which our queue (kumquat) is measured:
` + list(bench.Subjects()) + `
A ratio is ours divided by theirs, above 1 where ours is better. With --json each subject is one line of JSON. boost and zmq are C++:
they need g++ and their headers (libboost-dev, libzmq3-dev), and are said and skipped where something is missing. POSIX queues for
more than 10 messages of 8,192 bytes need root. The medians mean something on a quiet machine only.

In the workload binding packages posix and sysv stand for ours, and posix-c and sysv-c, which need gcc, for the peers: a ratio is the
time that C takes for a send and a receive divided by that of the package.

Plots are drawn by kumquat-plot, which is looked for beside this program and in the path; failing that Go runs it.`,
		Example: `  kumquat bench throughput --size 64,1024,65536 --plot throughput.svg
  kumquat bench throughput --priorities 8 --peers posix,boost --json
  kumquat bench scale --producers 4 --consumers 4 --rounds 9
  kumquat bench binding --size 64,1024,8192`,
		Args: arguments(1, 1),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return completions(bench.Workloads()), cobra.ShellCompDirectiveNoFileComp
		},
	}
	f := c.Flags()
	f.IntSliceVar(&o.Sizes, "size", []int{64}, "bytes of a body")
	f.IntSliceVar(&o.Priorities, "priorities", []int{1}, "how many priorities are used, at random")
	f.IntVar(&o.Producers, "producers", 0, "sending processes (default 1)")
	f.IntVar(&o.Consumers, "consumers", 0, "receiving processes (default 1)")
	f.IntSliceVar(&o.Capacity, "capacity", nil, "messages that a queue holds (default 1024; 10,1 in capacity)")
	f.IntVar(&o.Batch, "batch", 0, "messages a call of ours; the peers send one (default 1; 16 in batch)")
	f.IntSliceVar(&o.Depths, "depth", nil, "messages waiting, in depth and filter (default 1000000,100; 100000)")
	f.IntVar(&o.Rounds, "rounds", 5, "rounds")
	f.IntVar(&o.Load, "load", 0, "busy processes beside")
	f.BoolVar(&o.pin, "pin", true, "keep each process on a core of its own, where there are enough")
	f.DurationVar(&o.Target, "target", 500*time.Millisecond, "least duration of a round of one subject")
	f.StringSliceVar(&o.peers, "peers", nil, "peers, or none (default: those that fit the workload)")
	f.BoolVar(&o.asJSON, "json", false, "print one line of JSON a subject")
	f.StringVar(&o.plot, "plot", "", "draw the results into a `file` that ends in .svg or .png")
	_ = c.RegisterFlagCompletionFunc("peers", func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return append(completions(bench.Subjects()), "none"), cobra.ShellCompDirectiveNoFileComp
	})
	c.RunE = func(cmd *cobra.Command, args []string) error {
		o.Workload, o.Free = args[0], !o.pin
		if cmd.Flags().Changed("peers") {
			o.Config.Peers = []string{}
			if len(o.peers) != 1 || o.peers[0] != "none" {
				o.Config.Peers = append(o.Config.Peers, o.peers...)
			}
		}
		return runBench(cmd, a, &o)
	}
	return c
}

func runBench(cmd *cobra.Command, a *app, o *benchFlags) error {
	if err := o.Check(); err != nil {
		return usageError{err: err}
	}
	if o.plot != "" {
		if err := bench.CheckPlot(cmd.Context(), o.plot); err != nil {
			return fmt.Errorf("--plot: %w", err)
		}
	}
	o.Note = func(text string) { fmt.Fprintln(a.err, escape(text)) }
	if a.errTerm {
		o.Progress = func(text string) { fmt.Fprintf(a.err, "\r\x1b[K%s\r", escape(text)) }
		defer fmt.Fprint(a.err, "\x1b[K")
	}
	var all []bench.Result
	var failed error // of writing the results
	if !o.asJSON {
		fmt.Fprintln(a.out, bench.Header)
	}
	err := bench.Run(cmd.Context(), o.Config, func(r bench.Result) {
		all = append(all, r)
		if o.asJSON {
			failed = firstError(failed, json.NewEncoder(a.out).Encode(r))
		} else {
			_, err := io.WriteString(a.out, r.Row()+"\n")
			failed = firstError(failed, err)
		}
		failed = firstError(failed, a.out.Flush())
	})
	if err = firstError(err, failed); err != nil || o.plot == "" {
		return err
	}
	return bench.Plot(cmd.Context(), o.plot, all)
}

func firstError(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// list returns descriptions as lines of a help text.
func list(ds []bench.Description) string {
	var b strings.Builder
	for _, d := range ds {
		fmt.Fprintf(&b, "  %-16s %s\n", d.Name, d.Text)
	}
	return b.String()
}

func completions(ds []bench.Description) []cobra.Completion {
	var c []cobra.Completion
	for _, d := range ds {
		c = append(c, cobra.CompletionWithDesc(d.Name, d.Text))
	}
	return c
}
