// Rpcbench measures a small call between two processes: package rpc, the same with gRPC's stubs, net/rpc and gRPC over a Unix socket,
// all in one run, in turns.
//
//	go run ./rpcbench -for 10s -size 64
//
// Every line of the output is a JSON object: first one for each subject, with percentiles in nanoseconds, then the ratios of the medians,
// with what is required of them for a single caller, who calls and waits; the server echoes the body. With -callers more of them share a
// connection.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	netrpc "net/rpc"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/kumquat-mq/kumquat/rpc"
	"github.com/kumquat-mq/kumquat/rpc/grpcrpc"
)

// subject is one way to make the call.
type subject struct {
	name  string
	serve func(ctx context.Context, at string) error // prints "ready" when clients may come
	dial  func(ctx context.Context, at string) (call func(body []byte) ([]byte, error), end func() error, err error)
}

var subjects = []subject{
	{"kumquat", serveKumquat, dialKumquat},
	{"kumquat-grpc", serveKumquat, dialStub},
	{"net/rpc", serveNet, dialNet},
	{"grpc", serveGRPC, dialGRPC},
}

// What is required of the medians, over that of package rpc.
var required = map[string]float64{"grpc": 3, "net/rpc": 1.5}

func main() {
	serve := flag.String("serve", "", "be the server of this `subject` (the program runs itself so)")
	at := flag.String("at", "", "`where` the server is reached")
	total := flag.Duration("for", 10*time.Second, "how long to measure, all subjects together")
	size := flag.Int("size", 64, "`bytes` of a body")
	callers := flag.Int("callers", 1, "how many call at once, over one connection")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := errors.New("there is no such subject")
	if *serve != "" {
		for _, s := range subjects {
			if s.name == *serve {
				err = s.serve(ctx, *at)
			}
		}
	} else {
		err = measure(ctx, *total, *size, max(*callers, 1))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "rpcbench:", err)
		os.Exit(1)
	}
}

// result is a line of the output.
type result struct {
	Subject string `json:"subject"`
	Callers int    `json:"callers"`
	Calls   int    `json:"calls"`
	Bytes   int    `json:"bytes"`
	P50     int64  `json:"p50_ns"`
	P90     int64  `json:"p90_ns"`
	P99     int64  `json:"p99_ns"`
	Mean    int64  `json:"mean_ns"`
}

type ratio struct {
	Ratio    string  `json:"ratio"`
	P50      float64 `json:"p50"`
	Required float64 `json:"required,omitempty"`
	Reached  *bool   `json:"reached,omitempty"`
}

const rounds = 20

