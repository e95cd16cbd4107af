package differ

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/posix"
	"github.com/kumquat-mq/kumquat/sysv"
)

// command is a line for a worker. What it answers is a line with a reply.
type command struct {
	Do     string // "begin", "end", "cancel" and "call"
	URL    string `json:",omitempty"` // begin
	Umask  int    `json:",omitempty"`
	Shapes [2]shape
	Users  []int `json:",omitempty"` // of the processes
	Count  bool  `json:",omitempty"` // an open handle says the queue's numbers, so that this process counts messages
	// Options.Envelope of all opens
	Envelope bool `json:",omitempty"`
	Lane     int  `json:",omitempty"` // cancel, call
	Op       *op  `json:",omitempty"`
}

type reply struct {
	Lane   int // −1: to begin and end
	Answer answer
}

// answer is what a call returned.
type answer struct {
	Text   string
	Err    string        `json:",omitempty"` // the sentinel
	Number syscall.Errno `json:",omitempty"` // what errors.As finds
	Also   []syscall.Errno
	Words  string `json:",omitempty"` // the whole text, for people
}

func (a answer) String() string {
	if a.Err == "" {
		return "ok " + a.Text
	}
	return fmt.Sprintf("%s, number %d, matches %v (%s)", a.Err, int(a.Number), a.Also, a.Words)
}

// sentinels are all errors that a call can give here.
var sentinels = []struct {
	err  error
	name string
}{
	{kumquat.ErrInvalid, "invalid"}, {kumquat.ErrNotFound, "not found"}, {kumquat.ErrExists, "exists"}, {kumquat.ErrFull, "full"}, {kumquat.ErrEmpty, "empty"},
	{kumquat.ErrTooLarge, "too large"}, {kumquat.ErrTimeout, "timeout"}, {kumquat.ErrPermission, "permission"}, {kumquat.ErrRemoved, "removed"},
	{kumquat.ErrCorrupt, "corrupt"}, {kumquat.ErrLeaseLost, "lease lost"}, {kumquat.ErrClosed, "closed"}, {kumquat.ErrNoSpace, "no space"},
	{kumquat.ErrLimit, "limit"}, {kumquat.ErrUnsupported, "unsupported"}, {context.Canceled, "canceled"},
}

var numbers = []syscall.Errno{
	unix.EINVAL, unix.ENOENT, unix.EEXIST, unix.EAGAIN, unix.ENOMSG, unix.EMSGSIZE, unix.E2BIG, unix.ETIMEDOUT, unix.EACCES, unix.EPERM, unix.EIDRM,
	unix.EBADMSG, unix.EBADF, unix.ENOSPC, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENAMETOOLONG, unix.ENOTSUP, unix.ENOSYS, unix.EINTR, unix.EIO, unix.EFAULT,
}

// answerOf takes an error apart. A call that gives no sentinel, or several, has them all in Err.
func answerOf(text string, err error) answer {
	if err == nil {
		return answer{Text: text}
	}
	a := answer{Words: err.Error()}
	var names []string
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			names = append(names, s.name)
		}
	}
	if a.Err = strings.Join(names, " and "); a.Err == "" {
		a.Err = "no sentinel"
	}
	for _, n := range numbers {
		if errors.Is(err, n) {
			a.Also = append(a.Also, n)
		}
	}
	_ = errors.As(err, &a.Number)
	return a
}

// worker is a process that makes the calls it is told, those of each lane one after the other.
type worker struct {
	command            // begin
	mu      sync.Mutex // of handles
	handles [slots]*kumquat.Queue
	lanes   [lanes]*lane
	out     chan reply
}

type lane struct {
	calls  chan call
	cancel context.CancelFunc
}

type call struct {
	ctx context.Context
	op  *op
}

// long is the deadline of calls that are ended by other calls.
const long = 5 * time.Minute

// work serves until its input ends.
func work(in io.Reader, out io.Writer) error {
	w := &worker{out: make(chan reply, lanes+1)}
	var group sync.WaitGroup
	for i := range w.lanes {
		l := &lane{calls: make(chan call, 1), cancel: func() {}}
		w.lanes[i] = l
		group.Go(func() {
			for c := range l.calls {
				w.out <- reply{i, w.do(c.ctx, c.op)}
			}
		})
	}
	written := make(chan error, 1)
	go func() {
		var err error
		for e := json.NewEncoder(out); err == nil; {
			r, ok := <-w.out
			if !ok {
				break
			}
			err = e.Encode(r)
		}
		written <- err
	}()
	err := w.read(in)
	for _, l := range w.lanes {
		l.cancel()
		close(l.calls)
	}
	group.Wait()
	close(w.out)
	return errors.Join(err, w.end(), <-written)
}

