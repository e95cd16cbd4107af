package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/posix"
	"github.com/kumquat-mq/kumquat/sysv"
)

// The kinds of queues of this machine.
const (
	engineKind = "engine"
	posixKind  = "posix"
	sysvKind   = "sysv"
)

var kindNames = []string{engineKind, posixKind, sysvKind}

// split returns the kind of queue that a name stands for, and what its driver calls it. A scheme that is none of ours is its own kind.
func split(name string) (kind, rest string) {
	scheme, rest, ok := strings.Cut(name, ":")
	switch {
	case !ok || strings.HasPrefix(name, "/"):
		return engineKind, name
	case scheme == "shm":
		return engineKind, rest
	case scheme == "sysv" || scheme == "sysv+priority":
		return sysvKind, rest
	}
	return scheme, rest
}

func kindOf(name string) string {
	kind, _ := split(name)
	return kind
}

// inKernel reports whether the kernel keeps the queue of this name.
func inKernel(name string) bool {
	kind, _ := split(name)
	return kind == posixKind || kind == sysvKind
}

// row is one queue of any kind, with what only its kind knows.
type row struct {
	kumquat.Info
	kind  string
	posix *posix.Info  // of POSIX queues
	sysv  *sysv.Status // of System V queues
	open  *hasOpen     // of POSIX queues, once it was counted
}

// fill is how near the queue is to its limit, in per cent; −1: not known. A System V queue has two: msg_qbytes bounds the bytes, and the
// number of messages as well.
func (r *row) fill() int {
	share := func(n, of int64) int {
		if of <= 0 || n < 0 {
			return -1
		}
		return int(min((n*100+of-1)/of, 999))
	}
	switch {
	case r.Err != nil && r.sysv == nil:
		return -1
	case r.sysv != nil:
		return max(share(r.sysv.Bytes, r.sysv.QBytes), share(r.sysv.Messages, r.sysv.QBytes))
	}
	return share(int64(r.Messages), int64(r.MaxMessages))
}

// address is the pattern that lists all queues of a kind.
var address = map[string]string{engineKind: "", posixKind: "posix:", sysvKind: "sysv:"}

// rowsOf lists the queues of the kinds, in their order. What cannot be listed is told by skip.
func rowsOf(ctx context.Context, kinds []string, skip func(kind string, err error)) ([]row, error) {
	var all []row
	for _, kind := range kinds {
		rows, err := rowsMatching(ctx, address[kind])
		if err != nil {
			if errors.Is(err, kumquat.ErrUnsupported) && skip != nil {
				skip(kind, err)
				continue
			}
			return nil, err
		}
		all = append(all, rows...)
	}
	return all, nil
}

// rowsMatching lists what a pattern of one kind matches.
func rowsMatching(ctx context.Context, pattern string) ([]row, error) {
	kind, rest := split(pattern)
	if kind == sysvKind && strings.HasPrefix(rest, "id:") {
		return rowsByID(ctx, pattern, rest)
	}
	infos, err := kumquat.List(ctx, pattern)
	if err != nil {
		return nil, err
	}
	rows := make([]row, len(infos))
	for i := range infos {
		rows[i] = row{Info: infos[i], kind: kind}
	}
	switch {
	case len(rows) == 0:
	case kind == posixKind:
		addPosix(rows)
	case kind == sysvKind:
		err = addSysv(rows)
	}
	return rows, err
}

// rowsByID finds the System V queue that an identifier names, which may have a key as well: then it is listed by that.
func rowsByID(ctx context.Context, pattern, rest string) ([]row, error) {
	rows, err := rowsMatching(ctx, strings.TrimSuffix(pattern, rest))
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(rows, func(r row) bool { return r.sysv == nil || fmt.Sprintf("id:%d", r.sysv.ID) != rest }), nil
}

// addPosix adds what the list of the whole namespace knows, also of queues that may not be read. Without that list, one that is named
// in full still tells of itself.
func addPosix(rows []row) {
	all, err := posix.List()
	for i := range rows {
		_, name := split(rows[i].Name)
		if err != nil {
			if x, err := posix.Stat(name); err == nil {
				rows[i].posix = &x
			}
			continue
		}
		if j := slices.IndexFunc(all, func(x posix.Info) bool { return x.Name == name }); j >= 0 {
			x := &all[j]
			rows[i].posix = x
			if x.Err != nil {
				rows[i].UID, rows[i].GID, rows[i].Mode = x.UID, x.GID, x.Mode
			}
		}
	}
}

func addSysv(rows []row) error {
	all, err := sysv.List()
	if err != nil {
		return err
	}
	for i := range rows {
		_, name := split(rows[i].Name)
		if j := slices.IndexFunc(all, func(s sysv.Status) bool { return sysvName(&s) == name }); j >= 0 {
			rows[i].sysv = &all[j]
		}
	}
	return nil
}

// sysvName is the name that the driver lists a queue by.
func sysvName(s *sysv.Status) string {
	if s.Key == sysv.Private {
		return fmt.Sprintf("id:%d", s.ID)
	}
	return s.Key.String()
}

// rowOf returns the one queue of this name, which q has open.
func rowOf(ctx context.Context, q *kumquat.Queue) (row, error) {
	kind, name := split(q.Name())
	r := row{kind: kind}
	r.Name = q.Name()
	var err error
	if r.Stats, err = q.Stat(ctx); err != nil {
		return r, err
	}
	switch kind {
	case posixKind:
		x, err := posix.Stat(name)
		if err != nil {
			return r, err
		}
		r.posix = &x
	case sysvKind:
		s, err := sysvStatus(ctx, q.Name())
		if err != nil {
			return r, err
		}
		r.sysv = s
	}
	return r, nil
}

// sysvStatus finds a System V queue by any form of its name.
func sysvStatus(ctx context.Context, name string) (*sysv.Status, error) {
	rows, err := rowsMatching(ctx, name)
	if err == nil && (len(rows) != 1 || rows[0].sysv == nil) {
		err = fmt.Errorf("%s: %w", name, kumquat.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	return rows[0].sysv, nil
}
