package bench

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

// Config says what to measure. The zero value of each field but Workload is its default.
type Config struct {
	Workload   string        // one of Workloads
	Sizes      []int         // bytes of a body, 8 … 64 MiB; empty: 64
	Priorities []int         // numbers of priorities used at random, 1 … 32,768; empty: 1
	Producers  int           // 0: 1; in "scale" several shapes
	Consumers  int           // 0: 1; in "scale" several shapes
	Capacity   []int         // messages a queue holds; empty: 1,024, in "capacity" 10 and 1
	Batch      int           // messages a call of ours, the peers send one; 0: 1, in "batch" 16. Not for latencies and "filter"
	Depths     []int         // "depth": the messages waiting, the deep one first; empty: 1,000,000 and 100. "filter": empty: 100,000
	Rounds     int           // 0: 5
	Load       int           // busy processes beside the measurement; 0: none
	Free       bool          // let the scheduler place the processes; else each stays on a core of its own, where there are enough
	Peers      []string      // names of Subjects; nil: those that fit the workload; empty: none
	Target     time.Duration // how long one round of one subject takes at least; 0: 500 ms
	Patience   time.Duration // after which a subject that does not finish is given up; 0: a minute

	Note     func(text string) // told what was skipped or is not as asked, and why; nil: nobody is told
	Progress func(text string) // told before each measurement; nil: nobody is told
}

// The workloads.
const (
	Throughput = "throughput"
	Latency    = "latency"
	Scale      = "scale"
	Depth      = "depth"
	Wake       = "wake"
	Filter     = "filter"
	Batch      = "batch"
	Capacity   = "capacity"
	Binding    = "binding"
)

// Description is a name with what it stands for.
type Description struct{ Name, Text string }

// Workloads returns what can be measured.
func Workloads() []Description {
	return []Description{
		{Throughput, "messages a second, one message a call"},
		{Latency, "round trip of a ping-pong: answered at once (spin), and when the other side sleeps (sleep)"},
		{Scale, "throughput with 1:1, 2:2, 4:4, 1:4 and 4:1 processes, or with --producers and --consumers"},
		{Depth, "throughput with 1,000,000 messages waiting, beside 100 waiting"},
		{Wake, "from a send to the receive of a process that has slept for 2 ms"},
		{Filter, "receive by type with 100,000 messages of another type waiting, beside none waiting"},
		{Batch, "throughput with --batch messages a call, beside the peers' single ones"},
		{Capacity, "throughput of queues for 10 messages and for 1"},
		{Binding, "a send and a receive of one process by packages posix and sysv, beside the same loop in C"},
	}
}

// Subjects returns everything that can be measured beside our own queue.
func Subjects() []Description {
	return []Description{
		{"kumquat-message", "our queue by Send and Receive of a Message"},
		{"kumquat-single", "our queue without batches (where ours has them)"},
		{"kumquat-one", "our queue at one priority (where ours has several)"},
		{"kumquat-pair", "our queue between two processes (where ours has more)"},
		{"kumquat-shallow", "our queue with few messages waiting (workload depth)"},
		{"kumquat-none", "our queue with no messages waiting (workload filter)"},
		{"kumquat-try", "our queue polled by TryReceiveInto (workload latency)"},
		{"posix", "mq_timedsend and mq_timedreceive"},
		{"sysv", "msgsnd and msgrcv"},
		{"posix-c", "mq_send and mq_receive in C, beside package posix (workload binding)"},
		{"sysv-c", "msgsnd and msgrcv in C, beside package sysv (workload binding)"},
		{"sysv-types", "msgsnd and msgrcv with types for priorities"},
		{"pipe", "write and read of a pipe"},
		{"unix", "a pair of SOCK_SEQPACKET sockets"},
		{"boost", "Boost.Interprocess message_queue"},
		{"zmq", "ZeroMQ PUSH and PULL over ipc"},
		{"gochan", "a Go channel, in one process"},
		{"memcpy", "floor: the body copied in and out, in one process"},
		{"cacheline", "floor: a cache line that two processes bounce"},
		{"futex", "floor: a bare futex between two processes"},
	}
}

// Check returns what is wrong with c, wrapping driver.ErrInvalid; nil if Run will take it.
func (c Config) Check() error {
	_, err := c.prepared()
	return err
}

