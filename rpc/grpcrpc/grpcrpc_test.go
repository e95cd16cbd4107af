package grpcrpc_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/kumquat-mq/kumquat/rpc"
	"github.com/kumquat-mq/kumquat/rpc/grpcrpc"
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("/dev/shm", "kumquat-grpcrpc-")
	if err == nil {
		err = os.Setenv("KUMQUAT_SHM", dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if left, err := os.ReadDir(dir); code == 0 && (err != nil || len(left) > 0) {
			fmt.Fprintln(os.Stderr, "left behind:", left, err)
			code = 1
		}
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// service is written against generated code only: nothing in it knows what carries the calls.
type service struct {
	pb.UnimplementedTestServiceServer
	begun chan struct{}
	ended chan error
}

func (s *service) UnaryCall(ctx context.Context, r *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	switch body := string(r.GetPayload().GetBody()); body {
	case "details":
		st, err := status.New(codes.FailedPrecondition, "not ripe").WithDetails(&errdetails.ErrorInfo{Reason: "GREEN"})
		if err != nil {
			return nil, err
		}
		return nil, st.Err()
	case "plain":
		return nil, errors.New("rotten")
	case "context":
		return nil, context.DeadlineExceeded
	case "block":
		s.begun <- struct{}{}
		<-ctx.Done()
		s.ended <- ctx.Err()
		return nil, ctx.Err()
	case "metadata":
		md, _ := metadata.FromIncomingContext(ctx)
		if err := grpc.SetHeader(ctx, metadata.Pairs("seen", strings.Join(md.Get("many"), ","))); err != nil {
			return nil, err
		}
		if err := grpc.SendHeader(ctx, metadata.MD{"raw-bin": md.Get("raw-bin")}); err != nil {
			return nil, err
		}
		if grpc.SetHeader(ctx, metadata.Pairs("late", "x")) == nil {
			return nil, errors.New("a header after the header was sent")
		}
		return &pb.SimpleResponse{}, grpc.SetTrailer(ctx, metadata.Pairs("tail", "1", "tail", "2"))
	case "peer":
		p, ok := peer.FromContext(ctx)
		c, isOurs := p.AuthInfo.(grpcrpc.Credentials)
		m, _ := grpc.Method(ctx)
		return &pb.SimpleResponse{Username: fmt.Sprint(ok && isOurs, c.Peer.PID, c.Peer.UID), Hostname: m}, nil
	}
	return &pb.SimpleResponse{Payload: r.GetPayload()}, nil
}

// start serves a service and returns a generated client of it.
func start(t *testing.T, impl pb.TestServiceServer, i grpc.UnaryServerInterceptor) (pb.TestServiceClient, *rpc.Server, *rpc.Client) {
	t.Helper()
	s := rpc.NewServer(nil)
	pb.RegisterTestServiceServer(grpcrpc.NewRegistrar(s, i), impl)
	name := "/" + t.Name()
	if err := s.Listen(context.Background(), name); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- s.Serve(ctx) }()
	c, err := rpc.Dial(ctx, name, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
	return pb.NewTestServiceClient(grpcrpc.NewClientConn(c)), s, c
}

func ask(body string) *pb.SimpleRequest {
	return &pb.SimpleRequest{Payload: &pb.Payload{Body: []byte(body)}}
}

// Stubs made by protoc-gen-go-grpc work unchanged.
func TestStubs(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	impl := &service{begun: make(chan struct{}, 1), ended: make(chan error, 1)}
	var methods []string
	c, s, conn := start(t, impl, func(ctx context.Context, r any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		methods = append(methods, info.FullMethod)
		return next(ctx, r)
	})

	r, err := c.UnaryCall(ctx, ask("figs"))
	if err != nil || string(r.GetPayload().GetBody()) != "figs" {
		t.Fatalf("%v, %v", r, err)
	}
	if _, err := c.EmptyCall(ctx, &pb.Empty{}); status.Code(err) != codes.Unimplemented {
		t.Error(err)
	}
	if fmt.Sprint(methods) != "[/grpc.testing.TestService/UnaryCall /grpc.testing.TestService/EmptyCall]" {
		t.Error(methods)
	}

	_, err = c.UnaryCall(ctx, ask("details"))
	st := status.Convert(err)
	if st.Code() != codes.FailedPrecondition || st.Message() != "not ripe" || len(st.Details()) != 1 {
		t.Errorf("%v, details %v", err, st.Details())
	} else if i, ok := st.Details()[0].(*errdetails.ErrorInfo); !ok || i.Reason != "GREEN" {
		t.Errorf("details %v", st.Details())
	}
	if _, err := c.UnaryCall(ctx, ask("plain")); status.Code(err) != codes.Unknown || status.Convert(err).Message() != "rotten" {
		t.Error(err)
	}
	if _, err := c.UnaryCall(ctx, ask("context")); status.Code(err) != codes.DeadlineExceeded {
		t.Error(err)
	}

	out := metadata.Pairs("many", "a", "Many", "b", "raw-bin", "\x00\xff")
	var header, trailer metadata.MD
	var p peer.Peer
	if _, err := c.UnaryCall(metadata.NewOutgoingContext(ctx, out), ask("metadata"), grpc.Header(&header), grpc.Trailer(&trailer), grpc.Peer(&p)); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(header.Get("seen"), trailer.Get("tail")) != "[a,b] [1 2]" || fmt.Sprintf("%q", header.Get("raw-bin")) != `["\x00\xff"]` {
		t.Errorf("header %q, trailer %q", header, trailer)
	}
	if c, ok := p.AuthInfo.(grpcrpc.Credentials); !ok || c.Peer.PID != os.Getpid() || c.AuthType() == "" {
		t.Errorf("the peer is %+v", p)
	}
	r, err = c.UnaryCall(ctx, ask("peer"))
	if want := fmt.Sprint(true, os.Getpid(), os.Getuid()); err != nil || r.Username != want || r.Hostname != "/grpc.testing.TestService/UnaryCall" {
		t.Errorf("%v, %v", r, err)
	}

	ended := func(want error) {
		t.Helper()
		select {
		case err := <-impl.ended:
			if !errors.Is(err, want) {
				t.Errorf("the handler's context ended by %v", err)
			}
		case <-ctx.Done():
			t.Fatal("the handler was not told")
		}
	}
	short, stop := context.WithTimeout(ctx, time.Second)
	defer stop()
	if _, err := c.UnaryCall(short, ask("block")); status.Code(err) != codes.DeadlineExceeded {
		t.Error(err)
	}
	select {
	case <-impl.begun:
	default:
		t.Fatal("the request expired before it was taken: the machine is too busy for this test")
	}
	ended(context.DeadlineExceeded)
	short, stop = context.WithCancel(ctx)
	defer stop()
	go func() {
		<-impl.begun
		stop()
	}()
	if _, err := c.UnaryCall(short, ask("block")); status.Code(err) != codes.Canceled {
		t.Error(err)
	}
	ended(context.Canceled)
	if _, err := c.UnaryCall(ctx, ask(strings.Repeat("x", 70_000))); status.Code(err) != codes.ResourceExhausted {
		t.Error(err)
	}

	// There are no streams, on either side.
	if _, err := c.FullDuplexCall(ctx); status.Code(err) != codes.Unimplemented {
		t.Error(err)
	}
	var e *rpc.Error
	if _, err := conn.Do(ctx, &rpc.Request{Method: "/grpc.testing.TestService/FullDuplexCall"}); !errors.As(err, &e) || e.Code != rpc.Unimplemented {
		t.Error(err)
	}

	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.UnaryCall(ctx, ask("figs")); status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
}

// What is registered as something that it is not answers so, and does not end the program.
func TestWrongService(t *testing.T) {
	s := rpc.NewServer(nil)
	grpcrpc.NewRegistrar(s, nil).RegisterService(&pb.TestService_ServiceDesc, struct{}{})
	if err := s.Listen(context.Background(), "/wrong"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- s.Serve(ctx) }()
	c, err := rpc.Dial(ctx, "/wrong", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pb.NewTestServiceClient(grpcrpc.NewClientConn(c)).UnaryCall(ctx, ask("x")); status.Code(err) != codes.Internal {
		t.Error(err)
	}
	_ = c.Close()
	cancel()
	if err := <-over; err != nil {
		t.Error(err)
	}
}

// A generated service and its generated client, over queues.
func Example() {
	ctx, stop := context.WithCancel(context.Background())
	s := rpc.NewServer(nil)
	pb.RegisterTestServiceServer(grpcrpc.NewRegistrar(s, nil), &service{})
	if err := s.Listen(ctx, "/example/stubs"); err != nil {
		log.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { over <- s.Serve(ctx) }()

	c, err := rpc.Dial(ctx, "/example/stubs", nil)
	if err != nil {
		log.Fatal(err)
	}
	r, err := pb.NewTestServiceClient(grpcrpc.NewClientConn(c)).UnaryCall(ctx, ask("two pears"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", r.Payload.Body)
	_ = c.Close()
	stop()
	if err := <-over; err != nil {
		log.Fatal(err)
	}
	// Output: two pears
}
