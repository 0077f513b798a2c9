package xz

import "math/bits"

const (
	states      = 12
	positions   = 4 // contexts by the lowest bits of the position (pb = 2)
	literalCtx  = 8 // contexts by the highest bits of the byte before (lc = 3)
	minMatch    = 2
	maxMatch    = 273
	lenStates   = 4 // contexts of distances by the length
	slots       = 64
	firstModel  = 4  // distance slots from here on have bits besides
	firstAlign  = 14 // and from here on more than are modelled
	alignBits   = 4
	specials    = 1<<(firstAlign/2) - firstAlign + 1
	lowLengths  = 8
	highLengths = 256
)

// model is what has been learnt of the symbols.
type model struct {
	state int
	reps  [4]int // the last distances, from 0 on

	literal   [literalCtx][0x300]prob
	isMatch   [states][positions]prob
	isRep     [states]prob
	isRepG0   [states]prob
	isRepG1   [states]prob
	isRepG2   [states]prob
	isRep0Len [states][positions]prob
	slot      [lenStates][slots]prob
	special   [specials]prob
	align     [1 << alignBits]prob
	lengths   lengthModel // of matches
	repeated  lengthModel // of repeats
}

type lengthModel struct {
	choice, choice2 prob
	low, mid        [positions][lowLengths]prob
	high            [highLengths]prob
}

func (m *model) reset() {
	m.state, m.reps = 0, [4]int{}
	for i := range m.literal {
		evenAll(m.literal[i][:])
	}
	for s := range states {
		evenAll(m.isMatch[s][:])
		evenAll(m.isRep0Len[s][:])
		m.isRep[s], m.isRepG0[s], m.isRepG1[s], m.isRepG2[s] = evenly, evenly, evenly, evenly
	}
	for i := range m.slot {
		evenAll(m.slot[i][:])
	}
	evenAll(m.special[:])
	evenAll(m.align[:])
	m.lengths.reset()
	m.repeated.reset()
}

func (l *lengthModel) reset() {
	l.choice, l.choice2 = evenly, evenly
	for i := range positions {
		evenAll(l.low[i][:])
		evenAll(l.mid[i][:])
	}
	evenAll(l.high[:])
}

func evenAll(probs []prob) {
	for i := range probs {
		probs[i] = evenly
	}
}

// afterLiteral and the others are the states that symbols lead to: what the last few
// were.
func afterLiteral(s int) int {
	switch {
	case s < 4:
		return 0
	case s < 10:
		return s - 3
	}
	return s - 6
}

func afterMatch(s int) int {
	if s < 7 {
		return 7
	}
	return 10
}

func afterRep(s int) int {
	if s < 7 {
		return 8
	}
	return 11
}

func afterShortRep(s int) int {
	if s < 7 {
		return 9
	}
	return 11
}

// putLiteral codes the byte at pos.
func (e *Encoder) putLiteral() {
	m, r, pos := &e.m, &e.rc, e.done
	r.bit(&m.isMatch[m.state][pos%positions], 0)
	probs := e.literalProbs(pos)
	c := uint32(e.data[pos])
	if m.state < 7 {
		r.tree(probs[:], 8, c)
	} else {
		r.literalAfterMatch(probs, c, uint32(e.data[pos-m.reps[0]-1]))
	}
	m.state = afterLiteral(m.state)
	e.done++
}

func (e *Encoder) literalProbs(pos int) *[0x300]prob {
	if pos == 0 {
		return &e.m.literal[0]
	}
	return &e.m.literal[e.data[pos-1]>>5]
}

// literalAfterMatch codes a byte of which it is known that another one is not likely:
// the one that would have continued the match.
func (r *rangeCoder) literalAfterMatch(probs *[0x300]prob, c, unlikely uint32) {
	offset, m := uint32(0x100), uint32(1)
	for i := 7; i >= 0; i-- {
		u := unlikely >> i & 1 * 0x100
		b := c >> i & 1
		r.bit(&probs[offset+u&offset+m], b)
		m = m<<1 | b
		if b == 1 {
			offset &= u
		} else {
			offset &^= u
		}
	}
}

// putShortRep codes the byte at the last distance.
func (e *Encoder) putShortRep() {
	m, r, at := &e.m, &e.rc, e.done%positions
	r.bit(&m.isMatch[m.state][at], 1)
	r.bit(&m.isRep[m.state], 1)
	r.bit(&m.isRepG0[m.state], 0)
	r.bit(&m.isRep0Len[m.state][at], 0)
	m.state = afterShortRep(m.state)
	e.done++
}

// putRep codes a string at distance i of the last ones.
func (e *Encoder) putRep(i, length int) {
	m, r, at := &e.m, &e.rc, e.done%positions
	r.bit(&m.isMatch[m.state][at], 1)
	r.bit(&m.isRep[m.state], 1)
	if i == 0 {
		r.bit(&m.isRepG0[m.state], 0)
		r.bit(&m.isRep0Len[m.state][at], 1)
	} else {
		r.bit(&m.isRepG0[m.state], 1)
		r.bit(&m.isRepG1[m.state], uint32(min(i-1, 1)))
		if i > 1 {
			r.bit(&m.isRepG2[m.state], uint32(i-2))
		}
	}
	m.repeated.put(r, length, at)
	m.use(i)
	m.state = afterRep(m.state)
	e.done += length
}

// use puts distance i in front.
func (m *model) use(i int) {
	d := m.reps[i]
	copy(m.reps[1:i+1], m.reps[:i])
	m.reps[0] = d
}

// putMatch codes a string at a new distance, from 0 on.
func (e *Encoder) putMatch(distance, length int) {
	m, r, at := &e.m, &e.rc, e.done%positions
	r.bit(&m.isMatch[m.state][at], 1)
	r.bit(&m.isRep[m.state], 0)
	m.lengths.put(r, length, at)
	m.putDistance(r, uint32(distance), length)
	copy(m.reps[1:], m.reps[:3])
	m.reps[0] = distance
	m.state = afterMatch(m.state)
	e.done += length
}

func (l *lengthModel) put(r *rangeCoder, length, at int) {
	n := uint32(length - minMatch)
	switch {
	case n < lowLengths:
		r.bit(&l.choice, 0)
		r.tree(l.low[at][:], 3, n)
	case n < 2*lowLengths:
		r.bit(&l.choice, 1)
		r.bit(&l.choice2, 0)
		r.tree(l.mid[at][:], 3, n-lowLengths)
	default:
		r.bit(&l.choice, 1)
		r.bit(&l.choice2, 1)
		r.tree(l.high[:], 8, n-2*lowLengths)
	}
}

// slotOf is the highest two bits of a distance and how many there are below.
func slotOf(distance uint32) uint32 {
	if distance < firstModel {
		return distance
	}
	n := uint32(bits.Len32(distance)) - 1
	return n<<1 | distance>>(n-1)&1
}

func lenState(length int) int { return min(length-minMatch, lenStates-1) }

func (m *model) putDistance(r *rangeCoder, distance uint32, length int) {
	slot := slotOf(distance)
	r.tree(m.slot[lenState(length)][:], 6, slot)
	if slot < firstModel {
		return
	}
	n := uint(slot>>1 - 1)
	base := (2 | slot&1) << n
	rest := distance - base
	if slot < firstAlign {
		r.reverse(m.special[base-slot:], n, rest) // from 1 on
		return
	}
	r.direct(n-alignBits, rest>>alignBits)
	r.reverse(m.align[:], alignBits, rest)
}
