// Package protobuf has the codec for typed queues (kumquat.NewTyped) of Protocol Buffers messages.
//
//	orders, err := kumquat.NewTyped(q, protobuf.Codec[*shop.Order]{}, &kumquat.TypedOptions{Version: 1})
//
// The schema's name is the message's full name, shop.Order, unless the options give another.
package protobuf

import (
	"errors"

	"google.golang.org/protobuf/proto"
)

// maxDepth bounds how deep messages in a body may nest, as the implementations of other languages do: deeper ones are refused.
const maxDepth = 100

// Codec encodes messages of type T, a pointer to a generated type, in Protobuf's binary format. The zero value is ready to use.
type Codec[T proto.Message] struct {
	// DiscardUnknown drops fields of a body that T does not know. Without it they are kept, and sent on if the message is.
	DiscardUnknown bool
	// Deterministic writes maps in a fixed order, so that equal messages of one program have equal bodies.
	Deterministic bool
}

var (
	errInterface = errors.New("codec/protobuf: T is an interface, not a pointer to a generated message type")
	errNil       = errors.New("codec/protobuf: the message is nil")
)

// known reports whether T is a type of its own.
func known[T proto.Message]() bool {
	var zero T
	return any(zero) != nil
}

// ContentType returns "application/protobuf".
func (Codec[T]) ContentType() string { return "application/protobuf" }

// SchemaName returns the full name of T.
func (Codec[T]) SchemaName() string {
	if !known[T]() {
		return ""
	}
	var zero T
	return string(zero.ProtoReflect().Descriptor().FullName())
}

// Append appends v in the binary format. A nil message, and one that lacks required fields, is an error.
func (c Codec[T]) Append(b []byte, v T) ([]byte, error) {
	switch {
	case !known[T]():
		return b, errInterface
	case !v.ProtoReflect().IsValid():
		return b, errNil
	}
	return proto.MarshalOptions{Deterministic: c.Deterministic}.MarshalAppend(b, v)
}

// Decode reads a body. An empty one is a message without fields.
func (c Codec[T]) Decode(body []byte) (T, error) {
	var zero T
	if !known[T]() {
		return zero, errInterface
	}
	v := zero.ProtoReflect().New().Interface().(T)
	if err := (proto.UnmarshalOptions{DiscardUnknown: c.DiscardUnknown, RecursionLimit: maxDepth}).Unmarshal(body, v); err != nil {
		return zero, err
	}
	return v, nil
}
