package main

import (
	"fmt"
	"io"
	"time"

	"github.com/dustin/go-humanize"
)

// progress is a line on the terminal that tells how far long work is. It begins after a second, and a nil one says nothing.
type progress struct {
	w     io.Writer
	verb  string
	total int // 0: unknown
	start time.Time
	next  time.Time
	shown bool
}

const progressEvery = 200 * time.Millisecond

// progress returns nil where standard error is no terminal, or busy says that the terminal shows something else.
func (a *app) progress(verb string, total int, busy bool) *progress {
	if !a.errTerm || busy {
		return nil
	}
	now := time.Now()
	return &progress{w: a.err, verb: verb, total: total, start: now, next: now.Add(time.Second)}
}

func (p *progress) show(n int) {
	if p == nil {
		return
	}
	now := time.Now()
	if now.Before(p.next) {
		return
	}
	p.next = now.Add(progressEvery)
	p.shown = true
	of := ""
	if p.total > 0 {
		of = " of " + humanize.Comma(int64(p.total))
	}
	rate := float64(n) / now.Sub(p.start).Seconds()
	fmt.Fprintf(p.w, "\r\x1b[K%s %s%s, %s/s", p.verb, humanize.Comma(int64(n)), of, humanize.SIWithDigits(rate, 1, ""))
}

// end takes the line away.
func (p *progress) end() {
	if p != nil && p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}
