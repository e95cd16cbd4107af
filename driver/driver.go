// Package driver is the contract between package kumquat and what carries its messages.
//
// A driver is one folder that implements Driver and Queue and passes drivertest. What not every system can do stands in small
// interfaces of its own (Batcher, ByteQueue, Peeker, …): a Queue that has the methods has the ability, and package kumquat asks
// for it by a type assertion, once, when the queue is opened. A method whose ability depends on the queue, not on the driver,
// may return ErrUnsupported.
//
// Package kumquat has checked the arguments before a driver sees them: the message's priority and type are in their bounds
// (Type is never 0), filters are Valid, contexts are not nil. Drivers return the sentinels of this package, wrapped with a text
// that tells the reader what to do; package kumquat adds the operation and the queue's name.
//
// Contexts bound waiting only: a call that need not wait succeeds whatever its context says, as POSIX.1-2024 mq_timedsend has it.
// Unless said otherwise every method may be called from several goroutines at once, and Close makes the blocked ones return
// ErrClosed.
package driver

import (
	"context"
	"io/fs"
	"iter"
	"time"
)

// Driver opens, removes and lists the queues of one kind. Package kumquat calls it with the name as the driver knows it:
// for the engine "/orders", for others what follows the scheme.
type Driver interface {
	// Open returns a handle. Errors: ErrInvalid, ErrNotFound, ErrExists, ErrPermission, ErrLimit, ErrNoSpace, ErrCorrupt,
	// ErrUnsupported (an option that this driver cannot honour).
	Open(ctx context.Context, name string, o *Options) (Queue, error)
	// Remove removes the queue: those who wait get ErrRemoved. Errors: ErrNotFound, ErrPermission, ErrInvalid.
	Remove(ctx context.Context, name string) error
	// List returns the queues whose name matches pattern (path.Match, with ** for any number of folders; empty: all), sorted.
	// Queues that may not be read are listed with their name and Info.Err.
	List(ctx context.Context, pattern string) ([]Info, error)
}

// Queue is an open queue.
type Queue interface {
	// Send puts m into the queue. With try it never waits and returns ErrFull. The driver does not keep m or anything in it.
	// Errors: ErrFull, ErrTooLarge, ErrTimeout, ErrRemoved, ErrClosed, ErrNoSpace, ErrCorrupt, ErrPermission, ctx.Err().
	Send(ctx context.Context, m Message, try bool) error
	// Receive takes the first message that f lets through: highest priority, then FIFO. With try it never waits and returns
	// ErrEmpty. Errors as for Send.
	Receive(ctx context.Context, f Filter, try bool) (Message, error)
	// Stat returns a snapshot.
	Stat(ctx context.Context) (Stats, error)
	// Close gives the handle back. Blocked calls return ErrClosed. With reservations or loans open it fails and does nothing.
	Close() error
}

// Batcher sends and receives many messages in one step.
type Batcher interface {
	// SendBatch sends all of ms, with neighbouring places in the order of sends, or none. A batch larger than MaxBatch is
	// ErrTooLarge at once.
	SendBatch(ctx context.Context, ms []Message, try bool) error
	// ReceiveBatch appends to dst at most max messages, all that are there up to that; it waits only for the first. It returns
	// a message or an error, never both empty.
	ReceiveBatch(ctx context.Context, dst []Message, f Filter, max int, try bool) ([]Message, error)
	// MaxBatch is the largest batch this queue takes, ≥ 1.
	MaxBatch() int
}

// ByteQueue is the path without allocation.
type ByteQueue interface {
	// SendBytes is Send of a message with only a body and a priority.
	SendBytes(ctx context.Context, body []byte, priority int, try bool) error
	// ReceiveInto copies the first message's body into buf. ErrTooLarge if this message is longer than buf: it stays.
	ReceiveInto(ctx context.Context, buf []byte, try bool) (n, priority int, err error)
}

// Reserver writes messages in place.
type Reserver interface {
	// Reserve returns a buffer of size bytes inside the queue. It takes no capacity until it is committed.
	Reserve(ctx context.Context, size int) (Reservation, error)
}

// Reservation is a buffer inside the queue. It belongs to one goroutine.
type Reservation interface {
	// Bytes is the buffer. It must not be used after Commit or Abort.
	Bytes() []byte
	// Commit sends the buffer as the body of m (m.Body is ignored) and ends the reservation unless it fails.
	Commit(ctx context.Context, m Message, try bool) error
	// Abort gives the buffer back.
	Abort() error
}

// Borrower reads messages in place.
type Borrower interface {
	// Borrow takes a message like Receive, but its Body lies inside the queue until Release.
	Borrow(ctx context.Context, f Filter, try bool) (Loan, error)
}

// Loan is a borrowed message. It belongs to one goroutine.
type Loan interface {
	// Message returns the message. Its Body must not be changed, nor used after Release.
	Message() Message
	// Release gives the message's place back.
	Release() error
}

