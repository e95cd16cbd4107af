package grpcrpc

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/kumquat-mq/kumquat/rpc"
)

// Registrar is a grpc.ServiceRegistrar: services that are registered with it are served by a server of package rpc. NewRegistrar makes
// one.
type Registrar struct {
	s           *rpc.Server
	interceptor grpc.UnaryServerInterceptor
}

var _ grpc.ServiceRegistrar = (*Registrar)(nil)

// NewRegistrar returns a registrar for s. If interceptor is not nil it stands around every call, inside the interceptors of s.
func NewRegistrar(s *rpc.Server, interceptor grpc.UnaryServerInterceptor) *Registrar {
	return &Registrar{s, interceptor}
}

// RegisterService registers the methods of a service, as generated code does. If impl is not what desc asks for, they are answered with
// codes.Internal.
func (r *Registrar) RegisterService(desc *grpc.ServiceDesc, impl any) {
	var wrong error
	if desc.HandlerType != nil && impl != nil {
		want, ok := reflect.TypeOf(desc.HandlerType), reflect.TypeOf(impl)
		if want.Kind() != reflect.Pointer || want.Elem().Kind() != reflect.Interface || !ok.Implements(want.Elem()) {
			wrong = fmt.Errorf("%v does not implement %s", ok, desc.ServiceName)
		}
	}
	full := func(method string) string { return "/" + desc.ServiceName + "/" + method }
	for _, m := range desc.Methods {
		name, call := full(m.MethodName), m.Handler
		r.s.Register(name, func(ctx context.Context, q *rpc.Request) (*rpc.Reply, error) {
			if wrong != nil {
				return nil, &rpc.Error{Code: rpc.Internal, Message: wrong.Error()}
			}
			return r.serve(ctx, name, q, impl, call)
		})
	}
	for _, m := range desc.Streams {
		e := &rpc.Error{Code: rpc.Unimplemented, Message: full(m.StreamName) + " streams, and there are only calls"}
		r.s.Register(full(m.StreamName), func(context.Context, *rpc.Request) (*rpc.Reply, error) { return nil, e })
	}
}

func (r *Registrar) serve(ctx context.Context, name string, q *rpc.Request, impl any, call grpc.MethodHandler) (*rpc.Reply, error) {
	md := getMetadata(q.Headers, prefixRequest)
	if md == nil {
		md = metadata.MD{}
	}
	s := &sent{method: name}
	ctx = metadata.NewIncomingContext(ctx, md)
	ctx = peer.NewContext(ctx, peerOf(rpc.PeerFrom(ctx)))
	ctx = grpc.NewContextWithServerTransportStream(ctx, s)
	decode := func(v any) error {
		if err := unmarshal(q.Body, v); err != nil {
			return status.Errorf(codes.Internal, "grpcrpc: the argument of %s: %v", name, err)
		}
		return nil
	}
	got, err := call(impl, ctx, decode, r.interceptor)
	if err != nil {
		return nil, toError(err)
	}
	b, err := marshal(got)
	if err != nil {
		return nil, &rpc.Error{Code: rpc.Internal, Message: fmt.Sprintf("grpcrpc: the result of %s: %v", name, err)}
	}
	return &rpc.Reply{Body: b, ContentType: contentType, Headers: s.headers()}, nil
}

// sent collects the headers and trailers that a handler sets by grpc.SetHeader, grpc.SendHeader and grpc.SetTrailer.
type sent struct {
	method string
	mu     sync.Mutex
	header metadata.MD
	tail   metadata.MD
	away   bool // SendHeader: no more headers
}

func (s *sent) Method() string { return s.method }

func (s *sent) SetHeader(md metadata.MD) error { return s.add(md, false) }

func (s *sent) SendHeader(md metadata.MD) error { return s.add(md, true) }

func (s *sent) add(md metadata.MD, last bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away {
		return status.Error(codes.Internal, "grpcrpc: the header was sent already")
	}
	s.header, s.away = metadata.Join(s.header, md), last
	return nil
}

func (s *sent) SetTrailer(md metadata.MD) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tail = metadata.Join(s.tail, md)
	return nil
}

// headers is what goes with the reply.
func (s *sent) headers() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return putMetadata(putMetadata(nil, prefixHeader, maps.Clone(s.header)), prefixTrailer, s.tail)
}
