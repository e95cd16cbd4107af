package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/kumquat-mq/kumquat"
)

// The exit codes. 128 plus the number of a signal stands for a command that the signal ended.
const (
	exitDone = iota
	exitFailure
	exitUsage
	exitNotFound
	exitEmpty
	exitFull
	exitPermission
	exitCorrupt
	exitSignal = 128
)

// exitLines returns the table of exit codes as --help and the manual show it.
func exitLines() [][2]string {
	return [][2]string{
		{"0", "done"},
		{"1", "failure"},
		{"2", "usage: the command line is wrong"},
		{"3", "no such queue, or it was removed meanwhile"},
		{"4", "timed out, or the queue was empty"},
		{"5", "queue full, or no space on its file system"},
		{"6", "permission denied"},
		{"7", "the queue's file is corrupt"},
		{"128+N", "ended by signal N: 130 after Ctrl-C, 143 after SIGTERM"},
	}
}

// environment is what the manual says of the environment.
var environment = [][2]string{
	{"KUMQUAT_SHM", "the folder of the queues in memory, /dev/shm by default"},
	{"KUMQUAT_BENCH_CPUPROFILE", "a folder: each process of kumquat bench writes a CPU profile of itself there"},
	{"NO_COLOR", "if not empty: no colours"},
}

// usageError is an error of the command line, found before or after the command began.
type usageError struct {
	err  error
	path string // the command whose --help tells more
}

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{err: fmt.Errorf(format, args...)} }

// exitCode returns the code that stands for err.
func exitCode(ctx context.Context, err error) int {
	var quiet quietError
	var usage usageError
	if sig, ok := interrupted(ctx, err); ok {
		return exitSignal + int(sig)
	}
	switch {
	case errors.As(err, &quiet):
		return quiet.code
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, kumquat.ErrCorrupt):
		return exitCorrupt
	case errors.Is(err, kumquat.ErrNotFound), errors.Is(err, kumquat.ErrRemoved):
		return exitNotFound
	case errors.Is(err, kumquat.ErrPermission):
		return exitPermission
	case errors.Is(err, kumquat.ErrFull), errors.Is(err, kumquat.ErrNoSpace):
		return exitFull
	case errors.Is(err, kumquat.ErrEmpty), errors.Is(err, kumquat.ErrTimeout):
		return exitEmpty
	case errors.Is(err, kumquat.ErrInvalid):
		return exitUsage
	}
	return exitFailure
}

// errorText returns what is said of err: the error, then, on a line of its own, what to do next. It is empty where nothing is
// left to say: after Ctrl-C, and for a reader of our output that has gone.
func errorText(ctx context.Context, err error) string {
	var quiet quietError
	var usage usageError
	var told toldError
	isTold := errors.As(err, &told)
	sig, stopped := interrupted(ctx, err)
	switch {
	case errors.As(err, &quiet):
		return ""
	case stopped && isTold:
		return told.told + ": " + signalError{sig}.Error()
	case stopped:
		return ""
	case errors.Is(err, syscall.EPIPE) && !isTold:
		return ""
	}
	text := strings.TrimPrefix(err.Error(), "kumquat: ")
	hint := ""
	var h hintError
	if errors.As(err, &usage) {
		hint = "see: kumquat --help"
		if usage.path != "" {
			hint = "see: " + usage.path + " --help"
		}
	} else if errors.As(err, &h) {
		hint = h.hint
	}
	if hint == "" || strings.Contains(text, hint) {
		return text
	}
	return text + "\n" + hint
}

// hintError adds what to do next.
type hintError struct {
	err  error
	hint string
}

func (e hintError) Error() string { return e.err.Error() }
func (e hintError) Unwrap() error { return e.err }

// toldError adds how far the work went; that is said even where the error itself would go without a word.
type toldError struct {
	told string
	err  error
}

func (e toldError) Error() string {
	return e.told + ": " + strings.TrimPrefix(e.err.Error(), "kumquat: ")
}
func (e toldError) Unwrap() error { return e.err }

// withHint adds to an error of an open what helps against it.
func withHint(err error, name string) error {
	hint := ""
	switch n := shellWord(name); {
	case err == nil:
		return nil
	case errors.Is(err, kumquat.ErrNotFound):
		hint = "create it with: kumquat create " + n + ", or send with --create; kumquat ls shows those that exist"
	case errors.Is(err, kumquat.ErrCorrupt):
		hint = "kumquat check " + n + " says what is broken; kumquat rm " + n + " removes it"
	case errors.Is(err, kumquat.ErrPermission):
		hint = "kumquat ls " + n + " shows its owner and mode"
	case errors.Is(err, kumquat.ErrExists):
		hint = "kumquat stat " + n + " shows it"
	default:
		return err
	}
	return hintError{err, hint}
}

// shellWord quotes s for sh where that is needed.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/-_.:,=+@%", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
