package torture

import (
	"encoding/binary"
	"time"

	"github.com/kumquat-mq/kumquat"
)

// A message is known by the producer that sent it and its counter there; all else about it follows from these two and the round's
// seed. So whoever receives it can check every byte, and the accounting knows what was sent without being told.

// messageID is producer:16 | counter:24.
func messageID(producer uint16, counter uint32) uint64 { return uint64(producer)<<24 | uint64(counter) }

func producerOf(id uint64) uint16 { return uint16(id >> 24) }
func counterOf(id uint64) uint32  { return uint32(id & (1<<24 - 1)) }

// traits is what a message looks like.
type traits struct {
	prio   int
	typ    int64
	size   int           // of the body, a multiple of 8, ≥ 8
	delay  time.Duration // from its send to its NotBefore; 0: none
	living time.Duration // from its send to its Expires; 0: for ever
}

func (t *traits) timed() bool { return t.delay|t.living != 0 }

// mix is the finalizer of SplitMix64: every bit of the result depends on every bit of x.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// traits says what message id of this round looks like.
func (p *Plan) traits(id uint64) traits {
	h := mix(p.Seed ^ mix(id))
	t := traits{prio: 7, typ: 1, size: p.MaxSize}
	if p.Priorities > 1 {
		// Spread over all words of the bitmap.
		t.prio = int(h%uint64(p.Priorities)) * (kumquat.MaxPriority / (p.Priorities - 1))
	}
	h >>= 16
	if p.Types > 1 {
		t.typ = 1 + int64(h%uint64(p.Types))
		if p.Looker && t.typ == 3 && h/4%16 != 0 { // rare, so that looking for it takes long
			t.typ = 1
		}
	}
	h >>= 8
	if h%4 == 0 { // the others are as long as the queue allows
		t.size = 8 + int(h/4%uint64(p.MaxSize/8))*8
		t.size = min(t.size, p.MaxSize)
	}
	h = mix(h)
	if p.Timed {
		switch h % 8 {
		case 0:
			t.delay = time.Millisecond * time.Duration(1+h/8%60)
		case 1:
			t.living = time.Millisecond * time.Duration(5+h/8%100)
		case 2:
			t.delay = time.Millisecond * time.Duration(1+h/8%20)
			t.living = t.delay + time.Millisecond*time.Duration(10+h/512%60)
		}
	}
	return t
}

// first is the first word of a body: producer:16 | counter:24 | check:24.
func (p *Plan) first(id uint64) uint64 { return id<<24 | mix(p.Seed+id)&(1<<24-1) }

// fill writes the body of message id.
func (p *Plan) fill(body []byte, id uint64) {
	w := p.first(id)
	for i := 0; i+8 <= len(body); i += 8 {
		binary.LittleEndian.PutUint64(body[i:], w)
		w = mix(w)
	}
}

// identify returns whose body this is, and whether every byte of it is as it was sent.
func (p *Plan) identify(body []byte) (id uint64, ok bool) {
	if len(body) < 8 {
		return 0, false
	}
	w := binary.LittleEndian.Uint64(body)
	id = w >> 24
	if w != p.first(id) {
		return id, false
	}
	for i := 0; i+8 <= len(body); i += 8 {
		if binary.LittleEndian.Uint64(body[i:]) != w {
			return id, false
		}
		w = mix(w)
	}
	return id, len(body)%8 == 0
}
