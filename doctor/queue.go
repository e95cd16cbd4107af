package doctor

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/kumquat-mq/kumquat"
)

// Verdict is what is the matter with one queue.
type Verdict struct {
	Queue string `json:"queue"`
	Kind  string `json:"kind"` // "engine", "posix", "sysv"

	Messages    int   `json:"messages"`
	MaxMessages int   `json:"max_messages,omitempty"` // 0: the queue counts bytes alone
	Bytes       int64 `json:"bytes"`                  // of the bodies of the waiting messages; −1: unknown
	MaxBytes    int64 `json:"max_bytes,omitempty"`    // 0: the queue counts messages alone

	Over     time.Duration `json:"over_ns"`  // how long it was watched
	Sent     float64       `json:"sent"`     // messages a second
	Received float64       `json:"received"` // messages a second
	// AtLeast: the kernel does not count what goes through its queues, so Sent and Received come from how the number of messages was
	// seen to rise and fall, a thousand times a second. What came and went between two looks is missing.
	AtLeast bool `json:"at_least,omitempty"`

	Users    []User    `json:"users"`
	Findings []Finding `json:"findings"`
}

// User is a process that uses the queue.
type User struct {
	PID      int    `json:"pid"`
	Command  string `json:"command"` // as the process states it, unverified and unescaped
	Name     string `json:"user"`    // of its user, or his number
	State    string `json:"state"`   // as ps shows it; "?": cannot be seen
	Halted   string `json:"halted,omitempty"`
	Receives bool   `json:"receives"`        // has received, waits for messages or, on POSIX, may receive
	Sends    bool   `json:"sends"`           // likewise
	Waits    string `json:"waits,omitempty"` // "to receive", "to send"
	Holds    int    `json:"holds,omitempty"` // places that it has reserved or taken (engine)

	goOn   string // the command that lets it go on if it is halted
	locked bool   // it has the lock of an engine queue
}

func (u *User) String() string {
	s := fmt.Sprintf("process %d", u.PID)
	if u.Command != "" {
		s += " (" + u.Command + ")"
	}
	return s
}

// sight is all that was seen of a queue. Each kind of queue fills it in; explain draws the conclusions.
type sight struct {
	Verdict
	began     int    // messages when the watch began
	received  uint64 // counted, or seen, in the watch
	sent      uint64
	dropped   uint64 // by the queue's policy, in the watch
	policy    string
	quiet     bool   // nothing was taken in the watch, for certain
	moved     bool   // something was sent or taken in it, for certain, though perhaps not counted
	oftenFull bool   // at half of the looks or more
	senders   int    // that wait
	blind     string // why a process that uses the queue may have been overlooked; "" if none can have been
	handles   int    // open, of maxHandles
	maxHandle int
	notify    string // who is registered for notification
	space     string // why its file system has no room
	past      string // who read it once
}

// Queue watches a queue for as long as over says, and explains it: nobody reads it; all its readers are stopped; they are too slow; a
// stopped process holds a part of it; it is near a limit. url is what kumquat.Open takes, of the engine, posix: or sysv:. Read
// permission is enough, nothing is taken. An over of 0 or less is one second.
//
// Errors: those of kumquat.Open; ErrUnsupported for other drivers; ErrRemoved if it is removed meanwhile; what ended ctx.
func Queue(ctx context.Context, url string, over time.Duration) (Verdict, error) {
	if over <= 0 {
		over = time.Second
	}
	m := thisMachine()
	var s *sight
	var err error
	switch {
	case strings.HasPrefix(url, "/"), strings.HasPrefix(url, "shm:"):
		s, err = m.watchEngine(ctx, url, over)
	case strings.HasPrefix(url, "posix:"):
		s, err = m.watchPosix(ctx, url, over)
	case strings.HasPrefix(url, "sysv:"), strings.HasPrefix(url, "sysv+priority:"):
		s, err = m.watchSysv(ctx, url, over)
	default:
		return Verdict{}, fmt.Errorf("%w: %q: the queues of the engine, of POSIX (posix:/name) and of System V (sysv:0xKEY, sysv:path,id) can be explained", kumquat.ErrUnsupported, url)
	}
	if err != nil {
		return Verdict{}, err
	}
	s.Queue, s.Over = url, over
	s.Findings = s.explain()
	if s.Users == nil {
		s.Users = []User{}
	}
	return s.Verdict, nil
}

