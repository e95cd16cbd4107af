package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/posix"
)

// The JSON forms. Their fields are only ever added to.

type messageJSON struct {
	Seq           uint64            `json:"seq,omitempty"`
	Priority      int               `json:"priority"`
	Type          int64             `json:"type"`
	ID            string            `json:"id,omitempty"`
	Key           string            `json:"key,omitempty"`
	Group         string            `json:"group,omitempty"`
	CorrelationID string            `json:"correlation_id,omitempty"`
	ReplyTo       string            `json:"reply_to,omitempty"`
	ContentType   string            `json:"content_type,omitempty"`
	Headers       map[string]string `json:"headers,omitempty"`
	NotBefore     time.Time         `json:"not_before,omitzero"`
	Expires       time.Time         `json:"expires,omitzero"`
	Enqueued      time.Time         `json:"enqueued,omitzero"`
	Attempt       int               `json:"attempt,omitempty"`
	Sender        int               `json:"sender,omitempty"`
	Size          int               `json:"size"`
	Body          *string           `json:"body,omitempty"`
	BodyBase64    []byte            `json:"body_base64,omitempty"`
}

// jsonOf gives the body as text if it is UTF-8, else in base64: JSON has no other bytes.
func jsonOf(m *kumquat.Message) messageJSON {
	j := messageJSON{Seq: m.Seq, Priority: m.Priority, Type: m.Type, ID: m.ID, Key: m.Key, Group: m.Group, CorrelationID: m.CorrelationID,
		ReplyTo: m.ReplyTo, ContentType: m.ContentType, Headers: m.Headers, NotBefore: m.NotBefore, Expires: m.Expires,
		Enqueued: m.Enqueued, Attempt: m.Attempt, Sender: m.Sender, Size: len(m.Body)}
	if utf8.Valid(m.Body) {
		s := string(m.Body)
		j.Body = &s
	} else {
		j.BodyBase64 = m.Body
	}
	return j
}

type statsJSON struct {
	Name            string    `json:"name"`
	Error           string    `json:"error,omitempty"`
	Messages        int       `json:"messages"`
	Delayed         int       `json:"delayed"`
	Bytes           int64     `json:"bytes"`
	MaxMessages     int       `json:"max_messages"`
	MaxSize         int       `json:"max_size"`
	Sent            uint64    `json:"sent"`
	Received        uint64    `json:"received"`
	Dropped         uint64    `json:"dropped"`
	Expired         uint64    `json:"expired"`
	Handles         int       `json:"handles"`
	Receivers       int       `json:"receivers"`
	Senders         int       `json:"senders"`
	Takeovers       uint64    `json:"takeovers"`
	MaxHandles      int       `json:"max_handles"`
	MaxBatch        int       `json:"max_batch"`
	Overflow        string    `json:"overflow"`
	Headroom        string    `json:"headroom,omitempty"`
	Durability      string    `json:"durability"`
	Mode            string    `json:"mode"`
	UID             int       `json:"uid"`
	GID             int       `json:"gid"`
	Owner           string    `json:"owner"`
	Created         time.Time `json:"created,omitzero"`
	Resident        int64     `json:"resident"`
	OldestEnqueued  time.Time `json:"oldest_enqueued,omitzero"`
	LowestPriority  int       `json:"lowest_priority"`
	HighestPriority int       `json:"highest_priority"`
	Removed         bool      `json:"removed,omitempty"`
	FormatVersion   int       `json:"format_version"`
	Path            string    `json:"path,omitempty"`

	Kind  string     `json:"kind"`
	Limit *int       `json:"limit_percent,omitempty"`
	POSIX *posixJSON `json:"posix,omitempty"`
	SysV  *sysvJSON  `json:"sysv,omitempty"`
}

// posixJSON is what only POSIX queues have.
type posixJSON struct {
	OpenBy      *int   `json:"open_by,omitempty"`  // processes that have it open
	AllSeen     *bool  `json:"all_seen,omitempty"` // false: others could not be inspected and may have it open too
	NotifyPID   int    `json:"notify_pid,omitempty"`
	NotifyKind  string `json:"notify_kind,omitempty"`
	KernelBytes int64  `json:"kernel_bytes"` // of RLIMIT_MSGQUEUE
}

// sysvJSON is what only System V queues have.
type sysvJSON struct {
	Key          string     `json:"key"`
	ID           int        `json:"id"`
	MaxBytes     int64      `json:"max_bytes"`
	CreatorUID   int        `json:"creator_uid"`
	Changed      time.Time  `json:"changed"`
	LastSender   *partyJSON `json:"last_sender,omitempty"`
	LastReceiver *partyJSON `json:"last_receiver,omitempty"`
}

type partyJSON struct {
	PID     int       `json:"pid"`
	Time    time.Time `json:"time"`
	Alive   bool      `json:"alive"`
	Command string    `json:"command,omitempty"`
}

func partyOf(pid int, at time.Time) *partyJSON {
	if at.IsZero() {
		return nil
	}
	p := lastUser(pid, at)
	return &partyJSON{PID: p.pid, Time: at, Alive: p.alive, Command: p.command}
}

var notifyNames = map[posix.NotifyKind]string{posix.NotifyBySignal: "signal", posix.NotifyByNone: "none", posix.NotifyByThread: "thread"}

