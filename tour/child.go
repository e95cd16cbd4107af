package tour

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
)

// childVar tells a process that it is a child of a tour.
const childVar = "KUMQUAT_TOUR_CHILD"

// What a child gets on its standard input: one order, then commands, one a line; the end of the input tells it to finish.
const (
	cmdGo   = "go"   // begin
	cmdOn   = "on"   // go on with the message in hand
	roleOut = "send" // a producer
	roleIn  = "receive"
)

// order is a child's first line of input.
type order struct {
	Role   string
	Queue  string
	Folder string        // producer: where Files are
	Files  []job         // producer: what to send
	Max    int64         // the largest body
	HoldAt int           // consumer: keep the message of this take in hand until cmdOn; 0: none
	Pace   time.Duration // consumer: the least time a file takes it
}

// job is a file for a producer. Path is in bytes because JSON would mend names that are no UTF-8.
type job struct {
	Index    int
	Path     []byte
	Priority int
}

// report is one line of a child's output. It is written by one write of at most PIPE_BUF bytes, so that a child that is killed has
// reported something wholly or not at all.
type report struct {
	Kind     string `json:"k"`
	Index    int    `json:"i"`
	SHA      string `json:"h,omitempty"`
	Size     int64  `json:"n,omitempty"`
	Priority int    `json:"p,omitempty"`
	Seq      uint64 `json:"s,omitempty"`
	Taken    uint64 `json:"t,omitempty"`
	Asked    int64  `json:"a,omitempty"` // when the receive was called, CLOCK_MONOTONIC in ns: the same for all processes
	Got      int64  `json:"g,omitempty"` // when it returned
	Text     string `json:"x,omitempty"`
	Full     bool   `json:"f,omitempty"` // failed: for want of memory
}

// The kinds of reports.
const (
	ready    = "ready"    // consumer: the queue is open
	took     = "took"     // consumer: the message is in hand
	arrived  = "arrived"  // consumer: done with it
	sent     = "sent"     // producer
	notSent  = "notsent"  // producer: the file could not be read; Text says why
	finished = "finished" // the last report of a child that ended as told
	failed   = "failed"   // the last report of one that could not
)

// Child does nothing in an ordinary process. In a process that a tour started it does that process's work and exits. A program that
// calls Run must call Child at the start of main, before it looks at its arguments.
func Child() {
	if os.Getenv(childVar) == "" {
		return
	}
	if err := child(os.Stdin); err != nil {
		tell(report{Kind: failed, Text: err.Error(), Full: errors.Is(err, kumquat.ErrNoSpace)})
		os.Exit(1)
	}
	tell(report{Kind: finished})
	os.Exit(0)
}

func child(in io.Reader) error {
	r := bufio.NewReader(in)
	line, err := r.ReadBytes('\n')
	if err != nil {
		return err
	}
	var o order
	if err := json.Unmarshal(line, &o); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	commands := make(chan string, 4)
	go func() { // ends with the process
		defer cancel()
		defer close(commands)
		for s := bufio.NewScanner(r); s.Scan(); {
			commands <- s.Text()
		}
	}()
	q, err := kumquat.Open(ctx, o.Queue, nil)
	if err != nil {
		return err
	}
	if o.Role == roleOut {
		err = produce(ctx, q, &o)
	} else {
		err = consume(ctx, q, &o, commands)
	}
	return errors.Join(err, q.Close())
}

// tell writes a report. Nobody hears of its failure: a parent that is gone has ended this process already.
func tell(r report) {
	if len(r.Text) > 300 {
		r.Text = strings.ToValidUTF8(r.Text[:300], "") + "…" // PIPE_BUF is 4,096, and JSON may need six bytes for one
	}
	line, err := json.Marshal(r)
	if err != nil {
		panic(err) // numbers and strings only
	}
	_, _ = os.Stdout.Write(append(line, '\n'))
}

func produce(ctx context.Context, q *kumquat.Queue, o *order) error {
	for _, j := range o.Files {
		r, err := sendFile(ctx, q, filepath.Join(o.Folder, string(j.Path)), j, o.Max)
		var bad *fileError
		if errors.As(err, &bad) {
			r = report{Kind: notSent, Text: bad.Error()}
		} else if err != nil {
			return err
		}
		r.Index = j.Index
		tell(r)
	}
	return nil
}

// fileError is what is wrong with a file, as opposed to the queue.
type fileError struct{ error }

// inPlace is the size from which a body is read from the file into the queue, without a copy in the sender's memory.
const inPlace = 1 << 20

