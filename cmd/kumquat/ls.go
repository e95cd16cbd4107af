package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/posix"
)

// column is one that ls can show.
type column struct {
	name  string
	right bool
	text  func(a *app, i *row) string
}

func count[N int | int64 | uint64](get func(i *row) N) func(a *app, i *row) string {
	return func(a *app, i *row) string { return a.countText(int64(get(i))) }
}

func size(get func(i *row) int64) func(a *app, i *row) string {
	return func(a *app, i *row) string { return a.bytesText(get(i)) }
}

// engineOnly leaves out what the kernel does not count.
func engineOnly(text func(a *app, i *row) string) func(a *app, i *row) string {
	return func(a *app, i *row) string {
		if i.kind != engineKind {
			return ""
		}
		return text(a, i)
	}
}

var columns = []column{
	{"name", false, func(_ *app, i *row) string { return i.Name }},
	{"kind", false, func(_ *app, i *row) string { return i.kind }},
	{"messages", true, count(func(i *row) int { return i.Messages })},
	{"max", true, maxText},
	{"bytes", true, size(func(i *row) int64 { return i.Bytes })},
	{"limit", true, func(_ *app, i *row) string { return percentText(i.fill()) }},
	{"mode", false, func(_ *app, i *row) string { return modeText(&i.Stats) }},
	{"owner", false, func(_ *app, i *row) string { return userName(i.UID) }},
	{"handles", true, handlesText},
	{"sender", false, func(_ *app, i *row) string { return partyText(i, true) }},
	{"receiver", false, func(_ *app, i *row) string { return partyText(i, false) }},
	{"receivers", true, engineOnly(count(func(i *row) int { return i.Receivers }))},
	{"senders", true, engineOnly(count(func(i *row) int { return i.Senders }))},
	{"delayed", true, engineOnly(count(func(i *row) int { return i.Delayed }))},
	{"max-size", true, size(func(i *row) int64 { return int64(i.MaxSize) })},
	{"sent", true, engineOnly(count(func(i *row) uint64 { return i.Sent }))},
	{"received", true, engineOnly(count(func(i *row) uint64 { return i.Received }))},
	{"dropped", true, engineOnly(count(func(i *row) uint64 { return i.Dropped }))},
	{"expired", true, engineOnly(count(func(i *row) uint64 { return i.Expired }))},
	{"takeovers", true, engineOnly(count(func(i *row) uint64 { return i.Takeovers }))},
	{"overflow", false, engineOnly(func(_ *app, i *row) string { return overflowName(i.Overflow) })},
	{"headroom", false, engineOnly(func(_ *app, i *row) string { return headroomText(i.Headroom) })},
	{"lowest", true, func(_ *app, i *row) string { return priorityText(i.Messages, i.LowestPriority) }},
	{"highest", true, func(_ *app, i *row) string { return priorityText(i.Messages, i.HighestPriority) }},
	{"oldest", false, func(a *app, i *row) string { return a.timeText(i.OldestEnqueued) }},
	{"last-send", false, func(a *app, i *row) string { return sysvTime(a, i, true) }},
	{"last-recv", false, func(a *app, i *row) string { return sysvTime(a, i, false) }},
	{"created", false, func(a *app, i *row) string { return a.timeText(i.Created) }},
	{"resident", true, engineOnly(size(func(i *row) int64 { return i.Resident }))},
	{"id", true, func(_ *app, i *row) string { return idText(i) }},
	{"path", false, func(_ *app, i *row) string { return i.Path }},
}

var defaultColumns = []string{"name", "messages", "max", "bytes", "limit", "mode", "owner", "handles", "sender", "receiver"}

// hasOpen is how many processes have a queue open; those that could not be inspected may too.
type hasOpen struct {
	processes int
	whole     bool
}

func handlesText(a *app, i *row) string {
	switch {
	case i.kind == engineKind:
		return a.countText(int64(i.Handles))
	case i.open == nil: // System V queues are not opened
		return ""
	case !i.open.whole && i.open.processes == 0:
		return unknownText
	}
	return a.countText(int64(i.open.processes))
}

// maxText is how many messages fit. The kernel bounds the bytes of a System V queue instead.
func maxText(a *app, i *row) string {
	if i.kind == sysvKind {
		return ""
	}
	return a.countText(int64(i.MaxMessages))
}

func percentText(n int) string {
	if n < 0 {
		return unknownText
	}
	return strconv.Itoa(n) + "%"
}

func partyText(i *row, sender bool) string {
	if i.sysv == nil {
		return "" // only System V keeps it
	}
	p := lastUser(i.sysv.RecvPID, i.sysv.LastRecv)
	if sender {
		p = lastUser(i.sysv.SendPID, i.sysv.LastSend)
	}
	return p.text()
}

func sysvTime(a *app, i *row, sender bool) string {
	switch {
	case i.sysv == nil:
		return ""
	case sender:
		return a.timeText(i.sysv.LastSend)
	}
	return a.timeText(i.sysv.LastRecv)
}

