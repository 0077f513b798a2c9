package xz

// properties are what contexts are taken from: lc bits of the byte before, lp and pb of
// the position.
type properties struct {
	lc       uint32
	lp, pb   int // as masks
	literals int // contexts of literals
}

const (
	maxStates    = 16 // there are 12; of a power of 2 no index is outside
	maxPositions = 16 // pb is at most 4
	maxLiterals  = 16 // lc + lp is at most 4
)

// decoder decodes symbols. What is learnt of them is what model has, for any properties.
type decoder struct {
	rc    rangeDecoder
	in    [maxCoded]byte
	props properties
	state int
	reps  [4]uint32 // the last distances, from 0 on
	left  int       // of a match that did not fit

	literal   [maxLiterals][0x300]prob
	isMatch   [maxStates][maxPositions]prob
	isRep     [maxStates]prob
	isRepG0   [maxStates]prob
	isRepG1   [maxStates]prob
	isRepG2   [maxStates]prob
	isRep0Len [maxStates][maxPositions]prob
	slot      [lenStates][slots]prob
	special   [specials]prob
	align     [1 << alignBits]prob
	lengths   lengthDecoder
	repeated  lengthDecoder
}

type lengthDecoder struct {
	choice, choice2 prob
	low, mid        [maxPositions][lowLengths]prob
	high            [highLengths]prob
}

// setProperties takes them as a chunk has them. It gives false if there are none such.
func (d *decoder) setProperties(b byte) bool {
	lc, lp, pb := uint32(b)%9, uint32(b)/9%5, uint32(b)/45
	if lc+lp > 4 || pb > 4 {
		return false
	}
	d.props = properties{lc: lc, lp: 1<<lp - 1, pb: 1<<pb - 1, literals: 1 << (lc + lp)}
	return true
}

func (d *decoder) reset() {
	d.state, d.reps, d.left = 0, [4]uint32{}, 0
	for i := range d.props.literals {
		evenAll(d.literal[i][:])
	}
	for s := range d.isMatch {
		evenAll(d.isMatch[s][:])
		evenAll(d.isRep0Len[s][:])
	}
	for _, probs := range []*[maxStates]prob{&d.isRep, &d.isRepG0, &d.isRepG1, &d.isRepG2} {
		evenAll(probs[:])
	}
	for i := range d.slot {
		evenAll(d.slot[i][:])
	}
	evenAll(d.special[:])
	evenAll(d.align[:])
	d.lengths.reset()
	d.repeated.reset()
}

func (l *lengthDecoder) reset() {
	l.choice, l.choice2 = evenly, evenly
	for i := range l.low {
		evenAll(l.low[i][:])
		evenAll(l.mid[i][:])
	}
	evenAll(l.high[:])
}

// literalNext is afterLiteral of each state.
var literalNext = func() (next [maxStates]uint8) {
	for s := range states {
		next[s] = uint8(afterLiteral(s))
	}
	return next
}()

// decode decodes symbols until the ring has been written up to limit. It gives false if
// a match begins before the data.
func (d *decoder) decode(w *ring, limit int) bool {
	buf, pos, prev := w.buf, w.pos, w.last()
	lc, lp, pb := d.props.lc&7, d.props.lp, d.props.pb&(maxPositions-1)
	r, state, n := d.rc, d.state, d.left
	for pos < limit {
		if n > 0 {
			part := min(n, limit-pos)
			if !w.copyMatch(pos, uint(d.reps[0]), part) {
				return false
			}
			pos += part
			n -= part
			prev = uint32(buf[pos-1])
			continue
		}
		state &= maxStates - 1
		at := pos & pb
		r = r.normal()
		p := &d.isMatch[state][at]
		bound := r.bound(*p)
		if r.code < bound {
			r = r.zero(p, bound)
			probs := &d.literal[(uint32(pos&lp)<<lc+prev<<lc>>8)%maxLiterals]
			if state < 7 {
				r, prev = r.tree(probs[:0x100])
			} else {
				r, prev = r.literalAfterMatch(probs, w.before(pos, d.reps[0]))
			}
			buf[pos] = byte(prev)
			pos++
			state = int(literalNext[state])
			continue
		}
		r = r.one(p, bound).normal()
		p = &d.isRep[state]
		if bound = r.bound(*p); r.code < bound {
			r, n = r.zero(p, bound).length(&d.lengths, at)
			r = d.distance(r, n)
			state = afterMatch(state)
			continue
		}
		var short bool
		if r, short = d.repeat(r.one(p, bound), state, at); short {
			state, n = afterShortRep(state), 1
			continue
		}
		r, n = r.length(&d.repeated, at)
		state = afterRep(state)
	}
	w.pos = pos
	d.rc, d.state, d.left = r, state, n
	return true
}

// repeat decodes which of the last distances a repeat has, and whether it is of one byte.
func (d *decoder) repeat(r rangeDecoder, state, at int) (_ rangeDecoder, short bool) {
	state &= maxStates - 1
	r = r.normal()
	p := &d.isRepG0[state]
	bound := r.bound(*p)
	if r.code < bound {
		r = r.zero(p, bound).normal()
		p = &d.isRep0Len[state][at&(maxPositions-1)]
		if bound = r.bound(*p); r.code < bound {
			return r.zero(p, bound), true
		}
		return r.one(p, bound), false
	}
	r = r.one(p, bound).normal()
	p = &d.isRepG1[state]
	if bound = r.bound(*p); r.code < bound {
		d.reps[0], d.reps[1] = d.reps[1], d.reps[0]
		return r.zero(p, bound), false
	}
	r = r.one(p, bound).normal()
	p = &d.isRepG2[state]
	last := d.reps[2]
	if bound = r.bound(*p); r.code < bound {
		r = r.zero(p, bound)
	} else {
		r = r.one(p, bound)
		last, d.reps[3] = d.reps[3], last
	}
	d.reps[0], d.reps[1], d.reps[2] = last, d.reps[0], d.reps[1]
	return r, false
}

func (r rangeDecoder) length(l *lengthDecoder, at int) (rangeDecoder, int) {
	at &= maxPositions - 1
	var n uint32
	r = r.normal()
	bound := r.bound(l.choice)
	if r.code < bound {
		r, n = r.zero(&l.choice, bound).tree(l.low[at][:])
		return r, int(n) + minMatch
	}
	r = r.one(&l.choice, bound).normal()
	if bound = r.bound(l.choice2); r.code < bound {
		r, n = r.zero(&l.choice2, bound).tree(l.mid[at][:])
		return r, int(n) + minMatch + lowLengths
	}
	r, n = r.one(&l.choice2, bound).tree(l.high[:])
	return r, int(n) + minMatch + 2*lowLengths
}

// distance decodes the distance of a match and puts it in front of the last ones.
func (d *decoder) distance(r rangeDecoder, length int) rangeDecoder {
	r, v := r.tree(d.slot[lenState(length)&(lenStates-1)][:])
	if v >= firstModel {
		slot, n := v, v>>1-1
		v = (2 | v&1) << (n & 31)
		var high, low uint32
		if slot < firstAlign {
			r, low = r.reverse(d.special[v-slot:], n)
		} else {
			r, high = r.direct(n - alignBits)
			r, low = r.reverse(d.align[:], alignBits)
		}
		v += high<<alignBits + low
	}
	d.reps = [4]uint32{v, d.reps[0], d.reps[1], d.reps[2]}
	return r
}
