package puffin

import (
	"encoding/binary"
	"fmt"
	"math"
)

// BitExtent is a stretch of bits, counted from the lowest bit of the first byte.
type BitExtent struct {
	Offset, Length uint64
}

// End is the bit after the last one.
func (e BitExtent) End() uint64 { return e.Offset + e.Length }

// Puff appends to dst the puff of the deflate blocks that fill the extent e of
// data. A damaged stream gives ErrDeflate. Of one that Huff would not give back
// bit by bit nothing is said here.
func Puff(dst, data []byte, e BitExtent) ([]byte, error) {
	if e.Offset > uint64(len(data))*8 || e.Length > uint64(len(data))*8-e.Offset {
		return dst, refuse(ErrDeflate, "extent", fmt.Sprintf("at most %d bits", len(data)*8), e)
	}
	var p puffer
	return p.puff(dst, data, e, math.MaxInt)
}

// puffer is Puff with tables that are made once.
type puffer struct {
	r         bitReader
	out       []byte
	limit     int // of len(out)
	lit, dist decoder
	lengths   [maxLitLen + maxDist]uint8
	tight     bool // a distance was read where not all codes would have fit
}

func (p *puffer) puff(dst, data []byte, e BitExtent, limit int) ([]byte, error) {
	p.start(dst, data[:(e.End()+7)/8], e.Offset, limit)
	for p.r.at() < e.End() {
		if _, _, err := p.block(); err != nil {
			return p.out, err
		}
	}
	if at := p.r.at(); at != e.End() {
		return p.out, refuse(ErrDeflate, "end of the block", fmt.Sprintf("bit %d", e.End()), at)
	}
	return p.out, nil
}

func (p *puffer) start(dst, data []byte, bit uint64, limit int) {
	p.r, p.out, p.limit, p.tight = newBitReader(data, bit), dst, limit, false
}

func (p *puffer) bad(where, expected string, found any) error {
	return refuse(ErrDeflate, fmt.Sprintf("%s before bit %d", where, p.r.at()), expected, found)
}

func (p *puffer) short(where string) error { return p.bad(where, "more bits", "the end") }

// block puffs one block, and says whether it was the last one of its stream
// and whether it was a stored one.
func (p *puffer) block() (final, stored bool, err error) {
	p.r.fill()
	h, ok := p.r.take(3)
	if !ok {
		return false, false, p.short("block header")
	}
	final = h&1 != 0
	tag := byte(h&1)<<7 | byte(h>>1)<<5
	switch h >> 1 {
	case typeStored:
		return final, true, p.stored(tag)
	case typeFixed:
		lit, dist := fixedLengths()
		p.lit.init(lit[:])
		p.dist.init(dist[:])
		p.out = append(p.out, 0, 0, tag)
	case typeDynamic:
		err = p.tables(tag)
	default:
		err = p.bad("block header", "type 0 to 2", 3)
	}
	if err == nil {
		err = p.tokens()
	}
	return final, false, err
}

func (p *puffer) stored(tag byte) error {
	skipped, _ := p.r.take(p.r.n % 8)
	if skipped > 31 {
		// Seven bits can be skipped, but five find a place (specs/payload.md 8.3).
		return p.bad("skipped bits", "a value below 32", skipped)
	}
	length, ok := p.r.take(32)
	if !ok {
		return p.short("length of a stored block")
	}
	n := int(length & 0xffff)
	if uint32(n)^length>>16 != 0xffff {
		return p.bad("length of a stored block", fmt.Sprintf("the complement of %d", n), length>>16)
	}
	p.r.pos -= int(p.r.n / 8)
	p.r.acc, p.r.n = 0, 0
	if len(p.r.data)-p.r.pos < n {
		return p.short("stored block")
	}
	literals := p.r.data[p.r.pos:][:n]
	p.r.pos += n
	p.out = append(p.out, 0, 0, tag|byte(skipped))
	if n > 0 {
		p.out = appendRun(p.out, n)
		p.out = append(p.out, literals...)
	}
	p.out = append(p.out, endOfPuff[:]...)
	return p.checkLimit()
}

// A literal run is its length and the literals. The longest is cut off.
const (
	shortRun = 127
	longRun  = shortRun + 1 + 65535
	runTag   = 0x7f
)

