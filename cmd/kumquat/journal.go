package main

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
	engine "github.com/kumquat-mq/kumquat/shm"
)

// A journal is where move keeps the one message that it has taken from a queue and not sent to the other yet: a small file in memory,
// beside the queues, mapped into the process. What was written into a shared mapping stays when the process is killed, and the next
// call finds it there.
//
// A message from the kernel is received into the mapping itself: the system call that takes it out of the queue is the one that writes
// it here, and a signal, SIGKILL included, comes before that call or after it. (The pages are there, so the copy cannot be interrupted
// by a fault.) What a death can take away is only what the call returns, the length. So the space is filled beforehand with bytes that
// a body seldom ends with, and the bytes in the queue before the call are noted: from both the length is found again.
//
// The file:
//
//	0       journalHead
//	512     the route, JSON
//	8192    the metadata of the message, gob; none for a message that has none
//	81912   mtype, 8 bytes: with the body struct msgbuf of msgrcv
//	81920   the body, journalHead.room bytes
const (
	routeAt = 512
	metaAt  = 8 << 10
	typeAt  = bodyAt - 8
	bodyAt  = 80 << 10
)

// What a journal holds. The state is written last, and so decides what counts of the rest.
const (
	holdsNothing uint32 = iota
	isTaking            // a receive from one of the kernel's queues has begun: mtype or priority tell whether it took something
	isIntending         // the message seq, which is here, is about to be taken from a queue of the engine
	holdsMessage        // the message was taken
)

type journalHead struct {
	magic    [8]byte
	state    uint32 // atomic
	priority uint32 // noPriority: the receive has not written it
	room     uint64 // bytes for the body
	length   uint64 // of the body; not with isTaking
	meta     uint64 // bytes
	route    uint64 // bytes
	before   int64  // isTaking: bytes of all bodies in the source before it
	seq      uint64 // isIntending
	inode    uint64 // isIntending: of the queue's file
	seed     uint64 // of the fill
	expected uint64 // isTaking: 1 + the length of the message that was seen in the queue before it; 0: none was
	sum      uint64 // of that message
}

const (
	journalMagic = "kmqmove1"
	noPriority   = ^uint32(0)
)

var _ = [1]struct{}{}[unsafe.Sizeof(journalHead{})/(routeAt+1)] // it fits before the route

// route is what a journal belongs to.
type route struct {
	From  string `json:"from"`
	To    string `json:"to"`
	IPC   string `json:"ipc"` // namespace, which the names of the kernel's queues belong to
	Strip bool   `json:"strip,omitempty"`
}

func (r *route) same(x *route) bool { return r.From == x.From && r.To == x.To && r.IPC == x.IPC }

// ipcNamespace names the IPC namespace of this process.
func ipcNamespace() string {
	ns, err := os.Readlink("/proc/self/ns/ipc")
	if err != nil {
		return unknownText
	}
	return ns
}

type journal struct {
	f     *os.File
	path  string
	mem   []byte
	head  *journalHead
	route route
	dirty int // bytes of the body area that are no fill
}

const journalPrefix = "kumquat-move."

func journalDir() string {
	if d := os.Getenv(engine.EnvDir); d != "" {
		return d
	}
	return "/dev/shm"
}

// journalPaths are the names of journals of one route: as many calls can be at work at once.
func journalPaths(r *route) []string {
	h := fnv.New64a()
	fmt.Fprintf(h, "%q %q %q", r.From, r.To, r.IPC)
	paths := make([]string, 16)
	for i := range paths {
		paths[i] = filepath.Join(journalDir(), fmt.Sprintf("%s%d.%016x.%d", journalPrefix, os.Geteuid(), h.Sum64(), i))
	}
	return paths
}

// errAtWork: another process has the journal locked.
var errAtWork = errors.New("another process is at work with it")

// openJournal opens the file and locks it, as long as the process lives; with r it is made if it is not there. fs.ErrNotExist and
// errAtWork are what their names say; a file that belongs to somebody else, or is no journal, is an error.
func openJournal(path string, r *route) (*journal, error) {
	for {
		flags := unix.O_RDWR | unix.O_CLOEXEC | unix.O_NOFOLLOW
		if r != nil {
			flags |= unix.O_CREAT
		}
		f, err := os.OpenFile(path, flags, 0o600)
		if err != nil {
			return nil, err
		}
		j, again, err := lockJournal(f, path, r)
		if err == nil && !again {
			return j, nil
		}
		f.Close()
		if err != nil {
			return nil, err
		}
	}
}

