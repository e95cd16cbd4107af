package main

import (
	"cmp"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"charm.land/lipgloss/v2"
	"github.com/spf13/cobra"

	"github.com/kumquat-mq/kumquat/doctor"
)

func doctorCommand(a *app) *cobra.Command {
	var asJSON bool
	var over time.Duration
	c := &cobra.Command{
		Use:   "doctor [NAME] [flags]",
		Short: "Say what hurts the queues of this machine, or one queue, and the fix",
		Long: `Check the machine and say, line by line, what is right, what will hurt, and the command that mends it: the limits of POSIX and System V
queues and how much of them is used, /dev/mqueue, the size and the options of /dev/shm, what systemd removes at a logout, the IPC
namespaces of containers, queues that are full or that nobody uses, permissions, and what the kernel can do.

With a NAME explain one queue: nobody reads it, its readers are stopped or too slow, a stopped process holds a part of it, it is near a
limit. It is watched for a while (--over), nothing is taken. The kernel does not count what goes through its own queues, so the rates
of posix: and sysv: queues are the least that was seen.

The lines begin with ok, note (may hurt one day, or is not known) or attention. The exit code is 1 when something needs attention.
Processes of other users can be inspected by root only; what was not seen is said.`,
		Example: `  kumquat doctor
  kumquat doctor /orders --over 5s
  kumquat doctor posix:/orders --json
  kumquat doctor --json | jq -r 'select(.level == "attention") | .fix'`,
		Args:              arguments(0, 1),
		ValidArgsFunction: queueNames(1),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print each finding as one line of JSON; of a NAME, one line with all")
	c.Flags().DurationVar(&over, "over", time.Second, "how long the queue NAME is watched")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			if cmd.Flags().Changed("over") {
				return usagef("--over is for a NAME")
			}
			return a.tellMachine(doctor.Machine(cmd.Context()), asJSON)
		}
		if over < 10*time.Millisecond || over > time.Hour {
			return usagef("--over: %v is not from 10ms to 1h", over)
		}
		v, err := doctor.Queue(cmd.Context(), args[0], over)
		if err != nil {
			return withHint(err, args[0])
		}
		return a.tellQueue(&v, asJSON)
	}
	return c
}

func (a *app) tellMachine(fs []doctor.Finding, asJSON bool) error {
	if asJSON {
		for _, f := range fs {
			a.out.Write(line(f))
		}
	} else {
		a.printFindings(fs)
		if hasSysctl(fs) {
			fmt.Fprintln(a.out, "sysctl -w lasts until the next boot; to keep a value, put it into a file of /etc/sysctl.d")
		}
	}
	return diagnosed(fs)
}

func (a *app) tellQueue(v *doctor.Verdict, asJSON bool) error {
	if asJSON {
		a.out.Write(line(v))
		return diagnosed(v.Findings)
	}
	a.printFindings(v.Findings)
	if len(v.Users) == 0 {
		return diagnosed(v.Findings)
	}
	g := grid{
		heads: []string{"PID", "COMMAND", "USER", "STATE", "READS", "SENDS", "WAITS", "HOLDS"},
		right: []bool{true, false, false, false, false, false, false, true},
		warn:  map[int]bool{},
	}
	for i := range v.Users {
		u := &v.Users[i]
		g.warn[i] = u.Halted != ""
		g.rows = append(g.rows, []string{strconv.Itoa(u.PID), u.Command, u.Name, u.State, yes(u.Receives), yes(u.Sends), cmp.Or(u.Waits, "-"), strconv.Itoa(u.Holds)})
	}
	a.print(g)
	return diagnosed(v.Findings)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "-"
}

func diagnosed(fs []doctor.Finding) error {
	if doctor.NeedsAttention(fs) {
		return quietError{exitFailure}
	}
	return nil
}

// printFindings prints a line for each finding, and below it the command that mends it.
func (a *app) printFindings(fs []doctor.Finding) {
	wide := 0
	for _, f := range fs {
		wide = max(wide, len(f.Check))
	}
	colors := map[doctor.Level]lipgloss.Style{doctor.OK: green, doctor.Note: amber, doctor.Attention: red}
	for _, f := range fs {
		level := a.paint(string(f.Level), colors[f.Level]) + strings.Repeat(" ", len(doctor.Attention)-len(f.Level))
		fmt.Fprintf(a.out, "%s  %-*s  %s\n", level, wide, f.Check, escape(f.Text))
		if f.Fix != "" {
			who := "fix"
			if f.Root {
				who = "fix, as root"
			}
			_, _ = io.WriteString(a.out, strings.Repeat(" ", len(doctor.Attention)+2+wide+2)+who+": "+escape(f.Fix)+"\n")
		}
	}
}

func hasSysctl(fs []doctor.Finding) bool {
	for _, f := range fs {
		if strings.HasPrefix(f.Fix, "sysctl -w") {
			return true
		}
	}
	return false
}
