package lz4

import "encoding/binary"

const (
	hashBits = 15
	window   = 1 << 16 // positions that the chains remember
	// restart is the index at which counting begins anew, long before the
	// longest block could make 32 bits overflow.
	restart = 1 << 30
)

// chains lists, for each position of the block, the earlier ones with the same
// hash. Positions are counted on from block to block, with a gap of a window
// between two of them: what is left of an earlier block is out of reach, and
// the tables need not be cleared.
type chains struct {
	effort
	b       *block
	base    uint32                // index of the block's first byte
	next    uint32                // index of the first byte that is in no chain yet
	newest  [1 << hashBits]uint32 // by hash
	earlier [window]uint16        // by index modulo window: how far back the chain goes on, at most maxOffset
}

// effort says how hard a level searches.
type effort struct {
	tries int
	// runs makes use of runs of one byte, where each position has all the
	// others in its chain.
	runs bool
	// detours lets a search go on in the chain of another position within the
	// best match so far, if that one is sparser. It needs searches that do not
	// look back.
	detours bool
}

func (c *chains) start(b *block) {
	if c.b = b; c.base == 0 || c.next > restart {
		clear(c.newest[:])
		c.next = 0
	}
	c.base = c.next + window
	c.next = c.base
}

func hashOf(seq uint32) uint32 { return seq * 2654435761 >> (32 - hashBits) }

// insert puts all positions before the one with index end into their chains.
func (c *chains) insert(end uint32) {
	if c.next >= end {
		return
	}
	src := c.b.src[c.next-c.base : end-c.base+minMatch-1]
	for i := range src[minMatch-1:] {
		h := hashOf(binary.LittleEndian.Uint32(src[i:]))
		index := c.next + uint32(i)
		c.earlier[uint16(index)] = uint16(min(index-c.newest[h], maxOffset))
		c.newest[h] = index
	}
	c.next = end
}

// longest finds the longest match that takes in the bytes at position at and
// begins no earlier than low. Matches of atLeast bytes or less do not count; if
// there is no better one, its length is atLeast.
func (c *chains) longest(at, low, atLeast int) match {
	s := hunt{chains: c, src: c.b.src, at: at, low: low, end: c.b.lastEnd(), best: match{at, atLeast, 0}}
	s.index = c.base + uint32(at)
	s.lowest = max(c.base, s.index-maxOffset)
	c.insert(s.index)
	s.first = load32(s.src, at)
	s.walk(c.newest[hashOf(s.first)])
	return s.best
}

// hunt is one search for a match.
type hunt struct {
	*chains
	src          []byte
	at, low, end int
	index        uint32 // of at
	lowest       uint32 // index of the farthest position in reach
	first        uint32 // the bytes at at
	best         match
	run          int    // how often the byte at at repeats; -1: other bytes follow at once, 0: not yet known
	hop          uint32 // the chain walked is that of the position so many bytes behind at
}

// walk tries one candidate after the other, beginning with the index ref.
func (s *hunt) walk(ref uint32) {
	for tries := s.tries; ref >= s.lowest && tries > 0; tries-- {
		length := s.try(ref)
		if s.detours && length == s.best.length {
			if back := s.sparser(ref); back > 1 {
				ref -= back
				continue
			}
		}
		back := uint32(s.earlier[uint16(ref+s.hop)])
		if s.runs && back == 1 && s.hop == 0 {
			if next, ok := s.leap(ref - 1); ok {
				ref = next
				continue
			}
		}
		ref -= back
	}
}

// try compares with the candidate ref and returns the length of the match, or
// 0 if it cannot be longer than the best one.
func (s *hunt) try(ref uint32) int {
	src, at := s.src, s.at
	j := int(ref - s.base)
	// The two bytes around the end of the best match tell most failures.
	probe := s.low + s.best.length - 1
	if load16(src, probe) != load16(src, probe-at+j) || load32(src, j) != s.first {
		return 0
	}
	length := minMatch + common(src, at+minMatch, j+minMatch, s.end)
	start := at
	for k := j; start > s.low && k > 0 && src[start-1] == src[k-1]; k-- {
		start--
	}
	length += at - start
	if length > s.best.length {
		s.best = match{start, length, at - j}
	}
	return length
}
