package main

import (
	"fmt"
	"math"

	"github.com/kumquat-mq/kumquat/bench"
)

// row is one kind of work: the command that measures it, and what it has to reach.
type row struct {
	work  string
	args  string   // of kumquat bench; --json, --rounds and --target are added
	plots []string // the drawings that its results go into
	goals []goal
}

// goal is what is asked of one line of a row's results. Zero fields are not looked at.
type goal struct {
	beside     string  // the subject that the ratio is against
	priorities int     // of ours in the contest
	size       int     // of a body
	shape      [2]int  // producers and consumers
	mode       string  // of a latency
	capacity   int     // of the queue
	asked      float64 // the ratio, ours ÷ theirs, has to be this or more
	measure    measure
}

// measure is what of a line counts, and which way.
type measure int

const (
	ourRatio   measure = iota // at least so many times theirs
	ourTime                   // of latencies: at most so many times theirs
	theirShare                // they reach at least so much of ours
	ourAllocs                 // none
)

// The drawings, without their ending.
const (
	overSize       = "throughput-size"
	overPriorities = "throughput-priorities"
	overPercentile = "latency"
	overProcesses  = "scaling"
)

var plots = []string{overSize, overPriorities, overPercentile, overProcesses}

// against returns goals that are alike but for the peer.
func against(like goal, asked ...any) []goal {
	var gs []goal
	for i := 0; i < len(asked); i += 2 {
		like.beside, like.asked = asked[i].(string), asked[i+1].(float64)
		gs = append(gs, like)
	}
	return gs
}

func join(gs ...[]goal) (all []goal) {
	for _, g := range gs {
		all = append(all, g...)
	}
	return all
}

// rows is the table. Peers without a goal are there for the drawings.
var rows = []row{
	{
		work: "64 B, one priority", args: "throughput --peers posix,sysv,unix,pipe,zmq,boost", plots: []string{overPriorities},
		goals: against(goal{}, "posix", 30., "sysv", 5., "unix", 5., "pipe", 2.5, "zmq", 5., "boost", 3.),
	},
	{
		work: "64 B, priorities at random", args: "throughput --priorities 8,1000 --peers posix,sysv,unix,pipe,zmq,boost,kumquat-one", plots: []string{overPriorities},
		goals: join(
			against(goal{priorities: 8}, "posix", 12., "sysv", 3., "unix", 3., "pipe", 1.5, "boost", 4., "kumquat-one", 0.4),
			against(goal{priorities: 1000}, "posix", 12., "sysv", 3., "unix", 3., "pipe", 1.5, "boost", 4., "kumquat-one", 0.4)),
	},
	{
		work: "larger bodies, one priority", args: "throughput --size 64,256,1024,4096,16384,65536 --peers posix,sysv,unix,pipe,zmq,boost", plots: []string{overSize},
		goals: join(against(goal{size: 1024}, "boost", 1.3), against(goal{size: 65536}, "boost", 2.5)),
	},
	{
		work: "batches of 16 beside single messages", args: "batch --batch 16 --peers boost",
		goals: against(goal{}, "boost", 3.),
	},
	{
		work: "several processes", args: "scale --priorities 1,8 --peers boost,posix,kumquat-pair", plots: []string{overProcesses},
		goals: join(
			against(goal{shape: [2]int{2, 2}, priorities: 1}, "boost", 2.), against(goal{shape: [2]int{2, 2}, priorities: 8}, "boost", 2.5),
			against(goal{shape: [2]int{4, 4}, priorities: 1}, "boost", 2., "kumquat-pair", 0.4),
			against(goal{shape: [2]int{4, 4}, priorities: 8}, "boost", 2.5, "kumquat-pair", 0.4),
			against(goal{shape: [2]int{1, 4}, priorities: 1}, "boost", 1.5), against(goal{shape: [2]int{1, 4}, priorities: 8}, "boost", 1.5),
			against(goal{shape: [2]int{4, 1}, priorities: 1}, "boost", 1.5), against(goal{shape: [2]int{4, 1}, priorities: 8}, "boost", 1.5)),
	},
	{
		work: "two busy processes beside", args: "throughput --load 2 --peers boost",
		goals: against(goal{}, "boost", 1.2),
	},
	{
		work: "room for 10, for 1", args: "capacity --capacity 10,1 --peers posix,boost",
		goals: join(against(goal{capacity: 10}, "posix", 2.), against(goal{capacity: 1}, "posix", 1.)),
	},
	{
		work: "room for 10, for 1, two busy beside", args: "capacity --capacity 10,1 --load 2 --peers posix,boost",
		goals: join(against(goal{capacity: 10}, "posix", 2.), against(goal{capacity: 1}, "posix", 1.)),
	},
	{
		work: "ping-pong", args: "latency --peers cacheline,futex,posix,sysv,pipe,unix,boost,zmq", plots: []string{overPercentile},
		goals: join(against(goal{mode: "spin", measure: ourTime}, "cacheline", 4.5), against(goal{mode: "sleep", measure: ourTime}, "futex", 1.3)),
	},
	{
		work: "1,000,000 waiting beside 100", args: "depth --depth 1000000,100 --peers kumquat-shallow",
		goals: against(goal{}, "kumquat-shallow", 0.7),
	},
	{
		work: "filter, 100,000 waiting beside none", args: "filter --depth 100000 --peers kumquat-none",
		goals: against(goal{}, "kumquat-none", 0.5),
	},
	{
		work: "Send and Receive of a Message", args: "throughput --peers kumquat-message",
		goals: join(against(goal{measure: theirShare}, "kumquat-message", 0.8), against(goal{measure: ourAllocs}, "kumquat", 0.)),
	},
}

