package kumquat

import (
	"io/fs"

	"github.com/kumquat-mq/kumquat/driver"
)

// Options says how to open a queue. The zero value, and nil, open an existing queue for sending and receiving.
type Options = driver.Options

// Overflow says what a send to a full queue does.
type Overflow = driver.Overflow

// The overflow policies.
const (
	Block      = driver.Block      // wait for room (the default)
	Reject     = driver.Reject     // return ErrFull
	DropOldest = driver.DropOldest // remove the oldest message of all
	DropLowest = driver.DropLowest // remove the oldest message of the lowest priority; ErrFull if the new one is not higher
)

// Headroom keeps a share of the capacity for urgent messages. The zero value keeps none.
type Headroom = driver.Headroom

// Durability says what a message survives.
type Durability = driver.Durability

// The degrees of durability.
const (
	Memory   = driver.Memory   // the death of any processes, not a reboot (the default)
	Interval = driver.Interval // a power loss, but for the last interval
	Always   = driver.Always   // a power loss, once its send has returned
)

// PeekOptions says what Peek yields. The zero value yields everything.
type PeekOptions = driver.PeekOptions

// Stats is a snapshot of a queue.
type Stats = driver.Stats

// Info is one row of List.
type Info = driver.Info

// Event is one thing that happened to a queue; Watch yields them.
type Event = driver.Event

// EventKind names what an Event tells.
type EventKind = driver.EventKind

// The kinds of events.
const (
	EventSent     = driver.EventSent     // N messages were sent since the last event of this kind
	EventReceived = driver.EventReceived // N messages were taken
	EventDropped  = driver.EventDropped  // N messages were dropped by policy or purge
	EventExpired  = driver.EventExpired  // N messages expired
	EventOpened   = driver.EventOpened   // Participant opened the queue
	EventClosed   = driver.EventClosed   // Participant closed it
	EventDied     = driver.EventDied     // Participant's process died with the queue open
	EventTakeover = driver.EventTakeover // the lock was taken over from a holder that had died or stopped, N times
	EventRemoved  = driver.EventRemoved  // the queue was removed
)

// Participant is one handle of a queue and the process that holds it; Who returns them.
type Participant = driver.Participant

// Report is what Check found.
type Report = driver.Report

// Problem is one finding of Check.
type Problem = driver.Problem

// Bounds of Options.
const (
	maxMessages = 16_000_000
	maxSize     = 4<<30 - 4096
	maxHandles  = 4096
)

func checkOptions(o *Options) error {
	if o.Exclusive && !o.Create {
		return invalid("Exclusive needs Create")
	}
	if o.Owner != nil && *o.Owner < 0 {
		return invalid("Owner %d is below 0", *o.Owner)
	}
	if !o.Create {
		return nil
	}
	switch {
	case o.Mode&^fs.ModePerm != 0:
		return invalid("Mode %v has more than permission bits", o.Mode)
	case o.MaxMessages < 0 || o.MaxMessages > maxMessages:
		return invalid("MaxMessages %d is not from 1 to %d (0: the default)", o.MaxMessages, maxMessages)
	case o.MaxSize < 0 || int64(o.MaxSize) > maxSize:
		return invalid("MaxSize %d is not from 1 to %d bytes (0: the default)", o.MaxSize, int64(maxSize))
	case o.MaxHandles < 0 || o.MaxHandles > maxHandles:
		return invalid("MaxHandles %d is not from 1 to %d (0: the default)", o.MaxHandles, maxHandles)
	case o.Overflow > DropLowest:
		return invalid("Overflow %d is unknown", o.Overflow)
	case o.Durability > Always:
		return invalid("Durability %d is unknown", o.Durability)
	case o.Headroom.Percent < 0 || o.Headroom.Percent > 99:
		return invalid("Headroom.Percent %d is not from 0 to 99", o.Headroom.Percent)
	}
	if err := checkPriority(o.Headroom.Priority); err != nil {
		return invalid("Headroom.Priority %d is not from 0 to %d", o.Headroom.Priority, MaxPriority)
	}
	return nil
}