func idText(i *row) string {
	if i.sysv == nil {
		return ""
	}
	return strconv.Itoa(i.sysv.ID)
}

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
	var kinds kindsValue
	var asJSON bool
	c := &cobra.Command{
		Use:     "ls [PATTERN] [flags]",
		Aliases: []string{"list"},
		Short:   "List queues",
		Long: `List the queues of this machine: those of the engine, the kernel's POSIX queues (posix:/name) and its System V queues (sysv:0xKEY).
With a pattern, those whose name matches: * stands for any part of one folder or last name, ? for a character, [a-z] for a range,
** for any number of folders. Quote it, or the shell takes it for files. A pattern is of one kind: 'posix:/*', 'sysv:0x41*'.

Bytes are those of the bodies. Limit is how full it is: the messages that fit, and on System V the bytes or the messages that fit,
whichever is nearer. Handles are those open now, and of a POSIX queue the processes that have it open; ? if none was found but not
all could be inspected. The kernel notes the last sender and receiver of System V queues only.

Columns: ` + wrapWords(columnNames(), 118),
		Example: `  kumquat ls
  kumquat ls '/images/**' --columns name,messages,oldest
  kumquat ls --kind posix,sysv
  kumquat ls --json`,
		Args:              arguments(0, 1),
		ValidArgsFunction: queueNames(1),
	}
	c.Flags().StringSliceVar(&names, "columns", defaultColumns, "which columns, in which order")
	c.Flags().Var(&kinds, "kind", "which kinds of queues: engine, posix, sysv (default: all)")
	c.Flags().BoolVar(&asJSON, "json", false, "print each queue as one line of JSON, with all it knows")
	completeWords(c, "kind", kindNames...)
	must(c.RegisterFlagCompletionFunc("columns", completeColumns))
	c.RunE = func(cmd *cobra.Command, args []string) error {
		pattern := ""
		if len(args) == 1 {
			pattern = args[0]
		}
		if kind, _ := split(pattern); pattern != "" && len(kinds) > 0 && !slices.Contains(kinds, kind) {
			return usagef("the pattern %s is of kind %s, which --kind leaves out", pattern, kind)
		}
		return runLs(cmd.Context(), a, pattern, kinds, names, cmd.Flags().Changed("columns"), asJSON)
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

func runLs(ctx context.Context, a *app, pattern string, kinds, names []string, chosen, asJSON bool) error {
	var show []column
	for _, n := range names {
		i := slices.IndexFunc(columns, func(c column) bool { return c.name == strings.ToLower(n) })
		if i < 0 {
			return usagef("there is no column %q; the columns are %s", n, strings.Join(columnNames(), ", "))
		}
		show = append(show, columns[i])
	}
	rows, err := a.rows(ctx, pattern, kinds)
	if err != nil {
		return err
	}
	if len(rows) == 0 && pattern != "" && !isPattern(pattern) && !strings.HasSuffix(pattern, ":") {
		return withHint(fmt.Errorf("list %s: %w", pattern, kumquat.ErrNotFound), pattern)
	}
	if asJSON || slices.ContainsFunc(show, func(c column) bool { return c.name == "handles" }) {
		countOpen(rows)
	}
	if asJSON {
		for i := range rows {
			a.out.Write(line(jsonOfRow(&rows[i])))
		}
		return nil
	}
	if len(rows) == 0 {
		a.note("no queues")
		return nil
	}
	g := grid{warn: map[int]bool{}}
	for _, c := range show {
		g.heads = append(g.heads, strings.ToUpper(c.name))
		g.right = append(g.right, c.right)
	}
	for i := range rows {
		r := make([]string, len(show))
		for j, c := range show {
			switch {
			case c.name == "name" || c.name == "kind" || rows[i].Err == nil || rows[i].posix != nil && (c.name == "owner" || c.name == "mode"):
				r[j] = c.text(a, &rows[i])
			default:
				r[j] = unknownText
			}
		}
		g.warn[i] = rows[i].Err != nil
		g.rows = append(g.rows, r)
	}
	if a.outTerm && !chosen {
		g.dropEmpty()
	}
	a.print(g)
	for i := range rows {
		if rows[i].Err != nil {
			fmt.Fprintf(a.err, "kumquat: %s\n", escape(rows[i].Name+": "+rows[i].Err.Error()))
		}
	}
	return nil
}

// rows lists what the pattern matches, or all queues of the kinds; none given means all. A kind that was not asked for by its name
// and cannot be listed here is left out, and a person is told.
func (a *app) rows(ctx context.Context, pattern string, kinds []string) ([]row, error) {
	switch {
	case pattern != "":
		return rowsMatching(ctx, pattern)
	case len(kinds) > 0:
		return rowsOf(ctx, kinds, nil)
	}
	return rowsOf(ctx, kindNames, func(kind string, err error) { a.note("%s queues are not shown: %v", kind, err) })
}

// countOpen counts the other processes that have POSIX queues open. It looks through all of them, so only if there is such a queue.
func countOpen(rows []row) {
	if !slices.ContainsFunc(rows, func(r row) bool { return r.posix != nil }) {
		return
	}
	h, err := posix.ReadHolders()
	if err != nil {
		return // no /proc: nothing is known of processes
	}
	for i := range rows {
		if rows[i].posix == nil {
			continue
		}
		others := slices.DeleteFunc(h.Of(*rows[i].posix), func(x posix.Holder) bool { return x.PID == os.Getpid() })
		rows[i].open = &hasOpen{len(others), h.Whole && len(h.Hidden) == 0}
	}
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