func measure(ctx context.Context, total time.Duration, size, callers int) error {
	dir, err := os.MkdirTemp("", "rpcbench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	calls := make([]func([]byte) ([]byte, error), len(subjects))
	for i, s := range subjects {
		at := filepath.Join(dir, fmt.Sprint(i))
		if s.name == "kumquat" || s.name == "kumquat-grpc" {
			at = fmt.Sprintf("/rpcbench/%d/%d", os.Getpid(), i)
		}
		stop, err := start(s.name, at)
		if err != nil {
			return err
		}
		defer stop()
		call, end, err := s.dial(ctx, at)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		defer end()
		calls[i] = call
	}
	body := bytes.Repeat([]byte{'x'}, size)
	took := make([][]int64, len(subjects))
	slice := total / time.Duration((rounds+1)*len(subjects))
	for round := range rounds + 1 { // the first warms up
		for i, call := range calls {
			t, err := callFor(slice, callers, body, call)
			if err != nil {
				return fmt.Errorf("%s: %w", subjects[i].name, err)
			}
			if round > 0 {
				took[i] = append(took[i], t...)
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	out := json.NewEncoder(os.Stdout)
	p50 := map[string]float64{}
	for i, s := range subjects {
		t := took[i]
		if len(t) == 0 {
			return fmt.Errorf("%s: no call was finished", s.name)
		}
		slices.Sort(t)
		r := result{Subject: s.name, Callers: callers, Calls: len(t), Bytes: size, P50: t[len(t)/2], P90: t[len(t)*9/10], P99: t[len(t)*99/100]}
		for _, x := range t {
			r.Mean += x
		}
		r.Mean /= int64(len(t))
		p50[s.name] = float64(r.P50)
		if err := out.Encode(r); err != nil {
			return err
		}
	}
	for _, pair := range [][2]string{{"grpc", "kumquat"}, {"net/rpc", "kumquat"}, {"grpc", "kumquat-grpc"}} {
		r := ratio{Ratio: pair[0] + " / " + pair[1], P50: float64(int(100*p50[pair[0]]/p50[pair[1]])) / 100}
		if pair[1] == "kumquat" && callers == 1 {
			r.Required = required[pair[0]]
			reached := r.P50 >= r.Required
			r.Reached = &reached
		}
		if err := out.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

// callFor lets callers call for a while and returns how long each call took, in nanoseconds.
func callFor(slice time.Duration, callers int, body []byte, call func([]byte) ([]byte, error)) (all []int64, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	end := time.Now().Add(slice)
	for range callers {
		wg.Go(func() {
			var took []int64
			var failed error
			for {
				start := time.Now()
				if start.After(end) {
					break
				}
				got, err := call(body)
				took = append(took, time.Since(start).Nanoseconds())
				if err == nil && !bytes.Equal(got, body) {
					err = errors.New("the echo is another")
				}
				if failed = err; err != nil {
					break
				}
			}
			mu.Lock()
			defer mu.Unlock()
			all, err = append(all, took...), errors.Join(err, failed)
		})
	}
	wg.Wait()
	return all, err
}

// start runs the server of a subject as another process, and waits until it is ready.
func start(name, at string) (stop func(), err error) {
	c := exec.Command("/proc/self/exe", "-serve", name, "-at", at)
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		_ = c.Process.Signal(syscall.SIGTERM)
		_ = c.Wait()
	}
	if _, err := out.Read(make([]byte, 6)); err != nil {
		stop()
		return nil, fmt.Errorf("the server of %s did not start: %w", name, err)
	}
	return stop, nil
}

// echo serves all that need a type with a method.
type echo struct {
	pb.UnimplementedTestServiceServer
}

// Echo is the method for net/rpc.
func (*echo) Echo(in []byte, out *[]byte) error {
	*out = in
	return nil
}

// UnaryCall is the method for gRPC's stubs.
func (*echo) UnaryCall(_ context.Context, r *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	return &pb.SimpleResponse{Payload: r.Payload}, nil
}

func serveKumquat(ctx context.Context, at string) error {
	s := rpc.NewServer(nil)
	rpc.Handle(s, "echo", func(_ context.Context, b []byte) ([]byte, error) { return b, nil })
	pb.RegisterTestServiceServer(grpcrpc.NewRegistrar(s, nil), &echo{})
	if err := s.Listen(ctx, at); err != nil {
		return err
	}
	fmt.Println("ready")
	return s.Serve(ctx)
}

func dialKumquat(ctx context.Context, at string) (func([]byte) ([]byte, error), func() error, error) {
	c, err := rpc.Dial(ctx, at, nil)
	if err != nil {
		return nil, nil, err
	}
	return func(b []byte) ([]byte, error) { return rpc.Call[[]byte](ctx, c, "echo", b) }, c.Close, nil
}

func dialStub(ctx context.Context, at string) (func([]byte) ([]byte, error), func() error, error) {
	c, err := rpc.Dial(ctx, at, nil)
	if err != nil {
		return nil, nil, err
	}
	return stub(ctx, grpcrpc.NewClientConn(c)), c.Close, nil
}

// stub calls by the generated client, whatever carries it.
func stub(ctx context.Context, c grpc.ClientConnInterface) func([]byte) ([]byte, error) {
	client := pb.NewTestServiceClient(c)
	return func(b []byte) ([]byte, error) {
		r, err := client.UnaryCall(ctx, &pb.SimpleRequest{Payload: &pb.Payload{Body: b}})
		return r.GetPayload().GetBody(), err
	}
}

func serveNet(ctx context.Context, at string) error {
	s := netrpc.NewServer()
	if err := s.RegisterName("Bench", &echo{}); err != nil {
		return err
	}
	l, err := net.Listen("unix", at)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	context.AfterFunc(ctx, func() { _ = l.Close() })
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		go s.ServeConn(c)
	}
}

func dialNet(_ context.Context, at string) (func([]byte) ([]byte, error), func() error, error) {
	c, err := netrpc.Dial("unix", at)
	if err != nil {
		return nil, nil, err
	}
	return func(b []byte) (out []byte, err error) {
		err = c.Call("Bench.Echo", b, &out)
		return out, err
	}, c.Close, nil
}

func serveGRPC(ctx context.Context, at string) error {
	s := grpc.NewServer()
	pb.RegisterTestServiceServer(s, &echo{})
	l, err := net.Listen("unix", at)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	context.AfterFunc(ctx, s.Stop)
	return s.Serve(l)
}

func dialGRPC(ctx context.Context, at string) (func([]byte) ([]byte, error), func() error, error) {
	c, err := grpc.NewClient("unix://"+at, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	return stub(ctx, c), c.Close, nil
}