// Leaser delivers messages for a time. A leased message still takes its place in the queue. The lease ends by its time, or soon
// after the death of its process, or with its handle; then the message goes back to the place of its send. A lease is named by its
// token: calls with one that has ended return ErrLeaseLost and change nothing.
type Leaser interface {
	// Lease takes a message like Receive, for d (more than 0; drivers round up).
	Lease(ctx context.Context, f Filter, d time.Duration, try bool) (Lease, error)
	// LeaseBatch appends to dst at most max leases, all that are there up to that; it waits only for the first. It returns a
	// lease or an error, never both empty.
	LeaseBatch(ctx context.Context, dst []Lease, f Filter, d time.Duration, max int, try bool) ([]Lease, error)
	// Ack removes the message: it is done.
	Ack(ctx context.Context, l *Lease) error
	// AckBatch acknowledges all of ls that have not ended and returns their number; ErrLeaseLost if it is not all.
	AckBatch(ctx context.Context, ls []Lease) (int, error)
	// Extend makes the lease end d from now, and sets l.Until.
	Extend(ctx context.Context, l *Lease, d time.Duration) error
	// Retry gives the message back as one whose delivery failed (Message.Attempt), to be delivered after delay, ≥ 0.
	Retry(ctx context.Context, l *Lease, delay time.Duration) error
	// Release gives the message back at once, as if it had not been delivered.
	Release(ctx context.Context, l *Lease) error
}

// Lease is a message delivered for a time. Slot and Token are the driver's.
type Lease struct {
	Message     Message
	Slot, Token uint64
	Until       time.Time // when it ends (CLOCK_REALTIME)
}

// Peeker looks at messages without taking them.
type Peeker interface {
	// Peek yields messages in the order in which they would be received (delayed ones after those due, by time), as they stand at
	// one moment as nearly as the driver can. It needs read permission only.
	Peek(ctx context.Context, o PeekOptions) iter.Seq2[Message, error]
}

// PeekOptions says what Peek yields. The zero value yields everything.
type PeekOptions struct {
	Filter Filter
	Skip   int               // leave out this many of the matching messages
	Limit  int               // at most this many; 0: all
	NoBody bool              // leave Body nil
	Match  func([]byte) bool // nil: all; else only messages whose body it accepts
}

// Purger removes messages.
type Purger interface {
	// Purge removes all messages that were sent before it began and that f lets through, and returns their number.
	Purge(ctx context.Context, f Filter) (int, error)
}

// Notifier tells of a queue that was empty and is no longer.
type Notifier interface {
	// Notify returns a channel on which a value arrives after the queue went from empty to not empty. Several such changes may be
	// told by one value; after the last one a value is always still to come. The channel is closed when ctx is done, the handle is
	// closed or the queue removed. Any number of subscribers may be there, in any processes.
	Notify(ctx context.Context) (<-chan struct{}, error)
}

// Readier lets one goroutine wait for many queues.
type Readier interface {
	// Ready reports whether a receive with f would find something now. If not, it arranges that wake is called, once, on any
	// goroutine, when it should be asked again (possibly for nothing); stop takes that back and may be called more than once.
	Ready(f Filter, wake func()) (ready bool, stop func(), err error)
}

// Descriptor has a file descriptor for poll(2), select(2) and epoll(7).
type Descriptor interface {
	// FD returns a descriptor that is readable when it is worth trying to receive. It may be so for nothing; it is cleared by a
	// receive that finds nothing. It belongs to the queue and is closed with it.
	FD() (int, error)
}

// Watcher reports what happens to a queue.
type Watcher interface {
	// Watch yields events until ctx is done or the queue is removed. It needs read permission only.
	Watch(ctx context.Context) iter.Seq2[Event, error]
}

// Inspector shows who uses a queue and whether its file is sound.
type Inspector interface {
	// Who returns those that have the queue open. It needs read permission only.
	Who(ctx context.Context) ([]Participant, error)
	// Check examines every invariant of the queue. It needs read permission only, and changes nothing.
	Check(ctx context.Context) (Report, error)
}

// Overflow says what a send to a full queue does.
type Overflow uint8

const (
	Block      Overflow = iota // wait for room (the default)
	Reject                     // return ErrFull
	DropOldest                 // remove the oldest message of all
	DropLowest                 // remove the oldest message of the lowest priority; ErrFull if the new one is not higher
)

// Durability says what a message survives.
type Durability uint8

const (
	Memory   Durability = iota // the death of any processes, not a reboot (the default)
	Interval                   // a power loss, but for the last interval
	Always                     // a power loss, once its send has returned
)

// Headroom keeps a share of the capacity for urgent messages. The zero value keeps none.
type Headroom struct {
	Percent  int // 0 … 99 of MaxMessages, rounded down
	Priority int // messages below this priority are refused, or wait, when only the share is left
}

