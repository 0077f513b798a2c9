package xz

// properties are what contexts are taken from: lc bits of the byte before, lp and pb of
// the position.
type properties struct {
	lc       uint32
	lp, pb   int // as masks
	literals int // contexts of literals
}

const (
	maxPositions = 16 // pb is at most 4
	maxLiterals  = 16 // lc + lp is at most 4
)

// decoder decodes symbols. What is learnt of them is what model has, for any properties.
type decoder struct {
	rc    rangeDecoder
	in    [maxCoded]byte
	props properties
	state int
	reps  [4]uint32
	left  int // of a match that did not fit

	literal   [maxLiterals][0x300]prob
	isMatch   [16][maxPositions]prob
	isRep     [16]prob
	isRepG0   [16]prob
	isRepG1   [16]prob
	isRepG2   [16]prob
	isRep0Len [16][maxPositions]prob
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
	for _, probs := range []*[16]prob{&d.isRep, &d.isRepG0, &d.isRepG1, &d.isRepG2, &d.align} {
		evenAll(probs[:])
	}
	for i := range d.slot {
		evenAll(d.slot[i][:])
	}
	evenAll(d.special[:])
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
var literalNext = func() (next [16]uint8) {
	for s := range states {
		next[s] = uint8(afterLiteral(s))
	}
	return next
}()

// decode decodes symbols until the ring has been written up to limit. It gives false if
// a match begins before the data.
func (d *decoder) decode(w *ring, limit int) bool {
	buf, pos, size := w.buf, w.pos, uint(w.size)
	r, state := d.rc, d.state
	rep0, rep1, rep2, rep3 := d.reps[0], d.reps[1], d.reps[2], d.reps[3]
	lc, lp, pb := d.props.lc&7, d.props.lp, d.props.pb
	prev := w.last()
	n := d.left
	for {
		if n > 0 {
			take := min(n, limit-pos)
			if take <= 0 {
				break
			}
			if uint(rep0) < uint(pos) && uint(rep0) < size {
				copyMatch(buf, pos, int(rep0)+1, take)
			} else if uint(rep0) >= size || !w.wrapped {
				return false
			} else {
				w.copyAround(pos, int(rep0)+1, take)
			}
			pos += take
			n -= take
			prev = uint32(buf[pos-1])
			continue
		}
		if pos >= limit {
			break
		}
		at := pos & pb & (maxPositions - 1)
		state &= 15
		r = r.normal()
		p := &d.isMatch[state][at]
		if bound := r.bound(*p); r.code < bound {
			r = r.zero(p, bound)
			probs := &d.literal[(uint32(pos&lp)<<lc+prev<<lc>>8)%maxLiterals]
			if state < 7 {
				r, prev = r.literal(probs)
			} else {
				from := pos - int(rep0) - 1
				if from < 0 {
					from += len(buf)
				}
				r, prev = r.literalAfterMatch(probs, uint32(buf[from]))
			}
			buf[pos] = byte(prev)
			pos++
			state = int(literalNext[state])
			continue
		} else {
			r = r.one(p, bound)
		}
		r = r.normal()
		p = &d.isRep[state]
		if bound := r.bound(*p); r.code < bound {
			r = r.zero(p, bound)
			rep3, rep2, rep1 = rep2, rep1, rep0
			r, n = r.length(&d.lengths, at)
			r, rep0 = d.distance(r, n)
			state = afterMatch(state)
			continue
		} else {
			r = r.one(p, bound)
		}
		r = r.normal()
		p = &d.isRepG0[state]
		if bound := r.bound(*p); r.code < bound {
			r = r.zero(p, bound)
			r = r.normal()
			p = &d.isRep0Len[state][at]
			if bound := r.bound(*p); r.code < bound {
				r = r.zero(p, bound)
				state, n = afterShortRep(state), 1
				continue
			} else {
				r = r.one(p, bound)
			}
		} else {
			r = r.one(p, bound)
			r = r.normal()
			p = &d.isRepG1[state]
			if bound := r.bound(*p); r.code < bound {
				r = r.zero(p, bound)
				rep0, rep1 = rep1, rep0
			} else {
				r = r.one(p, bound)
				r = r.normal()
				p = &d.isRepG2[state]
				if bound := r.bound(*p); r.code < bound {
					r = r.zero(p, bound)
					rep0, rep1, rep2 = rep2, rep0, rep1
				} else {
					r = r.one(p, bound)
					rep0, rep1, rep2, rep3 = rep3, rep0, rep1, rep2
				}
			}
		}
		r, n = r.length(&d.repeated, at)
		state = afterRep(state)
	}
	w.pos = pos
	d.rc, d.state, d.left = r, state, n
	d.reps = [4]uint32{rep0, rep1, rep2, rep3}
	return true
}

func (r rangeDecoder) length(l *lengthDecoder, at int) (rangeDecoder, int) {
	at &= maxPositions - 1
	var n uint32
	r = r.normal()
	if bound := r.bound(l.choice); r.code < bound {
		r = r.zero(&l.choice, bound)
		r, n = r.tree8(&l.low[at])
		return r, int(n) + minMatch
	} else {
		r = r.one(&l.choice, bound)
	}
	r = r.normal()
	if bound := r.bound(l.choice2); r.code < bound {
		r = r.zero(&l.choice2, bound)
		r, n = r.tree8(&l.mid[at])
		return r, int(n) + minMatch + lowLengths
	} else {
		r = r.one(&l.choice2, bound)
	}
	r, n = r.tree256(&l.high)
	return r, int(n) + minMatch + 2*lowLengths
}

func (d *decoder) distance(r rangeDecoder, length int) (rangeDecoder, uint32) {
	r, slot := r.slot(&d.slot[lenState(length)&(lenStates-1)])
	if slot < firstModel {
		return r, slot
	}
	n := slot>>1 - 1
	base := (2 | slot&1) << (n & 31)
	var high, low uint32
	if slot < firstAlign {
		r, low = r.reverse(d.special[base-slot:], n)
		return r, base + low
	}
	r, high = r.direct(n - alignBits)
	r, low = r.reverse(d.align[:], alignBits)
	return r, base + high<<alignBits + low
}
