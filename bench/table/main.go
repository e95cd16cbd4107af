// Table measures what the queue has to reach, row by row, and says what it reached: asked ratio, measured ratio, reached or not.
// Each row is one command line of kumquat bench. The lines that it prints go into a file, under the command line, with the machine
// and the date; the table and the drawings are made of such a file and can be made again without measuring.
//
//	table -kumquat bin/kumquat -results bench/results.txt -plots bench/plots
//	table -results bench/results.txt -again
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/kumquat-mq/kumquat/bench"
)

type options struct {
	kumquat  string
	results  string
	plots    string
	only     string
	revision string
	rounds   int
	target   time.Duration
	settle   time.Duration
	again    bool
}

func main() {
	var o options
	flag.StringVar(&o.kumquat, "kumquat", "kumquat", "the `program` that measures")
	flag.StringVar(&o.results, "results", "results.txt", "the `file` that the lines go into, or come from")
	flag.StringVar(&o.plots, "plots", "", "the `folder` that the drawings go into; none if empty")
	flag.StringVar(&o.only, "only", "", "a regular `expression`: only rows whose command line it fits, and no drawings of others")
	flag.StringVar(&o.revision, "revision", "", "the `revision` that is measured, for the file's head")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds of each measurement")
	flag.DurationVar(&o.target, "target", 300*time.Millisecond, "least duration of a round of one subject")
	flag.DurationVar(&o.settle, "settle", 30*time.Second, "how long to wait at most for the machine to be quiet; 0: do not look")
	flag.BoolVar(&o.again, "again", false, "measure nothing: make the table and the drawings of the file as it is")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "table:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, out, progress io.Writer) error {
	wanted, err := regexp.Compile(o.only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	chosen := slices.DeleteFunc(slices.Clone(rows), func(r row) bool { return !wanted.MatchString(r.args) })
	if len(chosen) == 0 {
		return fmt.Errorf("-only %s fits no row", o.only)
	}
	if o.plots != "" {
		if err := os.MkdirAll(o.plots, 0o777); err != nil {
			return err
		}
		if err := bench.CheckPlot(ctx, filepath.Join(o.plots, "x.svg")); err != nil {
			return err
		}
	}
	var failed error // of rows; the others are told all the same
	if !o.again {
		if failed, err = record(ctx, o, chosen, progress); err != nil {
			return err
		}
	}
	text, err := os.ReadFile(o.results)
	if err != nil {
		return err
	}
	got, head, err := parse(bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("%s: %w", o.results, err)
	}
	if err := printTable(out, chosen, got, head); err != nil {
		return err
	}
	if o.plots != "" {
		if err := drawAll(ctx, o.plots, chosen, got, out); err != nil {
			return err
		}
	}
	return failed
}

func printTable(out io.Writer, chosen []row, got map[string][]bench.Result, head []string) error {
	var b strings.Builder
	for _, line := range head {
		fmt.Fprintln(&b, line)
	}
	reached, missed, unknown := 0, 0, 0
	for _, r := range chosen {
		fmt.Fprintf(&b, "\n%s\n$ kumquat bench %s\n", r.work, r.args)
		for _, g := range r.goals {
			value, verdict := "–", "not measured"
			if line := g.find(got[r.args]); line == nil {
				unknown++
			} else {
				var ok bool
				if value, ok = g.judge(*line); ok {
					verdict = "reached"
					reached++
				} else {
					verdict = "NOT REACHED"
					missed++
				}
				verdict += spread(g, *line)
			}
			fmt.Fprintf(&b, "  %-36s asked %-15s measured %-8s %s\n", g.about(), g.ask(), value, verdict)
		}
	}
	fmt.Fprintf(&b, "\n%d reached, %d not, %d not measured\n", reached, missed, unknown)
	_, err := io.WriteString(out, b.String())
	return err
}

// spread says between what the rounds of the line lie, where that is far.
func spread(g goal, r bench.Result) string {
	if g.measure == ourAllocs || r.Max <= 1.5*r.Min {
		return ""
	}
	return fmt.Sprintf("  (%s from %.3g to %.3g %s)", r.Subject, r.Min, r.Max, r.Unit)
}

// drawAll makes the drawings whose rows are all among the chosen ones.
func drawAll(ctx context.Context, folder string, chosen []row, got map[string][]bench.Result, out io.Writer) error {
	for _, name := range plots {
		var lines []bench.Result
		whole := true
		for _, r := range rows {
			if !slices.Contains(r.plots, name) {
				continue
			}
			whole = whole && len(got[r.args]) > 0 && slices.ContainsFunc(chosen, func(c row) bool { return c.args == r.args })
			for _, line := range got[r.args] {
				if line.Subject == "kumquat" || !strings.HasPrefix(line.Subject, "kumquat") { // ours under other names would be a second line
					lines = append(lines, line)
				}
			}
		}
		if !whole {
			continue
		}
		file := filepath.Join(folder, name+".svg")
		if err := bench.Plot(ctx, file, lines); err != nil {
			return fmt.Errorf("drawing %s: %w", file, err)
		}
		if _, err := fmt.Fprintln(out, "drawn:", file); err != nil {
			return err
		}
	}
	return nil
}

// record runs the chosen rows into a new file, which takes the place of the old one when they are through; it stays if none of them
// could be measured. It returns the failures of rows, and its own.
func record(ctx context.Context, o options, chosen []row, progress io.Writer) (failed, err error) {
	f, err := os.CreateTemp(filepath.Dir(o.results), filepath.Base(o.results)+".*")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name()) // fails when it has its right name
	defer f.Close()
	text := strings.Join(head(o), "\n") + "\n"
	if idle := quiet(ctx, o.settle); idle < quietShare {
		line := fmt.Sprintf("# not quiet: the processors were idle for %.0f %% of the two seconds before the start\n", 100*idle)
		fmt.Fprint(progress, line)
		text += line
	}
	failures := 0
	for i, r := range chosen {
		if _, err := io.WriteString(f, text); err != nil {
			return nil, err
		}
		fmt.Fprintf(progress, "%d of %d: kumquat bench %s\n", i+1, len(chosen), r.args)
		text, err = r.run(ctx, o, progress)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			fmt.Fprintln(progress, err)
			text += fmt.Sprintf("# failed: %v\n", err)
			failed = errors.Join(failed, fmt.Errorf("%s: %w", r.work, err))
			failures++
		}
	}
	if failures == len(chosen) {
		return nil, failed
	}
	if _, err := io.WriteString(f, text); err != nil {
		return nil, err
	}
	if err := f.Chmod(0o644); err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	return failed, os.Rename(f.Name(), o.results)
}
