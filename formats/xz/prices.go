package xz

import "math"

// Prices are sixteenths of a bit.
const (
	priceBits  = 4
	reducedBy  = 4 // bits of a probability that make no difference here
	reduced    = 1 << (probBits - reducedBy)
	modelled   = 128 // distances whose every bit is modelled
	priceOfBit = 1 << priceBits
)

// bitPrices is what a bit costs that comes out as it does with a probability.
var bitPrices = func() (p [reduced]uint32) {
	for i := range p {
		p[i] = uint32(math.Round(-math.Log2((float64(i)+0.5)/reduced) * priceOfBit))
	}
	return p
}()

func price0(p prob) uint32 { return bitPrices[p>>reducedBy] }
func price1(p prob) uint32 { return bitPrices[(1<<probBits-p)>>reducedBy&(reduced-1)] }

func price(p prob, bit uint32) uint32 {
	return bitPrices[(uint32(p)^-bit)&(1<<probBits-1)>>reducedBy]
}

func treePrice(probs []prob, n uint, v uint32) (sum uint32) {
	for m := v | 1<<n; m > 1; m >>= 1 {
		sum += price(probs[m>>1], m&1)
	}
	return sum
}

func reversePrice(probs []prob, n uint, v uint32) (sum uint32) {
	m := uint32(1)
	for ; n > 0; n-- {
		b := v & 1
		v >>= 1
		sum += price(probs[m], b)
		m = m<<1 | b
	}
	return sum
}

// prices are those of lengths and distances by a model that was current a while ago.
type prices struct {
	lengths, repeated [positions][maxMatch + 1]uint32
	near              [lenStates][modelled]uint32 // distances
	slot              [lenStates][slots]uint32    // of further ones, with bits that are not modelled
	align             [1 << alignBits]uint32
}

func (p *prices) refresh(m *model, longest int) {
	for at := range positions {
		m.lengths.prices(&p.lengths[at], at, longest)
		m.repeated.prices(&p.repeated[at], at, longest)
	}
	for s := range lenStates {
		for slot := range uint32(slots) {
			p.slot[s][slot] = treePrice(m.slot[s][:], 6, slot)
			if slot >= firstAlign {
				p.slot[s][slot] += (slot>>1 - 1 - alignBits) * priceOfBit
			}
		}
	}
	for d := range uint32(modelled) {
		slot, rest := slotOf(d), uint32(0)
		if slot >= firstModel {
			n := uint(slot>>1 - 1)
			base := (2 | slot&1) << n
			rest = reversePrice(m.special[base-slot:], n, d-base)
		}
		for s := range lenStates {
			p.near[s][d] = p.slot[s][slot] + rest
		}
	}
	for i := range p.align {
		p.align[i] = reversePrice(m.align[:], alignBits, uint32(i))
	}
}

func (l *lengthModel) prices(to *[maxMatch + 1]uint32, at, longest int) {
	low, mid, high := price0(l.choice), price1(l.choice)+price0(l.choice2), price1(l.choice)+price1(l.choice2)
	for n := range uint32(longest - minMatch + 1) {
		switch {
		case n < lowLengths:
			to[n+minMatch] = low + treePrice(l.low[at][:], 3, n)
		case n < 2*lowLengths:
			to[n+minMatch] = mid + treePrice(l.mid[at][:], 3, n-lowLengths)
		default:
			to[n+minMatch] = high + treePrice(l.high[:], 8, n-2*lowLengths)
		}
	}
}

func (p *prices) distance(d uint32, length int) uint32 {
	s := lenState(length)
	if d < modelled {
		return p.near[s][d]
	}
	return p.slot[s][slotOf(d)] + p.align[d&(1<<alignBits-1)]
}

// literal is what the byte at pos costs in a state.
func (e *Encoder) literalPrice(pos, state, rep0 int) (sum uint32) {
	probs, c := e.literalProbs(pos), uint32(e.data[pos])
	if state < 7 {
		return treePrice(probs[:], 8, c)
	}
	unlikely := uint32(e.data[pos-rep0-1])
	offset, m := uint32(0x100), uint32(1)
	for i := 7; i >= 0; i-- {
		u := unlikely >> i & 1 * 0x100
		b := c >> i & 1
		sum += price(probs[offset+u&offset+m], b)
		m = m<<1 | b
		if b == 1 {
			offset &= u
		} else {
			offset &^= u
		}
	}
	return sum
}