// prepared returns c with its defaults filled in, or what is wrong with it.
func (c Config) prepared() (Config, error) {
	if !slices.ContainsFunc(Workloads(), func(d Description) bool { return d.Name == c.Workload }) {
		return c, fmt.Errorf("%w: no such workload: %q; the workloads are %s", driver.ErrInvalid, c.Workload, strings.Join(names(Workloads()), ", "))
	}
	fill(&c.Sizes, 64)
	fill(&c.Priorities, 1)
	if c.Workload == Capacity {
		fill(&c.Capacity, 10, 1)
	}
	if c.Workload == Binding {
		fill(&c.Capacity, bindingMessages)
	}
	fill(&c.Capacity, 1024)
	switch c.Workload {
	case Depth:
		fill(&c.Depths, 1_000_000, 100)
	case Filter:
		fill(&c.Depths, 100_000)
	}
	if c.Workload == Batch {
		positive(&c.Batch, 16)
	}
	positive(&c.Batch, 1)
	positive(&c.Rounds, 5)
	if c.Target == 0 {
		c.Target = 500 * time.Millisecond
	}
	if c.Patience == 0 {
		c.Patience = time.Minute
	}
	if c.Note == nil {
		c.Note = func(string) {}
	}
	if c.Progress == nil {
		c.Progress = func(string) {}
	}
	for _, l := range []struct {
		name     string
		values   []int
		min, max int
	}{
		{"size", c.Sizes, 8, 64 << 20},
		{"priorities", c.Priorities, 1, 32768},
		{"producers", []int{c.Producers}, 0, 256},
		{"consumers", []int{c.Consumers}, 0, 256},
		{"capacity", c.Capacity, 1, 4_000_000},
		{"batch", []int{c.Batch}, 1, 4096},
		{"depth", c.Depths, 0, 8_000_000},
		{"rounds", []int{c.Rounds}, 1, 1000},
		{"load", []int{c.Load}, 0, 1024},
	} {
		for _, v := range l.values {
			if v < l.min || v > l.max {
				return c, fmt.Errorf("%w: %s: %d is not from %d to %d", driver.ErrInvalid, l.name, v, l.min, l.max)
			}
		}
	}
	if c.Batch > 1 && c.oneCall() {
		return c, fmt.Errorf("%w: batch: %s sends one message a call", driver.ErrInvalid, c.Workload)
	}
	for _, p := range c.Peers {
		if !slices.ContainsFunc(Subjects(), func(d Description) bool { return d.Name == p }) {
			return c, fmt.Errorf("%w: no such peer: %q; the peers are %s", driver.ErrInvalid, p, strings.Join(names(Subjects()), ", "))
		}
	}
	if c.Peers == nil {
		c.Peers = defaultPeers[c.Workload]
	}
	return c, nil
}

// oneCall reports whether the workload is of single messages only.
func (c *Config) oneCall() bool {
	return c.Workload == Latency || c.Workload == Wake || c.Workload == Filter || c.Workload == Binding
}

// unused returns what was asked for and does not bear on the workload, for people who would believe that it did.
func (c *Config) unused() []string {
	var texts []string
	pair := c.oneCall() || c.Workload == Depth
	if pair && (c.Producers > 1 || c.Consumers > 1) {
		texts = append(texts, c.Workload+": it has one sender and one receiver; the numbers of producers and consumers are left aside")
	}
	others := func(values []int, usual int) bool {
		return slices.ContainsFunc(values, func(v int) bool { return v != usual })
	}
	if c.Workload == Binding && (others(c.Capacity, bindingMessages) || others(c.Priorities, 1)) {
		texts = append(texts, c.Workload+": its queues hold 10 messages of one priority; capacity and priorities are left aside")
	}
	if len(c.Depths) > 0 && c.Workload != Depth && c.Workload != Filter {
		texts = append(texts, c.Workload+": nothing lies in its queues; the depth is left aside")
	}
	return texts
}

func names(ds []Description) []string {
	s := make([]string, len(ds))
	for i, d := range ds {
		s[i] = d.Name
	}
	return s
}

func fill(s *[]int, v ...int) {
	if len(*s) == 0 {
		*s = v
	}
}

func positive(n *int, v int) {
	if *n == 0 {
		*n = v
	}
}

var defaultPeers = map[string][]string{
	Throughput: {"posix", "sysv", "pipe", "unix", "boost", "zmq", "gochan", "kumquat-message", "memcpy"},
	Latency:    {"cacheline", "futex", "posix", "sysv", "pipe", "unix", "boost", "zmq", "gochan"},
	Scale:      {"posix", "boost"},
	Depth:      {"kumquat-shallow"},
	Wake:       {"futex", "posix", "pipe", "boost", "zmq"},
	Filter:     {"kumquat-none", "sysv"},
	Batch:      {"boost", "kumquat-single"},
	Capacity:   {"posix", "boost"},
	Binding:    {"posix-c", "sysv-c"},
}