// Options says how to open a queue. The zero value opens an existing queue for sending and receiving.
type Options struct {
	Create    bool // create the queue if it is not there; the fields below the line then shape it, else they are ignored
	Exclusive bool // with Create: fail with ErrExists if it is there
	ReadOnly  bool // observe only (Stat, Peek, Watch, Who, Check): read permission is enough
	Owner     *int // not nil: ErrPermission unless this user id owns the queue
	Envelope  bool // on drivers that carry bare bodies (the kernel's queues): metadata travel in an envelope before the body, see docs/envelope.md

	// -- for creation
	Mode        fs.FileMode // permission bits, less the umask; 0: 0600
	MaxMessages int         // 1 … 16,000,000; 0: 65,536, on the kernel's queues what it gives by default
	MaxSize     int         // bytes of a body, 1 … 4 GiB−4096; 0: 64 KiB, likewise
	MaxHandles  int         // handles open at once, 1 … 4,096; 0: 256
	Overflow    Overflow
	Headroom    Headroom
	Durability  Durability
}

// Info is one row of List.
type Info struct {
	Name string // as Open takes it
	Stats
	Err error // why Stats is empty: ErrPermission, ErrCorrupt
}

// Stats is a snapshot of a queue. Numbers that a driver does not know are −1 where that is said, else 0.
type Stats struct {
	Messages    int   // waiting, delayed and leased ones included
	Delayed     int   // of these, not yet due (after a failed delivery too)
	Leased      int   // of these, leased (where Messages counts them) and not acknowledged
	Bytes       int64 // bodies of the waiting messages; −1: unknown
	MaxMessages int
	MaxSize     int

	Sent     uint64 // since creation
	Received uint64 // taken by receivers
	Dropped  uint64 // by overflow policy and purge
	Expired  uint64

	Handles         int // open now (those of dead processes left out)
	Receivers       int // handles with a receive that is blocked now
	Senders         int // handles with a send that is blocked now
	Takeovers       uint64
	MaxHandles      int
	MaxBatch        int
	Overflow        Overflow
	Headroom        Headroom
	Durability      Durability
	Mode            fs.FileMode
	UID, GID        int
	Created         time.Time
	Resident        int64     // bytes of memory or disk in use
	OldestEnqueued  time.Time // of the waiting messages; zero: none
	LowestPriority  int       // of the waiting messages; −1: none
	HighestPriority int
	Removed         bool
	FormatVersion   int
	Path            string // of the file, if there is one
}

// EventKind names what an Event tells.
type EventKind string

const (
	EventSent     EventKind = "sent"     // N messages were sent since the last event of this kind
	EventReceived EventKind = "received" // N messages were taken
	EventDropped  EventKind = "dropped"  // N messages were dropped by policy or purge
	EventExpired  EventKind = "expired"  // N messages expired
	EventOpened   EventKind = "opened"   // Participant opened the queue
	EventClosed   EventKind = "closed"   // Participant closed it
	EventDied     EventKind = "died"     // Participant's process died with the queue open
	EventTakeover EventKind = "takeover" // the lock was taken over from a holder that had died or stopped, N times
	EventRemoved  EventKind = "removed"  // the queue was removed
)

// Event is one thing that happened to a queue.
type Event struct {
	Time        time.Time
	Kind        EventKind
	N           uint64       // how many, for the counted kinds
	Messages    int          // waiting after it
	Participant *Participant // for opened, closed and died
}

// Participant is one handle of a queue and the process that holds it. What it says of itself is not verified.
type Participant struct {
	Number    int    // place in the queue's table
	PID       int    // in the PID namespace of the process; 0: unknown
	Visible   bool   // that process can be seen from here, so the fields of /proc below are set
	Command   string // as the process stated it when it opened the queue
	User      string // name, or number
	UID       int
	Unit      string // systemd unit or container, from its cgroup
	State     string // R, S, D, T (stopped), Z; "?": not visible from here
	Doing     string // "idle", "send", "receive", "wait to receive", "wait to send", "hold the lock", "take over", …
	Since     time.Time
	Opened    time.Time
	Holds     int // slots reserved or taken
	Sent      uint64
	Received  uint64
	Alive     bool
	ReadOnly  bool
	Last      []string // last operations, newest first
	Namespace bool     // true: it lives in another PID namespace than this process
}

// Problem is one finding of Check.
type Problem struct {
	Broken bool   // an invariant is broken; else it is debris of the dead that the next users clear
	Where  string // "header", "slot 17", "area 2", …
	Text   string
}

// Report is what Check found.
type Report struct {
	Name     string
	Checked  int       // facts looked at
	Problems []Problem // empty: sound
	Dead     []Participant
	Busy     bool // the queue was in use all the time: what needs a quiet moment was not checked
}
