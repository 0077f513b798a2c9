package xz

// prob is how likely a bit is 0, of 2048.
type prob uint16

const (
	probBits  = 11
	evenly    = prob(1 << probBits / 2)
	adaptBy   = 5
	topOfRang = 1 << 24
)

// rangeCoder codes bits by their probability: what is known of the output is a number,
// low, that may still grow by less than width.
type rangeCoder struct {
	low    uint64
	width  uint32
	held   int // bytes that a carry may still change: last, and 0xff after it
	last   byte
	out    []byte
	origin int // where out began
}

func (r *rangeCoder) start(out []byte) {
	*r = rangeCoder{width: 1<<32 - 1, held: 1, out: out, origin: len(out)}
}

// size is how many bytes there will be if nothing else comes, without the flush.
func (r *rangeCoder) size() int { return len(r.out) - r.origin + r.held }

func (r *rangeCoder) flush() {
	for range flushed {
		r.shift()
	}
}

// shift moves the highest byte of low to the output, as soon as no carry can change it.
func (r *rangeCoder) shift() {
	if uint32(r.low) < 0xff000000 || r.low>>32 != 0 {
		carry := byte(r.low >> 32)
		r.out = append(r.out, r.last+carry)
		for ; r.held > 1; r.held-- {
			r.out = append(r.out, 0xff+carry)
		}
		r.held, r.last = 0, byte(r.low>>24)
	}
	r.held++
	r.low = r.low & 0x00ffffff << 8
}

// bit codes one bit and learns from it.
func (r *rangeCoder) bit(p *prob, bit uint32) {
	var below uint32
	below, r.width, *p = step(r.width, *p, bit)
	r.low += uint64(below)
	if r.width < topOfRang {
		r.width <<= 8
		r.shift()
	}
}

// step is how a bit changes low (by how much), width and its probability. It takes no
// branch, as nobody could predict that.
func step(width uint32, p prob, bit uint32) (below, newWidth uint32, newP prob) {
	bound := width >> probBits * uint32(p)
	one := -bit // all bits of it
	below = bound & one
	newWidth = bound ^ (bound^(width-bound))&one
	// A 1 takes p>>adaptBy away, a 0 adds (2048-p)>>adaptBy.
	v := int32(p)
	return below, newWidth, prob(v - (v-roundUp&^int32(one))>>adaptBy)
}

// roundUp makes shifting a negative number to the right round towards 0.
const roundUp = 1<<probBits - (1<<adaptBy - 1)

// tree codes n bits of v, the highest first, each in the context of those before.
func (r *rangeCoder) tree(probs []prob, n uint, v uint32) {
	m := uint32(1)
	var below uint32
	for n > 0 {
		n--
		b := v >> n & 1
		p := &probs[m]
		below, r.width, *p = step(r.width, *p, b)
		if r.low += uint64(below); r.width < topOfRang {
			r.width <<= 8
			r.shift()
		}
		m = m<<1 | b
	}
}

// reverse codes n bits of v, the lowest first. Probabilities begin at probs[1].
func (r *rangeCoder) reverse(probs []prob, n uint, v uint32) {
	m := uint32(1)
	for ; n > 0; n-- {
		b := v & 1
		v >>= 1
		r.bit(&probs[m], b)
		m = m<<1 | b
	}
}

// direct codes the n lowest bits of v, which are as likely 0 as 1.
func (r *rangeCoder) direct(n uint, v uint32) {
	for n > 0 {
		n--
		r.width >>= 1
		if v>>n&1 == 1 {
			r.low += uint64(r.width)
		}
		if r.width < topOfRang {
			r.width <<= 8
			r.shift()
		}
	}
}
