package shm

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

// observeAll runs every observer over the queue as it stands. Nothing may panic, and nothing may take long.
func observeAll(t *testing.T, h *handmade) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	past, cancelPast := context.WithCancel(ctx)
	cancelPast()
	bad := func(err error) {
		if err != nil && !errors.Is(err, driver.ErrCorrupt) && !errors.Is(err, driver.ErrRemoved) && !errors.Is(err, driver.ErrTimeout) {
			t.Errorf("an error of no kind: %v", err)
		}
	}
	s, err := h.o.Stat(ctx)
	bad(err)
	if s.Messages < 0 || s.Messages > s.MaxMessages {
		t.Errorf("%d messages of %d", s.Messages, s.MaxMessages)
	}
	n := 0
	for m, err := range h.o.Peek(ctx, driver.PeekOptions{}) {
		bad(err)
		if n++; uint64(n) > h.o.slots+1 || uint64(len(m.Body)) > h.o.maxSize {
			t.Fatalf("message %d of %d bytes", n, len(m.Body))
		}
	}
	for _, err := range h.o.Peek(ctx, driver.PeekOptions{Filter: driver.Filter{TypeAtMost: 9, Key: "k"}, Limit: 3, Skip: 1}) {
		bad(err)
	}
	who, err := h.o.Who(ctx)
	bad(err)
	if uint64(len(who)) > h.o.parts {
		t.Errorf("%d participants", len(who))
	}
	r, err := h.o.Check(ctx)
	bad(err)
	if len(r.Problems) > maxProblems+10 {
		t.Errorf("%d problems", len(r.Problems))
	}
	for range h.o.Watch(past) {
	}
	if d := time.Since(start); d > checkFor+5*time.Second {
		t.Errorf("it took %v", d)
	}
}

// FuzzObserve changes words of a sound queue: each 10 bytes of the input are a place (two bytes, which choose among the places
// that have a meaning) and what is written there.
func FuzzObserve(f *testing.F) {
	for place := range uint16(20) {
		b := binary.LittleEndian.AppendUint16(nil, place*75)
		f.Add(binary.LittleEndian.AppendUint64(b, 1<<63|1<<24|uint64(place)))
		f.Add(append(b, 255, 255, 255, 255, 255, 255, 255, 255))
		f.Add(append(b, 5, 0, 0, 0, 0, 0, 0, 0))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		h := sampleQueue(t)
		ranges := [][2]uint64{{pageSize, 1300}, {h.o.partsAt, 4 * partSize}, {h.o.slotsAt, 20 * slotSize}, {h.o.linksAt, 20 * 8}, {h.o.metaAt + 6*metaBlock, 256},
			{h.o.areaBase(0), 1024}, {h.o.areaBase(0) + aLevel0, 1024}, {h.o.areaBase(0) + aLists, 128}, {h.o.areaBase(0) + aLists + 8*5990, 128},
			{h.o.areaBase(0) + h.o.nodesIn, 20 * nodeSize}, {h.o.areaBase(0) + h.o.heapIn, 64}, {h.o.areaBase(0) + h.o.placeIn, 80}}
		total := uint64(0)
		for _, r := range ranges {
			total += r[1]
		}
		for ; len(in) >= 10; in = in[10:] {
			at := uint64(binary.LittleEndian.Uint16(in)) % total
			for _, r := range ranges {
				if at < r[1] {
					n := min(8, r[1]-at)
					h.bytes(r[0]+at, in[2:2+n])
					break
				}
				at -= r[1]
			}
		}
		observeAll(t, h)
	})
}