var endOfPuff = [2]byte{0xff, maxLength + 1 - 130}

func appendRun(b []byte, n int) []byte {
	if n <= shortRun {
		return append(b, byte(n-1))
	}
	return binary.BigEndian.AppendUint16(append(b, runTag), uint16(n-shortRun-1))
}

// closeRun writes the length of the run that began at b[at], where one byte has
// been left for it.
func closeRun(b []byte, at int) []byte {
	n := len(b) - at - 1
	if n <= shortRun {
		b[at] = byte(n - 1)
		return b
	}
	b = append(b, 0, 0)
	copy(b[at+3:], b[at+1:at+1+n])
	appendRun(b[:at], n)
	return b
}

// tables puffs the code lengths of a dynamic block.
func (p *puffer) tables(tag byte) error {
	head, ok := p.r.take(14)
	if !ok {
		return p.short("block header")
	}
	nLit, nDist, nCodes := int(head&31)+257, int(head>>5&31)+1, int(head>>10)+4
	if nLit > maxLitLen || nDist > maxDist {
		return p.bad("block header", "at most 286 literals and lengths, 30 distances", fmt.Sprintf("%d and %d", nLit, nDist))
	}
	at := len(p.out)
	p.out = append(p.out, 0, 0, tag, byte(nLit-257), byte(nDist-1), byte(nCodes-4))
	if err := p.codeLengths(nCodes); err != nil {
		return err
	}
	if err := p.symbolLengths(nLit + nDist); err != nil {
		return err
	}
	binary.BigEndian.PutUint16(p.out[at:], uint16(len(p.out)-at-3))
	if !p.lit.init(p.lengths[:nLit]) || !p.dist.init(p.lengths[nLit:nLit+nDist]) {
		return p.bad("tables", "code lengths that fit", "too many codes")
	}
	return nil
}

// codeLengths reads n lengths into the table by which the others are coded.
func (p *puffer) codeLengths(n int) error {
	var lengths [lengthCodes]uint8
	for i := range n {
		l, ok := p.r.take(3)
		if !ok {
			return p.short("code lengths")
		}
		lengths[lengthOrder[i]] = uint8(l)
		if i%2 == 0 {
			p.out = append(p.out, byte(l)<<4)
		} else {
			p.out[len(p.out)-1] |= byte(l)
		}
	}
	if !p.lit.init(lengths[:]) {
		return p.bad("code lengths", "lengths that fit", "too many codes")
	}
	return nil
}

// symbolLengths reads n lengths, or runs of them.
func (p *puffer) symbolLengths(n int) error {
	for i := 0; i < n; {
		p.r.fill()
		sym, ok := p.lit.next(&p.r)
		if !ok {
			return p.bad("tables", "a code", "none")
		}
		tag, value, extra, least := byte(sym), uint8(sym), uint(0), 1
		switch sym {
		case runRepeat:
			if i == 0 {
				return p.bad("tables", "a length to repeat", "none")
			}
			value, extra, least = p.lengths[i-1], 2, 3
		case runZeros:
			tag, value, extra, least = tagZeros, 0, 3, 3
		case runManyZeros:
			tag, value, extra, least = tagManyZeros, 0, 7, 11
		}
		more, ok := p.r.take(extra)
		if !ok {
			return p.short("tables")
		}
		run := least + int(more)
		if run > n-i {
			return p.bad("tables", fmt.Sprintf("%d lengths", n), i+run)
		}
		for ; run > 0; run-- {
			p.lengths[i] = value
			i++
		}
		p.out = append(p.out, tag+byte(more))
	}
	return nil
}

// In a puff, code-length symbols and the bits that follow are one byte.
const (
	tagZeros     = 20
	tagManyZeros = 28
	tagEnd       = tagManyZeros + 128
)

// tokens puffs literals and copies up to the end of the block.
func (p *puffer) tokens() error {
	run := -1 // where the run of literals began
	for {
		run = p.fastTokens(run)
		more, err := p.token(&run)
		if err != nil || !more {
			return err
		}
	}
}

