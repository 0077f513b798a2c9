package puffin

import "math/bits"

const (
	maxCode      = 15  // bits
	maxLitLen    = 286 // symbols that a dynamic table may have (RFC 1951, 3.2.7)
	maxDist      = 30
	endOfBlock   = 256
	firstLength  = 257
	lengthCodes  = 19 // symbols that code the lengths of the others
	minLength    = 3
	maxLength    = 258
	maxDistance  = 32768
	lookupBits   = 11
	typeStored   = 0
	typeFixed    = 1
	typeDynamic  = 2
	runRepeat    = 16 // code-length symbols: repeat the last, zeros, more zeros
	runZeros     = 17
	runManyZeros = 18
)

// The order of the code-length lengths (RFC 1951, 3.2.7).
var lengthOrder = [lengthCodes]byte{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// base is where a length or distance symbol begins, and how many bits follow.
type base struct {
	value uint16
	extra uint8
}

var (
	lengthBases = makeLengthBases()
	distBases   = makeDistBases()
	lengthSyms  = makeLengthSyms()
)

func makeLengthBases() (b [29]base) {
	v := uint16(minLength)
	for i := range b {
		e := uint8(max(i/4, 1) - 1)
		b[i] = base{v, e}
		v += 1 << e
	}
	b[28] = base{maxLength, 0} // although 284 with 31 would say the same
	return b
}

func makeDistBases() (b [maxDist]base) {
	v := uint32(1)
	for i := range b {
		e := uint8(max(i/2, 1) - 1)
		b[i] = base{uint16(v), e}
		v += 1 << e
	}
	return b
}

// makeLengthSyms maps a length to its symbol less 257: the greatest base that is
// not above it, so that 258 is 285 (specs/payload.md 8.4).
func makeLengthSyms() (s [maxLength + 1]uint8) {
	for i, b := range lengthBases {
		for l := int(b.value); l <= maxLength; l++ {
			s[l] = uint8(i)
		}
	}
	return s
}

// distSym is the symbol of a distance, and the bits that follow it.
func distSym(distance uint32) (sym, extra uint32, n uint) {
	v := distance - 1
	if v < 4 {
		return v, 0, 0
	}
	k := uint(bits.Len32(v)) - 1
	return uint32(2*k) + v>>(k-1)&1, v & (1<<(k-1) - 1), k - 1
}

// canonical counts code lengths and says which code each length begins with. It
// reports false where there are more codes than bits can tell apart.
func canonical(lengths []uint8) (count, first [maxCode + 1]uint16, ok bool) {
	for _, l := range lengths {
		count[l]++
	}
	count[0] = 0
	code, left := uint16(0), 1
	for l := 1; l <= maxCode; l++ {
		code = (code + count[l-1]) << 1
		first[l] = code
		if left = left<<1 - int(count[l]); left < 0 {
			return count, first, false
		}
	}
	return count, first, true
}

// decoder turns bits into symbols: short codes by a table of all values that
// the next bits can have, longer ones bit by bit.
type decoder struct {
	lookup  [1 << lookupBits]uint16 // symbol << 4 | length; 0: longer, or no code
	count   [maxCode + 1]uint16
	symbols [288]uint16 // in the order of their codes
	longest uint        // code
}

func (d *decoder) init(lengths []uint8) bool {
	count, first, ok := canonical(lengths)
	if !ok {
		return false
	}
	d.count, d.longest = count, 0
	clear(d.lookup[:])
	var at [maxCode + 1]uint16
	for l := 1; l < maxCode; l++ {
		at[l+1] = at[l] + count[l]
	}
	for s, l := range lengths {
		if l == 0 {
			continue
		}
		d.longest = max(d.longest, uint(l))
		d.symbols[at[l]] = uint16(s)
		at[l]++
		if l <= lookupBits {
			entry := uint16(s)<<4 | uint16(l)
			for i := int(reverse(first[l], uint(l))); i < len(d.lookup); i += 1 << l {
				d.lookup[i] = entry
			}
		}
		first[l]++
	}
	return true
}

// reverse turns a code around: deflate packs its highest bit first.
func reverse(code uint16, n uint) uint32 { return uint32(bits.Reverse16(code)) >> (16 - n) }

// next decodes a symbol. With ok false there is no such code, or too few bits.
func (d *decoder) next(r *bitReader) (sym uint16, ok bool) {
	if e := d.lookup[r.acc&(1<<lookupBits-1)]; e != 0 && uint(e&15) <= r.n {
		r.acc >>= e & 15
		r.n -= uint(e & 15)
		return e >> 4, true
	}
	return d.slow(r)
}

func (d *decoder) slow(r *bitReader) (uint16, bool) {
	code, first, index := 0, 0, 0
	for l := uint(1); l <= min(maxCode, r.n); l++ {
		code = code<<1 | int(r.acc>>(l-1)&1)
		n := int(d.count[l])
		if code-first < n {
			r.acc >>= l
			r.n -= l
			return d.symbols[index+code-first], true
		}
		index += n
		first = (first + n) << 1
	}
	return 0, false
}

// encoder has for each symbol its code, turned around, << 4, and its length.
type encoder [288]uint32

func (e *encoder) init(lengths []uint8) bool {
	_, first, ok := canonical(lengths)
	clear(e[:])
	for s, l := range lengths {
		if l > 0 {
			e[s] = reverse(first[l], uint(l))<<4 | uint32(l)
			first[l]++
		}
	}
	return ok
}

// fixedLengths are the code lengths of blocks without a table of their own.
func fixedLengths() (lit [288]uint8, dist [maxDist]uint8) {
	for i := range lit {
		switch {
		case i < 144:
			lit[i] = 8
		case i < 256:
			lit[i] = 9
		case i < 280:
			lit[i] = 7
		default:
			lit[i] = 8
		}
	}
	for i := range dist {
		dist[i] = 5
	}
	return lit, dist
}