// sendFile reads a file, hashes what it read and sends it. What it sends is one reading of the file: if somebody writes to it
// meanwhile the message is still what its hash says.
func sendFile(ctx context.Context, q *kumquat.Queue, path string, j job, limit int64) (report, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return report{}, &fileError{errors.New(reason(err))}
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return report{}, &fileError{errors.New(reason(err))}
	}
	if !info.Mode().IsRegular() {
		return report{}, &fileError{errors.New("it is no regular file any more")}
	}
	if info.Size() > limit {
		return report{}, &fileError{fmt.Errorf("it has grown to %s since the scan", size(info.Size()))}
	}
	var body []byte
	var r *kumquat.Reservation
	if info.Size() >= inPlace && q.Can(kumquat.ZeroCopy) {
		if r, err = q.Reserve(ctx, int(info.Size())); err != nil {
			return report{}, err
		}
		body = r.Bytes()
	} else {
		body = make([]byte, info.Size())
	}
	if _, err := io.ReadFull(f, body); err != nil {
		if r != nil {
			err = errors.Join(err, r.Abort())
		}
		return report{}, &fileError{fmt.Errorf("reading it: %s", reason(err))}
	}
	sum := sha256.Sum256(body)
	hash := hex.EncodeToString(sum[:])
	m := kumquat.Message{
		Priority: j.Priority,
		ID:       strconv.Itoa(j.Index),
		Headers:  map[string]string{"name": tail(string(j.Path), 3000), "size": strconv.Itoa(len(body)), "sha256": hash},
	}
	n := int64(len(body))
	if r != nil {
		err = r.Commit(ctx, m)
	} else {
		m.Body = body
		err = q.Send(ctx, m)
	}
	if err != nil && r != nil {
		err = errors.Join(err, r.Abort())
	}
	return report{Kind: sent, Index: j.Index, SHA: hash, Size: n, Priority: j.Priority}, err
}

// tail shortens a path, from its front, to what the metadata of a message has room for.
func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return "…" + s[len(s)-n:]
}

// consume receives until its input ends. A message is in its hand from took to arrived.
func consume(ctx context.Context, q *kumquat.Queue, o *order, commands <-chan string) error {
	tell(report{Kind: ready})
	if <-commands != cmdGo {
		return nil
	}
	borrow := o.Max >= 16*inPlace && q.Can(kumquat.ZeroCopy) // hashed where it lies
	for takes := 1; ; takes++ {
		asked := now()
		m, release, err := take(ctx, q, borrow)
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			return nil
		}
		if err != nil {
			return err
		}
		r := report{Kind: took, Priority: m.Priority, Seq: m.Seq, Taken: m.Taken, Asked: asked, Got: now(), Size: int64(len(m.Body))}
		if r.Index, err = strconv.Atoi(m.ID); err != nil {
			return fmt.Errorf("a message came whose ID is no index: %q", m.ID)
		}
		tell(r)
		pause(o.Pace)
		if takes == o.HoldAt {
			<-commands // or the end of the input
		}
		sum := sha256.Sum256(m.Body)
		r.Kind, r.SHA = arrived, hex.EncodeToString(sum[:])
		if want := m.Headers["sha256"]; want != r.SHA {
			r.Text = "the message's own header says " + want
		}
		tell(r)
		if err := release(); err != nil {
			return err
		}
	}
}

func take(ctx context.Context, q *kumquat.Queue, borrow bool) (kumquat.Message, func() error, error) {
	if !borrow {
		m, err := q.Receive(ctx)
		return m, func() error { return nil }, err
	}
	l, err := q.Borrow(ctx)
	if err != nil {
		return kumquat.Message{}, nil, err
	}
	return l.Message(), l.Release, nil
}

// pause sleeps for d. time.Sleep would make at least a millisecond of it.
func pause(d time.Duration) {
	for ts := unix.NsecToTimespec(int64(d)); d > 0 && unix.Nanosleep(&ts, &ts) == unix.EINTR; {
	}
}

// now reads CLOCK_MONOTONIC, which all processes of a machine share.
func now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // Linux always has it
	}
	return ts.Nano()
}

// readReports calls f with each report of r and returns at the end of r.
func readReports(r io.Reader, f func(report)) {
	s := bufio.NewScanner(r)
	for s.Scan() {
		var x report
		if err := json.Unmarshal(bytes.TrimSpace(s.Bytes()), &x); err != nil {
			x = report{Kind: failed, Text: fmt.Sprintf("its output is no report: %q", s.Text())}
		}
		f(x)
	}
}