// jsonOfRow is a queue of any kind.
func jsonOfRow(r *row) statsJSON {
	j := statsOf(r.Name, &r.Stats)
	if r.Err != nil {
		j = statsJSON{Name: r.Name, Error: r.Err.Error()}
	}
	j.Kind = r.kind
	if n := r.fill(); n >= 0 {
		j.Limit = &n
	}
	switch {
	case r.posix != nil && r.Err == nil:
		x := r.posix
		j.POSIX = &posixJSON{NotifyPID: x.NotifyPID, KernelBytes: posix.Footprint(x.MaxMessages, x.MaxSize)}
		if x.NotifyPID != 0 {
			j.POSIX.NotifyKind = notifyNames[x.NotifyKind]
		}
		if r.open != nil {
			j.POSIX.OpenBy, j.POSIX.AllSeen = &r.open.processes, &r.open.whole
		}
	case r.sysv != nil:
		s := r.sysv
		j.SysV = &sysvJSON{Key: s.Key.String(), ID: s.ID, MaxBytes: s.QBytes, CreatorUID: s.CUID, Changed: s.Changed,
			LastSender: partyOf(s.SendPID, s.LastSend), LastReceiver: partyOf(s.RecvPID, s.LastRecv)}
	}
	return j
}

var durabilityNames = map[kumquat.Durability]string{kumquat.Memory: "memory", kumquat.Interval: "interval", kumquat.Always: "always"}

func modeText(s *kumquat.Stats) string { return fmt.Sprintf("%04o", s.Mode.Perm()) }

func statsOf(name string, s *kumquat.Stats) statsJSON {
	return statsJSON{Name: name, Messages: s.Messages, Delayed: s.Delayed, Bytes: s.Bytes, MaxMessages: s.MaxMessages, MaxSize: s.MaxSize,
		Sent: s.Sent, Received: s.Received, Dropped: s.Dropped, Expired: s.Expired, Handles: s.Handles, Receivers: s.Receivers,
		Senders: s.Senders, Takeovers: s.Takeovers, MaxHandles: s.MaxHandles, MaxBatch: s.MaxBatch, Overflow: overflowName(s.Overflow),
		Headroom: headroomText(s.Headroom), Durability: durabilityNames[s.Durability], Mode: modeText(s), UID: s.UID, GID: s.GID,
		Owner: userName(s.UID), Created: s.Created, Resident: s.Resident, OldestEnqueued: s.OldestEnqueued,
		LowestPriority: s.LowestPriority, HighestPriority: s.HighestPriority, Removed: s.Removed, FormatVersion: s.FormatVersion, Path: s.Path,
		Kind: kindOf(name)}
}

type participantJSON struct {
	Number    int       `json:"number"`
	PID       int       `json:"pid"`
	Visible   bool      `json:"visible"`
	Alive     bool      `json:"alive"`
	Namespace bool      `json:"other_pid_namespace,omitempty"`
	Command   string    `json:"command"`
	User      string    `json:"user"`
	UID       int       `json:"uid"`
	Unit      string    `json:"unit,omitempty"`
	State     string    `json:"state"`
	Doing     string    `json:"doing"`
	Since     time.Time `json:"since,omitzero"`
	Opened    time.Time `json:"opened,omitzero"`
	Holds     int       `json:"holds"`
	Sent      uint64    `json:"sent"`
	Received  uint64    `json:"received"`
	ReadOnly  bool      `json:"read_only,omitempty"`
	Last      []string  `json:"last,omitempty"`
}

func participantOf(p *kumquat.Participant) participantJSON {
	return participantJSON{Number: p.Number, PID: p.PID, Visible: p.Visible, Alive: p.Alive, Namespace: p.Namespace, Command: p.Command,
		User: p.User, UID: p.UID, Unit: p.Unit, State: p.State, Doing: p.Doing, Since: p.Since, Opened: p.Opened, Holds: p.Holds,
		Sent: p.Sent, Received: p.Received, ReadOnly: p.ReadOnly, Last: p.Last}
}

type eventJSON struct {
	Queue       string           `json:"queue"`
	Time        time.Time        `json:"time"`
	Kind        string           `json:"kind"`
	N           uint64           `json:"n,omitempty"`
	Messages    int              `json:"messages"`
	Participant *participantJSON `json:"participant,omitempty"`
}

func eventOf(queue string, e *kumquat.Event) eventJSON {
	j := eventJSON{Queue: queue, Time: e.Time, Kind: string(e.Kind), N: e.N, Messages: e.Messages}
	if e.Participant != nil {
		p := participantOf(e.Participant)
		j.Participant = &p
	}
	return j
}

type problemJSON struct {
	Broken bool   `json:"broken"`
	Where  string `json:"where"`
	Text   string `json:"text"`
}

type reportJSON struct {
	Name     string            `json:"name"`
	Sound    bool              `json:"sound"`
	Checked  int               `json:"checked"`
	Busy     bool              `json:"busy,omitempty"`
	Problems []problemJSON     `json:"problems,omitempty"`
	Dead     []participantJSON `json:"dead,omitempty"`
	Notes    []string          `json:"notes,omitempty"`
	Error    string            `json:"error,omitempty"`
}

// line returns v as one line of JSON.
func line(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err) // the types above can all be encoded
	}
	return guard(b.Bytes())
}

// guard escapes the characters that JSON may hold as they are but that act on a terminal. They can stand in strings only.
func guard(b []byte) []byte {
	acts := func(r rune) bool {
		return r == utf8.RuneError || r >= 0x7f && r <= 0x9f || r == 0x61c || r >= 0x200b && r <= 0x200f || r >= 0x2028 && r <= 0x202e ||
			r >= 0x2060 && r <= 0x206f || r == 0xfeff
	}
	if bytes.IndexFunc(b, acts) < 0 {
		return b
	}
	var s strings.Builder
	for _, r := range string(b) {
		if acts(r) {
			fmt.Fprintf(&s, `\u%04x`, r)
		} else {
			s.WriteRune(r)
		}
	}
	return []byte(s.String())
}
