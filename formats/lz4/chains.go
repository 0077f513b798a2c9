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
	hunt
	b       *block
	src     []byte                // of b
	end     int                   // where matches in b must end
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
	c.b, c.src, c.end = b, b.src, b.lastEnd()
	if c.base == 0 || c.next > restart {
		clear(c.newest[:])
		c.next = 0
	}
	c.base = c.next + window
	c.next = c.base
}

// finish ends the block and lets go of the caller's bytes.
func (c *chains) finish() {
	c.b.finish()
	c.b, c.src = nil, nil
}

func hashOf(seq uint32) uint32 { return seq * prime4 >> (32 - hashBits) }

// insert puts all positions before the one with index end into their chains.
func (c *chains) insert(end uint32) {
	if c.next >= end {
		return
	}
	src := c.src[c.next-c.base : end-c.base+minMatch-1]
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
	index := c.base + uint32(at)
	c.insert(index)
	first := load32(c.src, at)
	ref := c.newest[hashOf(first)]
	lowest := max(c.base, index-maxOffset)
	if ref < lowest {
		return match{at, atLeast, 0}
	}
	h := &c.hunt
	h.at, h.low, h.index, h.lowest, h.first = at, low, index, lowest, first
	h.best.start, h.best.length, h.best.offset = at, atLeast, 0
	h.run, h.hop = 0, 0
	c.walk(ref)
	return h.best
}

// hunt is one search for a match.
type hunt struct {
	at, low int
	index   uint32 // of at
	lowest  uint32 // index of the farthest position in reach
	first   uint32 // the bytes at at
	hop     uint32 // the chain walked is that of the position so many bytes behind at
	run     int    // how often the byte at at repeats; -1: other bytes follow at once, 0: not yet known
	best    match
}

// walk tries one candidate after the other, beginning with the index ref.
func (c *chains) walk(ref uint32) {
	src, lowest := c.src, c.lowest
	for tries := c.tries; ref >= lowest && tries > 0; tries-- {
		length, j := 0, int(ref-c.base)
		// The two bytes around the end of the best match tell most failures.
		probe := c.low + c.best.length - 1
		if load16(src, probe) == load16(src, probe-c.at+j) && load32(src, j) == c.first {
			length = c.compare(j)
		}
		if c.detours && length == c.best.length {
			if back := c.sparser(ref); back > 1 {
				ref -= back
				continue
			}
		}
		back := uint32(c.earlier[uint16(ref+c.hop)])
		if back == 1 && c.runs && c.hop == 0 {
			if next, ok := c.leap(ref - 1); ok {
				ref = next
				continue
			}
		}
		ref -= back
	}
}

// compare returns the length of the match with position j, whose first bytes
// are known to be equal.
func (c *chains) compare(j int) int {
	src, start := c.src, c.at
	end := start + minMatch + common(src, start+minMatch, j+minMatch, c.end)
	for k := j; start > c.low && k > 0 && src[start-1] == src[k-1]; k-- {
		start--
	}
	if end-start > c.best.length {
		c.best = match{start, end - start, c.at - j}
	}
	return end - start
}