func (w *worker) read(in io.Reader) error {
	for d := json.NewDecoder(bufio.NewReader(in)); ; {
		var c command
		if err := d.Decode(&c); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		switch c.Do {
		case "begin":
			w.command = c
			unix.Umask(c.Umask)
			w.out <- reply{Lane: -1}
		case "end":
			w.out <- reply{-1, answerOf("", w.end())}
		case "cancel":
			w.lanes[c.Lane].cancel()
		case "call":
			ctx, cancel := contextOf(c.Op.Wait)
			w.lanes[c.Lane].cancel() // the call before is over
			w.lanes[c.Lane].cancel = cancel
			w.lanes[c.Lane].calls <- call{ctx, c.Op}
		}
	}
}

func contextOf(x wait) (context.Context, context.CancelFunc) {
	switch x {
	case waitPast:
		return context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
	case waitCanceled:
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		return ctx, cancel
	case waitShort:
		return context.WithTimeout(context.Background(), 2*time.Millisecond)
	}
	return context.WithTimeout(context.Background(), long)
}

// end closes what is open.
func (w *worker) end() (err error) {
	for i, q := range w.handles {
		if q != nil {
			if e := q.Close(); e != nil && !errors.Is(e, kumquat.ErrClosed) {
				err = errors.Join(err, e)
			}
			w.handles[i] = nil
		}
	}
	return err
}

func (w *worker) do(ctx context.Context, o *op) answer {
	w.mu.Lock()
	q := w.handles[o.Slot]
	w.mu.Unlock()
	switch o.Kind {
	case opOpen:
		q, err := w.open(ctx, o)
		if err == nil {
			w.mu.Lock()
			w.handles[o.Slot] = q
			w.mu.Unlock()
		}
		return answerOf("", err)
	case opList:
		return w.list(context.Background()) // it may look at thousands, and minds a context that is done
	case opRemove:
		return answerOf("", kumquat.Remove(ctx, w.URL))
	case opClose:
		return answerOf("", q.Close())
	case opSend, opBytes:
		return answerOf("", send(ctx, q, o))
	case opReceive:
		var m kumquat.Message
		var err error
		if o.Wait == waitTry {
			m, err = q.TryReceive(o.Filter)
		} else {
			m, err = q.Receive(ctx, o.Filter)
		}
		return answerOf(messageText(&m), err)
	case opInto:
		buf := make([]byte, o.Len)
		var n, prio int
		var err error
		if o.Wait == waitTry {
			n, prio, err = q.TryReceiveInto(buf)
		} else {
			n, prio, err = q.ReceiveInto(ctx, buf)
		}
		return answerOf(messageText(&kumquat.Message{Body: buf[:n], Priority: prio}), err)
	case opBatch:
		var ms []kumquat.Message
		var err error
		if o.Wait == waitTry {
			ms, err = q.TryReceiveBatch(o.N, o.Filter)
		} else {
			ms, err = q.ReceiveBatch(ctx, o.N, o.Filter)
		}
		texts := make([]string, len(ms))
		for i, m := range ms {
			texts[i] = messageText(&m)
		}
		return answerOf("["+strings.Join(texts, "; ")+"]", err)
	case opPeek:
		var texts []string
		var err error
		var m kumquat.Message
		for m, err = range q.Peek(context.Background(), kumquat.PeekOptions{Filter: o.Filter, Skip: o.Len, Limit: o.N}) {
			if err != nil {
				break
			}
			texts = append(texts, messageText(&m))
		}
		return answerOf("["+strings.Join(texts, "; ")+"]", err)
	case opPurge:
		n, err := q.Purge(ctx, o.Filter)
		return answerOf(fmt.Sprint(n), err)
	case opStat:
		s, err := q.Stat(ctx)
		text := fmt.Sprintf("%d messages, %d bytes, mode %#o, user %d", s.Messages, s.Bytes, uint32(s.Mode), s.UID)
		if o.N > 0 { // not where the process cannot know
			text += fmt.Sprintf(", room for %d of %d bytes", s.MaxMessages, s.MaxSize)
		}
		return answerOf(text, err)
	case opTimedReceive, opTimedSend, opWriteOnly:
		return w.direct(o)
	case opFD:
		_, err := q.FD()
		if err == nil {
			_, err = q.TryReceive()
		}
		return answerOf("", err)
	case opRefused:
		return answerOf("not refused", w.refused(q, o))
	}
	return answerOf("", fmt.Errorf("no operation %q", o.Kind))
}

