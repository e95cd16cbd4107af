package rpc

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/kumquat-mq/kumquat"
)

func init() {
	roles["server"] = serverRole
	roles["client"] = clientRole
}

// addMethods gives a server what the tests call.
func addMethods(s *Server, told func(format string, a ...any)) {
	var count atomic.Int64
	Handle(s, "add", func(_ context.Context, v []int) (int, error) {
		sum := 0
		for _, n := range v {
			sum += n
		}
		return sum, nil
	})
	Handle(s, "echo", func(_ context.Context, b []byte) ([]byte, error) { return b, nil })
	Handle(s, "who", func(ctx context.Context, _ int) ([3]int, error) {
		p := PeerFrom(ctx)
		return [3]int{p.PID, p.UID, p.GID}, nil
	})
	Handle(s, "priority", func(ctx context.Context, _ int) (int, error) { return PriorityFrom(ctx), nil })
	Handle(s, "count", func(context.Context, int) (int64, error) { return count.Add(1), nil })
	Handle(s, "sleep", func(ctx context.Context, ms int) (int, error) { // whatever its context says
		time.Sleep(time.Duration(ms) * time.Millisecond)
		return ms, nil
	})
	Handle(s, "block", func(ctx context.Context, n int) (int, error) {
		told("blocks %d", n)
		<-ctx.Done()
		told("ended %d %s", n, kindOf(context.Cause(ctx)))
		return 0, ctx.Err()
	})
	Handle(s, "note", func(ctx context.Context, text string) (int, error) {
		told("note %s", text)
		return 0, nil
	})
}

// serverRole: [-mode BITS] [-isolate] NAME. Serves until its standard input ends.
func serverRole(args []string) int {
	f := flag.NewFlagSet("server", flag.ContinueOnError)
	mode := f.String("mode", "600", "")
	isolate := f.Bool("isolate", false, "")
	if f.Parse(args) != nil {
		return 2
	}
	bits, err := strconv.ParseUint(*mode, 8, 32)
	if err != nil {
		return 2
	}
	s := NewServer(&ServerOptions{Mode: os.FileMode(bits), Isolate: *isolate, Log: quiet})
	addMethods(s, func(format string, a ...any) { fmt.Printf(format+"\n", a...) })
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := s.Listen(ctx, f.Arg(0)); err != nil {
		fmt.Println(kindOf(err))
		return 1
	}
	fmt.Println("ready")
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		cancel()
	}()
	if err := s.Serve(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// clientRole: NAME OWNER. Does what each line of standard input says and answers with one line.
func clientRole(args []string) int {
	ctx := context.Background()
	var o ClientOptions
	if uid, err := strconv.Atoi(args[1]); err == nil {
		o.Owner = &uid
	}
	c, err := Dial(ctx, args[0], &o)
	fmt.Println(kindOf(err))
	if err != nil {
		return 0
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		switch w := strings.Fields(in.Text()); w[0] {
		case "who":
			v, err := Call[[3]int](ctx, c, "who", 0)
			fmt.Println(v, kindOf(err))
		case "block": // COUNT calls, with nobody to hear of their end
			n, _ := strconv.Atoi(w[1])
			for i := range n {
				go func() { _, _ = Call[int](ctx, c, "block", i) }()
			}
			fmt.Println("ok")
		case "sleep": // COUNT calls; says when all have been answered
			n, _ := strconv.Atoi(w[1])
			done := make(chan error, n)
			for range n {
				go func() {
					_, err := Call[int](ctx, c, "sleep", 50)
					done <- err
				}()
			}
			fmt.Println("ok")
			for range n {
				if e := <-done; e != nil {
					err = e
				}
			}
			fmt.Println("answered", kindOf(err))
		case "notes": // COUNT one-way calls
			n, _ := strconv.Atoi(w[1])
			for i := range n {
				if err = Send(ctx, c, "note", "book", fmt.Sprint(i)); err != nil {
					break
				}
			}
			fmt.Println(kindOf(err))
		case "queues":
			n := c.cur.Load()
			fmt.Println(n.requests.Name(), n.replies.Name())
		case "open": // QUEUE
			q, err := kumquat.Open(ctx, w[1], nil)
			if err == nil {
				err = q.Close()
			}
			fmt.Println(kindOf(err))
		case "vandalize": // how one of no good will might
			n := c.cur.Load()
			for range 100 {
				_ = n.requests.TrySend(kumquat.Message{Type: typeCall, ReplyTo: "/another", CorrelationID: "?"})
				_ = n.requests.TrySend(kumquat.Message{Type: typeEnd, ReplyTo: w[1]})
				_ = n.requests.TrySend(kumquat.Message{Type: 77})
			}
			fmt.Println("ok")
		case "truncate":
			st, err := c.cur.Load().requests.Stat(ctx)
			if err == nil {
				err = os.Truncate(st.Path, 0)
			}
			fmt.Println(kindOf(err))
		case "close":
			fmt.Println(kindOf(c.Close()))
		}
	}
	return 0
}
