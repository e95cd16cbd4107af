// Package lab holds what the examples have in common and what is not their subject: the flag that chooses the kind of queue, the
// processes that a program starts, and a tidy end after Ctrl-C.
//
// Every program of the examples calls [Main] with its roles. The role "" is what runs at first; it may start the others with
// [Start], each as a process of its own: the same program again, with -role NAME.
package lab

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kumquat-mq/kumquat"
)

var (
	on   = flag.String("on", "", "the `kind` of queue: nothing for the engine, posix:, sysv: or sysv+priority: for the kernel's")
	role = flag.String("role", "", "the `part` to play; without it the program starts the processes that it needs by itself")
)

// childVar is set for processes that Start started. Their standard input ends when they are to stop, or when their parent is dead.
const childVar = "KUMQUAT_EXAMPLE_CHILD"

// children are the processes that this one has started.
var children struct {
	sync.Mutex
	list   []*Process
	cancel context.CancelCauseFunc // of the context that Main made
}

// Main runs the role that the command line asks for, and ends the program: with status 0 if it returned nil, 1 with its error on
// standard error, 2 if the command line is wrong, 130 after Ctrl-C (SIGINT) or SIGTERM. The role's context is done at those signals,
// and when a process that it started fails: a blocked call returns, the role returns, and its deferred calls remove the queues.
func Main(roles map[string]func(context.Context) error) {
	flag.Parse()
	*on = strings.TrimSuffix(*on, ":")
	run := roles[*role]
	switch {
	case run == nil:
		fail(2, fmt.Errorf("there is no role %q", *role))
	case *on != "" && !slices.Contains(kumquat.Schemes(), *on):
		fail(2, fmt.Errorf("-on %s: there are %s", *on, strings.Join(kumquat.Schemes(), ":, ")+":"))
	}
	// Without this, `… | head -1` would kill the program at its second line, and its queues would stay.
	signal.Ignore(syscall.SIGPIPE)
	signals, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithCancelCause(signals)
	children.cancel = cancel
	if os.Getenv(childVar) != "" {
		go func() { // ends with the process
			_, _ = io.Copy(io.Discard, os.Stdin)
			cancel(errStopped)
		}()
	}
	err := run(ctx)
	Stop()
	switch cause := context.Cause(ctx); {
	case err == nil:
		os.Exit(0)
	case signals.Err() != nil:
		fail(130, errors.New("interrupted"))
	case cause != errStopped: // a process that it started
		fail(1, cause)
	case errors.Is(err, context.Canceled): // told to stop by the parent, who knows why
		os.Exit(1)
	case errors.Is(err, kumquat.ErrExists):
		fail(1, fmt.Errorf("%w\n(another run uses it, or one that was killed has left it: queues outlive their processes.\n"+
			"If so, remove it: go run ./cmd/kumquat rm %s)", err, queueOf(err)))
	default:
		fail(1, err)
	}
}

var errStopped = errors.New("stopped")

func fail(status int, err error) {
	if os.Getenv(childVar) == "" || status == 1 {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(status)
}

func queueOf(err error) string {
	var e *kumquat.Error
	if errors.As(err, &e) {
		return e.Queue
	}
	return "NAME"
}

// Kind returns what -on asked for: "" for the engine, "posix", "sysv" or "sysv+priority".
func Kind() string { return *on }

// Queue returns the queue called name, such as "/images/input", on the kind of queue that -on asked for, as kumquat.Open takes it.
// The engine has folders. POSIX names have one slash, so the others become dots: "posix:/images.input". System V queues have
// no names but numbers of 32 bits: the letter K and 24 bits of a hash of the name, as in "sysv:0x4b1d03f2". Two names may fall on one number;
// ftok(3), which makes the number of a file's inode, has the same weakness.
func Queue(name string) string {
	name = "/" + strings.TrimPrefix(name, "/")
	switch *on {
	case "":
		return name
	case "sysv", "sysv+priority":
		h := fnv.New32a()
		_, _ = io.WriteString(h, name) // a hash takes everything
		return fmt.Sprintf("%s:0x4b%06x", *on, h.Sum32()&0xffffff)
	case "posix":
		return "posix:/" + strings.ReplaceAll(name[1:], "/", ".")
	}
	return *on + ":" + name
}

// Process is a process that Start started.
type Process struct {
	over chan struct{}
	err  error
}

// Start runs this program again in another process, in the given role; args are what flag.Args returns there. It writes to the same
// standard output. It ends by itself, or when ctx is done. If it fails, this program's context is cancelled, so that
// nobody waits for a message that will never come.
func Start(ctx context.Context, role string, args ...string) *Process {
	p := &Process{over: make(chan struct{})}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{"-on", *on, "-role", role}, args...)...)
	cmd.Env = append(os.Environ(), childVar+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	in, err := cmd.StdinPipe()
	if err == nil {
		cmd.Cancel = in.Close           // the end of its input tells it to stop
		cmd.WaitDelay = 5 * time.Second // then it is killed
		err = cmd.Start()
	}
	children.Lock()
	children.list = append(children.list, p)
	children.Unlock()
	end := func(err error) {
		if err != nil {
			p.err = fmt.Errorf("the process %q failed: %w", strings.Join(append([]string{role}, args...), " "), err)
			children.cancel(p.err)
		}
		close(p.over)
	}
	if err != nil {
		end(err)
		return p
	}
	go func() { end(cmd.Wait()) }()
	return p
}

// Wait waits for the end of the process. It returns nil if the process ended with status 0.
func (p *Process) Wait() error {
	<-p.over
	return p.err
}

// Stop ends all processes that this one has started, and waits for them. It cancels the context of the role. Programs
// defer it after they have deferred the removal of their queues: so the processes are gone before the queues are.
func Stop() {
	children.cancel(errStopped)
	children.Lock()
	defer children.Unlock()
	for _, p := range children.list {
		<-p.over
	}
}
