package kumquat

import "github.com/kumquat-mq/kumquat/driver"

// Ability names something that not every queue can do; Queue.Can tells whether one can.
type Ability = driver.Ability

// The abilities.
const (
	Batches      = driver.Batches      // SendBatch and TrySendBatch (ReceiveBatch works on every queue)
	Bytes        = driver.Bytes        // SendBytes and ReceiveInto without allocation
	ZeroCopy     = driver.ZeroCopy     // Reserve and Borrow
	Peeking      = driver.Peeking      // Peek
	Purging      = driver.Purging      // Purge
	Notifying    = driver.Notifying    // Notify
	Selecting    = driver.Selecting    // Select without a descriptor
	Descriptors  = driver.Descriptors  // FD
	Watching     = driver.Watching     // Watch
	Inspecting   = driver.Inspecting   // Who and Check
	Priorities   = driver.Priorities   // all of 0 … MaxPriority, strictly
	Filters      = driver.Filters      // every filter
	Metadata     = driver.Metadata     // ID, Key, Group, CorrelationID, ReplyTo, ContentType, Headers and Type
	Delays       = driver.Delays       // Message.NotBefore
	Expiry       = driver.Expiry       // Message.Expires
	Dropping     = driver.Dropping     // Options.Overflow DropOldest and DropLowest
	Headrooms    = driver.Headrooms    // Options.Headroom
	Modes        = driver.Modes        // Options.Mode, Owner and ReadOnly
	Revoking     = driver.Revoking     // Remove ends open handles: those who wait on them, and all later calls, get ErrRemoved
	Leases       = driver.Leases       // Lease
	Transactions = driver.Transactions // several steps as one
	Durable      = driver.Durable      // Options.Durability other than Memory
)

// abilities are the optional parts of a queue, looked for once, when it is opened: later calls only compare with nil.
type abilities struct {
	can     uint64 // bit a: Ability a
	batch   driver.Batcher
	bytes   driver.ByteQueue
	reserve driver.Reserver
	borrow  driver.Borrower
	peek    driver.Peeker
	purge   driver.Purger
	notify  driver.Notifier
	ready   driver.Readier
	fd      driver.Descriptor
	watch   driver.Watcher
	inspect driver.Inspector
	leaser  driver.Leaser
}

func findAbilities(d driver.Queue) (a abilities) {
	for x := Ability(0); x <= Durable; x++ {
		if driver.Able(d, x) {
			a.can |= 1 << x
		}
	}
	find(&a, Batches, &a.batch, d)
	find(&a, Bytes, &a.bytes, d)
	find(&a, ZeroCopy, &a.reserve, d)
	find(&a, ZeroCopy, &a.borrow, d)
	find(&a, Peeking, &a.peek, d)
	find(&a, Purging, &a.purge, d)
	find(&a, Notifying, &a.notify, d)
	find(&a, Selecting, &a.ready, d)
	find(&a, Descriptors, &a.fd, d)
	find(&a, Watching, &a.watch, d)
	find(&a, Inspecting, &a.inspect, d)
	find(&a, Leases, &a.leaser, d)
	return a
}

func find[T any](a *abilities, x Ability, to *T, d driver.Queue) {
	if a.can&(1<<x) != 0 {
		*to, _ = d.(T)
	}
}

// Can reports whether the queue can do a. What it cannot do returns ErrUnsupported.
func (q *Queue) Can(a Ability) bool { return a <= Durable && q.can&(1<<a) != 0 }
