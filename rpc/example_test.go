package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"sync"
	"time"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/rpc"
)

// term is what the calculator is asked.
type term struct {
	Op   string
	A, B float64
}

// calculator serves until ctx is done; ready is called when clients can come.
func calculator(ctx context.Context, ready func()) error {
	s := rpc.NewServer(nil)
	rpc.Handle(s, "compute", func(_ context.Context, t term) (float64, error) {
		switch t.Op {
		case "+":
			return t.A + t.B, nil
		case "-":
			return t.A - t.B, nil
		case "*":
			return t.A * t.B, nil
		case "/":
			if t.B == 0 {
				return 0, &rpc.Error{Code: rpc.OutOfRange, Message: "division by zero"}
			}
			return t.A / t.B, nil
		}
		return 0, fmt.Errorf("%w: there is no operation %q", kumquat.ErrInvalid, t.Op)
	})
	if err := s.Listen(ctx, "/example/calculator"); err != nil {
		return err
	}
	ready()
	return s.Serve(ctx)
}

// A calculation server, and a client that asks it. Most often they are two programs; here they are two goroutines of one.
func Example() {
	ctx, stop := context.WithCancel(context.Background())
	var server sync.WaitGroup
	listens := make(chan struct{})
	server.Go(func() {
		if err := calculator(ctx, func() { close(listens) }); err != nil {
			log.Fatal(err)
		}
	})
	<-listens

	c, err := rpc.Dial(ctx, "/example/calculator", nil)
	if err != nil {
		log.Fatal(err)
	}
	for _, t := range []term{{"+", 2, 3}, {"*", 6, 7}, {"/", 1, 0}, {"^", 2, 8}} {
		call, cancel := context.WithTimeout(ctx, 5*time.Second) // the server's handler has this deadline too
		v, err := rpc.Call[float64](call, c, "compute", t)
		cancel()
		var e *rpc.Error
		switch {
		case errors.As(err, &e):
			fmt.Printf("%g %s %g: %s\n", t.A, t.Op, t.B, e.Code)
		case err != nil:
			log.Fatal(err)
		default:
			fmt.Printf("%g %s %g = %g\n", t.A, t.Op, t.B, v)
		}
	}
	_ = c.Close()
	stop()
	server.Wait()
	// Output:
	// 2 + 3 = 5
	// 6 * 7 = 42
	// 1 / 0: out of range
	// 2 ^ 8: invalid argument
}

// One-way calls to one object are carried out one at a time, in their order: a handler needs no lock for what belongs to the object.
func ExampleSend() {
	ctx := context.Background()
	s := rpc.NewServer(nil)
	balance, done := 0, make(chan struct{})
	rpc.Handle(s, "deposit", func(_ context.Context, amount int) (int, error) {
		balance += amount
		fmt.Println("balance", balance)
		if balance == 60 {
			close(done)
		}
		return 0, nil // nobody waits for it
	})
	if err := s.Listen(ctx, "/example/bank"); err != nil {
		log.Fatal(err)
	}
	serve, stop := context.WithCancel(ctx)
	var server sync.WaitGroup
	server.Go(func() { _ = s.Serve(serve) })

	c, err := rpc.Dial(ctx, "/example/bank", nil)
	if err != nil {
		log.Fatal(err)
	}
	for _, amount := range []int{10, 20, 30} {
		if err := rpc.Send(ctx, c, "deposit", "account 7", amount); err != nil {
			log.Fatal(err)
		}
	}
	<-done
	_ = c.Close()
	stop()
	server.Wait()
	// Output:
	// balance 10
	// balance 30
	// balance 60
}

// A handler hears of its caller's death: its context ends, and the cause is ErrDied; Gone tells it to who keeps something for the
// caller beyond the call. An urgent caller's priority is that of its handler, and of what that calls.
func ExamplePeerFrom() {
	ctx := context.Background()
	s := rpc.NewServer(nil)
	released := make(chan struct{})
	rpc.Handle(s, "lock", func(ctx context.Context, what string) (int, error) {
		peer := rpc.PeerFrom(ctx)
		go func() {
			<-peer.Gone() // killed, or closed
			fmt.Println("released:", what)
			close(released)
		}()
		return rpc.PriorityFrom(ctx), nil
	})
	if err := s.Listen(ctx, "/example/locks"); err != nil {
		log.Fatal(err)
	}
	serve, stop := context.WithCancel(ctx)
	var server sync.WaitGroup
	server.Go(func() { _ = s.Serve(serve) })

	c, err := rpc.Dial(ctx, "/example/locks", nil)
	if err != nil {
		log.Fatal(err)
	}
	p, err := rpc.Call[int](rpc.WithPriority(ctx, kumquat.High), c, "lock", "the orchard")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("handled at priority", p)
	_ = c.Close()
	<-released
	stop()
	server.Wait()
	// Output:
	// handled at priority 20
	// released: the orchard
}
