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

// cut decodes a bit of which it is not foreseen what it will be: without a branch, of
// which the processor would guess every other one wrong. It gives all ones for 0, and 0
// for 1.
func (r rangeDecoder) cut(p prob) (rangeDecoder, uint32) {
	bound := r.width >> probBits * uint32(p)
	above := int64(r.code) - int64(bound)
	zero := uint32(above >> 63)
	rest := r.width - bound
	r.width = rest + (bound-rest)&zero
	r.code = uint32(above) + bound&zero
	return r, zero
}

// towardsZero makes of what a 1 takes from a probability what a 0 adds to it.
const towardsZero = 1<<32 + (1<<adaptBy - 1) - 1<<probBits

// learned is a probability after a bit that cut gave.
func (p prob) learned(zero uint32) prob {
	return p - prob(int32(uint32(p)+zero&towardsZero)>>adaptBy)
}

// tree decodes a number less than there are probabilities, of which there is a power of
// 2: the highest bit first, each in the context of those before. Both probabilities that
// may be next are read ahead.
func (r rangeDecoder) tree(probs []prob) (rangeDecoder, uint32) {
	n := uint32(len(probs))
	m, p := uint32(1), probs[1]
	for m < n {
		next0, next1 := probs[2*m&(n-1)], probs[(2*m+1)&(n-1)]
		r = r.normal()
		var zero uint32
		r, zero = r.cut(p)
		probs[m] = p.learned(zero)
		p = next1 ^ (next0^next1)&prob(zero)
		m = m<<1 + 1 + zero
	}
	return r, m - n
}

// literalAfterMatch decodes a byte that is not the one that would have continued the
// match.
func (r rangeDecoder) literalAfterMatch(probs *[0x300]prob, unlikely uint32) (rangeDecoder, uint32) {
	offset, m := uint32(0x100), uint32(1)
	for m < 0x100 {
		unlikely <<= 1
		u := unlikely & offset
		r = r.normal()
		p := &probs[offset+u+m]
		var zero uint32
		r, zero = r.cut(*p)
		*p = p.learned(zero)
		m = m<<1 + 1 + zero
		offset &= u ^ zero
	}
	return r, m & 0xff
}

// reverse decodes n bits, the lowest first. Probabilities begin at probs[1].
func (r rangeDecoder) reverse(probs []prob, n uint32) (rangeDecoder, uint32) {
	m, v := uint32(1), uint32(0)
	for i := range n {
		r = r.normal()
		p := &probs[m]
		var zero uint32
		r, zero = r.cut(*p)
		*p = p.learned(zero)
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
