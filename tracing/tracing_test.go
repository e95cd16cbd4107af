package tracing_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/embedded"
	"go.opentelemetry.io/otel/trace/noop"
	"go.uber.org/goleak"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/client"
	"github.com/kumquat-mq/kumquat/shm"
	"github.com/kumquat-mq/kumquat/tracing"
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("/dev/shm", "kumquat-test-")
	if err != nil {
		panic(err)
	}
	os.Setenv(shm.EnvDir, dir)
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// provider hands out one recorder.
type provider struct {
	embedded.TracerProvider
	r *recorder
}

func (p provider) Tracer(string, ...trace.TracerOption) trace.Tracer { return p.r }

// recorder is a tracer that keeps its spans. The SDK, which has one, is more than the rest of the program's modules together.
type recorder struct {
	embedded.Tracer
	mu    sync.Mutex
	spans []*span
}

type span struct {
	noop.Span
	sc, parent trace.SpanContext
	name       string
	kind       trace.SpanKind
	attributes map[attribute.Key]attribute.Value
	links      []trace.SpanContext
	status     codes.Code
	err        error
	ended      int
}

func (r *recorder) Start(ctx context.Context, name string, o ...trace.SpanStartOption) (context.Context, trace.Span) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := trace.NewSpanStartConfig(o...)
	s := &span{name: name, kind: c.SpanKind(), parent: trace.SpanContextFromContext(ctx), attributes: map[attribute.Key]attribute.Value{}}
	id := trace.SpanContextConfig{TraceID: s.parent.TraceID(), SpanID: trace.SpanID{7: byte(len(r.spans) + 1)}, TraceFlags: trace.FlagsSampled}
	if !s.parent.IsValid() {
		id.TraceID = trace.TraceID{15: byte(len(r.spans) + 1)}
	}
	s.sc = trace.NewSpanContext(id)
	s.SetAttributes(c.Attributes()...)
	r.spans = append(r.spans, s)
	return trace.ContextWithSpan(ctx, s), s
}

func (s *span) SpanContext() trace.SpanContext { return s.sc }
func (s *span) IsRecording() bool              { return true }
func (s *span) SetAttributes(as ...attribute.KeyValue) {
	for _, a := range as {
		s.attributes[a.Key] = a.Value
	}
}
func (s *span) AddLink(l trace.Link)                          { s.links = append(s.links, l.SpanContext) }
func (s *span) SetStatus(c codes.Code, _ string)              { s.status = c }
func (s *span) RecordError(err error, _ ...trace.EventOption) { s.err = err }
func (s *span) End(...trace.SpanEndOption)                    { s.ended++ }

func newTracer() (*tracing.Tracer, *recorder) {
	r := &recorder{}
	return tracing.New(&tracing.Options{Provider: provider{r: r}, Propagator: propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})}), r
}

