package shm

import (
	"context"
	"io/fs"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

// Beyond so many slots in use Stat does not read them all: it would take longer than somebody who asks every second can wait.
const statScan = 4 << 20

// Stat returns a snapshot of the queue. The number of messages is exact unless the queue is under heavy use while it is read.
// When more than 4 million slots are in use, Bytes is −1, and the oldest message and the number of delayed ones are not known.
// With ErrRemoved come the last numbers.
func (o *observer) Stat(ctx context.Context) (driver.Stats, error) {
	var s driver.Stats
	st, err := o.stat()
	if err != nil {
		return s, err
	}
	s = driver.Stats{MaxMessages: int(o.max), MaxSize: int(o.maxSize), MaxHandles: int(o.parts), MaxBatch: o.maxBatch(), Overflow: o.overflow,
		Headroom: o.headroom, Durability: driver.Memory, Mode: fs.FileMode(st.Mode & 0o777), UID: int(st.Uid), GID: int(st.Gid),
		Created: o.created, Resident: st.Blocks * 512, LowestPriority: -1, HighestPriority: -1, FormatVersion: formatVersion, Path: o.path,
		Removed: st.Nlink == 0}
	now, n, exact, err := o.waiting()
	if err != nil {
		return s, err
	}
	if s.Dropped, s.Expired, err = o.losses(); err != nil {
		return s, err
	}
	s.Messages, s.Sent, s.Takeovers = int(n), headSeq(now.head), lockEpoch(now.lock)
	if taken := now.consumed & seqMask; taken > s.Dropped+s.Expired {
		s.Received = taken - s.Dropped - s.Expired
	}
	if err := o.statHandles(&s); err != nil {
		return s, err
	}
	if n > 0 {
		if err := o.statMessages(ctx, &s, n, exact); err != nil {
			return s, err
		}
	}
	err = o.gone()
	s.Removed = s.Removed || err != nil
	return s, err
}

// losses returns how many messages left the queue without being received.
func (o *observer) losses() (dropped, expired uint64, err error) {
	if dropped, err = o.word(offDropped); err == nil {
		expired, err = o.word(offExpired)
	}
	return dropped & seqMask, expired & seqMask, err
}

func (o *observer) statHandles(s *driver.Stats) error {
	entries, err := o.entries()
	if err != nil {
		return err
	}
	for i := range entries {
		e := &entries[i]
		if partState(e.word) != partLive {
			continue
		}
		alive, err := o.alive(e.number)
		if err != nil {
			return err
		}
		if !alive {
			continue
		}
		s.Handles++
		switch o, _ := doingOf(e.doing); o {
		case opWaitReceive:
			s.Receivers++
		case opWaitSend:
			s.Senders++
		}
	}
	return nil
}

// statMessages fills in what only the messages themselves tell. All n are found when n is exact, so it may stop there.
func (o *observer) statMessages(ctx context.Context, s *driver.Stats, n uint64, exact bool) error {
	snap, err := o.snapshot(ctx)
	if err != nil {
		return err
	}
	if snap.high > statScan {
		s.Bytes = -1
		return o.indexPriorities(s, lockArea(snap.lock))
	}
	now, found := time.Now().UnixNano(), uint64(0)
	err = snap.messages(ctx, func(e *seen) bool {
		h, prio := parseSlot(e.head), int(linkPrio(e.link))
		if h.fault(&o.layout) == "" {
			s.Bytes += int64(h.size)
		}
		if max(h.notBefore, e.retry) > now {
			s.Delayed++
		}
		if t := nanoTime(h.enqueued); s.OldestEnqueued.IsZero() || t.Before(s.OldestEnqueued) {
			s.OldestEnqueued = t
		}
		if found == 0 || prio < s.LowestPriority {
			s.LowestPriority = prio
		}
		s.HighestPriority = max(s.HighestPriority, prio)
		found++
		return !exact || snap.leases || found < n
	})
	if snap.leases { // what was acknowledged is counted as gone only by the next holder
		s.Leased = int(snap.leased)
		s.Messages = int(min(found+snap.leased, o.max))
	}
	return err
}

// indexPriorities reads the lowest and the highest priority from the bitmap of area k: what was not drained yet is not in it.
func (o *observer) indexPriorities(s *driver.Stats, k uint64) error {
	b := make([]byte, pageSize)
	if err := o.read(b, o.areaBase(k)+aLevel0); err != nil {
		return err
	}
	for p := range driver.MaxPriority + 1 {
		if b[p/8]&(1<<(p%8)) != 0 {
			if s.LowestPriority < 0 {
				s.LowestPriority = p
			}
			s.HighestPriority = p
		}
	}
	return nil
}
