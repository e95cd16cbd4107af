package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/kumquat-mq/kumquat"
)

// streamSink writes messages to a stream, each in a form that encode appends. It keeps its own buffer, so that it knows after an
// error which messages got out.
type streamSink struct {
	w      io.Writer
	encode func(b []byte, m *kumquat.Message) []byte
	most   int

	buf  []byte
	ends []int // of the messages in buf
	out  int
}

const streamBuffer = 64 << 10

func (s *streamSink) write(m *kumquat.Message) error {
	s.buf = s.encode(s.buf, m)
	s.ends = append(s.ends, len(s.buf))
	if len(s.buf) < streamBuffer {
		return nil
	}
	return s.flush()
}

func (s *streamSink) flush() error {
	if len(s.buf) == 0 {
		return nil
	}
	n, err := s.w.Write(s.buf)
	for _, e := range s.ends {
		if e <= n {
			s.out++
		}
	}
	s.ends = s.ends[:0]
	if cap(s.buf) > 4<<20 {
		s.buf = nil // one huge body must not be kept for ever
	}
	s.buf = s.buf[:0]
	if err != nil {
		return fmt.Errorf("writing to standard output: %w", err)
	}
	return nil
}

func (s *streamSink) done() int  { return s.out }
func (s *streamSink) batch() int { return s.most }

// rawLine and rawZero append the body and what ends it.
func rawLine(b []byte, m *kumquat.Message) []byte { return append(append(b, m.Body...), '\n') }
func rawZero(b []byte, m *kumquat.Message) []byte { return append(append(b, m.Body...), 0) }

func jsonLine(b []byte, m *kumquat.Message) []byte { return append(b, line(jsonOf(m))...) }

// messageHead stands over the lines that messageLine makes.
var messageHead = fmt.Sprintf("%5s %6s  %-12s %10s  %s", "PRIO", "TYPE", "SENT", "SIZE", "BODY")

// messageLine is a message as people read it on a terminal; a body longer than width, if that is not 0, is cut.
func (a *app) messageLine(m *kumquat.Message, width int) string {
	body := m.Body
	if width > 0 && len(body) > 4*width {
		body = body[:4*width] // a character has four bytes at most; no need to escape a gigabyte
	}
	text := string(appendEscaped(nil, string(body)))
	if width > 0 {
		text = shorten(text, width)
	}
	head := fmt.Sprintf("%5d %6d  %-12s %10s", m.Priority, m.Type, clockText(m.Enqueued), a.bytesText(int64(len(m.Body))))
	if extra := metaText(m); extra != "" {
		text += "  " + a.paint("{"+extra+"}", faint)
	}
	switch kumquat.BandOf(m.Priority) {
	case "critical":
		head = a.paint(head, red)
	case "high":
		head = a.paint(head, amber)
	default:
		head = a.paint(head, faint)
	}
	return head + "  " + text
}

// clockText is the time of day, with the date if that is not today's.
func clockText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	t = t.Local()
	if y, m, d := t.Date(); time.Now().Local().Format(time.DateOnly) != fmt.Sprintf("%04d-%02d-%02d", y, m, d) {
		return t.Format("01-02 15:04")
	}
	return t.Format("15:04:05.000")
}

// metaText lists the metadata that a message has beyond the usual, escaped.
func metaText(m *kumquat.Message) string {
	var parts []string
	add := func(name, v string) {
		if v != "" {
			parts = append(parts, name+"="+escape(v))
		}
	}
	add("id", m.ID)
	add("key", m.Key)
	add("group", m.Group)
	add("correlation-id", m.CorrelationID)
	add("reply-to", m.ReplyTo)
	add("content-type", m.ContentType)
	for _, k := range sortedKeys(m.Headers) {
		add(escape(k), m.Headers[k])
	}
	if m.NotBefore.After(time.Now()) {
		add("not-before", m.NotBefore.Local().Format(time.DateTime))
	}
	if !m.Expires.IsZero() {
		add("expires", m.Expires.Local().Format(time.DateTime))
	}
	if m.Attempt > 0 {
		add("attempt", strconv.Itoa(m.Attempt))
	}
	return strings.Join(parts, " ")
}
