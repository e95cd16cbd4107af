package grpcrpc

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kumquat-mq/kumquat/rpc"
)

// ClientConn is a grpc.ClientConnInterface over a client of package rpc. NewClientConn makes one.
type ClientConn struct{ c *rpc.Client }

var _ grpc.ClientConnInterface = (*ClientConn)(nil)

// NewClientConn returns a connection for generated clients. Closing c remains the caller's.
func NewClientConn(c *rpc.Client) *ClientConn { return &ClientConn{c} }

// Invoke makes a unary call, as generated clients do. Its errors have a status: Unavailable when the server died or stopped or is not
// there, and what status.Code tells of the server's own.
func (c *ClientConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	for _, o := range opts {
		if _, ok := o.(grpc.PerRPCCredsCallOption); ok {
			return status.Error(codes.Unauthenticated, "grpcrpc: calls carry no credentials; the kernel says who calls")
		}
	}
	b, err := marshal(args)
	if err != nil {
		return status.Errorf(codes.Internal, "grpcrpc: the argument of %s: %v", method, err)
	}
	r := &rpc.Request{Method: method, Body: b, ContentType: contentType}
	if md, ok := metadata.FromOutgoingContext(ctx); ok {
		r.Headers = putMetadata(nil, prefixRequest, md)
	}
	got, err := c.c.Do(ctx, r)
	for _, o := range opts {
		switch o := o.(type) {
		case grpc.HeaderCallOption:
			if *o.HeaderAddr = nil; got != nil {
				*o.HeaderAddr = getMetadata(got.Headers, prefixHeader)
			}
		case grpc.TrailerCallOption:
			if *o.TrailerAddr = nil; got != nil {
				*o.TrailerAddr = getMetadata(got.Headers, prefixTrailer)
			}
		case grpc.PeerCallOption:
			*o.PeerAddr = *peerOf(c.c.Server())
		}
	}
	if err != nil {
		return toStatus(err)
	}
	if err := unmarshal(got.Body, reply); err != nil {
		return status.Errorf(codes.Internal, "grpcrpc: the result of %s: %v", method, err)
	}
	return nil
}

// NewStream returns codes.Unimplemented: there are no streams.
func (c *ClientConn) NewStream(_ context.Context, _ *grpc.StreamDesc, method string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Errorf(codes.Unimplemented, "grpcrpc: %s streams, and there are only calls", method)
}
