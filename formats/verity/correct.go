package verity

// Arithmetic in GF(2^8), by logarithms to the base 2. exponents has two periods,
// so that a sum of logarithms needs no reduction.
var exponents, logarithms = func() (exp [2 * codeWord]byte, log [256]int) {
	v := byte(1)
	for i := range codeWord {
		exp[i], exp[i+codeWord] = v, v
		log[v] = i
		v = multiply(v, 2)
	}
	return exp, log
}()

func times(a, b byte) byte {
	if a == 0 || b == 0 {
		return 0
	}
	return exponents[logarithms[a]+logarithms[b]]
}

// over is a/b; b is not zero.
func over(a, b byte) byte {
	if a == 0 {
		return 0
	}
	return exponents[logarithms[a]+codeWord-logarithms[b]]
}

// valueAt evaluates a polynomial, lowest power first.
func valueAt(poly []byte, x byte) (v byte) {
	for i := len(poly) - 1; i >= 0; i-- {
		v = times(v, x) ^ poly[i]
	}
	return v
}

// locatorOf is the reciprocal of the power of x that a byte of the code word belongs to,
// which is a root of the locator polynomial if the byte is wrong.
func locatorOf(position int) byte { return exponents[(position+1)%codeWord] }

// correction is a byte of the code word, and what to add to it.
type correction struct {
	position int
	value    byte
}

// corrector finds errors in code words. It keeps its scratch space between them.
type corrector struct {
	roots               int
	locator, prior, tmp []byte // polynomials, lowest power first
	evaluator           []byte
	found               []correction
}

func newCorrector(roots int) *corrector {
	buf := func() []byte { return make([]byte, roots+1) }
	return &corrector{roots: roots, locator: buf(), prior: buf(), tmp: buf(), evaluator: make([]byte, roots)}
}

// correct finds what to change in a code word of these syndromes, of whose bytes those
// at the erased positions are not believed. It can do e errors and s erasures if 2e+s is
// not more than the roots; false says that there are more. What it gives is valid
// until the next call.
func (c *corrector) correct(syndromes []byte, erased []int) ([]correction, bool) {
	degree := c.locate(syndromes, erased)
	if degree < 0 {
		return nil, false
	}
	c.evaluate(syndromes)
	c.found = c.found[:0]
	for position := range codeWord {
		x := locatorOf(position)
		if valueAt(c.locator[:degree+1], x) != 0 {
			continue
		}
		slope := c.slope(x)
		if slope == 0 {
			return nil, false
		}
		c.found = append(c.found, correction{position, over(valueAt(c.evaluator, x), times(slope, x))})
	}
	return c.found, len(c.found) == degree
}

// locate makes the polynomial whose roots are the places of erasures and errors, with
// Berlekamp's and Massey's algorithm that begins at the erasures. It gives its degree, or
// -1 if there are too many.
func (c *corrector) locate(syndromes []byte, erased []int) int {
	clear(c.locator)
	c.locator[0] = 1
	for n, position := range erased {
		x := over(1, locatorOf(position))
		for i := n + 1; i > 0; i-- {
			c.locator[i] ^= times(c.locator[i-1], x)
		}
	}
	copy(c.prior, c.locator)
	s, length := len(erased), len(erased)
	for r := s + 1; r <= c.roots; r++ {
		var discrepancy byte
		for i := range r {
			discrepancy ^= times(c.locator[i], syndromes[r-1-i])
		}
		copy(c.prior[1:], c.prior[:c.roots])
		c.prior[0] = 0
		if discrepancy == 0 {
			continue
		}
		copy(c.tmp, c.locator)
		for i := range c.locator {
			c.locator[i] ^= times(discrepancy, c.prior[i])
		}
		if 2*length <= r+s-1 {
			length = r + s - length
			for i := range c.prior {
				c.prior[i] = over(c.tmp[i], discrepancy)
			}
		}
	}
	degree := c.roots
	for degree > 0 && c.locator[degree] == 0 {
		degree--
	}
	if degree != length || 2*(length-s)+s > c.roots {
		return -1
	}
	return degree
}

// evaluate makes the product of syndromes and locator, modulo x^roots.
func (c *corrector) evaluate(syndromes []byte) {
	for n := range c.evaluator {
		var v byte
		for i := range n + 1 {
			v ^= times(c.locator[i], syndromes[n-i])
		}
		c.evaluator[n] = v
	}
}

// slope is the locator's derivative: of its odd powers, since 2 is 0 here.
func (c *corrector) slope(x byte) (v byte) {
	square := times(x, x)
	for i := (c.roots - 1) | 1; i > 0; i -= 2 {
		v = times(v, square) ^ c.locator[i]
	}
	return v
}

// weights tell how to fill in erased bytes where nothing else is wrong, which depends
// on their positions alone: the byte at erased[j] is off by the sum of weights[j][i] times
// syndrome i. As many syndromes do as there are erasures.
func weights(erased []int) [][]byte {
	out, n := make([][]byte, len(erased)), len(erased)
	c := newCorrector(n)
	for i := range erased {
		unit := make([]byte, n)
		unit[i] = 1
		found, _ := c.correct(unit, erased)
		for j, position := range erased {
			for _, f := range found {
				if f.position == position {
					out[j] = append(out[j], f.value)
				}
			}
		}
	}
	return out
}

// addProducts adds each byte of from, times a factor, to that of to.
func addProducts(to, from []byte, factor byte) {
	var products [256]byte
	for b := range products {
		products[b] = times(byte(b), factor)
	}
	for k, b := range from {
		to[k] ^= products[b]
	}
}
