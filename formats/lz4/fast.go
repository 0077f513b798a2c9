package lz4

const (
	bits16  = 13 // of a hash in a short block
	bits32  = 12 // and in a long one
	slots16 = 1 << bits16
	slots32 = 1 << bits32
	// shortBlock is the length from which on positions take more than 16 bits:
	// the last position that is ever looked at is 11 bytes before the end.
	shortBlock = 1<<16 + startLimit - 1
	// skipBits: each 1<<skipBits positions without a match the step grows by one.
	skipBits = 6
)

// fastSearch remembers one position for each hash and takes the first match it
// meets, with growing steps over what does not match.
type fastSearch struct {
	acceleration int
	short        [slots16]uint16
	long         [slots16]uint32 // slots32 of them are in use
}

func (f *fastSearch) encode(b *block) {
	switch {
	case len(b.src) < minInput:
		b.finish()
	case len(b.src) < shortBlock:
		clear(f.short[:])
		encodeFast(&f.short, b, f.acceleration)
	default:
		clear(f.long[:slots32])
		encodeFast(&f.long, b, f.acceleration)
	}
}

// prime4 and prime5 spread so many bytes over a hash.
const (
	prime4 = 2654435761
	prime5 = 889523592379
)

type position interface{ uint16 | uint32 }

// isShort is a constant in each instance.
func isShort[P position]() bool { return uint32(^P(0)) == 1<<16-1 }

// slot is the hash of the first 4 bytes in seq, in a long block of the first 5.
func slot[P position](seq uint64) uint {
	if isShort[P]() {
		return uint(uint32(seq) * prime4 >> (32 - bits16))
	}
	return uint(seq << 24 * prime5 >> (64 - bits32))
}

// inReach tells whether ref is near enough. An unused slot says 0, which must
// count as a position like any other: the hash of a long block takes in a
// fifth byte, so the block's start can match where its own slot is not asked.
func inReach[P position](ref, ip int) bool { return isShort[P]() || ref+maxOffset >= ip }

func encodeFast[P position](table *[slots16]P, b *block, acceleration int) {
	src := b.src
	table[slot[P](load64(src, 0))] = 0
	for ip := 1; ; ip++ {
		m, ok := nextMatch(table, src, ip, acceleration)
		if !ok {
			break
		}
		m = b.extendBack(m)
		if ip, ok = followMatches(table, b, m); !ok {
			break
		}
	}
	b.finish()
}

// nextMatch looks from ip on for a position whose first bytes have occurred
// before. The match's length is left open.
func nextMatch[P position](table *[slots16]P, src []byte, ip, acceleration int) (m match, ok bool) {
	end := len(src) - startLimit + 1
	seq := load64(src, ip)
	h := slot[P](seq)
	step, tries := 1, acceleration<<skipBits
	for {
		next := ip + step
		step = tries >> skipBits
		tries++
		if next > end {
			return match{}, false
		}
		ref := int(table[h%slots16])
		table[h%slots16] = P(ip)
		if load32(src, ref) == uint32(seq) && inReach[P](ref, ip) {
			return match{start: ip, offset: ip - ref}, true
		}
		seq = load64(src, next)
		h = slot[P](seq)
		ip = next
	}
}

// extendBack moves the start of m over equal bytes before it.
func (b *block) extendBack(m match) match {
	for m.start > b.anchor && m.start > m.offset && b.src[m.start-1] == b.src[m.start-1-m.offset] {
		m.start--
	}
	return m
}

// followMatches writes m and the matches that follow it at once, up to a
// position where there is none. It returns false at the end of the block.
func followMatches[P position](table *[slots16]P, b *block, m match) (ip int, ok bool) {
	src, lastStart, lastEnd := b.src, b.lastStart(), b.lastEnd()
	for {
		ref := m.start - m.offset
		m.length = minMatch + common(src, m.start+minMatch, ref+minMatch, lastEnd)
		if !b.fitFast(m) {
			return 0, false
		}
		ip := b.anchor
		if ip > lastStart {
			return 0, false
		}
		table[slot[P](load64(src, ip-2))%slots16] = P(ip - 2)
		seq := load64(src, ip)
		h := slot[P](seq)
		ref = int(table[h%slots16])
		table[h%slots16] = P(ip)
		if load32(src, ref) != uint32(seq) || !inReach[P](ref, ip) {
			return ip, true
		}
		m = match{start: ip, offset: ip - ref}
	}
}
