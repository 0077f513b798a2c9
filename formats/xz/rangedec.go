package xz

// rangeDecoder finds out the bits that a range coder has coded: what is left of its
// interval, and where in it the number lies that the input is. It is passed by value, so
// that it stays in registers.
//
// The bytes of a chunk lie in an array that an index of 16 bits cannot leave: a corrupt
// chunk is read beyond its end, and over from its beginning, which is noticed when it is
// done.
type rangeDecoder struct {
	in          *[maxCoded]byte
	at          int
	width, code uint32
}

// rangeStart is how many bytes begin a chunk that belong to no symbol.
const rangeStart = 5

func startRange(in *[maxCoded]byte) rangeDecoder {
	code := uint32(in[1])<<24 | uint32(in[2])<<16 | uint32(in[3])<<8 | uint32(in[4])
	return rangeDecoder{in: in, at: rangeStart, width: 1<<32 - 1, code: code}
}

// normal makes the interval wide enough for a bit more.
func (r rangeDecoder) normal() rangeDecoder {
	if r.width < topOfRang {
		r.width <<= 8
		r.code = r.code<<8 | uint32(r.in[uint16(r.at)])
		r.at++
	}
	return r
}

// bound is where the interval is cut: the bit is 0 if the number is below.
func (r rangeDecoder) bound(p prob) uint32 { return r.width >> probBits * uint32(p) }

// zero and one go on in the part below or above, and learn from the bit.
func (r rangeDecoder) zero(p *prob, bound uint32) rangeDecoder {
	*p += (1<<probBits - *p) >> adaptBy
	r.width = bound
	return r
}

func (r rangeDecoder) one(p *prob, bound uint32) rangeDecoder {
	*p -= *p >> adaptBy
	r.width -= bound
	r.code -= bound
	return r
}

// towardsZero makes of what a 1 takes from a probability what a 0 adds to it.
const towardsZero = 1<<32 + (1<<adaptBy - 1) - 1<<probBits

// bit decodes a bit of which it is not foreseen what it will be: without a branch, of
// which the processor would guess every other one wrong. It gives all ones for 0, and 0
// for 1.
func (r rangeDecoder) bit(p *prob) (rangeDecoder, uint32) {
	r = r.normal()
	v := uint32(*p)
	bound := r.width >> probBits * v
	zero := uint32(int64(uint64(r.code)-uint64(bound)) >> 63)
	r.width -= bound
	r.width += (bound - r.width) & zero
	r.code -= bound &^ zero
	*p = prob(v - uint32(int32(v+zero&towardsZero)>>adaptBy))
	return r, zero
}

// literal decodes a byte, the highest bit first, each in the context of those before.
func (r rangeDecoder) literal(probs *[0x300]prob) (rangeDecoder, uint32) {
	m := uint32(1)
	for m < 0x100 {
		var zero uint32
		r, zero = r.bit(&probs[m])
		m = m<<1 + 1 + zero
	}
	return r, m & 0xff
}

// literalAfterMatch decodes a byte that is not the one that would have continued the
// match.
func (r rangeDecoder) literalAfterMatch(probs *[0x300]prob, unlikely uint32) (rangeDecoder, uint32) {
	offset, m := uint32(0x100), uint32(1)
	for m < 0x100 {
		unlikely <<= 1
		u := unlikely & offset
		var zero uint32
		r, zero = r.bit(&probs[(offset+u+m)&0x3ff%0x300])
		m = m<<1 + 1 + zero
		offset &= u ^ zero
	}
	return r, m & 0xff
}

// tree8 and slot decode 3 and 6 bits, the highest first.
func (r rangeDecoder) tree8(probs *[lowLengths]prob) (rangeDecoder, uint32) {
	m := uint32(1)
	for m < lowLengths {
		var zero uint32
		r, zero = r.bit(&probs[m])
		m = m<<1 + 1 + zero
	}
	return r, m - lowLengths
}

func (r rangeDecoder) tree256(probs *[highLengths]prob) (rangeDecoder, uint32) {
	m := uint32(1)
	for m < highLengths {
		var zero uint32
		r, zero = r.bit(&probs[m])
		m = m<<1 + 1 + zero
	}
	return r, m - highLengths
}

func (r rangeDecoder) slot(probs *[slots]prob) (rangeDecoder, uint32) {
	m := uint32(1)
	for m < slots {
		var zero uint32
		r, zero = r.bit(&probs[m])
		m = m<<1 + 1 + zero
	}
	return r, m - slots
}

// reverse decodes n bits, the lowest first. Probabilities begin at probs[1].
func (r rangeDecoder) reverse(probs []prob, n uint32) (rangeDecoder, uint32) {
	m, v := uint32(1), uint32(0)
	for i := range n {
		var zero uint32
		r, zero = r.bit(&probs[m])
		m = m<<1 + 1 + zero
		v |= (1 + zero) << (i & 31)
	}
	return r, v
}

// direct decodes n bits that are as likely 0 as 1.
func (r rangeDecoder) direct(n uint32) (rangeDecoder, uint32) {
	v := uint32(0)
	for range n {
		r = r.normal()
		r.width >>= 1
		r.code -= r.width
		zero := -(r.code >> 31)
		r.code += r.width & zero
		v = v<<1 + 1 + zero
	}
	return r, v
}
