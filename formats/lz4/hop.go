package lz4

// sparser looks, after a match with ref, for the position within the match
// whose chain goes on farthest away: an even longer match has to contain that
// one as well. It returns the distance, 1 if there is nothing to gain.
func (s *hunt) sparser(ref uint32) uint32 {
	const patience = 4
	if ref+uint32(s.best.length) > s.index {
		return 1
	}
	farthest := uint32(1)
	end := uint32(s.best.length - minMatch + 1)
	for pos, step, misses := uint32(0), uint32(1), uint32(1<<patience); pos < end; pos += step {
		step = misses >> patience
		misses++
		if back := uint32(s.earlier[uint16(ref+pos)]); back > farthest {
			farthest, s.hop = back, pos
			misses = 1 << patience
		}
	}
	return farthest
}

// leap is for a candidate within a run of one byte, when the run at the
// position searched for is of the same one: of all the run's positions only
// one or two are worth a try. It returns which to go on with, and false where
// this does not apply.
func (s *hunt) leap(ref uint32) (next uint32, ok bool) {
	if s.run == 0 {
		s.run = s.runLength()
	}
	j := int(ref - s.base)
	if s.run < 0 || ref < s.lowest || load32(s.src, j) != s.first {
		return 0, false
	}
	forward := minMatch + s.runFrom(j+minMatch)
	back := min(s.runUpTo(j), int(ref-s.lowest))
	if back+forward >= s.run && forward <= s.run {
		return ref + uint32(forward) - uint32(s.run), true // both runs end at the same place
	}
	ref -= uint32(back)
	if s.low < s.at {
		return ref, true
	}
	// Nothing in this run matches more than the shorter of the two.
	if n := min(back+forward, s.run); n > s.best.length {
		s.best = match{s.at, n, int(s.index - ref)}
	}
	return ref - uint32(s.earlier[uint16(ref)]), true
}

// runLength is the length of the run that begins at at, -1 if none does.
func (s *hunt) runLength() int {
	if s.first != s.first&0xff*0x01010101 {
		return -1
	}
	return minMatch + s.runFrom(s.at+minMatch)
}

// runFrom counts the bytes from i on that equal the first one searched for.
func (s *hunt) runFrom(i int) int {
	eight := uint64(s.first)<<32 | uint64(s.first)
	start := i
	for i+8 <= s.end && load64(s.src, i) == eight {
		i += 8
	}
	for i < s.end && s.src[i] == byte(s.first) {
		i++
	}
	return i - start
}

// runUpTo counts the bytes before i that equal the first one searched for.
func (s *hunt) runUpTo(i int) int {
	eight := uint64(s.first)<<32 | uint64(s.first)
	end := i
	for i >= 8 && load64(s.src, i-8) == eight {
		i -= 8
	}
	for i > 0 && s.src[i-1] == byte(s.first) {
		i--
	}
	return end - i
}
