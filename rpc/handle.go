package rpc

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/kumquat-mq/kumquat"
)

const (
	contentJSON = "application/json"
	contentRaw  = "application/octet-stream"
)

// Handle makes the plain function f the handler of method. Req and Resp travel as JSON, a []byte as it is. A request that cannot
// be read is answered with InvalidArgument. What else f may want to know, PeerFrom and RequestFrom tell.
func Handle[Req, Resp any](s *Server, method string, f func(context.Context, Req) (Resp, error)) {
	s.Register(method, func(ctx context.Context, r *Request) (*Reply, error) {
		var req Req
		if err := decode(r.Body, &req); err != nil {
			return nil, &Error{Code: InvalidArgument, Message: fmt.Sprintf("the argument of %s: %v", method, err)}
		}
		resp, err := f(ctx, req)
		if err != nil || r.Oneway {
			return nil, err
		}
		b, kind, err := encode(&resp)
		if err != nil {
			return nil, &Error{Code: Internal, Message: fmt.Sprintf("the result of %s: %v", method, err)}
		}
		return &Reply{Body: b, ContentType: kind}, nil
	})
}

// Call calls method with req and waits for what it returns. Req and Resp travel as in Handle; Resp is given, Req is found:
//
//	sum, err := rpc.Call[int](ctx, c, "add", []int{2, 3})
//
// Errors: those of Client.Do; kumquat.ErrInvalid if req cannot be written as JSON or the reply not be read as Resp.
func Call[Resp, Req any](ctx context.Context, c *Client, method string, req Req) (resp Resp, err error) {
	b, kind, err := encode(&req)
	if err != nil {
		return resp, fmt.Errorf("rpc: the argument of %s: %w: %w", method, kumquat.ErrInvalid, err)
	}
	reply, err := c.Do(ctx, &Request{Method: method, Body: b, ContentType: kind})
	if err != nil {
		return resp, err
	}
	if err := decode(reply.Body, &resp); err != nil {
		return resp, fmt.Errorf("rpc: the result of %s: %w: %w", method, kumquat.ErrInvalid, err)
	}
	return resp, nil
}

// Send makes a one-way call: it returns when the request is in the server's queue. Calls to one object run one at a time, in the
// order in which they were sent; an empty object means in no order. What becomes of the call is not told.
//
// Errors: as Call.
func Send[Req any](ctx context.Context, c *Client, method, object string, req Req) error {
	b, kind, err := encode(&req)
	if err != nil {
		return fmt.Errorf("rpc: the argument of %s: %w: %w", method, kumquat.ErrInvalid, err)
	}
	_, err = c.Do(ctx, &Request{Method: method, Object: object, Oneway: true, Body: b, ContentType: kind})
	return err
}

func encode(v any) (b []byte, kind string, err error) {
	if raw, ok := v.(*[]byte); ok {
		return *raw, contentRaw, nil
	}
	b, err = json.Marshal(v)
	return b, contentJSON, err
}

func decode(b []byte, v any) error {
	if raw, ok := v.(*[]byte); ok {
		*raw = b
		return nil
	}
	return json.Unmarshal(b, v)
}
