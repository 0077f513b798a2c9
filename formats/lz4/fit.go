package lz4

// The two searches hold to a limit in ways of their own: liblz4's do, and its
// blocks of limited size are to be matched byte for byte.

// atEnd is what must still fit behind a match: the last token and literals.
const atEnd = tokenSize + lastLiterals

// fitFast writes the sequence that ends with m. Where the limit does not allow
// it, m is shortened as far as that helps, and false tells that only literals
// can follow.
func (b *block) fitFast(m match) bool {
	if b.limit == unlimited {
		b.sequence(m)
		return true
	}
	lits := m.start - b.anchor
	left := b.limit - b.op - tokenSize - lengthSize(lits) - lits - offsetSize
	if left < tokenSize+startLimit-minMatch {
		return false
	}
	if left < atEnd+lengthSize(m.length-minMatch) {
		m.length = roomy + (left-atEnd)*255
		b.sequence(m)
		return false
	}
	b.sequence(m)
	return true
}

// fitHigh is fitFast for the other searches.
func (b *block) fitHigh(m match) bool {
	lits := m.start - b.anchor
	left := b.limit - lastLiterals - b.op - tokenSize
	behind := left - lengthSize(lits) - lits - offsetSize
	if left-lits/255-lits >= offsetSize+atEnd && behind-(m.length-minMatch)/255 >= atEnd {
		b.sequence(m)
		return true
	}
	if behind -= tokenSize; behind >= 0 {
		m.length = min(m.length, roomy+behind*255)
		if behind+lastLiterals+m.length >= startLimit {
			b.sequence(m)
		}
	}
	return false
}
