// Package codec has codecs for typed queues (kumquat.NewTyped): JSON and raw bytes. The one for Protobuf is in codec/protobuf, so that
// this package needs the standard library only. A codec of your own is three methods; see kumquat.Codec.
package codec

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
)

// JSON encodes values as JSON texts (RFC 8259) by encoding/json. The zero value is ready to use.
type JSON[T any] struct {
	// Strict refuses bodies that have fields which T has not. Without it they are passed over, so that a sender may be newer.
	Strict bool
}

// ContentType returns "application/json".
func (JSON[T]) ContentType() string { return "application/json" }

// Append appends v as JSON, without a newline behind it and without the escapes that HTML needs.
func (JSON[T]) Append(b []byte, v T) ([]byte, error) {
	w := appender{b}
	e := json.NewEncoder(&w)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return b, err
	}
	return bytes.TrimSuffix(w.b, []byte("\n")), nil
}

type appender struct{ b []byte }

func (a *appender) Write(p []byte) (int, error) {
	a.b = append(a.b, p...)
	return len(p), nil
}

// Decode reads one JSON text; anything behind it is an error, and so is nesting deeper than encoding/json allows (10,000).
func (c JSON[T]) Decode(body []byte) (v T, err error) {
	if !c.Strict {
		err = json.Unmarshal(body, &v)
		return v, err
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return v, err
	}
	if _, err := d.Token(); err != io.EOF {
		return v, errBehind
	}
	return v, nil
}

var errBehind = errors.New("something follows the JSON text")

// Raw is for bodies that are values as they are: bytes or text. The zero value is ready to use.
type Raw[T ~[]byte | ~string] struct {
	Media string // the media type; empty: "application/octet-stream"
}

// ContentType returns Media.
func (r Raw[T]) ContentType() string {
	if r.Media == "" {
		return "application/octet-stream"
	}
	return r.Media
}

// Append appends v.
func (Raw[T]) Append(b []byte, v T) ([]byte, error) { return append(b, v...), nil }

// Decode returns body itself for bytes, a copy for text.
func (Raw[T]) Decode(body []byte) (T, error) { return T(body), nil }
