package linear

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
)

// A worker writes each call down before it makes it, and its outcome after it returned, in a file that it has mapped shared: a kill
// between any two stores leaves the stores before it.

// entry is a call in a record.
type entry struct {
	op     op // 0: the end of the record
	filter uint8
	n      uint8 // messages sent, asked for
	res    result
	got    uint8 // messages received
	bad    uint8 // one of them is not what was sent
	_      [2]byte
	began  int64 // CLOCK_MONOTONIC, ns: all processes of a machine share it
	ended  int64 // 0: it has not returned
	items  [maxBatch]token
}

const (
	entrySize = int(unsafe.Sizeof(entry{}))
	maxBatch  = 4
)

type op uint8

const (
	opTrySend op = iota + 1
	opSend
	opTrySendBytes
	opTrySendBatch
	opSendBatch
	opCommit
	opTryReceive
	opReceive
	opTryReceiveInto
	opTryReceiveBatch
	opReceiveBatch
	opBorrow
)

func (o op) sends() bool { return o <= opCommit }

type result uint8

const (
	resDone    result = iota + 1
	resFull           // ErrFull
	resEmpty          // ErrEmpty
	resNothing        // the deadline passed
)

// token stands for a message: a number that no other message of the round has, its priority and type. It is the beginning of its
// body; the rest of the body follows from it.
type token uint64

func newToken(id uint32, prio int, typ int64) token {
	return token(id)<<32 | token(prio)<<16 | token(typ)
}

func (t token) item() item {
	return item{id: uint64(t), prio: int(t >> 16 & 0xffff), typ: int64(t & 0xffff)}
}

// fill writes the body of t; it has 8 bytes at least.
func (t token) fill(body []byte) {
	binary.LittleEndian.PutUint64(body, uint64(t))
	for i := 8; i < len(body); i++ {
		body[i] = byte(uint64(t)>>32) ^ byte(i)
	}
}

// readToken returns the token of a message that was received. false: it is not the message that was sent under this token.
func readToken(body []byte, size, prio int, typ int64) (token, bool) {
	if len(body) < 8 {
		return 0, false
	}
	t := token(binary.LittleEndian.Uint64(body))
	x := t.item()
	ok := x.prio == prio && x.typ == typ && len(body) == sizeOf(t, size)
	for i := 8; i < len(body) && ok; i++ {
		ok = body[i] == byte(uint64(t)>>32)^byte(i)
	}
	return t, ok
}

// sizeOf is the length of t's body: most lie in the slot, some outside.
func sizeOf(t token, most int) int { return 8 + int(t>>32)*37%(most-7) }

// record is one while it is written.
type record struct {
	mapped  []byte
	entries []entry
	next    int
}

// createRecord makes a file for n entries.
func createRecord(path string, n int) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return f.Truncate(int64(n * entrySize))
}

func openRecord(path string, n int) (*record, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := unix.Mmap(int(f.Fd()), 0, n*entrySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("mmap %s: %w", path, err)
	}
	return &record{mapped: b, entries: unsafe.Slice((*entry)(unsafe.Pointer(&b[0])), n)}, nil
}

func (r *record) close() error { return unix.Munmap(r.mapped) }

// begin writes down that a call is about to be made. What is in its items must be there already.
func (r *record) begin(e *entry) {
	at := now()
	atomic.StoreInt64(&e.began, at)
}

func (r *record) end(e *entry, at int64, res result) {
	e.res = res
	atomic.StoreInt64(&e.ended, at)
	r.next++
}

// readRecord returns the entries of calls that had begun.
func readRecord(path string) ([]entry, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	all := unsafe.Slice((*entry)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/entrySize)
	for i := range all {
		if all[i].began == 0 {
			return all[:i], nil
		}
	}
	return all, nil
}

// now reads CLOCK_MONOTONIC in nanoseconds.
func now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // Linux always has it
	}
	return ts.Nano()
}

// filters are those that receivers use; the first is none.
var filters = [...]kumquat.Filter{{}, kumquat.Type(1), kumquat.Type(2), kumquat.TypeAtMost(2), kumquat.Not(1), kumquat.MinPriority(2),
	{Type: 3, MinPriority: 1}, {TypeAtMost: 3, MinPriority: 2}, {TypeAtMost: 3, NotType: 1}}

// calls turns the record of process who into calls of a history. died is when the process was surely dead; 0: it lives.
func calls(who int, entries []entry, died int64, serial *int) ([]*call, error) {
	var out []*call
	for i := range entries {
		e := &entries[i]
		if e.bad != 0 {
			return nil, fmt.Errorf("process %d: call %d: a message is not what was sent: token %#x", who, i, e.items)
		}
		c := &call{who: who, began: e.began, ended: e.ended, filter: filters[e.filter]}
		for _, t := range e.items[:e.n] {
			c.items = append(c.items, t.item())
		}
		if e.ended == 0 {
			if died == 0 || i != len(entries)-1 {
				return nil, fmt.Errorf("process %d: call %d never returned, and it was not killed in it", who, i)
			}
			c.ended, c.kind = died, maySend
			if !e.op.sends() {
				c.kind, c.items = mayTake, nil
				for range e.n { // of a batch
					d := *c
					out = append(out, &d)
				}
				continue
			}
			out = append(out, c)
			continue
		}
		switch {
		case e.res == resNothing:
			continue
		case e.res == resFull:
			c.kind = full
		case e.res == resEmpty:
			c.kind, c.items = empty, nil
		case e.op.sends():
			c.kind = sent
		default:
			if e.got > 1 {
				*serial++
			}
			for k, t := range e.items[:e.got] {
				d := *c
				d.kind, d.items = took, []item{t.item()}
				if e.got > 1 {
					d.batch, d.place = *serial, k
				}
				out = append(out, &d)
			}
			continue
		}
		out = append(out, c)
	}
	return out, nil
}
