package lz4

// lazySearch looks, before it writes a match, whether a longer one begins
// within it, and whether an even longer one begins within that; then it
// decides where one ends and the next begins.
type lazySearch struct{ chains }

// roomy is the longest match whose length fits into the token.
const roomy = minMatch + maxNibble - 1

func (l *lazySearch) encode(b *block) {
	l.start(b)
	for at := 0; len(b.src) >= minInput && at <= b.lastStart(); {
		m := l.longest(at, at, minMatch-1)
		if m.length < minMatch {
			at++
			continue
		}
		if !l.settle(m) {
			break
		}
		at = b.anchor
	}
	l.finish()
}

// longer finds a match that is longer than m, takes in the last n bytes of m
// and begins no earlier than m. If there is none, its length is at most that
// of m.
func (l *lazySearch) longer(m match, n int) match {
	if m.end() > l.b.lastStart() {
		return match{}
	}
	return l.longest(m.end()-n, m.start, m.length)
}

// settle writes the match m1 or better ones that overlap with it. It returns
// false when the block is full.
func (l *lazySearch) settle(m1 match) bool {
	first := m1 // what m1 was before longer ones were found
	for {
		m2 := l.longer(m1, 2)
		if m2.length <= m1.length {
			return l.b.fitHigh(m1)
		}
		if first.start < m1.start && m2.start < m1.start+first.length {
			m1 = first // there is room for it before m2 after all
		}
		if m2.start-m1.start < 3 {
			m1 = m2
			continue
		}
		var more, ok bool
		if m1, first, more, ok = l.settleTwo(m1, m2); !more {
			return ok
		}
	}
}

// settleTwo writes m1, then m2 if there is no longer match within that, else
// goes on with these two. It returns more when only one match is left to go on
// with; first is one that might still fit before it. ok is false when the block
// is full.
func (l *lazySearch) settleTwo(m1, m2 match) (rest, first match, more, ok bool) {
	for {
		_, m2 = share(m1, m2)
		m3 := l.longer(m2, 3)
		if m3.length <= m2.length {
			m1.length = min(m1.length, m2.start-m1.start)
			return m1, m1, false, l.b.fitHigh(m1) && l.b.fitHigh(m2)
		}
		if m3.start < m1.end()+3 { // m2 has no room between the two
			if m3.start < m1.end() {
				m2 = m3
				continue
			}
			if m2 = m2.cutFront(m1.end() - m2.start); m2.length < minMatch {
				m2 = m3
			}
			ok = l.b.fitHigh(m1)
			return m3, m2, ok, ok
		}
		if m1, m2 = share(m1, m2); !l.b.fitHigh(m1) {
			return m1, m1, false, false
		}
		m1, m2 = m2, m3
	}
}

// share ends m1 where m2 begins, or lets it take from the front of m2 as far as
// that costs nothing: up to the longest that its token can tell.
func share(m1, m2 match) (match, match) {
	gap := m2.start - m1.start
	if gap >= roomy {
		m1.length = min(m1.length, gap)
		return m1, m2
	}
	m1.length = min(m1.length, roomy, gap+m2.length-minMatch)
	return m1, m2.cutFront(m1.length - gap)
}