// lockJournal does the rest. again is true if the name stands for another file by now.
func lockJournal(f *os.File, path string, r *route) (j *journal, again bool, err error) {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
		return nil, false, errAtWork
	} else if err != nil {
		return nil, false, os.NewSyscallError("flock", err)
	}
	var st, named unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, false, err
	}
	if err := unix.Lstat(path, &named); err != nil || named.Ino != st.Ino {
		return nil, true, nil
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 {
		return nil, false, fmt.Errorf("%w: %s is not a journal of this user", kumquat.ErrPermission, path)
	}
	j = &journal{f: f, path: path}
	if st.Size == 0 { // new, or made by a process that was killed before it could write
		if r == nil {
			return nil, false, errors.Join(os.Remove(path), fs.ErrNotExist)
		}
		return j, false, j.begin(r)
	}
	return j, false, j.load(st.Size)
}

// begin writes a new journal. Until the magic stands there it counts as empty.
func (j *journal) begin(r *route) error {
	if err := j.resize(firstRoom); err != nil {
		return err
	}
	j.head.room, j.head.seed = firstRoom, rand.Uint64()
	if err := j.setRoute(r); err != nil {
		return err
	}
	copy(j.head.magic[:], journalMagic)
	j.dirty = firstRoom
	return nil
}

const firstRoom = 16 << 10

func (j *journal) setRoute(r *route) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if len(b) > metaAt-routeAt {
		return fmt.Errorf("%w: the names of the queues are too long", kumquat.ErrInvalid)
	}
	copy(j.mem[routeAt:], b)
	j.head.route, j.route = uint64(len(b)), *r
	return nil
}

// load reads a journal that is there.
func (j *journal) load(size int64) error {
	if size < bodyAt || size > 1<<40 {
		return j.bad()
	}
	if err := j.remap(int(size)); err != nil {
		return err
	}
	h := j.head
	if h.magic == [8]byte{} { // killed while it was made: it holds nothing
		h.state, h.room, h.seed = holdsNothing, uint64(size-bodyAt), rand.Uint64()
		copy(h.magic[:], journalMagic)
		j.dirty = int(h.room)
		return nil
	}
	if string(h.magic[:]) != journalMagic || h.room > uint64(size-bodyAt) || h.length > h.room || h.meta > typeAt-metaAt ||
		h.route > metaAt-routeAt || h.state > holdsMessage {
		return j.bad()
	}
	if h.route > 0 {
		if err := json.Unmarshal(j.mem[routeAt:routeAt+h.route], &j.route); err != nil {
			return j.bad()
		}
	}
	j.dirty = int(h.room)
	return nil
}

func (j *journal) bad() error {
	return fmt.Errorf("%w: %s is no journal of this version of kumquat move", kumquat.ErrCorrupt, j.path)
}

// resize makes room for bodies of n bytes. The pages are there afterwards: nothing that is written later can lack memory.
func (j *journal) resize(n int) error {
	err := unix.Fallocate(int(j.f.Fd()), 0, 0, int64(bodyAt+n))
	switch err {
	case nil:
	case unix.ENOSPC, unix.EDQUOT:
		return fmt.Errorf("%w: %s has no room for the message in hand, %d bytes", kumquat.ErrNoSpace, journalDir(), n)
	default:
		return os.NewSyscallError("fallocate", err)
	}
	if err := j.remap(bodyAt + n); err != nil {
		return err
	}
	if n > int(j.head.room) {
		j.head.room = uint64(n)
		j.dirty = n
	}
	return nil
}