// explain turns what was seen into findings, the causes first.
func (s *sight) explain() (fs []Finding) {
	readers := s.readers()
	fs = append(fs, s.readersFinding(readers))
	fs = append(fs, s.held()...)
	fs = append(fs, s.flow(readers)...)
	fs = append(fs, s.limits()...)
	if s.notify != "" {
		fs = append(fs, ok("queue.notify", "%s is registered for notification; nobody else can be", s.notify))
	}
	return fs
}

func (s *sight) readers() (rs []*User) {
	for i := range s.Users {
		if s.Users[i].Receives {
			rs = append(rs, &s.Users[i])
		}
	}
	return rs
}

// readersFinding says who reads the queue.
func (s *sight) readersFinding(readers []*User) Finding {
	const check = "queue.readers"
	wait := waiting(s.Messages, "message")
	if len(readers) == 0 {
		users := ""
		if n := len(s.Users); n > 0 {
			users = fmt.Sprintf("; of %s that it has, none has ever received", plural(n, "user"))
			if s.Kind == "posix" {
				users = fmt.Sprintf("; of %s that it has, none has it open for receiving", plural(n, "user"))
			}
		}
		if s.past != "" {
			users = "; " + s.past
		}
		switch {
		case s.blind != "" && (s.Messages > 0 || s.senders > 0):
			return attention(check, "", "nobody reads it who can be seen, and %s%s; %s", wait, users, s.blind)
		case s.blind != "":
			return note(check, "", "nobody reads it who can be seen; it is empty; %s", s.blind)
		case s.Messages > 0 || s.senders > 0:
			return attention(check, "", "nobody reads it, and %s%s", wait, users)
		}
		return note(check, "", "nobody reads it; it is empty%s", users)
	}
	var halted []*User
	var names []string
	for _, r := range readers {
		names = append(names, r.String())
		if r.Halted != "" {
			halted = append(halted, r)
		}
	}
	who := strings.Join(names[:min(len(names), 5)], ", ")
	if len(names) > 5 {
		who += fmt.Sprintf(" and %d more", len(names)-5)
	}
	switch {
	case len(halted) == len(readers):
		f := attention(check, goOn(halted), "all its readers are stopped, and %s: %s", wait, halts(halted))
		if s.blind != "" {
			f.Text += "; " + s.blind
		}
		return f
	case len(halted) > 0:
		return note(check, goOn(halted), "%d of its %s are stopped: %s", len(halted), plural(len(readers), "reader"), halts(halted))
	}
	return ok(check, "it is read by %s", who)
}

func halts(us []*User) string {
	var texts []string
	for _, u := range us {
		texts = append(texts, u.String()+" is "+u.Halted)
	}
	return strings.Join(texts, ", ")
}