// contest is our line and those of the peers that it was measured beside.
type contest struct {
	ours  bench.Result
	peers []bench.Result
}

// contests divides lines: each of ours begins one.
func contests(rs []bench.Result) (all []contest) {
	for _, r := range rs {
		if r.Subject == "kumquat" {
			all = append(all, contest{ours: r})
		} else if n := len(all); n > 0 {
			all[n-1].peers = append(all[n-1].peers, r)
		}
	}
	return all
}

// find returns the line that g is about; nil if it was not measured.
func (g goal) find(rs []bench.Result) *bench.Result {
	for _, c := range contests(rs) {
		o := c.ours
		if g.priorities > 0 && o.Priorities != g.priorities || g.size > 0 && o.Size != g.size || g.mode != "" && o.Mode != g.mode ||
			g.capacity > 0 && o.Capacity != g.capacity || g.shape[0] > 0 && g.shape != [2]int{o.Producers, o.Consumers} {
			continue
		}
		if g.beside == "kumquat" {
			return &o
		}
		for _, p := range c.peers {
			if p.Subject == g.beside {
				return &p
			}
		}
	}
	return nil
}

// about names what sets the goal apart within its row.
func (g goal) about() string {
	t := g.beside
	switch {
	case g.measure == ourAllocs:
		t = "SendBytes, ReceiveInto"
	case g.mode != "":
		t += ", " + g.mode
	case g.size > 0:
		t += fmt.Sprintf(", %d B", g.size)
	case g.capacity > 0:
		t += fmt.Sprintf(", room for %d", g.capacity)
	}
	if g.shape[0] > 0 {
		t += fmt.Sprintf(", %d:%d", g.shape[0], g.shape[1])
	}
	if g.priorities > 1 {
		t += fmt.Sprintf(", %d priorities", g.priorities)
	} else if g.priorities == 1 {
		t += ", one priority"
	}
	return t
}

// ask says what has to be reached.
func (g goal) ask() string {
	switch g.measure {
	case ourTime:
		return fmt.Sprintf("≤ %g× its time", g.asked)
	case theirShare:
		return fmt.Sprintf("≥ %g× ours", g.asked)
	case ourAllocs:
		return "0 allocations"
	}
	return fmt.Sprintf("≥ %g×", g.asked)
}

// judge returns what the line says of g, as text, and whether g is reached.
func (g goal) judge(r bench.Result) (string, bool) {
	switch g.measure {
	case ourTime:
		v := inverse(r.Ratio)
		return fmt.Sprintf("%.3g×", v), v <= g.asked
	case theirShare:
		v := inverse(r.Ratio)
		return fmt.Sprintf("%.3g×", v), v >= g.asked
	case ourAllocs:
		return fmt.Sprintf("%g", r.Allocs), r.Allocs == 0
	}
	return fmt.Sprintf("%.3g×", r.Ratio), r.Ratio >= g.asked
}

func inverse(v float64) float64 {
	if v == 0 {
		return math.NaN() // not measured: neither at most nor at least anything
	}
	return 1 / v
}
