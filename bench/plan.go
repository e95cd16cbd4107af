package bench

import (
	"fmt"
	"slices"
)

// isFloor begins the reasons why a floor is left out.
const isFloor = "it is a floor of "

// contest is our setup with those that it is compared with.
type contest struct {
	ours  setup
	peers []setup
}

// plan returns the contests of a workload, and for each peer that cannot take part in one the reason.
func (c *Config) plan() (contests []contest, unfit []string) {
	add := func(ours setup) {
		g := contest{ours: ours}
		for _, p := range c.Peers {
			s, reason := c.peer(p, ours)
			if reason != "" {
				unfit = append(unfit, fmt.Sprintf("%s: skipped%s: %s", p, ours.shape(), reason))
				continue
			}
			g.peers = append(g.peers, s)
		}
		contests = append(contests, g)
	}
	if c.Workload == Binding {
		return c.planBinding()
	}
	for _, size := range c.Sizes {
		for _, priorities := range c.Priorities {
			for _, capacity := range c.Capacity {
				s := setup{Subject: "kumquat", Label: "kumquat", Size: size, Priorities: priorities, Producers: max(c.Producers, 1), Consumers: max(c.Consumers, 1),
					Capacity: capacity, Batch: c.Batch, Pin: !c.Free}
				switch c.Workload {
				case Throughput, Capacity, Batch:
					add(s)
				case Scale:
					shapes := [][2]int{{1, 1}, {2, 2}, {4, 4}, {1, 4}, {4, 1}}
					if c.Producers > 0 || c.Consumers > 0 {
						shapes = [][2]int{{s.Producers, s.Consumers}}
					}
					for _, n := range shapes {
						s.Producers, s.Consumers = n[0], n[1]
						add(s)
					}
				case Depth:
					s.Waiting, s.WaitType = c.Depths[0], 1
					s.Producers, s.Consumers = 1, 1
					add(s)
				case Filter:
					s.Waiting, s.WaitType, s.Filtered = c.Depths[0], 2, true
					s.Producers, s.Consumers = 1, 1
					add(s)
				case Latency:
					s.Producers, s.Consumers = 1, 1
					for _, s.Mode = range []string{modeSpin, modeSleep} {
						add(s)
					}
				case Wake:
					s.Producers, s.Consumers, s.Mode = 1, 1, modeWake
					add(s)
				}
			}
		}
	}
	return contests, unfit
}

// planBinding pairs each binding with its loop in C.
func (c *Config) planBinding() (contests []contest, unfit []string) {
	for _, size := range c.Sizes {
		for _, binding := range []string{"posix", "sysv"} {
			s := setup{Subject: binding, Label: binding, Size: size, Priorities: 1, Producers: 1, Consumers: 1, Capacity: bindingMessages, Batch: 1,
				Mode: modeBinding, Pin: !c.Free}
			g := contest{ours: s}
			if slices.Contains(c.Peers, binding+"-c") {
				s.Subject, s.Label = binding+"-c", binding+"-c"
				g.peers = append(g.peers, s)
			}
			contests = append(contests, g)
		}
	}
	for _, p := range c.Peers {
		if p != "posix-c" && p != "sysv-c" {
			unfit = append(unfit, fmt.Sprintf("%s: skipped: the bindings are measured beside their loops in C alone", p))
		}
	}
	return contests, unfit
}

// shape says in words what sets a setup apart, for messages.
func (s *setup) shape() string {
	t := fmt.Sprintf(" at %d bytes", s.Size)
	if s.Priorities > 1 {
		t += fmt.Sprintf(", %d priorities", s.Priorities)
	}
	if s.Producers > 1 || s.Consumers > 1 {
		t += fmt.Sprintf(", %d:%d", s.Producers, s.Consumers)
	}
	if s.Mode != "" {
		t += ", " + s.Mode
	}
	return t
}

// peer returns the setup of a peer that does the same work as ours, or why it cannot.
func (c *Config) peer(name string, ours setup) (s setup, reason string) {
	s = ours
	s.Subject, s.Label, s.Batch = name, name, 1
	several := s.Producers > 1 || s.Consumers > 1
	const only = "it belongs to the workload "
	switch name {
	case "kumquat-single":
		s.Subject = "kumquat"
		if ours.Batch == 1 {
			return s, "ours has no batches there"
		}
	case "kumquat-one":
		if s.Priorities == 1 {
			return s, "ours has one priority there"
		}
		s.Subject, s.Priorities, s.Batch = "kumquat", 1, ours.Batch
	case "kumquat-pair":
		if !several {
			return s, "ours is one pair there"
		}
		s.Subject, s.Producers, s.Consumers, s.Batch = "kumquat", 1, 1, ours.Batch
	case "posix-c", "sysv-c":
		return s, only + Binding
	case "kumquat-shallow":
		if c.Workload != Depth || len(c.Depths) < 2 {
			return s, only + Depth + ", with two depths"
		}
		s.Subject, s.Waiting = "kumquat", c.Depths[1]
	case "kumquat-none":
		s.Subject, s.Waiting = "kumquat", 0
		if c.Workload != Filter {
			return s, only + Filter
		}
	case "kumquat-try":
		if s.Mode != modeSpin {
			return s, "polling is for the ping-pong that spins"
		}
	case "cacheline":
		if s.Mode != modeSpin {
			return s, isFloor + "the ping-pong that spins"
		}
	case "futex":
		if s.flow() {
			return s, isFloor + "latencies"
		}
	case "memcpy":
		if !s.flow() || several || s.Waiting > 0 {
			return s, isFloor + "throughput, in one process"
		}
	case "gochan":
		if s.Mode == modeWake || s.Waiting > 0 {
			return s, "it is one process"
		}
	case "pipe":
		if several && s.Size > 4096 {
			return s, "several writers of more than PIPE_BUF bytes mix them"
		}
		fallthrough
	case "unix":
		if s.Waiting > 0 {
			return s, "its buffer cannot hold the waiting messages"
		}
	case "posix":
		if s.Capacity+s.Waiting > 65536 {
			return s, "65,536 messages is the most"
		}
		s.Capacity += s.Waiting
		if s.Filtered {
			return s, "it cannot receive by type"
		}
	case "sysv-types":
		if s.Filtered {
			return s, "types stand for priorities"
		}
	case "boost":
		if s.Filtered {
			return s, "it cannot receive by type"
		}
	case "zmq":
		if s.Consumers > 1 {
			return s, "PUSH deals messages out to the consumers, it is no common queue"
		}
		if s.Filtered || s.Waiting > 0 {
			return s, "it cannot hold messages back"
		}
	}
	switch name {
	case "sysv", "pipe", "unix", "zmq", "gochan", "memcpy", "cacheline", "futex":
		s.Priorities = 1 // they have none
	}
	return s, ""
}
