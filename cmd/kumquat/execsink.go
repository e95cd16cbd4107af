package main

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kumquat-mq/kumquat"
)

// execSink runs a command for each message, with the body on its standard input and the metadata in its environment.
type execSink struct {
	a       *app
	queue   string
	command string
	out     int
}

func (e *execSink) write(m *kumquat.Message) error {
	// Not CommandContext: a signal to us lets the command finish what it has begun.
	c := exec.CommandContext(context.Background(), "/bin/sh", "-c", e.command)
	c.Stdin = bytes.NewReader(m.Body)
	c.Stdout, c.Stderr = e.a.file, os.Stderr
	c.Env = append(os.Environ(), messageEnv(e.queue, m)...)
	if err := c.Run(); err != nil {
		return fmt.Errorf("the command failed: %w", err)
	}
	e.out++
	return nil
}

func (e *execSink) flush() error { return nil }
func (e *execSink) done() int    { return e.out }
func (e *execSink) batch() int   { return 1 }

// messageEnv gives the metadata as variables. Senders choose the values, never the names: headers come as one JSON object.
func messageEnv(queue string, m *kumquat.Message) []string {
	env := []string{
		"KUMQUAT_QUEUE=" + queue,
		"KUMQUAT_PRIORITY=" + strconv.Itoa(m.Priority),
		"KUMQUAT_TYPE=" + strconv.FormatInt(m.Type, 10),
		"KUMQUAT_SEQ=" + strconv.FormatUint(m.Seq, 10),
		"KUMQUAT_SENDER=" + strconv.Itoa(m.Sender),
		"KUMQUAT_ATTEMPT=" + strconv.Itoa(m.Attempt),
		"KUMQUAT_ID=" + m.ID,
		"KUMQUAT_KEY=" + m.Key,
		"KUMQUAT_GROUP=" + m.Group,
		"KUMQUAT_CORRELATION_ID=" + m.CorrelationID,
		"KUMQUAT_REPLY_TO=" + m.ReplyTo,
		"KUMQUAT_CONTENT_TYPE=" + m.ContentType,
	}
	if !m.Enqueued.IsZero() {
		env = append(env, "KUMQUAT_ENQUEUED="+m.Enqueued.UTC().Format(time.RFC3339Nano))
	}
	if len(m.Headers) > 0 {
		env = append(env, "KUMQUAT_HEADERS="+strings.TrimSpace(string(line(m.Headers))))
	}
	for i, v := range env {
		env[i] = strings.ReplaceAll(v, "\x00", "\uFFFD") // a variable cannot hold it
	}
	return env
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