// The sender's span is the parent of the work on its message, through a queue of the engine and through the kernel's in an envelope, and
// the link of the receive; all spans end.
func TestTraces(t *testing.T) {
	for _, url := range []string{"/traces", fmt.Sprintf("posix:/kumquat-traces-%d", os.Getpid())} {
		t.Run(url, func(t *testing.T) {
			tr, r := newTracer()
			c := client.New(&client.Options{Open: &kumquat.Options{Create: true, MaxMessages: 2, MaxSize: 100, Envelope: true}, Hooks: []client.Hook{tr.Hook()}})
			defer kumquat.Remove(context.Background(), url)
			defer c.Close()
			ctx, root := r.Start(t.Context(), "root")
			headers := map[string]string{"mine": "1"}
			if err := c.Send(ctx, url, kumquat.Message{Body: []byte("body"), ID: "id", CorrelationID: "c", Headers: headers, Priority: 3}); err != nil {
				t.Fatal(err)
			}
			if len(headers) != 1 {
				t.Errorf("the caller's headers became %v", headers)
			}
			m, err := c.Receive(t.Context(), url)
			if err != nil {
				t.Fatal(err)
			}
			wctx, end := tr.Process(t.Context(), url, &m)
			wrong := errors.New("the work failed")
			end(wrong)
			root.End()
			sent, received, work := r.spans[1], r.spans[2], r.spans[3]
			if want := "00-" + sent.sc.TraceID().String() + "-" + sent.sc.SpanID().String() + "-01"; m.Headers["traceparent"] != want || m.Headers["mine"] != "1" {
				t.Errorf("headers %v, want traceparent %s", m.Headers, want)
			}
			if sent.parent.SpanID() != root.SpanContext().SpanID() || received.parent.IsValid() || work.parent.SpanID() != sent.sc.SpanID() || !work.parent.IsRemote() ||
				work.sc.TraceID() != root.SpanContext().TraceID() || trace.SpanContextFromContext(wctx).SpanID() != work.sc.SpanID() {
				t.Errorf("sent %+v, received %+v, work %+v", sent, received, work)
			}
			if len(received.links) != 1 || received.links[0].SpanID() != sent.sc.SpanID() || len(sent.links) != 0 {
				t.Errorf("links %v", received.links)
			}
			if work.err != wrong || work.status != codes.Error || sent.status == codes.Error {
				t.Errorf("%+v", work)
			}
			for i, want := range []string{"root 0", "send " + url + " 4", "receive " + url + " 5", "process " + url + " 5"} {
				if s := r.spans[i]; fmt.Sprintf("%s %d", s.name, s.kind) != want || s.ended != 1 {
					t.Errorf("%s of kind %d, ended %d times, want %s", s.name, s.kind, s.ended, want)
				}
			}
			for _, s := range r.spans[1:] {
				a := s.attributes
				if a["messaging.destination.name"].AsString() != url || a["messaging.message.id"].AsString() != "id" || a["messaging.message.body.size"].AsInt64() != 4 ||
					a["messaging.message.conversation_id"].AsString() != "c" || a["kumquat.priority"].AsInt64() != 3 || a["messaging.system"].AsString() != "kumquat" {
					t.Errorf("%s: %v", s.name, a)
				}
			}
		})
	}
}

// A failure is the span's; one of Do has no message, and no headers are made up.
func TestFailures(t *testing.T) {
	tr, r := newTracer()
	c := client.New(&client.Options{Retry: client.Retry{Attempts: 2, First: 1}, Hooks: []client.Hook{tr.Hook()}})
	defer c.Close()
	_, err := c.Receive(t.Context(), "/failures")
	if s := r.spans[0]; !errors.Is(err, kumquat.ErrNotFound) || !errors.Is(s.err, kumquat.ErrNotFound) || s.status != codes.Error || s.ended != 1 ||
		s.attributes["kumquat.attempts"].AsInt64() != 2 {
		t.Errorf("%+v, %v", s, err)
	}
	err = c.Do(t.Context(), "purge", "/failures", func(context.Context, *kumquat.Queue) error { return nil })
	if s := r.spans[1]; !errors.Is(err, kumquat.ErrNotFound) || s.name != "purge /failures" || s.kind != trace.SpanKindClient {
		t.Errorf("%+v, %v", s, err)
	}
}

// Without a span nothing is injected; headers that name none, or lie, give none and harm nothing.
func TestPropagation(t *testing.T) {
	tr, _ := newTracer()
	var m kumquat.Message
	tr.Inject(t.Context(), &m)
	if m.Headers != nil {
		t.Errorf("%v", m.Headers)
	}
	for _, h := range []string{"", "00", "00-zz-zz-01", "00-00000000000000000000000000000000-0000000000000000-01", "ff-01-02-03", strings.Repeat("0-", 2000)} {
		m.Headers = map[string]string{"traceparent": h, "baggage": strings.Repeat("a=b,", 200) + "c=d"}
		if sc := trace.SpanContextFromContext(tr.Extract(t.Context(), &m)); sc.IsValid() {
			t.Errorf("%q gave %v", h, sc)
		}
	}
	// The program's global ones, if nothing is said.
	old := otel.GetTextMapPropagator()
	defer otel.SetTextMapPropagator(old)
	otel.SetTextMapPropagator(propagation.TraceContext{})
	sc := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}})
	m.Headers = nil
	tracing.New(nil).Inject(trace.ContextWithSpanContext(t.Context(), sc), &m)
	if keys := slices.Sorted(func(yield func(string) bool) {
		for k := range m.Headers {
			if !yield(k) {
				return
			}
		}
	}); !slices.Equal(keys, []string{"traceparent"}) {
		t.Errorf("%v", m.Headers)
	}
}
