package zucchini

import (
	"encoding/binary"
	"fmt"
)

// reader takes a patch apart. After its first error all that it reads is zero.
type reader struct {
	b   []byte
	all int // length at the beginning
	err error
}

func newReader(b []byte) *reader { return &reader{b: b, all: len(b)} }

func (r *reader) fail(kind error, what string, expected, found any) {
	if r.err == nil {
		r.err = refuse(kind, fmt.Sprintf("%s at offset %d", what, r.all-len(r.b)), expected, found)
		r.b = nil
	}
}

func (r *reader) take(what string, n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.fail(ErrCorrupt, what, fmt.Sprintf("%d bytes", n), len(r.b))
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) u8(what string) byte {
	if b := r.take(what, 1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16(what string) uint16 {
	if b := r.take(what, 2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32(what string) uint32 {
	if b := r.take(what, 4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

// buffer is a length and as many bytes.
func (r *reader) buffer(what string) []byte { return r.take(what, uint64(r.u32(what))) }

// numbers reads a buffer of numbers, each in groups of seven bits, the lowest
// first.
type numbers struct {
	b    []byte
	what string
	at   int
}

func (n *numbers) done() bool { return n.at == len(n.b) }

func (n *numbers) next() (uint32, error) {
	v, size := binary.Uvarint(n.b[n.at:])
	if size <= 0 || v > 1<<32-1 {
		return 0, refuse(ErrCorrupt, fmt.Sprintf("%s at %d of %d", n.what, n.at, len(n.b)), "a number of at most 32 bits", "none")
	}
	n.at += size
	return uint32(v), nil
}

// nextSigned has the sign in the lowest bit; negative numbers are complemented.
func (n *numbers) nextSigned() (int32, error) {
	v, err := n.next()
	return int32(v>>1) ^ -int32(v&1), err
}

// ascending reads numbers of which each is written as its distance from the
// successor of the one before.
type ascending struct {
	numbers
	least uint64
}

func (a *ascending) next() (uint32, error) {
	skip, err := a.numbers.next()
	v := a.least + uint64(skip)
	if err == nil && v >= maxOffset {
		return 0, refuse(ErrCorrupt, fmt.Sprintf("%s before %d of %d", a.what, a.at, len(a.b)), fmt.Sprintf("less than %d", uint32(maxOffset)), v)
	}
	a.least = v + 1
	return uint32(v), err
}

func appendNumber(b []byte, v uint32) []byte { return binary.AppendUvarint(b, uint64(v)) }

func appendSigned(b []byte, v int32) []byte { return appendNumber(b, uint32(v<<1^v>>31)) }
