package lz4

import (
	"encoding/binary"
	"math"
	"math/bits"
)

// What the format demands of every block.
const (
	minMatch     = 4     // shortest match
	maxOffset    = 65535 // farthest match
	lastLiterals = 5     // a block ends with at least so many literals
	startLimit   = 12    // no match starts in so many last bytes
	minInput     = 13    // shorter blocks have literals only
	maxNibble    = 15    // a length of at least this goes on behind the token
	offsetSize   = 2
	tokenSize    = 1
	unlimited    = math.MaxInt
)

// match says that length bytes from start on repeat those offset bytes before.
type match struct{ start, length, offset int }

func (m match) end() int { return m.start + m.length }

// cutFront gives up the first n bytes, if n is positive.
func (m match) cutFront(n int) match {
	n = max(n, 0)
	return match{m.start + n, m.length - n, m.offset}
}

// block is a block in the making: src up to anchor is encoded in dst up to op.
// The next sequence may not make dst longer than limit.
type block struct {
	src, dst   []byte
	anchor, op int
	limit      int
}

// lastStart is the last position at which a match may start, lastEnd where it
// must end at the latest.
func (b *block) lastStart() int { return len(b.src) - startLimit }
func (b *block) lastEnd() int   { return len(b.src) - lastLiterals }

// sequence appends the literals from anchor to m, and m.
func (b *block) sequence(m match) {
	dst, op := b.dst, b.op+tokenSize
	lits := m.start - b.anchor
	token := min(lits, maxNibble) << 4
	if lits >= maxNibble {
		op = putLength(dst, op, lits-maxNibble)
	}
	copyLiterals(dst[op:], b.src[b.anchor:], lits)
	op += lits
	binary.LittleEndian.PutUint16(dst[op:], uint16(m.offset))
	op += offsetSize
	code := m.length - minMatch
	token |= min(code, maxNibble)
	if code >= maxNibble {
		op = putLength(dst, op, code-maxNibble)
	}
	dst[b.op] = byte(token)
	b.op, b.anchor = op, m.end()
}

// finish appends the rest as literals, or as many of them as fit.
func (b *block) finish() {
	lits := len(b.src) - b.anchor
	if lits+tokenSize+lengthSize(lits) > b.limit-b.op {
		lits = b.limit - b.op - tokenSize
		lits -= (lits + 256 - maxNibble) / 256
	}
	op := b.op + tokenSize
	b.dst[b.op] = byte(min(lits, maxNibble) << 4)
	if lits >= maxNibble {
		op = putLength(b.dst, op, lits-maxNibble)
	}
	copy(b.dst[op:op+lits], b.src[b.anchor:])
	b.op, b.anchor = op+lits, b.anchor+lits
}

// lengthSize is how many bytes a length takes behind the token.
func lengthSize(n int) int { return (n + 255 - maxNibble) / 255 }

func putLength(dst []byte, op, n int) int {
	for ; n >= 255; n -= 255 {
		dst[op] = 255
		op++
	}
	dst[op] = byte(n)
	return op + 1
}

// copyLiterals copies n bytes. It may write up to 16, as the caller has not
// written behind them yet: most runs of literals are short, and a copy of
// constant size needs no call.
func copyLiterals(dst, src []byte, n int) {
	if n <= 16 && len(dst) >= 16 && len(src) >= 16 {
		*(*[16]byte)(dst) = [16]byte(src)
		return
	}
	copy(dst[:n], src)
}

func load16(b []byte, i int) uint16 { return binary.LittleEndian.Uint16(b[i:]) }
func load32(b []byte, i int) uint32 { return binary.LittleEndian.Uint32(b[i:]) }
func load64(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[i:]) }

// common counts the bytes from i up to end that equal those from j on, which
// is before i.
func common(src []byte, i, j, end int) int {
	p := src[i:end]
	q := src[j : j+len(p)]
	n := 0
	for ; len(p)-n >= 8; n += 8 {
		if x := load64(p, n) ^ load64(q, n); x != 0 {
			return n + bits.TrailingZeros64(x)>>3
		}
	}
	for ; n < len(p) && p[n] == q[n]; n++ {
	}
	return n
}
