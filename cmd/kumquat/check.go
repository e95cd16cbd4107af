package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kumquat-mq/kumquat"
)

func checkCommand(a *app) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "check [NAME] [flags]",
		Short: "Examine the file of a queue",
		Long: `Examine every invariant of a queue's file, or of all queues without a NAME. It changes nothing and holds nobody up; read
permission is enough.

What processes that died have left behind is no fault: the next users clear it. It is shown, with what they were doing. The exit
code is 7 only if an invariant is broken. Such a queue should be emptied with recv as far as that goes, and removed.

A queue of the kernel (posix:, sysv:) has no file that could break: the answer is that this does not apply. It is not among all queues.

It also says what about this machine endangers queues: a folder that is no memory, a logout that removes them.`,
		Example: `  kumquat check
  kumquat check /orders --json`,
		Args:              arguments(0, 1),
		ValidArgsFunction: queueNames(1),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print each queue as one line of JSON")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 && inKernel(args[0]) {
			return a.checkKernel(cmd.Context(), args[0], asJSON)
		}
		if len(args) == 1 {
			return a.checkAll(cmd.Context(), args, true, asJSON)
		}
		infos, err := kumquat.List(cmd.Context(), "")
		if err != nil {
			return err
		}
		var names []string
		for _, i := range infos {
			names = append(names, i.Name)
		}
		if len(names) == 0 {
			a.note("no queues")
		}
		return a.checkAll(cmd.Context(), names, false, asJSON)
	}
	return c
}

// checkKernel answers for a queue that the kernel keeps, if there is such a queue.
func (a *app) checkKernel(ctx context.Context, name string, asJSON bool) error {
	q, err := observe(ctx, name)
	if err != nil {
		return err
	}
	defer q.Close()
	const text = "not applicable: the kernel keeps this queue, and no file that could break"
	if asJSON {
		a.out.Write(line(reportJSON{Name: q.Name(), Sound: true, Notes: []string{text}}))
	} else {
		fmt.Fprintf(a.out, "%s: %s\n", escape(q.Name()), text)
	}
	return nil
}

// checkAll checks the queues and prints what it finds. The first failure decides the exit code, unless something is broken. One of
// all queues that is removed meanwhile is not missed; only, that names it, is.
func (a *app) checkAll(ctx context.Context, names []string, only, asJSON bool) error {
	code := exitDone
	told := map[string]bool{} // notes on the machine are said once
	for _, name := range names {
		r, notes, err := check(ctx, name)
		if err != nil {
			gone := errors.Is(err, kumquat.ErrNotFound) || errors.Is(err, kumquat.ErrRemoved)
			switch {
			case ctx.Err() != nil, only && !errors.Is(err, kumquat.ErrCorrupt):
				return err
			case gone:
				continue
			case code == exitDone || errors.Is(err, kumquat.ErrCorrupt):
				code = exitCode(ctx, err)
			}
			if asJSON {
				a.out.Write(line(reportJSON{Name: name, Error: err.Error()}))
			} else {
				fmt.Fprintf(a.out, "%s: %s: %s\n", escape(name), a.paint("not sound", red), escape(err.Error()))
			}
			continue
		}
		if broken(&r) {
			code = exitCorrupt
		}
		if asJSON {
			a.out.Write(line(reportOf(&r, notes)))
			continue
		}
		a.printReport(&r)
		for _, n := range notes {
			if !told[n] {
				told[n] = true
				fmt.Fprintf(a.out, "note: %s\n", escape(n))
			}
		}
	}
	if code != exitDone {
		return quietError{code}
	}
	return nil
}

func check(ctx context.Context, name string) (kumquat.Report, []string, error) {
	q, err := observe(ctx, name)
	if err != nil {
		return kumquat.Report{}, nil, err
	}
	defer q.Close()
	r, err := q.Check(ctx)
	if err != nil {
		return r, nil, err
	}
	r.Name = name
	s, err := q.Stat(ctx)
	if err != nil {
		return r, nil, err
	}
	return r, hostNotes(&s), nil
}

func broken(r *kumquat.Report) bool {
	for _, p := range r.Problems {
		if p.Broken {
			return true
		}
	}
	return false
}

func reportOf(r *kumquat.Report, notes []string) reportJSON {
	j := reportJSON{Name: r.Name, Sound: !broken(r), Checked: r.Checked, Busy: r.Busy, Notes: notes}
	for _, p := range r.Problems {
		j.Problems = append(j.Problems, problemJSON(p))
	}
	for i := range r.Dead {
		j.Dead = append(j.Dead, participantOf(&r.Dead[i]))
	}
	return j
}

func (a *app) printReport(r *kumquat.Report) {
	verdict := a.paint("sound", green)
	if broken(r) {
		verdict = a.paint("broken", red)
	}
	fmt.Fprintf(a.out, "%s: %s, %s checked\n", escape(r.Name), verdict, plural(r.Checked, "fact"))
	for _, p := range r.Problems {
		kind := a.paint("debris", amber)
		if p.Broken {
			kind = a.paint("broken", red)
		}
		fmt.Fprintf(a.out, "  %s: %s: %s\n", kind, escape(p.Where), escape(p.Text))
	}
	for i := range r.Dead {
		p := &r.Dead[i]
		if len(p.Last) == 0 && len(r.Problems) > 0 {
			continue // the debris tells as much
		}
		text := "  dead: " + describe(p)
		if p.Doing != "" {
			text += " was at: " + p.Doing
		}
		if len(p.Last) > 0 {
			text += "; before: " + strings.Join(p.Last[:min(len(p.Last), 4)], ", ")
		}
		fmt.Fprintln(a.out, escape(text))
	}
	if r.Busy {
		fmt.Fprintln(a.out, "  it was in use all the time: what needs a quiet moment was not checked")
	}
}