func (w *worker) list(ctx context.Context) answer {
	all, err := kumquat.List(ctx, w.URL)
	switch {
	case err != nil:
		return answerOf("", err)
	case len(all) == 0:
		return answerOf("nothing", nil)
	case len(all) > 1 || all[0].Name != w.URL:
		return answerOf(fmt.Sprintf("%+v", all), nil)
	case all[0].Err != nil:
		return answerOf("one that may not be read: "+answerOf("", all[0].Err).Err, nil)
	}
	return answerOf(fmt.Sprintf("%d messages, mode %#o, user %d", all[0].Messages, uint32(all[0].Mode), all[0].UID), nil)
}

func (w *worker) options(o *op) *kumquat.Options {
	x := &kumquat.Options{Create: o.Create, Exclusive: o.Excl, ReadOnly: o.Observe, Envelope: w.Envelope}
	if o.Owner > 0 {
		x.Owner = &w.Users[o.Owner-1]
	}
	if o.Create {
		s := w.Shapes[0]
		if o.Second {
			s = w.Shapes[1]
		}
		x.Mode, x.MaxMessages, x.MaxSize = fs.FileMode(o.Mode), s.Max, s.Size
	}
	return x
}

// open opens the queue. A process that did not make a System V queue counts its messages only if it says the numbers that it was
// made with: a declared difference, which is tested by itself.
func (w *worker) open(ctx context.Context, o *op) (*kumquat.Queue, error) {
	if o.Options != nil {
		return kumquat.Open(ctx, cmp.Or(o.URL, w.URL), o.Options)
	}
	q, err := kumquat.Open(ctx, w.URL, w.options(o))
	if err != nil || !w.Count || o.Observe {
		return q, err
	}
	for _, s := range w.Shapes {
		x, err := kumquat.Open(ctx, w.URL, &kumquat.Options{Create: true, MaxMessages: s.Max, MaxSize: s.Size, Envelope: w.Envelope})
		if err == nil {
			err = x.Close()
		}
		if err != nil {
			return nil, errors.Join(err, q.Close())
		}
	}
	return q, nil
}

func send(ctx context.Context, q *kumquat.Queue, o *op) error {
	body := make([]byte, o.Len)
	fill(body, o.ID)
	m := kumquat.Message{Body: body, Priority: o.Prio, Type: o.Type}
	metadata(&m, o.Meta, o.ID)
	switch {
	case o.Kind == opBytes && o.Wait == waitTry:
		return q.TrySendBytes(body, o.Prio)
	case o.Kind == opBytes:
		return q.SendBytes(ctx, body, o.Prio)
	case o.Wait == waitTry:
		return q.TrySend(m)
	}
	return q.Send(ctx, m)
}

// canCopy reports whether System V queues can be peeked into: MSG_COPY needs a kernel with CONFIG_CHECKPOINT_RESTORE.
var canCopy = sync.OnceValue(func() bool {
	q, err := sysv.Get(sysv.Private, sysv.Create, 0o600)
	if err != nil {
		return false
	}
	_, _, err = q.Receive(context.Background(), nil, 0, sysv.NoWait|sysv.Copy)
	return errors.Join(q.Remove(), q.Close()) == nil && errors.Is(err, kumquat.ErrEmpty)
})

