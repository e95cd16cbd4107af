package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kumquat-mq/kumquat"
)

// column is one that ls can show.
type column struct {
	name  string
	right bool
	text  func(a *app, i *kumquat.Info) string
}

func count[N int | int64 | uint64](get func(i *kumquat.Info) N) func(a *app, i *kumquat.Info) string {
	return func(a *app, i *kumquat.Info) string { return a.countText(int64(get(i))) }
}

func size(get func(i *kumquat.Info) int64) func(a *app, i *kumquat.Info) string {
	return func(a *app, i *kumquat.Info) string { return a.bytesText(get(i)) }
}

var columns = []column{
	{"name", false, func(_ *app, i *kumquat.Info) string { return i.Name }},
	{"messages", true, count(func(i *kumquat.Info) int { return i.Messages })},
	{"max", true, count(func(i *kumquat.Info) int { return i.MaxMessages })},
	{"bytes", true, size(func(i *kumquat.Info) int64 { return i.Bytes })},
	{"mode", false, func(_ *app, i *kumquat.Info) string { return modeText(&i.Stats) }},
	{"owner", false, func(_ *app, i *kumquat.Info) string { return userName(i.UID) }},
	{"handles", true, count(func(i *kumquat.Info) int { return i.Handles })},
	{"receivers", true, count(func(i *kumquat.Info) int { return i.Receivers })},
	{"senders", true, count(func(i *kumquat.Info) int { return i.Senders })},
	{"delayed", true, count(func(i *kumquat.Info) int { return i.Delayed })},
	{"max-size", true, size(func(i *kumquat.Info) int64 { return int64(i.MaxSize) })},
	{"sent", true, count(func(i *kumquat.Info) uint64 { return i.Sent })},
	{"received", true, count(func(i *kumquat.Info) uint64 { return i.Received })},
	{"dropped", true, count(func(i *kumquat.Info) uint64 { return i.Dropped })},
	{"expired", true, count(func(i *kumquat.Info) uint64 { return i.Expired })},
	{"takeovers", true, count(func(i *kumquat.Info) uint64 { return i.Takeovers })},
	{"overflow", false, func(_ *app, i *kumquat.Info) string { return overflowName(i.Overflow) }},
	{"headroom", false, func(_ *app, i *kumquat.Info) string { return headroomText(i.Headroom) }},
	{"lowest", true, func(_ *app, i *kumquat.Info) string { return priorityText(i.Messages, i.LowestPriority) }},
	{"highest", true, func(_ *app, i *kumquat.Info) string { return priorityText(i.Messages, i.HighestPriority) }},
	{"oldest", false, func(a *app, i *kumquat.Info) string { return a.timeText(i.OldestEnqueued) }},
	{"created", false, func(a *app, i *kumquat.Info) string { return a.timeText(i.Created) }},
	{"resident", true, size(func(i *kumquat.Info) int64 { return i.Resident })},
	{"path", false, func(_ *app, i *kumquat.Info) string { return i.Path }},
}

var defaultColumns = []string{"name", "messages", "max", "bytes", "mode", "owner", "handles"}

func priorityText(messages, p int) string {
	if messages == 0 || p < 0 {
		return ""
	}
	return strconv.Itoa(p)
}

func columnNames() []string {
	var names []string
	for _, c := range columns {
		names = append(names, c.name)
	}
	return names
}

func lsCommand(a *app) *cobra.Command {
	var names []string
	var asJSON bool
	c := &cobra.Command{
		Use:     "ls [PATTERN] [flags]",
		Aliases: []string{"list"},
		Short:   "List queues",
		Long: `List the queues, or those whose name matches the pattern: * stands for any part of one folder or last name, ? for a character,
[a-z] for a range, ** for any number of folders. Quote it, or the shell takes it for files.

Columns: ` + wrapWords(columnNames(), 118),
		Example: `  kumquat ls
  kumquat ls '/images/**' --columns name,messages,oldest
  kumquat ls --json`,
		Args:              arguments(0, 1),
		ValidArgsFunction: queueNames(1),
	}
	c.Flags().StringSliceVar(&names, "columns", defaultColumns, "which columns, in which order")
	c.Flags().BoolVar(&asJSON, "json", false, "print each queue as one line of JSON, with all it knows")
	must(c.RegisterFlagCompletionFunc("columns", completeColumns))
	c.RunE = func(cmd *cobra.Command, args []string) error {
		pattern := ""
		if len(args) == 1 {
			pattern = args[0]
		}
		return runLs(cmd.Context(), a, pattern, names, asJSON)
	}
	return c
}

// completeColumns completes the last of a list of names with commas.
func completeColumns(_ *cobra.Command, _ []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
	done := toComplete[:strings.LastIndexByte(toComplete, ',')+1]
	var out []cobra.Completion
	for _, n := range columnNames() {
		if !slices.Contains(strings.Split(done, ","), n) {
			out = append(out, done+n)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

func runLs(ctx context.Context, a *app, pattern string, names []string, asJSON bool) error {
	var show []column
	for _, n := range names {
		i := slices.IndexFunc(columns, func(c column) bool { return c.name == strings.ToLower(n) })
		if i < 0 {
			return usagef("there is no column %q; the columns are %s", n, strings.Join(columnNames(), ", "))
		}
		show = append(show, columns[i])
	}
	infos, err := kumquat.List(ctx, pattern)
	if err != nil {
		return err
	}
	if len(infos) == 0 && pattern != "" && !isPattern(pattern) && !strings.HasSuffix(pattern, ":") {
		return withHint(fmt.Errorf("list %s: %w", pattern, kumquat.ErrNotFound), pattern)
	}
	if asJSON {
		for i := range infos {
			j := statsOf(infos[i].Name, &infos[i].Stats)
			if infos[i].Err != nil {
				j = statsJSON{Name: infos[i].Name, Error: infos[i].Err.Error()}
			}
			a.out.Write(line(j))
		}
		return nil
	}
	if len(infos) == 0 {
		a.note("no queues")
		return nil
	}
	g := grid{warn: map[int]bool{}}
	for _, c := range show {
		g.heads = append(g.heads, strings.ToUpper(c.name))
		g.right = append(g.right, c.right)
	}
	for i := range infos {
		row := make([]string, len(show))
		for j, c := range show {
			switch {
			case c.name == "name" || infos[i].Err == nil:
				row[j] = c.text(a, &infos[i])
			default:
				row[j] = unknownText
			}
		}
		g.warn[i] = infos[i].Err != nil
		g.rows = append(g.rows, row)
	}
	a.print(g)
	for i := range infos {
		if infos[i].Err != nil {
			fmt.Fprintf(a.err, "kumquat: %s\n", escape(infos[i].Name+": "+infos[i].Err.Error()))
		}
	}
	return nil
}

// isPattern reports whether List would see more in s than a name.
func isPattern(s string) bool { return strings.ContainsAny(s, `*?[\`) }

// wrapWords joins words with commas, in lines of at most width.
func wrapWords(words []string, width int) string {
	var b strings.Builder
	col := len("Columns: ")
	for i, w := range words {
		if i < len(words)-1 {
			w += ","
		} else {
			w += "."
		}
		if i > 0 {
			if col+1+len(w) > width {
				b.WriteByte('\n')
				col = 0
			} else {
				b.WriteByte(' ')
				col++
			}
		}
		b.WriteString(w)
		col += len(w)
	}
	return b.String()
}