// goOn is the command that lets processes go on.
func goOn(us []*User) string {
	var commands []string
	cont := ""
	for _, u := range us {
		if pid, is := strings.CutPrefix(u.goOn, "kill -CONT "); is {
			cont += " " + pid
		} else if u.goOn != "" && !contains(commands, u.goOn) {
			commands = append(commands, u.goOn)
		}
	}
	if cont != "" {
		commands = append([]string{"kill -CONT" + cont}, commands...)
	}
	return strings.Join(commands, "; ")
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// held says what those that stand still keep from the others.
func (s *sight) held() (fs []Finding) {
	const check = "queue.held"
	for i := range s.Users {
		u := &s.Users[i]
		if u.Halted == "" {
			continue
		}
		var what []string
		if u.locked {
			what = append(what, "the lock (whoever needs it takes it over within 250 ms)")
		}
		if u.Holds > 0 {
			what = append(what, plural(u.Holds, "place")+" with messages that it was sending or receiving")
		}
		if len(what) > 0 {
			fs = append(fs, attention(check, u.goOn, "%s is %s and holds %s", u, u.Halted, strings.Join(what, " and ")))
		}
	}
	return fs
}

// flow compares how fast messages arrive with how fast they are taken.
func (s *sight) flow(readers []*User) []Finding {
	const check = "queue.flow"
	about := ""
	if s.AtLeast {
		about = "at least "
	}
	rates := fmt.Sprintf("%s%s/s arrive and %s/s are taken", about, rate(s.Sent), rate(s.Received))
	alive, wait := 0, waiting(s.Messages, "message")
	for _, r := range readers {
		if r.Halted == "" {
			alive++
		}
	}
	grown := s.Messages - s.began
	switch {
	case s.dropped > 0:
		return []Finding{attention(check, "", "%s; the queue is full, and %s were dropped in %v (%s)", rates, plural(int(s.dropped), "message"), s.Over, s.policy)}
	case alive == 0: // said already
	case s.Messages > 0 && s.quiet && s.began > 0:
		return []Finding{attention(check, "", "its readers have taken nothing in %v, though %s and they are not stopped: they are busy elsewhere, or wait for messages of "+
			"another kind", s.Over, wait)}
	case s.AtLeast && s.moved && s.oftenFull:
		return []Finding{attention(check, "", "its readers are too slow: they take messages, and others take their places at once: it stays full")}
	case s.senders > 0 && s.isNear():
		return []Finding{attention(check, "", "its readers are too slow: %s, and %s for room", rates, waiting(s.senders, "sender"))}
	case s.grows(grown):
		f := attention(check, "", "its readers are too slow: %s; %s, %d more than %v ago", rates, wait, grown, s.Over)
		if left := s.MaxMessages - s.Messages; s.MaxMessages > 0 && left > 0 {
			f.Text += fmt.Sprintf(", and in %v it is full", (s.Over * time.Duration(left) / time.Duration(grown)).Round(time.Second))
		}
		return []Finding{f}
	}
	return []Finding{ok(check, "%s; %s", rates, wait)}
}

// grows reports whether the queue has become longer by more than what comes and goes anyway: a twentieth of what arrived, or, where
// less than that many messages are there, all that arrived.
func (s *sight) grows(grown int) bool {
	return grown >= 10 && float64(grown) >= float64(s.sent)/20
}

func rate(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.2fM", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.1fk", v/1e3)
	case v >= 10 || v == 0:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.1f", v)
}

func (s *sight) isFull() bool {
	return s.MaxMessages > 0 && s.Messages >= s.MaxMessages || s.MaxBytes > 0 && (s.Bytes >= s.MaxBytes || int64(s.Messages) >= s.MaxBytes)
}

func (s *sight) isNear() bool {
	return part(int64(s.Messages), int64(s.MaxMessages), near) || part(s.Bytes, s.MaxBytes, near) || part(int64(s.Messages), s.MaxBytes, near)
}

// limits says what is full, or nearly.
func (s *sight) limits() (fs []Finding) {
	const check = "queue.limit"
	blocked := ""
	if s.senders > 0 {
		blocked = "; " + waiting(s.senders, "sender") + " for room"
	}
	size := fmt.Sprintf("%d of %d messages", s.Messages, s.MaxMessages)
	if s.MaxMessages == 0 {
		size = fmt.Sprintf("%d of %d bytes, %s", s.Bytes, s.MaxBytes, plural(s.Messages, "message"))
	}
	switch {
	case s.isFull():
		fs = append(fs, attention(check, "", "it is full: %s%s", size, blocked))
	case s.isNear():
		fs = append(fs, attention(check, "", "it is nearly full: %s%s", size, blocked))
	case s.senders > 0:
		fs = append(fs, attention(check, "", "%s for room, with %s: the next message is larger than what is left, or it is meant for others", waiting(s.senders, "sender"), size))
	default:
		fs = append(fs, ok(check, "it holds %s", size))
	}
	if part(int64(s.handles), int64(s.maxHandle), near) {
		fs = append(fs, attention("queue.handles", "", "%d of %d handles are open; beyond it Open says ErrLimit. It is set when the queue is made: kumquat create --help", s.handles, s.maxHandle))
	}
	if s.space != "" {
		fs = append(fs, attention("queue.space", "", "%s", s.space))
	}
	return fs
}

