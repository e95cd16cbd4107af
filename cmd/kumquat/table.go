package main

import (
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"charm.land/lipgloss/v2"
	"charm.land/lipgloss/v2/table"
	"github.com/dustin/go-humanize"
)

// grid is a table before it is printed. Its cells are not escaped yet.
type grid struct {
	heads []string
	right []bool // numbers stand on the right
	rows  [][]string
	warn  map[int]bool // rows that want attention
}

// print writes a table with rules for a terminal, else columns of text with a line of headings.
func (a *app) print(g grid) {
	for _, r := range g.rows {
		for i := range r {
			r[i] = escape(r[i])
		}
	}
	if !a.outTerm {
		w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
		fmt.Fprintln(w, strings.Join(g.heads, "\t"))
		for _, r := range g.rows {
			for i := range r {
				if r[i] == "" {
					r[i] = "-" // every row has the same number of words for awk, but for texts with blanks
				}
			}
			fmt.Fprintln(w, strings.Join(r, "\t"))
		}
		w.Flush()
		return
	}
	fit(g, a.width())
	t := table.New().Headers(g.heads...).Rows(g.rows...).Wrap(false).
		Border(lipgloss.NormalBorder()).BorderTop(false).BorderBottom(false).BorderLeft(false).BorderRight(false).BorderColumn(false).
		StyleFunc(func(row, col int) lipgloss.Style {
			s := lipgloss.NewStyle()
			if col < len(g.heads)-1 {
				s = s.PaddingRight(columnGap)
			}
			if g.right[col] {
				s = s.Align(lipgloss.Right)
			}
			switch {
			case !a.color:
			case row == table.HeaderRow:
				s = s.Bold(true)
			case g.warn[row]:
				s = s.Foreground(lipgloss.Yellow)
			}
			return s
		})
	if a.color {
		t = t.BorderStyle(faint)
	}
	fmt.Fprintln(a.out, t.String())
}

const (
	columnGap   = 2
	narrowest   = 12 // a column is cut to no less than this
	unknownText = "?"
)

// dropEmpty leaves out the columns that have nothing in any row.
func (g *grid) dropEmpty() {
	for col := len(g.heads) - 1; col >= 0; col-- {
		if slices.ContainsFunc(g.rows, func(r []string) bool { return r[col] != "" }) {
			continue
		}
		g.heads, g.right = slices.Delete(slices.Clone(g.heads), col, col+1), slices.Delete(slices.Clone(g.right), col, col+1)
		for i := range g.rows {
			g.rows[i] = slices.Delete(g.rows[i], col, col+1)
		}
	}
}

// fit cuts the widest column, then the one that is the widest after it, so that the rows have room in width characters, as far as that
// goes.
func fit(g grid, width int) {
	widths := make([]int, len(g.heads))
	total := -columnGap
	for col, head := range g.heads {
		widths[col] = lipgloss.Width(head)
		for _, r := range g.rows {
			widths[col] = max(widths[col], lipgloss.Width(r[col]))
		}
		total += widths[col] + columnGap
	}
	for total > width {
		widest := 0
		for col := range widths {
			if widths[col] > widths[widest] {
				widest = col
			}
		}
		least := max(narrowest, lipgloss.Width(g.heads[widest]))
		to := max(widths[widest]-(total-width), least)
		if to >= widths[widest] {
			return
		}
		total -= widths[widest] - to
		widths[widest] = to
		for _, r := range g.rows {
			r[widest] = shorten(r[widest], to)
		}
	}
}

// paint colours s for standard output, if that takes colours.
func (a *app) paint(s string, style lipgloss.Style) string {
	if !a.color {
		return s
	}
	return style.Render(s)
}

var (
	faint = lipgloss.NewStyle().Faint(true)
	bold  = lipgloss.NewStyle().Bold(true)
	red   = lipgloss.NewStyle().Foreground(lipgloss.Red)
	green = lipgloss.NewStyle().Foreground(lipgloss.Green)
	amber = lipgloss.NewStyle().Foreground(lipgloss.Yellow)
)

// bytesText is a number of bytes for people, or as it is for programs.
func (a *app) bytesText(n int64) string {
	switch {
	case n < 0:
		return unknownText
	case a.outTerm:
		return humanize.IBytes(uint64(n))
	}
	return strconv.FormatInt(n, 10)
}

func (a *app) countText(n int64) string {
	if a.outTerm {
		return humanize.Comma(n)
	}
	return strconv.FormatInt(n, 10)
}

// timeText is how long ago t was for people, RFC 3339 for programs.
func (a *app) timeText(t time.Time) string {
	switch {
	case t.IsZero():
		return ""
	case a.outTerm:
		return humanize.Time(t)
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// plural is "1 message", "2,000 messages". Nouns that take more than an s have their plural given.
func plural[N int | int64 | uint64](n N, noun string, many ...string) string {
	switch {
	case n == 1:
		return "1 " + noun
	case len(many) > 0:
		return humanize.Comma(int64(n)) + " " + many[0]
	}
	return humanize.Comma(int64(n)) + " " + noun + "s"
}

var userNames sync.Map // uid → name

// userName returns the name of a user, or the number where it has none.
func userName(uid int) string {
	if n, ok := userNames.Load(uid); ok {
		return n.(string)
	}
	name := strconv.Itoa(uid)
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	userNames.Store(uid, name)
	return name
}
