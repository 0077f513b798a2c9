package verity

import (
	"fmt"
	"io"
)

// FEC is a kind of error correction.
type FEC struct {
	Roots     int // parity bytes in a code word of 255, 2 to 24
	BlockSize int64
}

const codeWord = 255

// rounds are as many code words as a block has bytes each.
func (f FEC) rounds(size int64) int64 {
	n := int64(codeWord - f.Roots)
	return (size/f.BlockSize + n - 1) / n
}

// Size is how many bytes the parities of so many bytes of data have.
func (f FEC) Size(data int64) int64 { return f.rounds(data) * int64(f.Roots) * f.BlockSize }

// Build reads size bytes of data, whole blocks, and writes the parities to out. It
// needs some MiB for each processor.
func (f FEC) Build(data io.ReaderAt, size int64, out io.WriterAt) error {
	if err := f.check(size); err != nil {
		return err
	}
	// Rounds are done some at a time, so that what they read lies together.
	const together = 16
	e, rounds := newEncoder(f.Roots), f.rounds(size)
	return parallel(rounds*f.BlockSize, together*f.BlockSize, func(buf []byte, off int64) error {
		parity := make([]byte, len(buf)*f.Roots)
		for j := range int64(codeWord - f.Roots) {
			if err := readPadded(data, buf, off+j*rounds*f.BlockSize, size); err != nil {
				return err
			}
			e.add(parity, buf)
		}
		if _, err := out.WriteAt(e.interleave(parity, len(buf)), off*int64(f.Roots)); err != nil {
			return fmt.Errorf("write error correction: %w", err)
		}
		return nil
	})
}

func (f FEC) check(size int64) error {
	if f.Roots < 2 || f.Roots > 24 {
		return fmt.Errorf("%w: expected 2 to 24 roots, found %d", ErrUnsupported, f.Roots)
	}
	if f.BlockSize <= 0 || size <= 0 || size%f.BlockSize != 0 {
		return fmt.Errorf("%w: expected a multiple of %d bytes, found %d", ErrSize, f.BlockSize, size)
	}
	return nil
}

// readPadded takes what is behind the end for zeros.
func readPadded(r io.ReaderAt, buf []byte, off, size int64) error {
	n := max(0, min(int64(len(buf)), size-off))
	clear(buf[n:])
	if n == 0 {
		return nil
	}
	return readFull(r, buf[:n], off)
}

// encoder is the code's polynomial, as products of its coefficients with every
// byte.
type encoder struct {
	roots    int
	products [][256]byte // by parity byte, the first is the highest power's
}

// newEncoder multiplies the generator out: (x - 1)(x - a)…(x - a^(roots-1)).
func newEncoder(roots int) *encoder {
	poly, root := []byte{1}, byte(1) // highest power first
	for range roots {
		next := append(poly, 0)
		for i := len(next) - 1; i > 0; i-- {
			next[i] ^= multiply(poly[i-1], root)
		}
		poly, root = next, multiply(root, 2)
	}
	e := &encoder{roots, make([][256]byte, roots)}
	for i := range e.products {
		for b := range 256 {
			e.products[i][b] = multiply(byte(b), poly[i+1])
		}
	}
	return e
}

// multiply is in GF(2^8) modulo x^8+x^4+x^3+x^2+1.
func multiply(a, b byte) (p byte) {
	for ; b != 0; b >>= 1 {
		if b&1 != 0 {
			p ^= a
		}
		carry := a >> 7
		a = a<<1 ^ carry*0x1d
	}
	return p
}

// add shifts one more byte into each of len(data) code words. parity holds the
// first parity byte of all, then the second of all, and so on. The data are not
// preserved.
func (e *encoder) add(parity, data []byte) {
	n := len(data)
	if e.roots == 2 {
		first, second := parity[:n], parity[n:2*n]
		p0, p1 := &e.products[0], &e.products[1]
		for k, b := range data {
			feedback := b ^ first[k]
			first[k] = second[k] ^ p0[feedback]
			second[k] = p1[feedback]
		}
		return
	}
	for k, b := range parity[:n] {
		data[k] ^= b
	}
	for i := range e.roots - 1 {
		products, to, from := &e.products[i], parity[i*n:][:n], parity[(i+1)*n:][:n]
		for k, f := range data {
			to[k] = from[k] ^ products[f]
		}
	}
	products, last := &e.products[e.roots-1], parity[(e.roots-1)*n:][:n]
	for k, f := range data {
		last[k] = products[f]
	}
}

// interleave puts the parity bytes of a code word together.
func (e *encoder) interleave(parity []byte, n int) []byte {
	out := make([]byte, len(parity))
	for i := range e.roots {
		for k, b := range parity[i*n : (i+1)*n] {
			out[k*e.roots+i] = b
		}
	}
	return out
}
