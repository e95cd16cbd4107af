package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// app is what all commands share: the three streams and what they are.
type app struct {
	in   *os.File
	out  *bufio.Writer // flushed when a command ends, and whenever it is about to wait
	err  io.Writer
	file *os.File // under out

	inTerm, outTerm, errTerm bool
	color                    bool // standard output takes colour
	started                  bool // a command has begun: errors are no longer those of usage
}

func newApp(in, out, errs *os.File) *app {
	a := &app{in: in, file: out, out: bufio.NewWriterSize(out, 64<<10), err: errs}
	a.inTerm, a.outTerm, a.errTerm = isTerminal(in), isTerminal(out), isTerminal(errs)
	a.color = a.outTerm && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return a
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// width returns the columns of the terminal on standard output, 80 where it does not say.
func (a *app) width() int {
	ws, err := unix.IoctlGetWinsize(int(a.file.Fd()), unix.TIOCGWINSZ)
	if err != nil || ws.Col == 0 {
		return 80
	}
	return int(ws.Col)
}

// signalError is the cause of a context that a signal ended.
type signalError struct{ sig syscall.Signal }

func (e signalError) Error() string { return "stopped by " + unix.SignalName(e.sig) }

// catchSignals returns a context that ends at the first SIGINT, SIGTERM or SIGHUP. A second one then ends the process at once.
// Those that were ignored at the start (nohup, a background job of sh) stay ignored.
func catchSignals() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	sigs := make(chan os.Signal, 1)
	for _, s := range []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP} {
		if !signal.Ignored(s) {
			signal.Notify(sigs, s)
		}
	}
	go func() {
		s := <-sigs
		signal.Stop(sigs)
		cancel(signalError{s.(syscall.Signal)})
	}()
	// Somebody listens to SIGPIPE, so writes to a closed pipe return EPIPE instead of ending the process: recv must be able to
	// say which messages it had in hand. (Ignoring it would be inherited by what --exec starts.)
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	return ctx
}

// runMain runs the command line args and returns the exit code.
func runMain(args []string) int {
	return run(catchSignals(), newApp(os.Stdin, os.Stdout, os.Stderr), args)
}

func run(ctx context.Context, a *app, args []string) int {
	root := newRoot(a)
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !a.started {
		err = usageError{groupError(err), cmd.CommandPath()}
	}
	if ferr := a.out.Flush(); ferr != nil && err == nil {
		err = fmt.Errorf("writing to standard output: %w", ferr)
	}
	if err == nil {
		return exitDone
	}
	code := exitCode(ctx, err)
	a.say(errorText(ctx, err))
	return code
}

// say writes an error and, indented below it, what to do next.
func (a *app) say(text string) {
	if text == "" {
		return
	}
	first, rest, more := strings.Cut(text, "\n")
	fmt.Fprintf(a.err, "kumquat: %s\n", escape(first))
	if more {
		for l := range strings.SplitSeq(rest, "\n") {
			fmt.Fprintf(a.err, "  %s\n", escape(l))
		}
	}
}

// quietError carries an exit code and nothing to say: what there was to say has been said.
type quietError struct{ code int }

func (e quietError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// note prints a line for the person at the terminal to standard error, where one is.
func (a *app) note(format string, args ...any) {
	if a.errTerm {
		fmt.Fprintf(a.err, "%s\n", escape(fmt.Sprintf(format, args...)))
	}
}

// interrupted reports whether err is what a signal left, and which.
func interrupted(ctx context.Context, err error) (syscall.Signal, bool) {
	var s signalError
	if errors.Is(err, context.Canceled) && errors.As(context.Cause(ctx), &s) {
		return s.sig, true
	}
	return 0, false
}