// token puffs one literal or copy, or the end of the block: then more is false.
func (p *puffer) token(run *int) (more bool, err error) {
	p.r.fill()
	sym, ok := p.lit.next(&p.r)
	if !ok {
		return false, p.bad("block", "a code for a literal or length", "none")
	}
	if sym < endOfBlock {
		p.out, *run = appendLiteral(p.out, *run, byte(sym))
		return true, p.checkLimit()
	}
	if *run >= 0 {
		p.out, *run = closeRun(p.out, *run), -1
	}
	if sym == endOfBlock {
		p.out = append(p.out, endOfPuff[:]...)
		return false, p.checkLimit()
	}
	return true, p.copy(sym)
}

// appendLiteral adds to a run, or begins one, and closes it if it is as long as
// can be.
func appendLiteral(b []byte, run int, c byte) ([]byte, int) {
	if run < 0 {
		run = len(b)
		b = append(b, 0)
	}
	b = append(b, c)
	if len(b)-run-1 == longRun {
		return closeRun(b, run), -1
	}
	return b, run
}

// fastTokens does as token does, many times over, while codes are short and
// the ends of input and output are far. It stops before a token that is not so.
//
// The reader's state is in variables here. Bits above n in acc are left as they
// are: the next load brings the same.
func (p *puffer) fastTokens(run int) int {
	const margin = 16 // a run's length, and a copy
	data, pos, acc, n, out := p.r.data, p.r.pos, p.r.acc, p.r.n, p.out
	lit, dist := &p.lit.lookup, &p.dist.lookup
	for pos+8 <= len(data) && len(out) <= p.limit-margin {
		acc |= binary.LittleEndian.Uint64(data[pos:]) << (n & 63)
		pos += int((63 - n) / 8)
		n |= 56
		e := lit[acc%uint64(len(lit))]
		if e == 0 {
			break
		}
		if e < endOfBlock<<4 {
			out, run = appendLiteral(out, run, byte(e>>4))
			acc >>= e & 15
			n -= uint(e & 15)
			continue
		}
		sym := e>>4 - firstLength
		if int(sym) >= len(lengthBases) { // the end, or no length
			break
		}
		l := lengthBases[sym]
		a := acc >> (e & 15)
		length := uint64(l.value) + a&(1<<(l.extra&15)-1)
		a >>= l.extra & 15
		d := dist[a%uint64(len(dist))]
		if d == 0 || int(d>>4) >= len(distBases) {
			break
		}
		a >>= d & 15
		base := distBases[d>>4]
		distance := uint64(base.value) - 1 + a&(1<<(base.extra&15)-1)
		acc = a >> (base.extra & 15)
		n -= uint(e&15) + uint(l.extra) + uint(d&15) + uint(base.extra)
		if run >= 0 {
			out, run = closeRun(out, run), -1
		}
		out = appendCopy(out, int(length), uint16(distance))
	}
	p.r.pos, p.r.acc, p.r.n, p.out = pos, acc&(1<<n-1), n, out
	return run
}

// appendCopy appends a copy; the distance is less one.
func appendCopy(b []byte, length int, distance uint16) []byte {
	if length < 130 {
		return append(b, 0x80|byte(length-minLength), byte(distance>>8), byte(distance))
	}
	return append(b, 0xff, byte(length-130), byte(distance>>8), byte(distance))
}

// copy puffs a length, whose symbol has been read, and its distance.
func (p *puffer) copy(sym uint16) error {
	r := &p.r
	if int(sym) >= firstLength+len(lengthBases) {
		return p.bad("block", "a length symbol up to 285", sym)
	}
	l := lengthBases[sym-firstLength]
	more, ok := r.take(uint(l.extra))
	if !ok {
		return p.short("length")
	}
	length := int(l.value) + int(more)
	if r.n < maxCode {
		r.fill()
		p.tight = p.tight || r.n < p.dist.longest
	}
	d, found := p.dist.next(r)
	if !found || d >= maxDist {
		return p.bad("block", "a code for a distance", "none")
	}
	more, ok = r.take(uint(distBases[d].extra))
	if !ok {
		return p.short("distance")
	}
	distance := uint16(int(distBases[d].value) - 1 + int(more))
	p.out = appendCopy(p.out, length, distance)
	return p.checkLimit()
}

func (p *puffer) checkLimit() error {
	if len(p.out) > p.limit {
		return refuse(ErrDeflate, fmt.Sprintf("puff before bit %d", p.r.at()), fmt.Sprintf("at most %d bytes", p.limit), "more")
	}
	return nil
}
