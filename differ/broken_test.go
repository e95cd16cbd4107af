package differ

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDetects makes records of real programs wrong by hand, one thing at a time, and wants the comparison to find each.
func TestDetects(t *testing.T) {
	done := map[string]int{}
	for _, p := range pairs {
		s := newStand(t, p, newUsers())
		for seed := uint64(1); seed <= 30; seed++ {
			pr := newProgram(p, seed)
			d, kernel, engine := s.try(pr)
			if len(d) > 0 {
				s.report(pr, d)
				return
			}
			spoiled := func(what string, spoil func(record []entry) bool) {
				for side := range 2 {
					k, e := slices.Clone(kernel), slices.Clone(engine)
					record := [][]entry{k, e}[side]
					if !spoil(record) {
						continue
					}
					done[what]++
					if len(compare(k, e)) == 0 {
						t.Errorf("%s: not noticed in the record %d of\n%v", what, side, pr)
					}
				}
			}
			ran := func(record []entry, also func(*entry) bool) []*entry {
				var all []*entry
				for i := range record {
					if x := &record[i]; x.ran && !x.only && also(x) {
						all = append(all, x)
					}
				}
				return all
			}
			got := func(x *entry) bool {
				return x.got.Err == "" && (x.do.Kind == opReceive || x.do.Kind == opInto || x.do.Kind == opBatch)
			}
			failed := func(x *entry) bool { return x.got.Err != "" }
			spoiled("two messages change places", func(record []entry) bool {
				all := ran(record, got)
				for i, x := range all {
					for _, y := range all[i+1:] {
						if x.got.Text != y.got.Text {
							x.got, y.got = y.got, x.got
							return true
						}
					}
				}
				return false
			})
			spoiled("two errors change places", func(record []entry) bool {
				all := ran(record, failed)
				for i, x := range all {
					for _, y := range all[i+1:] {
						if x.got.Err != y.got.Err {
							x.got, y.got = y.got, x.got
							return true
						}
					}
				}
				return false
			})
			spoiled("another priority", func(record []entry) bool {
				for _, x := range ran(record, got) {
					if was := x.got.Text; strings.Contains(was, "priority 0") {
						x.got.Text = strings.Replace(was, "priority 0", "priority 1", 1)
						return true
					}
				}
				return false
			})
			spoiled("a success for an error", func(record []entry) bool {
				for _, x := range ran(record, failed) {
					x.got = answer{}
					return true
				}
				return false
			})
			spoiled("another sentinel", func(record []entry) bool {
				for _, x := range ran(record, failed) {
					x.got.Err = "corrupt"
					return true
				}
				return false
			})
			spoiled("a number that does not belong to it", func(record []entry) bool {
				for _, x := range ran(record, func(x *entry) bool { return failed(x) && !x.want.orphan }) {
					x.got.Also = append(slices.Clone(x.got.Also), unix.EIO)
					return true
				}
				return false
			})
			spoiled("a number that is missing", func(record []entry) bool {
				for _, x := range ran(record, func(x *entry) bool {
					return failed(x) && len(x.got.Also) > 0 && !x.want.orphan && own[x.got.Err] == nil
				}) {
					x.got.Also = []syscall.Errno{}
					return true
				}
				return false
			})
			spoiled("a call left out", func(record []entry) bool {
				for _, x := range ran(record, func(*entry) bool { return true }) {
					x.ran = false
					return true
				}
				return false
			})
		}
	}
	for what, n := range done {
		if n < 20 {
			t.Errorf("%s: tried %d times only", what, n)
		}
	}
	if len(done) != 8 {
		t.Errorf("only these were tried: %v", done)
	}
}

// TestFinds lets one side do something else than it is told, and wants the programs to find it, and a short program to be left.
func TestFinds(t *testing.T) {
	posix, sysv := pairs[0], pairs[1]
	for _, x := range []struct {
		name  string
		pair  *pair
		spoil func(*op)
		most  int // operations
	}{
		{"urgent messages are less so", posix, func(o *op) {
			if o.Prio == 32767 {
				o.Prio = 1
			}
		}, 4},
		{"one place too many", posix, func(o *op) {
			if o.Kind == opOpen && o.Create {
				o.Options = nil
				o.Second = !o.Second
			}
		}, 12},
		{"a filter is forgotten", sysv, func(o *op) { o.Filter.NotType = 0 }, 4},
		{"a message is not sent", sysv, func(o *op) {
			if (o.Kind == opSend || o.Kind == opBytes) && o.Len == 1 {
				o.Kind = opStat
			}
		}, 4},
		{"a purge that does nothing", posix, func(o *op) {
			if o.Kind == opPurge {
				o.Kind = opStat
			}
		}, 4},
		{"a removal that does nothing", posix, func(o *op) {
			if o.Kind == opRemove {
				o.Kind, o.Len = opWriteOnly, 1<<20
			}
		}, 2},
		{"a call that does not wait", sysv, func(o *op) {
			if o.Wait == waitBlock {
				o.Wait = waitTry
			}
		}, 3},
	} {
		t.Run(x.name, func(t *testing.T) {
			s := newStand(t, x.pair, newUsers())
			s.crew.patience = time.Second
			s.engine.spoil = x.spoil
			for seed := uint64(1); seed <= 500; seed++ {
				p := newProgram(x.pair, seed)
				d, _, _ := s.try(p)
				if len(d) == 0 {
					continue
				}
				q, d := s.shrink(p, d)
				if len(q.ops) > x.most {
					t.Errorf("program %d was not made short enough:\n%v%s", seed, q, strings.Join(d, "\n"))
				}
				return
			}
			t.Error("500 programs did not find it")
		})
	}
}

// TestFindsHang has nobody serve a call that waits.
func TestFindsHang(t *testing.T) {
	s := newStand(t, pairs[0], newUsers())
	s.crew.patience = 300 * time.Millisecond
	p := &program{pair: pairs[0], shapes: [2]shape{{2, 8}, {1, 8}}, ops: []op{
		{Kind: opOpen, Create: true, Mode: 0o600}, {Kind: opReceive, Wait: waitBlock}, {Kind: opSend, Lane: 1, Len: 3}, {Kind: opStat, Lane: 1},
	}}
	for i := range p.ops {
		p.ops[i].ID = i
	}
	if d, _, _ := s.try(p); len(d) > 0 {
		t.Fatalf("unspoiled: %v", d)
	}
	s.engine.spoil = func(o *op) {
		if o.Kind == opSend {
			o.Kind, o.N = opPurge, 0
		}
	}
	d, _, _ := s.try(p)
	if text := fmt.Sprint(d); !strings.Contains(text, errHangs.Error()) || !strings.Contains(text, silence) {
		t.Errorf("found %v", d)
	}
	s.engine.spoil = nil
	if d, _, _ := s.try(p); len(d) > 0 { // the new processes work
		t.Errorf("afterwards: %v", d)
	}
}