// watchEngine looks at a queue of the engine, which counts everything itself.
func (m *machine) watchEngine(ctx context.Context, url string, over time.Duration) (*sight, error) {
	q, err := kumquat.Open(ctx, url, &kumquat.Options{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer q.Close()
	first, err := q.Stat(ctx)
	if err != nil {
		return nil, err
	}
	before, err := q.Who(ctx)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	if err := pause(ctx, over); err != nil {
		return nil, err
	}
	last, err := q.Stat(ctx)
	if err != nil {
		return nil, err
	}
	took := time.Since(begin).Seconds()
	after, err := q.Who(ctx)
	if err != nil {
		return nil, err
	}
	s := &sight{began: first.Messages, received: last.Received - first.Received, sent: last.Sent - first.Sent, dropped: last.Dropped - first.Dropped,
		policy: policyText(last.Overflow), senders: max(first.Senders, last.Senders), handles: last.Handles, maxHandle: last.MaxHandles}
	s.Kind, s.Messages, s.MaxMessages, s.Bytes = "engine", last.Messages, last.MaxMessages, last.Bytes
	s.Sent, s.Received, s.quiet = float64(s.sent)/took, float64(s.received)/took, s.received == 0
	m.engineUsers(s, before, after)
	if st, err := statfs(last.Path); err == nil && part(int64(st.Blocks-st.Bavail), int64(st.Blocks), near+10) {
		s.space = fmt.Sprintf("the file system of %s has %s left of %s; when it is full, sends say ErrNoSpace", last.Path, bytesText(int64(st.Bavail)*st.Bsize), bytesText(int64(st.Blocks)*st.Bsize))
	}
	return s, nil
}

func policyText(o kumquat.Overflow) string {
	switch o {
	case kumquat.DropOldest:
		return "its overflow policy drops the oldest"
	case kumquat.DropLowest:
		return "its overflow policy drops the lowest"
	}
	return "purge"
}

// engineUsers adds the participants. A handle reads if it has received something, or is about to.
func (m *machine) engineUsers(s *sight, before, after []kumquat.Participant) {
	locked := map[int]int{}
	for i := range before {
		if p := &before[i]; p.Doing == "hold the lock" {
			locked[p.Number] = p.PID
		}
	}
	for i := range after {
		p := &after[i]
		if !p.Alive || p.ReadOnly {
			continue
		}
		u := User{PID: p.PID, Command: p.Command, Name: p.User, State: p.State, Holds: p.Holds, Receives: p.Received > 0, Sends: p.Sent > 0}
		switch p.Doing {
		case "wait to receive":
			u.Receives, u.Waits = true, "to receive"
		case "wait to send":
			u.Sends, u.Waits = true, "to send"
		case "receive", "receive a batch", "claim", "borrow":
			u.Receives = true
		case "send", "send a batch", "reserve", "publish", "commit":
			u.Sends = true
		case "hold the lock":
			pid, was := locked[p.Number]
			u.locked = was && pid == p.PID
		}
		if p.Visible {
			_, u.Halted, u.goOn = m.state(p.PID)
		} else {
			s.blind = fmt.Sprintf("whether process %d, which cannot be seen from here, is stopped is not known", p.PID)
		}
		s.Users = append(s.Users, u)
	}
}

// pause waits, or returns what ended ctx.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// self is left out of the users of a queue.
var self = os.Getpid()
