package driver

// Ability names something that not every queue can do.
type Ability uint8

// The abilities. Each of the first group is an optional interface of this package; the others are parts of Send, Receive and
// Options that a driver may refuse with ErrUnsupported.
const (
	Batches     Ability = iota // Batcher
	Bytes                      // ByteQueue
	ZeroCopy                   // Reserver and Borrower
	Peeking                    // Peeker
	Purging                    // Purger
	Notifying                  // Notifier
	Selecting                  // Readier
	Descriptors                // Descriptor
	Watching                   // Watcher
	Inspecting                 // Inspector

	Priorities // all of 0 … MaxPriority, strictly
	Filters    // every field of Filter
	Metadata   // ID, Key, Group, CorrelationID, ReplyTo, ContentType, Headers and Type
	Delays     // Message.NotBefore
	Expiry     // Message.Expires
	Dropping   // Options.Overflow DropOldest and DropLowest
	Headrooms  // Options.Headroom
	Modes      // Options.Mode, Owner and ReadOnly
	Revoking   // Remove ends open handles: those who wait on them, and all later calls, get ErrRemoved

	Leases       // Leaser
	Transactions // several steps as one
	Durable      // Options.Durability other than Memory
)

var abilityNames = [...]string{
	Batches: "batches", Bytes: "bytes", ZeroCopy: "zero copy", Peeking: "peeking", Purging: "purging", Notifying: "notifying",
	Selecting: "selecting", Descriptors: "descriptors", Watching: "watching", Inspecting: "inspecting", Priorities: "priorities",
	Filters: "filters", Metadata: "metadata", Delays: "delays", Expiry: "expiry", Dropping: "dropping", Headrooms: "headroom",
	Modes: "modes", Revoking: "revoking", Leases: "leases", Transactions: "transactions", Durable: "durable",
}

// String returns the ability's name in lower case, as error texts have it.
func (a Ability) String() string {
	if int(a) < len(abilityNames) {
		return abilityNames[a]
	}
	return "unknown"
}

// Abler is for queues whose methods do not tell all: those of drivers that refuse part of Send, Receive or Options, and those
// whose abilities depend on the queue.
type Abler interface {
	// Able reports whether this queue can do a. It is asked once, when the queue is opened.
	Able(a Ability) bool
}

// Able reports whether q can do a: what its Abler says if it has one, else whether it has the methods. Without an Abler a queue is
// taken to have the abilities that are not interfaces, but for transactions and durability.
func Able(q Queue, a Ability) bool {
	has := true
	switch a {
	case Batches:
		_, has = q.(Batcher)
	case Bytes:
		_, has = q.(ByteQueue)
	case ZeroCopy:
		_, r := q.(Reserver)
		_, b := q.(Borrower)
		has = r && b
	case Peeking:
		_, has = q.(Peeker)
	case Purging:
		_, has = q.(Purger)
	case Notifying:
		_, has = q.(Notifier)
	case Selecting:
		_, has = q.(Readier)
	case Descriptors:
		_, has = q.(Descriptor)
	case Watching:
		_, has = q.(Watcher)
	case Inspecting:
		_, has = q.(Inspector)
	case Leases:
		_, has = q.(Leaser)
		if _, asks := q.(Abler); !asks {
			return has
		}
	}
	if x, ok := q.(Abler); ok {
		return has && x.Able(a)
	}
	return has && a < Leases
}
