package codec_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/codec"
	"github.com/kumquat-mq/kumquat/codec/protobuf"
)

type fruit struct {
	Name string
	More map[string]any `json:",omitempty"`
}

var (
	_ kumquat.Codec[fruit]            = codec.JSON[fruit]{}
	_ kumquat.Codec[[]byte]           = codec.Raw[[]byte]{}
	_ kumquat.Codec[string]           = codec.Raw[string]{}
	_ kumquat.Codec[*structpb.Struct] = protobuf.Codec[*structpb.Struct]{}
)

// Append leaves what is before alone, also if it fails, and writes no more than the text.
func TestJSON(t *testing.T) {
	c := codec.JSON[fruit]{}
	b, err := c.Append([]byte("before "), fruit{Name: "<fig & pear>\n"})
	if want := `before {"Name":"<fig & pear>\n"}`; err != nil || string(b) != want {
		t.Errorf("%s, %v", b, err)
	}
	if b, err = c.Append([]byte("before"), fruit{More: map[string]any{"x": math.NaN()}}); err == nil || string(b) != "before" {
		t.Errorf("%s, %v", b, err)
	}
	for body, strict := range map[string]bool{`{"Name":"a"}`: true, ` {"Name":"a"} `: true, `{"Name":"a","Else":1}`: false} {
		if v, err := c.Decode([]byte(body)); err != nil || v.Name != "a" {
			t.Errorf("%s: %+v, %v", body, v, err)
		}
		if v, err := (codec.JSON[fruit]{Strict: true}).Decode([]byte(body)); (err == nil) != strict || strict && v.Name != "a" {
			t.Errorf("%s: %+v, %v", body, v, err)
		}
	}
	deep := strings.Repeat(`{"More":`, 20_000) + `1` + strings.Repeat(`}`, 20_000)
	for _, body := range []string{"", " ", "{", "nul", `{"Name":"a"}{}`, `{"Name":"a"} x`, `{"Name":1}`, "\xff", deep} {
		for _, strict := range []bool{false, true} {
			if _, err := (codec.JSON[fruit]{Strict: strict}).Decode([]byte(body)); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("%.20q, strict %t: %v", body, strict, err)
			}
		}
	}
}

func TestRaw(t *testing.T) {
	body := []byte("abc")
	s, _ := codec.Raw[string]{}.Decode(body)
	j, _ := codec.Raw[json.RawMessage]{}.Decode(body)
	body[0] = 'x'
	if s != "abc" || string(j) != "xbc" {
		t.Errorf("%s, %s: text is copied, bytes are not", s, j)
	}
	if b, err := (codec.Raw[json.RawMessage]{}).Append([]byte("1"), j); err != nil || string(b) != "1xbc" {
		t.Errorf("%s, %v", b, err)
	}
	if a, b := (codec.Raw[string]{}).ContentType(), (codec.Raw[string]{Media: "text/csv"}).ContentType(); a != "application/octet-stream" || b != "text/csv" {
		t.Error(a, b)
	}
}

func TestProtobuf(t *testing.T) {
	c := protobuf.Codec[*structpb.Value]{Deterministic: true}
	v, err := structpb.NewValue(map[string]any{"a": 1, "b": []any{"c", nil}, "d": true})
	if err != nil {
		t.Fatal(err)
	}
	first, err := c.Append([]byte("before"), v)
	if err != nil || !bytes.HasPrefix(first, []byte("before")) {
		t.Fatal(err)
	}
	for range 20 {
		if b, err := c.Append([]byte("before"), v); err != nil || !bytes.Equal(b, first) {
			t.Fatalf("Deterministic: %x, %v, was %x", b, err, first)
		}
	}
	if w, err := c.Decode(first[6:]); err != nil || !proto.Equal(v, w) {
		t.Errorf("%v, %v", w, err)
	}
	if c.SchemaName() != "google.protobuf.Value" {
		t.Error(c.SchemaName())
	}
	// Lists in lists, deeper than any sender means.
	deep := structpb.NewNullValue()
	for range 200 {
		deep = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{deep}})
	}
	b, err := c.Append(nil, deep)
	if err != nil {
		t.Fatal(err)
	}
	if w, err := c.Decode(b); err == nil || w != nil {
		t.Errorf("400 messages in each other: %v", err)
	}
	// A field that is not known stays, or goes.
	unknown := append(first[6:len(first):len(first)], 0xfa, 0x3f, 1, 'x') // field 1023
	for discard, want := range map[bool]int{false: len(unknown), true: len(first) - 6} {
		w, err := (protobuf.Codec[*structpb.Value]{DiscardUnknown: discard}).Decode(unknown)
		if err != nil || proto.Size(w) != want {
			t.Errorf("DiscardUnknown %t: %d bytes, %v, want %d", discard, proto.Size(w), err, want)
		}
	}
}
