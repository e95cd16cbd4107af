// Package grpcrpc lets the stubs that protoc-gen-go-grpc makes call, and be called, over package rpc, unchanged: ClientConn is what
// their clients take (grpc.ClientConnInterface), Registrar what their servers are registered with (grpc.ServiceRegistrar).
//
//	s := rpc.NewServer(nil)
//	pb.RegisterGreeterServer(grpcrpc.NewRegistrar(s, nil), greeter{})
//	…
//	c, err := rpc.Dial(ctx, "/greeter", nil)
//	reply, err := pb.NewGreeterClient(grpcrpc.NewClientConn(c)).SayHello(ctx, &pb.HelloRequest{Name: "Quince"})
//
// A method is called by its full name, "/package.Service/Method". Bodies are Protobuf messages. Deadlines, cancellation, status codes
// with details and metadata travel; peer.FromContext gives the caller with a Credentials.
//
// Streaming methods can be registered and are answered with codes.Unimplemented: package rpc has calls and one-way calls only. Headers
// and trailers of calls that fail do not travel, nor does any grpc.CallOption but Header, Trailer and Peer; credentials of a call are
// refused, since the kernel says who calls.
package grpcrpc

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/rpc"
)

const contentType = "application/grpc+proto"

// Where metadata stands in the headers of package rpc: the key behind one of these, for its second value with "#1", and so on; a key
// of gRPC has no '#'.
const (
	prefixRequest = "md-"
	prefixHeader  = "h-"
	prefixTrailer = "t-"
)

func putMetadata(h map[string]string, prefix string, md metadata.MD) map[string]string {
	for k, vs := range md {
		k = strings.ToLower(k)
		for i, v := range vs {
			if h == nil {
				h = map[string]string{}
			}
			if i == 0 {
				h[prefix+k] = v
			} else {
				h[prefix+k+"#"+strconv.Itoa(i)] = v
			}
		}
	}
	return h
}

// getMetadata leaves the result nil if there is none.
func getMetadata(h map[string]string, prefix string) (md metadata.MD) {
	for k, v := range h {
		k, ok := strings.CutPrefix(k, prefix)
		if !ok || strings.Contains(k, "#") {
			continue
		}
		if md == nil {
			md = metadata.MD{}
		}
		md[k] = []string{v}
		for i := 1; ; i++ {
			v, ok := h[prefix+k+"#"+strconv.Itoa(i)]
			if !ok {
				break
			}
			md[k] = append(md[k], v)
		}
	}
	return md
}

// Credentials is the AuthInfo of the peers of both sides: who they are, as the kernel states it.
type Credentials struct {
	credentials.CommonAuthInfo
	Peer *rpc.Peer
}

// AuthType returns "kumquat-peercred".
func (Credentials) AuthType() string { return "kumquat-peercred" }

type addr string

func (a addr) Network() string { return "kumquat" }
func (a addr) String() string  { return string(a) }

func peerOf(p *rpc.Peer) *peer.Peer {
	// Messages lie in memory that only the two users can read, so they are private and whole.
	safe := credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}
	return &peer.Peer{Addr: addr("pid:" + strconv.Itoa(p.PID)), AuthInfo: Credentials{safe, p}}
}

func marshal(v any) ([]byte, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is no Protobuf message", v)
	}
	return proto.Marshal(m)
}

func unmarshal(b []byte, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is no Protobuf message", v)
	}
	return proto.Unmarshal(b, m)
}

// toError makes of a status what package rpc carries.
func toError(err error) error {
	s, ok := status.FromError(err)
	if !ok {
		s = status.FromContextError(err)
	}
	e := &rpc.Error{Code: rpc.Code(s.Code()), Message: s.Message()}
	if p := s.Proto(); len(p.GetDetails()) > 0 {
		b, err := proto.Marshal(p)
		if err != nil {
			return &rpc.Error{Code: rpc.Internal, Message: "the details of a status: " + err.Error()}
		}
		e.Details = b
	}
	return e
}

// toStatus makes a status of an error of package rpc.
func toStatus(err error) error {
	var e *rpc.Error
	if errors.As(err, &e) {
		var p spb.Status
		if len(e.Details) > 0 && proto.Unmarshal(e.Details, &p) == nil && p.GetCode() == int32(e.Code) {
			return status.ErrorProto(&p)
		}
		return status.Error(codes.Code(e.Code), e.Message)
	}
	code := codes.Unknown
	for _, c := range []struct {
		err  error
		code codes.Code
	}{{rpc.ErrDied, codes.Unavailable}, {rpc.ErrStopped, codes.Unavailable}, {kumquat.ErrNotFound, codes.Unavailable},
		{kumquat.ErrTimeout, codes.DeadlineExceeded}, {context.Canceled, codes.Canceled}, {kumquat.ErrClosed, codes.Canceled},
		{kumquat.ErrTooLarge, codes.ResourceExhausted}, {kumquat.ErrLimit, codes.ResourceExhausted}, {kumquat.ErrNoSpace, codes.ResourceExhausted},
		{kumquat.ErrInvalid, codes.InvalidArgument}, {kumquat.ErrPermission, codes.PermissionDenied}, {kumquat.ErrCorrupt, codes.DataLoss}} {
		if errors.Is(err, c.err) {
			code = c.code
			break
		}
	}
	return status.Error(code, err.Error())
}
