package puffin

import "encoding/binary"

// bitReader reads bits as deflate has them, the lowest of a byte first. Behind
// the end come zeros, but they cannot be taken.
type bitReader struct {
	data []byte
	pos  int // of the next byte for acc
	acc  uint64
	n    uint // bits in acc
}

// newBitReader begins at a bit.
func newBitReader(data []byte, bit uint64) bitReader {
	r := bitReader{data: data, pos: int(bit / 8)}
	r.fill()
	r.acc >>= bit % 8
	r.n -= min(r.n, uint(bit%8))
	return r
}

// fill makes acc hold 56 bits or more, or all that are left.
func (r *bitReader) fill() {
	if r.pos+8 <= len(r.data) {
		r.acc |= binary.LittleEndian.Uint64(r.data[r.pos:]) << r.n
		bytes := (63 - r.n) / 8
		r.pos += int(bytes)
		r.n += bytes * 8
		r.acc &= 1<<r.n - 1
		return
	}
	for r.n <= 56 && r.pos < len(r.data) {
		r.acc |= uint64(r.data[r.pos]) << r.n
		r.pos++
		r.n += 8
	}
}

// at is the position of the next bit.
func (r *bitReader) at() uint64 { return uint64(r.pos)*8 - uint64(r.n) }

// take returns the next bits, at most 32. If there are too few, ok is false.
func (r *bitReader) take(bits uint) (v uint32, ok bool) {
	if r.n < bits {
		if r.fill(); r.n < bits {
			return 0, false
		}
	}
	v = uint32(r.acc & (1<<bits - 1))
	r.acc >>= bits
	r.n -= bits
	return v, true
}

// bitWriter gathers bits and appends them to out as whole bytes.
type bitWriter struct {
	out []byte
	acc uint64
	n   uint // bits in acc; below 32 between calls
}

// put writes the lowest bits of v, at most 32. Higher ones must be zero.
func (w *bitWriter) put(v uint32, bits uint) {
	w.acc |= uint64(v) << w.n
	if w.n += bits; w.n >= 32 {
		w.out = binary.LittleEndian.AppendUint32(w.out, uint32(w.acc))
		w.acc >>= 32
		w.n -= 32
	}
}

// align moves whole bytes to out. Fewer than 8 bits remain.
func (w *bitWriter) align() {
	for ; w.n >= 8; w.n -= 8 {
		w.out = append(w.out, byte(w.acc))
		w.acc >>= 8
	}
}

// written is how many bits there are since out was empty.
func (w *bitWriter) written() uint64 { return uint64(len(w.out))*8 + uint64(w.n) }
