// Package tracing carries OpenTelemetry traces in the headers of messages: the receiver's span knows the sender's. It needs the API of
// OpenTelemetry only; which SDK records the spans, and where they go, is the program's to say.
//
// With a client it is one hook:
//
//	t := tracing.New(nil)
//	c := client.New(&client.Options{Hooks: []client.Hook{t.Hook()}})
//
// and without one Inject before a send, Extract or Process after a receive. The headers are those of the propagator, traceparent and
// tracestate for that of the W3C, in lower case. Queues without metadata have no place for them and refuse such a message
// (ErrUnsupported): open the kernel's queues with Options.Envelope.
package tracing

import (
	"context"
	"maps"
	"os"
	"slices"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/client"
)

// scope names this package to the recorder of spans.
const scope = "github.com/kumquat-mq/kumquat/tracing"

// Options says whom spans are given to and how they are named in headers. The zero value, and nil, take the program's global ones
// (otel.SetTracerProvider, otel.SetTextMapPropagator), at the time of New.
type Options struct {
	Provider   trace.TracerProvider
	Propagator propagation.TextMapPropagator
}

// Tracer makes spans of operations on queues. Its methods may be called from many goroutines at once.
type Tracer struct {
	tracer trace.Tracer
	p      propagation.TextMapPropagator
}

// New returns a tracer.
func New(o *Options) *Tracer {
	own := Options{otel.GetTracerProvider(), otel.GetTextMapPropagator()}
	if o != nil && o.Provider != nil {
		own.Provider = o.Provider
	}
	if o != nil && o.Propagator != nil {
		own.Propagator = o.Propagator
	}
	return &Tracer{own.Provider.Tracer(scope), own.Propagator}
}

// carrier are the headers of a message. A map that was given is not written to: it is the caller's, who may send it elsewhere too.
type carrier struct {
	m      *kumquat.Message
	copied bool
}

func (c *carrier) Get(key string) string { return c.m.Headers[key] }

func (c *carrier) Set(key, value string) {
	if !c.copied {
		c.m.Headers, c.copied = maps.Clone(c.m.Headers), true
	}
	if c.m.Headers == nil {
		c.m.Headers = map[string]string{}
	}
	c.m.Headers[key] = value
}

func (c *carrier) Keys() []string { return slices.Collect(maps.Keys(c.m.Headers)) }

// Inject puts ctx's span into m's headers, in a copy of the map. Without a span it does nothing.
func (t *Tracer) Inject(ctx context.Context, m *kumquat.Message) { t.p.Inject(ctx, &carrier{m: m}) }

// Extract returns ctx with the sender's span, if m's headers name one, as the parent of those that will be started. What headers say is
// not verified.
func (t *Tracer) Extract(ctx context.Context, m *kumquat.Message) context.Context {
	return t.p.Extract(ctx, &carrier{m: m})
}

// Process starts the span of the work on a message that was received from the queue of this name: a child of its sender's. end ends it, with
// the error of that work.
func (t *Tracer) Process(ctx context.Context, queue string, m *kumquat.Message) (_ context.Context, end func(error)) {
	ctx, span := t.tracer.Start(t.Extract(ctx, m), "process "+queue, trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(about("process", queue, m)...))
	return ctx, func(err error) { finish(span, err) }
}

// Hook returns the hook that makes a span of every operation of a client. Send's is carried in the message; receive's has a link to the
// one that the message carries, since it began before the message was known.
func (t *Tracer) Hook() client.Hook {
	return client.Hook{
		Before: func(ctx context.Context, o *client.Operation) context.Context {
			kind := trace.SpanKindClient
			switch o.Name {
			case "send":
				kind = trace.SpanKindProducer
			case "receive":
				kind = trace.SpanKindConsumer
			}
			ctx, _ = t.tracer.Start(ctx, o.Name+" "+o.Queue, trace.WithSpanKind(kind), trace.WithTimestamp(o.Start),
				trace.WithAttributes(about(o.Name, o.Queue, o.Message)...))
			if o.Message != nil {
				t.Inject(ctx, o.Message)
			}
			return ctx
		},
		After: func(ctx context.Context, o *client.Operation) {
			span := trace.SpanFromContext(ctx)
			if o.Name == "receive" && o.Message != nil {
				span.SetAttributes(ofMessage(o.Message)...)
				if sender := trace.SpanContextFromContext(t.Extract(context.Background(), o.Message)); sender.IsValid() {
					span.AddLink(trace.Link{SpanContext: sender})
				}
			}
			span.SetAttributes(attribute.Int("kumquat.attempts", o.Attempts))
			finish(span, o.Err)
		},
	}
}

func finish(span trace.Span, err error) {
	if err != nil {
		span.RecordError(err)
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

// about are the attributes of OpenTelemetry's conventions for messaging.
func about(operation, queue string, m *kumquat.Message) []attribute.KeyValue {
	as := []attribute.KeyValue{
		attribute.String("messaging.system", "kumquat"),
		attribute.String("messaging.operation.name", operation),
		attribute.String("messaging.destination.name", queue),
		attribute.Int("process.pid", os.Getpid()),
	}
	if operation == "send" || operation == "receive" || operation == "process" {
		as = append(as, attribute.String("messaging.operation.type", operation))
	}
	if m != nil {
		as = append(as, ofMessage(m)...)
	}
	return as
}

func ofMessage(m *kumquat.Message) []attribute.KeyValue {
	as := []attribute.KeyValue{
		attribute.Int("messaging.message.body.size", len(m.Body)),
		attribute.Int("kumquat.priority", m.Priority),
	}
	if m.ID != "" {
		as = append(as, attribute.String("messaging.message.id", m.ID))
	}
	if m.CorrelationID != "" {
		as = append(as, attribute.String("messaging.message.conversation_id", m.CorrelationID))
	}
	return as
}
