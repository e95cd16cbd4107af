// Package tour shows on the files of a folder what a queue does when its users are killed and stopped, and proves it.
//
// Run sends every file as one message from producer processes, lets consumer processes receive them, kills one consumer and stops
// another while they hold a message, and compares at the end what arrived with what was sent and with what lies on the disk. The
// processes are real: Run starts the running program again, whose main function therefore calls Child first.
//
// The story of one round, which round.go tells in code:
//
//	fill      the producers send until every file is in the queue, which has room for exactly these
//	take      two consumers, the victims, receive a few and then keep one in their hands
//	drain     two more, the survivors, receive what is left; meanwhile the first victim gets SIGKILL, the second SIGSTOP
//	wake      the queue is empty, the survivors have gone: the second victim gets SIGCONT and reports what it held
//	again     what the killed one had taken and not reported is sent once more; the second victim receives it
//	prove     proof.go
//
// Order can be judged because nobody receives before the last send: by the stamps of the claims (Message.Taken) priority must never
// rise, and Message.Seq must rise within a priority. Receive is at most once, so the killed consumer's message is gone with it; that
// it is this one and no other is part of the proof.
package tour

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
)

// prefix begins the names of the tour's queues, so that what a killed tour left can be found.
const prefix = "/kumquat-tour/"

// Options says what Run works on. The zero value takes the current folder and writes text to standard output.
type Options struct {
	Folder string    // its regular files are sent, hidden ones too, symbolic links are not followed; "": the current folder
	Out    io.Writer // gets one line a step, and is flushed after each if it has a Flush method; nil: os.Stdout
	JSON   bool      // write each line as a JSON object with the fields step, text and what belongs to the step

	room int64                // not 0: bytes of memory to count on, instead of what is free
	at   func(string, fields) // not nil: called with the name of each step and what its line says, after the line
}

// Failure is what Run returns if the proof fails.
type Failure struct {
	Findings []string // what is off, one sentence each; not empty
}

// Error returns the number of findings and the first of them.
func (f *Failure) Error() string {
	if len(f.Findings) == 1 {
		return "the tour failed: " + f.Findings[0]
	}
	return fmt.Sprintf("the tour failed: %s (and %d more)", f.Findings[0], len(f.Findings)-1)
}

// tour is one run.
type tour struct {
	Options
	folder string
	files  []file
	record []record // of each file, by its index
	off    []string // what is off

	fill, drain   work // sums over the rounds
	gap, longWait time.Duration
	paced         time.Duration
	signalled     bool // gap and longWait are measured
}

// work is how much was done in which time.
type work struct {
	files int
	bytes int64
	time  time.Duration
}

// Run makes the tour. It returns nil if every file that could be read and has room arrived exactly once, whole and in order; a
// *Failure if not; the error of ctx if that ended it, or SIGINT, SIGTERM or SIGHUP did; another error if the tour could not be made
// (no such folder, no space). In every case no process and no queue of the tour is left. It must not run twice at once in a process.
func Run(ctx context.Context, o Options) error {
	// A child dies with the thread that started it (Pdeathsig in start), so this thread must outlive the tour.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if o.Out == nil {
		o.Out = os.Stdout
	}
	if o.Folder == "" {
		o.Folder = "."
	}
	folder, err := filepath.Abs(o.Folder)
	if err != nil {
		return err
	}
	t := &tour{Options: o, folder: folder}
	return t.run(ctx)
}

func (t *tour) run(ctx context.Context) error {
	removeStale(ctx)
	found, err := scan(ctx, t.folder)
	if err != nil {
		return err
	}
	t.files = found.files
	t.record = make([]record, len(t.files))
	t.say("scan", fields{"folder": t.folder, "found": len(t.files), "bytes": total(t.files)},
		"scan: %s in %s, %s; symbolic links and special files left out: %d", count(len(t.files), "regular file"), show(t.folder),
		size(total(t.files)), found.others)
	for _, s := range found.skipped {
		t.skip(s)
	}
	t.sayKinds()
	room, err := t.findRoom()
	if err != nil {
		return err
	}
	rounds, tooBig := plan(t.files, room)
	for _, i := range tooBig {
		t.record[i].skipped = true
		t.skip(skipped{t.files[i].path, fmt.Sprintf("%s are more than the room for it: %s are free in %s and in memory; to make room: mount -o remount,size=… %[3]s",
			size(t.files[i].size), size(room), shmFolder())})
	}
	if len(rounds) > 1 {
		t.say("rounds", fields{"rounds": len(rounds), "room": room},
			"rounds: the files are sent in %d rounds, because %s is the room there is in %s", len(rounds), size(room), shmFolder())
	}
	for n, r := range rounds {
		if err := t.round(ctx, r, n); err != nil {
			return err
		}
	}
	return t.prove(ctx)
}

// fields are what a line says, for programs.
type fields map[string]any

// say writes the line of a step.
func (t *tour) say(step string, f fields, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if f == nil {
		f = fields{}
	}
	if t.JSON {
		f["step"], f["text"] = step, text
		line, err := json.Marshal(f)
		if err != nil {
			panic(err) // fields holds numbers, strings and slices of them only
		}
		text = string(line)
	}
	// Who closes the output must not keep the tour from its end: the exit code still tells.
	_, _ = io.WriteString(t.Out, text+"\n")
	if w, ok := t.Out.(interface{ Flush() error }); ok {
		_ = w.Flush()
	}
	if t.at != nil {
		t.at(step, f)
	}
}

func (t *tour) skip(s skipped) {
	t.say("skip", fields{"file": s.path, "why": s.why}, "left out: %s: %s", show(s.path), s.why)
}

func (t *tour) sayKinds() {
	n := make([]int, len(kinds))
	for i := range t.files {
		n[t.files[i].kind]++
	}
	var parts []string
	f := fields{}
	for k, kind := range kinds {
		parts = append(parts, fmt.Sprintf("%s (%d) %s: %d", kind.name, kind.priority, kind.what, n[k]))
		f[kind.name] = n[k]
	}
	t.say("kinds", f, "priority by kind: %s", strings.Join(parts, "; "))
}

// newName returns a name for a queue that nobody else has.
func newName() string {
	var b [6]byte
	rand.Read(b[:]) // never fails
	return fmt.Sprintf("%s%d-%s", prefix, os.Getpid(), hex.EncodeToString(b[:]))
}

// removeStale removes the queues of tours that were themselves killed. A tour has its queue open from the first moment to the last,
// so one that nobody has open belongs to a dead one. What may not be removed stays: another user's tour.
func removeStale(ctx context.Context) {
	list, err := kumquat.List(ctx, prefix+"*")
	if err != nil {
		return // the tour needs none of it
	}
	for _, q := range list {
		if q.Err == nil && q.Handles == 0 {
			_ = kumquat.Remove(ctx, q.Name)
		}
	}
}

// stopped returns the error of a tour that ctx ended, else nil.
func stopped(ctx context.Context) error {
	if ctx.Err() != nil {
		return fmt.Errorf("the tour was interrupted; its processes are ended and its queue is removed: %w", ctx.Err())
	}
	return nil
}
