package lz4

// sparser looks, after a match with ref, for the position within the match
// whose chain goes on farthest away: an even longer match has to contain that
// one as well. It returns the distance, 1 if there is nothing to gain.
func (c *chains) sparser(ref uint32) uint32 {
	const patience = 4
	if ref+uint32(c.best.length) > c.index {
		return 1
	}
	farthest := uint32(1)
	end := uint32(c.best.length - minMatch + 1)
	for pos, step, misses := uint32(0), uint32(1), uint32(1<<patience); pos < end; pos += step {
		step = misses >> patience
		misses++
		if back := uint32(c.earlier[uint16(ref+pos)]); back > farthest {
			farthest, c.hop = back, pos
			misses = 1 << patience
		}
	}
	return farthest
}

// leap is for a candidate within a run of one byte, when the run at the
// position searched for is of the same one: of all the run's positions only
// one or two are worth a try. It returns which to go on with, and false where
// this does not apply.
func (c *chains) leap(ref uint32) (next uint32, ok bool) {
	if c.run == 0 {
		c.run = c.runLength()
	}
	j := int(ref - c.base)
	if c.run < 0 || ref < c.lowest || load32(c.src, j) != c.first {
		return 0, false
	}
	forward := minMatch + c.runFrom(j+minMatch)
	back := min(c.runUpTo(j), int(ref-c.lowest))
	if back+forward >= c.run && forward <= c.run {
		return ref + uint32(forward) - uint32(c.run), true // both runs end at the same place
	}
	ref -= uint32(back)
	if c.low < c.at {
		return ref, true
	}
	// Nothing in this run matches more than the shorter of the two.
	if n := min(back+forward, c.run); n > c.best.length {
		c.best = match{c.at, n, int(c.index - ref)}
	}
	return ref - uint32(c.earlier[uint16(ref)]), true
}

// runLength is the length of the run that begins at at, -1 if none does.
func (c *chains) runLength() int {
	if c.first != c.first&0xff*0x01010101 {
		return -1
	}
	return minMatch + c.runFrom(c.at+minMatch)
}

// runFrom counts the bytes from i on that equal the first one searched for.
func (c *chains) runFrom(i int) int {
	eight := uint64(c.first)<<32 | uint64(c.first)
	start := i
	for i+8 <= c.end && load64(c.src, i) == eight {
		i += 8
	}
	for i < c.end && c.src[i] == byte(c.first) {
		i++
	}
	return i - start
}

// runUpTo counts the bytes before i that equal the first one searched for.
func (c *chains) runUpTo(i int) int {
	eight := uint64(c.first)<<32 | uint64(c.first)
	end := i
	for i >= 8 && load64(c.src, i-8) == eight {
		i -= 8
	}
	for i > 0 && c.src[i-1] == byte(c.first) {
		i--
	}
	return end - i
}
