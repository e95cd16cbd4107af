package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/posix"
)

// unusedFlags are those of rm --unused.
type unusedFlags struct {
	kinds            kindsValue
	neverUsed        bool
	yes, dry, asJSON bool
	ifExists         bool
}

// judged is a queue and what was found out about its use.
type judged struct {
	row
	finding
}

type unusedJSON struct {
	Name     string `json:"name"`
	Kind     string `json:"kind"`
	Messages int    `json:"messages"`
	Bytes    int64  `json:"bytes"`
	Owner    string `json:"owner"`
	State    string `json:"state"`
	Why      string `json:"why"`
	Removed  bool   `json:"removed"`
	Error    string `json:"error,omitempty"`
}

// runUnused finds the queues that nobody uses, shows them and removes them. Right before each is removed it is looked at once more.
func runUnused(ctx context.Context, a *app, patterns []string, o *unusedFlags) error {
	all, err := a.judgeAll(ctx, patterns, o)
	if err != nil {
		return err
	}
	var dead []judged
	messages, unsure := 0, 0
	for _, j := range all {
		switch j.state {
		case unused:
			dead = append(dead, j)
			messages += j.Messages
		case unknown:
			unsure++
		}
	}
	if o.dry {
		a.showJudged(slices.DeleteFunc(all, func(j judged) bool { return j.state == inUse }), o.asJSON)
		return nil
	}
	if unsure > 0 {
		a.note("%s left alone, since it cannot be told whether anybody uses them; --dry-run shows them", plural(unsure, "queue"))
	}
	if len(dead) == 0 {
		a.note("no unused queues")
		return nil
	}
	if !o.asJSON {
		a.showJudged(dead, false)
	}
	ok, err := a.confirm(ctx, o.yes, fmt.Sprintf("Remove %s with %s?", plural(len(dead), "queue"), plural(messages, "message")))
	if err != nil {
		return err
	}
	if !ok {
		return a.declined()
	}
	return a.removeUnused(ctx, dead, o)
}

// removeUnused removes them, but those that somebody uses by now. The first failure decides the exit code.
func (a *app) removeUnused(ctx context.Context, dead []judged, o *unusedFlags) error {
	users, err := findUsers() // the question may have stood there for hours
	if err != nil {
		return err
	}
	var first error
	for i := range dead {
		j := &dead[i]
		removed, err := removeIf(ctx, j, users, o.neverUsed)
		switch {
		case err != nil && first == nil:
			first = err
			fallthrough
		case err != nil:
			a.say(errorText(ctx, err))
		case !removed && !o.asJSON:
			fmt.Fprintf(a.out, "%s is used by now, and stays\n", escape(j.Name))
		}
		if o.asJSON {
			out := j.json()
			out.Removed = removed
			if err != nil {
				out.Error = err.Error()
			}
			a.out.Write(line(out))
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	if first != nil {
		return quietError{exitCode(ctx, first)}
	}
	return nil
}

// removeIf removes the queue if it is still the one that was judged and still unused. One that is gone by now counts as removed.
func removeIf(ctx context.Context, j *judged, users *kernelUsers, neverUsed bool) (bool, error) {
	name := j.Name
	if j.sysv != nil {
		name = fmt.Sprintf("sysv:id:%d", j.sysv.ID) // a queue that was made anew under the key has another identifier
	}
	rows, err := rowsMatching(ctx, literal(name))
	if err != nil {
		return false, err
	}
	if len(rows) == 0 {
		return true, nil
	}
	r := &rows[0]
	if r.posix != nil && (j.posix == nil || r.posix.Inode != j.posix.Inode || r.posix.Device != j.posix.Device) ||
		users.judge(r, neverUsed).state != unused {
		return false, nil
	}
	err = kumquat.Remove(ctx, name)
	if errors.Is(err, kumquat.ErrNotFound) || errors.Is(err, kumquat.ErrRemoved) {
		return true, nil
	}
	return err == nil, err
}

// literal makes a pattern that matches only name.
func literal(name string) string {
	var b []byte
	for i := range len(name) {
		if isPattern(name[i : i+1]) {
			b = append(b, '\\')
		}
		b = append(b, name[i])
	}
	return string(b)
}

// judgeAll lists what the patterns match, or everything, and finds out who uses it.
func (a *app) judgeAll(ctx context.Context, patterns []string, o *unusedFlags) ([]judged, error) {
	var rows []row
	if len(patterns) == 0 {
		var err error
		if rows, err = a.rows(ctx, "", o.kinds); err != nil {
			return nil, err
		}
	}
	for _, p := range patterns {
		if kind := kindOf(p); len(o.kinds) > 0 && !slices.Contains(o.kinds, kind) {
			return nil, usagef("%s is of kind %s, which --kind leaves out", p, kind)
		}
		some, err := rowsMatching(ctx, p)
		if err != nil {
			return nil, err
		}
		if len(some) == 0 && !isPattern(p) && !o.ifExists {
			return nil, fmt.Errorf("remove %s: %w", p, kumquat.ErrNotFound)
		}
		for _, r := range some {
			if !slices.ContainsFunc(rows, func(x row) bool { return x.Name == r.Name }) {
				rows = append(rows, r)
			}
		}
	}
	users := &kernelUsers{open: &posix.Holders{}}
	if slices.ContainsFunc(rows, func(r row) bool { return r.kind != engineKind }) {
		var err error
		if users, err = findUsers(); err != nil {
			return nil, err
		}
	}
	all := make([]judged, len(rows))
	for i := range rows {
		all[i] = judged{rows[i], users.judge(&rows[i], o.neverUsed)}
	}
	return all, nil
}

func (j *judged) json() unusedJSON {
	return unusedJSON{Name: j.Name, Kind: j.kind, Messages: j.Messages, Bytes: j.Bytes, Owner: userName(j.UID), State: j.state, Why: j.why}
}

// showJudged prints the queues and why they are thought to be used or not.
func (a *app) showJudged(js []judged, asJSON bool) {
	if asJSON {
		for i := range js {
			a.out.Write(line(js[i].json()))
		}
		return
	}
	if len(js) == 0 {
		a.note("no unused queues")
		return
	}
	g := grid{
		heads: []string{"NAME", "MESSAGES", "BYTES", "OWNER", "STATE", "WHY"},
		right: []bool{false, true, true, false, false, false},
		warn:  map[int]bool{},
	}
	for i := range js {
		j := &js[i]
		g.warn[i] = j.state == unknown
		g.rows = append(g.rows, []string{j.Name, a.countText(int64(j.Messages)), a.bytesText(j.Bytes), userName(j.UID), j.state, j.why})
	}
	a.print(g)
}
