package lz4

const (
	// horizon is how far ahead prices are known before a stretch is written.
	horizon = 1 << 12
	// tail is how many literals are priced behind the last match.
	tail = minMatch - 1
	// cheapest is the price of a match without literals.
	cheapest = tokenSize + offsetSize
)

// pricedSearch prices the ways to get from one position to each of the next
// ones and writes the cheapest. Such a stretch begins where a match does and
// grows as long as matches overlap with what it has.
type pricedSearch struct {
	chains
	goodLength int  // a match that is longer is taken at once
	thorough   bool // also look where the gain is doubtful, and for shorter matches
	way        [horizon + tail]step
	reach      int // where in way the last match ends
}

// step is the end of the cheapest way to a position: a match, or one literal,
// whose length is 1. price is that of the stretch up to there, in bytes, lits
// the number of literals up to there or to the match's start.
type step struct{ price, offset, length, lits int32 }

func (p *pricedSearch) encode(b *block) {
	p.start(b)
	for at, ok := 0, true; ok && at <= b.lastStart(); {
		m := p.longest(at, at, minMatch-1)
		switch {
		case m.length < minMatch:
			at++
		case m.length > p.goodLength:
			ok = b.fitHigh(m)
			at = b.anchor
		default:
			p.begin(m)
			goal, last := p.explore(at)
			p.choose(goal, last)
			at, ok = p.write(at, goal+1)
		}
	}
	p.finish()
}

func literalsPrice(n int32) int32 { return n + int32(lengthSize(int(n))) }

func matchPrice(lits, length int32) int32 {
	return cheapest + literalsPrice(lits) + int32(lengthSize(int(length-minMatch)))
}

// begin prices a stretch that has only the match m at its start.
func (p *pricedSearch) begin(m match) {
	lits := int32(m.start - p.b.anchor)
	for i := range int32(minMatch) {
		p.way[i] = step{literalsPrice(lits + i), 0, 1, lits + i}
	}
	for n := int32(minMatch); n <= int32(m.length); n++ {
		p.way[n] = step{matchPrice(lits, n), int32(m.offset), n, lits}
	}
	p.reach = m.length
	p.addTail()
}

// addTail prices literals behind the last match.
func (p *pricedSearch) addTail() {
	price := p.way[p.reach].price
	for n := int32(1); n <= tail; n++ {
		p.way[p.reach+int(n)] = step{price + literalsPrice(n), 0, 1, n}
	}
}

// explore looks for matches at all positions of the stretch, which starts at
// at. It returns the last step to write and the place in way where it starts.
func (p *pricedSearch) explore(at int) (goal int, last step) {
	for i := 1; i < p.reach && at+i <= p.b.lastStart(); i++ {
		if p.skip(i) {
			continue
		}
		atLeast := minMatch - 1
		if !p.thorough {
			atLeast = p.reach - i
		}
		m := p.longest(at+i, at+i, atLeast)
		if m.length <= atLeast {
			continue
		}
		if m.length > p.goodLength || i+m.length >= horizon {
			return i, step{offset: int32(m.offset), length: int32(m.length)}
		}
		p.literalsBehind(i)
		p.matchAt(i, m)
		p.addTail()
	}
	last = p.way[p.reach]
	return p.reach - int(last.length), last
}

// skip tells that a match at i would not pay, since the next position is no
// dearer to reach.
func (p *pricedSearch) skip(i int) bool {
	if p.way[i+1].price > p.way[i].price {
		return false
	}
	return !p.thorough || p.way[i+minMatch].price < p.way[i].price+cheapest
}

// literalsBehind prices some literals behind i.
func (p *pricedSearch) literalsBehind(i int) {
	from := p.way[i]
	for n := int32(1); n < minMatch; n++ {
		price := from.price - literalsPrice(from.lits) + literalsPrice(from.lits+n)
		if to := &p.way[i+int(n)]; price < to.price {
			*to = step{price, 0, 1, from.lits + n}
		}
	}
}

// matchAt prices the ways that end with m, or a part of it, at i.
func (p *pricedSearch) matchAt(i int, m match) {
	lits, before := int32(0), p.way[i].price
	if p.way[i].length == 1 {
		lits, before = p.way[i].lits, 0
		if i > int(lits) {
			before = p.way[i-int(lits)].price
		}
	}
	priced := p.reach + tail
	for n := minMatch; n <= m.length; n++ {
		price := before + matchPrice(lits, int32(n))
		if i+n > priced || price <= p.way[i+n].price {
			p.way[i+n] = step{price, int32(m.offset), int32(n), lits}
			if n == m.length {
				p.reach = max(p.reach, i+n)
			}
		}
	}
}

// choose turns way around: the steps that lead to last, which starts at i, are
// put where they start.
func (p *pricedSearch) choose(i int, last step) {
	for {
		before := p.way[i]
		p.way[i] = last
		if int(before.length) > i {
			return
		}
		last = before
		i -= int(before.length)
	}
}

// write writes the steps chosen that start before place end of a stretch that
// starts at at. It returns where the last one ends, and false when the block is
// full.
func (p *pricedSearch) write(at, end int) (next int, ok bool) {
	for i := 0; i < end; {
		s := p.way[i]
		if s.length > 1 && !p.b.fitHigh(match{at + i, int(s.length), int(s.offset)}) {
			return 0, false
		}
		i += int(s.length)
		next = at + i
	}
	return next, true
}