// direct makes a call on a POSIX or System V queue by its own package, or, at a queue of the engine, the nearest thing that there is.
func (w *worker) direct(o *op) (a answer) {
	body := make([]byte, o.Len)
	fill(body, o.ID)
	deadline := time.Now().Add(long)
	name, isPosix := strings.CutPrefix(w.URL, "posix:")
	number, isSysv := strings.CutPrefix(w.URL, "sysv:0x")
	switch {
	case isPosix && o.Kind == opWriteOnly:
		q, err := posix.Open(name, posix.WriteOnly, 0, nil)
		if err == nil {
			err = errors.Join(q.TrySend(body, 0), q.Close())
		}
		return answerOf("", err)
	case isSysv && o.Kind == opWriteOnly:
		key, err := strconv.ParseUint(number, 16, 32)
		var q *sysv.Queue
		if err == nil {
			if q, err = sysv.Get(sysv.Key(key), 0, 0o200); err == nil {
				err = errors.Join(q.Send(context.Background(), 1, body, sysv.NoWait), q.Close())
			}
		}
		return answerOf("", err)
	case isPosix:
		q, err := posix.Open(name, posix.ReadWrite, 0, nil)
		if err != nil {
			return answerOf("", err)
		}
		defer q.Close()
		return ofNice(o.Nice, func() answer {
			if o.Kind == opTimedSend {
				return answerOf("", q.TimedSend(body, o.Prio, deadline))
			}
			buf := make([]byte, q.MaxSize())
			n, prio, err := q.TimedReceive(buf, deadline)
			return answerOf(messageText(&kumquat.Message{Body: buf[:n], Priority: prio, Type: 1}), err)
		})
	}
	q, err := kumquat.Open(context.Background(), w.URL, nil)
	if err != nil {
		return answerOf("", err)
	}
	defer q.Close()
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	if o.Kind == opTimedReceive {
		m, err := q.Receive(ctx)
		return answerOf(messageText(&m), err)
	}
	return answerOf("", q.SendBytes(ctx, body, o.Prio))
}

// ofNice makes a call on a thread that is as nice as that; 0: on any.
func ofNice(nice int, f func() answer) (a answer) {
	if nice == 0 {
		return f()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and the thread ends with the goroutine
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, nice); err != nil {
			a = answerOf("", err)
			return
		}
		a = f()
	}()
	<-done
	return a
}

// refused asks a kernel queue for what it cannot do. Nothing may change by it.
func (w *worker) refused(q *kumquat.Queue, o *op) (err error) {
	ctx := context.Background()
	m := kumquat.Message{Body: []byte("x")}
	open := func(x kumquat.Options) {
		x.Create, x.MaxMessages, x.MaxSize = true, 2, 8
		var q *kumquat.Queue
		if q, err = kumquat.Open(ctx, w.URL, &x); err == nil {
			_ = q.Close()
		}
	}
	switch o.What {
	case "filter":
		_, err = q.TryReceive(kumquat.Type(2))
	case "priority filter":
		_, err = q.TryReceive(kumquat.MinPriority(1), kumquat.Key("k"))
	case "hole":
		_, err = q.TryReceive(kumquat.TypeAtMost(7), kumquat.Not(3))
	case "type":
		m.Type = 2
		err = q.TrySend(m)
	case "priority":
		m.Priority = 1
		err = q.TrySend(m)
	case "metadata":
		m.Key = "k"
		err = q.TrySend(m)
	case "delay":
		m.NotBefore = time.Now()
		err = q.TrySend(m)
	case "expiry":
		m.Expires = time.Now().Add(time.Hour)
		err = q.TrySend(m)
	case "batch":
		err = q.TrySendBatch([]kumquat.Message{m})
	case "peek":
		for _, err = range q.Peek(ctx, kumquat.PeekOptions{}) {
			break
		}
	case "reserve":
		var r *kumquat.Reservation
		if r, err = q.Reserve(ctx, 1); err == nil {
			err = r.Abort()
		}
	case "borrow":
		_, err = q.TryBorrow()
	case "short buffer":
		_, _, err = q.TryReceiveInto(make([]byte, o.Len))
	case "notify":
		_, err = q.Notify(ctx)
	case "watch":
		for _, err = range q.Watch(ctx) {
			break
		}
	case "who":
		_, err = q.Who(ctx)
	case "check":
		_, err = q.Check(ctx)
	case "drop":
		open(kumquat.Options{Overflow: kumquat.DropOldest})
	case "headroom":
		open(kumquat.Options{Headroom: kumquat.Headroom{Percent: 50, Priority: 5}})
	case "durable":
		open(kumquat.Options{Durability: kumquat.Always})
	default:
		err = fmt.Errorf("nothing is called %q", o.What)
	}
	return err
}
