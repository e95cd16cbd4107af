package torture

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A worker writes down every call before it makes it, and its outcome after it returned, in a file that it has mapped shared. Such
// memory survives the process, and a kill between any two stores leaves the stores before it: so the record of a dead worker says
// which call it died in, and nothing about that call is believed but that it had begun.

// entry is 64 bytes of a record: a call, or one message of a batch that a receive returned. The messages of a batch follow the call.
type entry struct {
	head  uint32 // kind:8 | op:8 | filter:8; 0: the end of the record. Written last but for what says otherwise.
	n     uint32 // call: how many messages were sent, or asked for
	id    uint64 // the message, or the first of a batch that is sent
	began int64  // CLOCK_MONOTONIC, ns: all processes of a machine share it
	ended int64  // 0: the call has not returned. Written last of all
	seq   uint64 // 0: not told (ReceiveInto)
	taken uint64
	prio  uint16
	typ   uint8
	bad   uint8 // what is wrong with the message, see badNothing
	got   uint32
	res   uint8
	_     [7]byte
}

const (
	entrySize = 64
	_         = uint(entrySize-unsafe.Sizeof(entry{})) + uint(unsafe.Sizeof(entry{})-entrySize) // they are equal

	kindCall    = 1
	kindMessage = 2
	kindAtWork  = 3 // the actor began or ended its work then; nothing else
)

func (e *entry) kind() uint8   { return uint8(e.head) }
func (e *entry) op() op        { return op(e.head >> 8) }
func (e *entry) filter() uint8 { return uint8(e.head >> 16) }

// What became of a call.
const (
	resOK        = 1
	resNothing   = 2 // full, empty, timed out or cancelled: nothing was sent or taken
	resAbandoned = 3 // an error that no call should give; the worker says which
)

// What can be wrong with a message.
const (
	badNothing  = 0
	badBody     = 1 // its bytes are not those that were sent
	badLength   = 2
	badPriority = 3
	badType     = 4
	badEarly    = 5 // it came before its NotBefore
	badLate     = 6 // it came after its Expires
	badStamps   = 7 // no Seq or Taken
)

var badNames = [...]string{"", "wrong body", "wrong length", "wrong priority", "wrong type", "delivered before its NotBefore",
	"delivered after its Expires", "without Seq or Taken"}

// recordOf is a record while it is written.
type recordOf struct {
	entries []entry
	next    int
	mapped  []byte
}

// newRecord makes a record of n entries in a file, in the memory of this process if path is empty.
func newRecord(path string, n int) (*recordOf, error) {
	if path == "" {
		return &recordOf{entries: make([]entry, n)}, nil
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	if err := f.Truncate(int64(n) * entrySize); err != nil {
		return nil, err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, n*entrySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap %s: %w", path, err)
	}
	return &recordOf{entries: unsafe.Slice((*entry)(unsafe.Pointer(&b[0])), n), mapped: b}, nil
}

func (r *recordOf) close() error {
	if r.mapped == nil {
		return nil
	}
	return unix.Munmap(r.mapped)
}

// room reports whether a call of n messages can still be written down.
func (r *recordOf) room(n int) bool { return r.next+n+3 < len(r.entries) }

// begin writes that a call is about to be made.
func (r *recordOf) begin(o op, filter uint8, id uint64, n int) *entry {
	e := &r.entries[r.next]
	r.next++
	e.id, e.n = id, uint32(n)
	e.began = now()
	atomic.StoreUint32(&e.head, kindCall|uint32(o)<<8|uint32(filter)<<16)
	return e
}

// forget takes back the last call, which took nothing: those who try and try would fill the record.
func (r *recordOf) forget() {
	r.next--
	e := &r.entries[r.next]
	atomic.StoreUint32(&e.head, 0)
	e.res, e.got = 0, 0
	atomic.StoreInt64(&e.ended, 0)
}

// atWork writes that the actor begins, or has ended.
func (r *recordOf) atWork() {
	e := &r.entries[r.next]
	r.next++
	e.began = now()
	atomic.StoreUint32(&e.head, kindAtWork)
}

// message writes down a message of the batch that the last call returned.
func (r *recordOf) message() *entry {
	e := &r.entries[r.next]
	r.next++
	e.head = kindMessage
	return e
}

// end writes that the call has returned.
func (e *entry) end(at int64, res uint8, got int) {
	e.res, e.got = res, uint32(got)
	atomic.StoreInt64(&e.ended, at)
}

// readRecord reads the record of a worker that has ended. A missing file is an empty record: the worker died before it made it.
func readRecord(path string) ([]entry, error) {
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	const chunk = 512
	var out []entry
	for {
		at := len(out)
		out = append(out, make([]entry, chunk)...)
		n, err := f.ReadAt(unsafe.Slice((*byte)(unsafe.Pointer(&out[at])), chunk*entrySize), int64(at)*entrySize)
		for i := range chunk {
			if i >= n/entrySize || out[at+i].head == 0 {
				return out[:at+i], nil
			}
		}
		if err != nil {
			return nil, err
		}
	}
}

// now reads CLOCK_MONOTONIC in nanoseconds.
func now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // Linux always has it
	}
	return ts.Nano()
}