func (j *journal) remap(size int) error {
	mem, err := unix.Mmap(int(j.f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	if j.mem != nil {
		_ = unix.Munmap(j.mem)
	}
	j.mem = mem
	j.head = (*journalHead)(unsafe.Pointer(unsafe.SliceData(mem)))
	return nil
}

// close gives the file back, and removes it if it holds nothing.
func (j *journal) close() error {
	var err error
	if j.state() == holdsNothing {
		err = os.Remove(j.path) // while it is locked
	}
	_ = unix.Munmap(j.mem)
	return errors.Join(err, j.f.Close())
}

func (j *journal) state() uint32     { return atomic.LoadUint32(&j.head.state) }
func (j *journal) set(state uint32)  { atomic.StoreUint32(&j.head.state, state) }
func (j *journal) body() []byte      { return j.mem[bodyAt : bodyAt+j.head.room] }
func (j *journal) mtype() *int64     { return (*int64)(unsafe.Pointer(&j.mem[typeAt])) }
func (j *journal) msgbuf() uintptr   { return uintptr(unsafe.Pointer(&j.mem[typeAt])) }
func (j *journal) address() uintptr  { return uintptr(unsafe.Pointer(&j.mem[bodyAt])) }
func (j *journal) priority() uintptr { return uintptr(unsafe.Pointer(&j.head.priority)) }

// fillBytes are never part of text in UTF-8, so that text always ends before them; of other bodies one in 256 ends with a byte that
// happens to be that of the fill.
func fillBytes(seed uint64, b []byte) {
	var key [32]byte
	*(*uint64)(unsafe.Pointer(&key)) = seed
	_, _ = rand.NewChaCha8(key).Read(b)
	for i := range b {
		b[i] = 0xf5 + b[i]&7
	}
}

// prepare makes the journal ready for a receive from the kernel: before is the number of bytes in the queue.
func (j *journal) prepare(before int64) {
	j.set(holdsNothing)
	fillBytes(j.head.seed, j.body()[:j.dirty])
	j.dirty = 0
	*j.mtype() = 0
	j.head.priority = noPriority
	j.head.before, j.head.meta, j.head.expected = before, 0, 0
	j.set(isTaking)
}

// took notes that the receive that was prepared has returned n bytes.
func (j *journal) took(n int) {
	j.head.length = uint64(n)
	j.dirty = n
	j.set(holdsMessage)
}

// expect notes what the receive that is being prepared is expected to give.
func (j *journal) expect(body []byte) {
	j.head.sum = uint64(crc32.Checksum(body, castagnoli))
	j.head.expected = uint64(len(body)) + 1
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// receivedLength finds the length of what a receive has left behind that did not come back: the body ends where the fill begins. now is
// the number of bytes in the queue; −1: not known. If nobody else used the queue it tells whether the body ends like the fill.
func (j *journal) receivedLength(now int64) int {
	fill := make([]byte, len(j.body()))
	fillBytes(j.head.seed, fill)
	n := len(fill)
	for n > 0 && j.body()[n-1] == fill[n-1] {
		n--
	}
	if e := j.head.expected; e > 0 && e-1 >= uint64(n) && e-1 <= uint64(len(fill)) &&
		uint64(crc32.Checksum(j.body()[:e-1], castagnoli)) == j.head.sum {
		return int(e - 1)
	}
	const chance = 4 // that more bytes than this are those of the fill by chance happens once in 10¹²
	if more := j.head.before - now - int64(n); now >= 0 && more > 0 && more <= chance && n+int(more) <= len(fill) {
		n += int(more)
	}
	return n
}

// write puts a message into the journal, and then the state.
func (j *journal) write(m *kumquat.Message, state uint32) error {
	j.set(holdsNothing)
	if len(m.Body) > int(j.head.room) {
		if err := j.resize(len(m.Body) + len(m.Body)/4); err != nil {
			return err
		}
	}
	j.head.meta = 0
	if !bare(m) {
		var b bytes.Buffer
		meta := *m
		meta.Body = nil
		if err := gob.NewEncoder(&b).Encode(&meta); err != nil {
			return err
		}
		if b.Len() > typeAt-metaAt {
			return fmt.Errorf("%w: the metadata of the message, %d bytes", kumquat.ErrTooLarge, b.Len())
		}
		copy(j.mem[metaAt:], b.Bytes())
		j.head.meta = uint64(b.Len())
	}
	j.head.priority, j.head.seq, j.head.length = uint32(m.Priority), m.Seq, uint64(len(m.Body))
	*j.mtype() = m.Type
	copy(j.body(), m.Body)
	j.dirty = max(j.dirty, len(m.Body))
	j.set(state)
	return nil
}

// bare reports whether a message has nothing but a body, a priority and a type, of what a sender can give.
func bare(m *kumquat.Message) bool {
	return m.ID == "" && m.Key == "" && m.Group == "" && m.CorrelationID == "" && m.ReplyTo == "" && m.ContentType == "" && len(m.Headers) == 0 &&
		m.NotBefore.IsZero() && m.Expires.IsZero()
}

// read returns the message. Its body lies in the journal.
func (j *journal) read() (kumquat.Message, error) {
	m := kumquat.Message{Priority: int(j.head.priority), Type: *j.mtype()}
	if j.head.meta > 0 {
		if err := gob.NewDecoder(bytes.NewReader(j.mem[metaAt : metaAt+j.head.meta])).Decode(&m); err != nil {
			return m, j.bad()
		}
	}
	m.Body = j.body()[:j.head.length]
	return m, nil
}
