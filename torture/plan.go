package torture

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/kumquat-mq/kumquat"
)

// Plan is one round: the life of one queue. All of it follows from the seed and the round's number; what happens when depends on the
// machine.
type Plan struct {
	Round       int
	Seed        uint64 // of the round
	Queue       string
	MaxMessages int
	MaxSize     int
	Priorities  int  // how many different ones
	Types       int  // how many different ones; > 1: some receivers use filters
	Timed       bool // some messages are delayed, some expire
	Overflow    kumquat.Overflow
	Deep        int // messages sent before the workers begin: a rebuild takes long
	MaxHandles  int

	Producers, Consumers int // processes
	Threads              int // goroutines of each that use one handle
	Length               time.Duration
	Burst                int  // calls between two pauses
	Looker               bool // one process does nothing but opLook
	Eager                int  // 1: nobody pauses, and those who try in vain try again at once
	Pace                 int  // of signals: time between them, in quarters of the usual
	SendPause, RecvPause time.Duration
	Quota                int  // messages a producer sends at most
	Entries              int  // length of a record
	Hunt                 bool // takers are stopped and killed inside their takeover
	FillAll              bool // the exact capacity is tried out at the end though it is large
}

var (
	capacities = [...]int{1, 2, 10, 64, 1000, 65536}
	sizes      = [...]int{8, 64, 1 << 10, 64 << 10}
	priorities = [...]int{1, 8, 1000}
)

// diskBudget is how much the bodies of one round may take if nobody receives.
const diskBudget = 48 << 20

func newPlan(seed uint64, round int) Plan {
	r := rand.New(rand.NewPCG(seed, uint64(round)))
	p := Plan{
		Round: round, Seed: r.Uint64(), Queue: fmt.Sprintf("/round-%d", round),
		// All combinations come once in 72 rounds.
		MaxMessages: capacities[round%6], MaxSize: sizes[round/6%4], Priorities: priorities[round/24%3], Types: 1,
		Producers: 1 + r.IntN(3), Consumers: 1 + r.IntN(3), Threads: 1,
		Length: time.Duration(200+r.IntN(200)) * time.Millisecond,
		Burst:  1 + r.IntN(40), Pace: 4,
		Entries: 1 << 15, Hunt: r.IntN(3) == 0, FillAll: r.IntN(4) == 0,
	}
	if r.IntN(3) == 0 {
		p.Threads = 2 + r.IntN(2)
	}
	pause := func() time.Duration { return time.Duration(1<<r.IntN(12)) * time.Microsecond }
	p.SendPause, p.RecvPause = pause(), pause()
	switch r.IntN(12) {
	case 0, 1:
		p.Timed = true
	case 2:
		p.Overflow = kumquat.DropOldest
	case 3:
		p.Overflow = kumquat.DropLowest
	case 4, 5:
		p.Types = 3
	case 6:
		p.Overflow = kumquat.Reject
	case 7:
		p.MaxMessages, p.MaxSize, p.Deep, p.Hunt = 131072, 8, 100_000, true
		p.Length += 300 * time.Millisecond
	}
	if r.IntN(2) == 0 && p.Deep == 0 {
		// Whoever is hit is hit inside a call, and some are replaced because they are done.
		p.Burst, p.Pace, p.Eager, p.Length = 1<<30, 1, 1, p.Length/2
		if p.MaxMessages >= 1000 && !p.drops() && !p.Timed {
			p.Deep = min(p.MaxMessages, diskBudget/p.MaxSize, 10_000)
		}
	}
	p.Quota = min(20_000, diskBudget/p.MaxSize/(p.Producers*p.Threads))
	if p.Looker = r.IntN(2) == 0; p.Looker && p.MaxMessages >= 1000 && !p.drops() && !p.Timed && p.Deep == 0 {
		p.Deep = min(p.MaxMessages, diskBudget/p.MaxSize, 2000) // the more there is, the longer it looks
	}
	// Replacements need entries beside those of the dead until these are cleared, and so does the one who drains.
	p.MaxHandles = p.Producers + p.Consumers + 5
	return p
}

// String names the parameters, as a failure tells them.
func (p *Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "round %d: capacity %d, bodies %d B, %d priorities", p.Round, p.MaxMessages, p.MaxSize, p.Priorities)
	if p.Types > 1 {
		fmt.Fprintf(&b, ", %d types with filters", p.Types)
	}
	if p.Timed {
		b.WriteString(", delayed and expiring messages")
	}
	if p.Overflow != kumquat.Block {
		fmt.Fprintf(&b, ", overflow %s", [...]string{"block", "reject", "drop oldest", "drop lowest"}[p.Overflow])
	}
	if p.Deep > 0 {
		fmt.Fprintf(&b, ", %d messages deep", p.Deep)
	}
	if p.Hunt {
		b.WriteString(", takers hunted")
	}
	fmt.Fprintf(&b, ", %d producers and %d consumers of %d goroutines", p.Producers, p.Consumers, p.Threads)
	return b.String()
}

func (p *Plan) drops() bool {
	return p.Overflow == kumquat.DropOldest || p.Overflow == kumquat.DropLowest
}

// An op is one way to send or to receive.
type op uint8

const (
	opSend op = iota + 1
	opTrySend
	opSendBytes
	opTrySendBytes
	opSendBatch
	opTrySendBatch
	opCommit
	opReceive
	opTryReceive
	opReceiveInto
	opReceiveBatch
	opTryReceiveBatch
	opBorrow
	opLook // TryReceive with a filter that nothing matches: it has the lock most of the time
)

var opNames = [...]string{"", "Send", "TrySend", "SendBytes", "TrySendBytes", "SendBatch", "TrySendBatch", "Commit",
	"Receive", "TryReceive", "ReceiveInto", "ReceiveBatch", "TryReceiveBatch", "Borrow", "TryReceive in vain"}

func (o op) String() string { return opNames[o] }

// filters are those that receivers use; 0 is none. Numbers stand in records.
var filters = [...]kumquat.Filter{
	{}, {Type: 1}, {Type: 2}, {NotType: 3}, {TypeAtMost: 2}, {MinPriority: 1}, {MinPriority: 16000}, {Type: 3, MinPriority: 16000}, {Type: 3},
}

// noMessage is a filter for a type that no message has.
var noMessage = kumquat.Filter{Type: 99}

// rareType is the number of the filter for the rare type in rounds with lookers.
const rareType = 8

// order is what a worker is told to do in a round.
type order struct {
	Plan   Plan
	Actors []actorOrder
}

// actorOrder is for one goroutine of a worker.
type actorOrder struct {
	Number  uint16 // of the producer; of a consumer too, for the records
	Sends   bool
	Plain   bool // consumer: it never uses a filter
	Ops     []op
	Seed    uint64
	Record  string
	Entries int
}
