package xz

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// input reads the stream: never more than belongs to it.
type input struct {
	r   io.Reader
	n   int64  // bytes that have been read
	sum uint32 // CRC-32 of bytes that ReadByte gave
	b   [1024]byte
}

// read fills b.
func (in *input) read(b []byte, what string) error {
	n, err := io.ReadFull(in.r, b)
	start := in.n
	in.n += int64(n)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: %w", refuse(ErrCorrupt, at(what, start), fmt.Sprint(len(b), " bytes"), n), io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("%s: %w", at(what, in.n), err)
}

// take gives the next n bytes, at most 1024. They are valid until the next call.
func (in *input) take(n int, what string) ([]byte, error) {
	return in.b[:n], in.read(in.b[:n], what)
}

// ReadByte also counts the byte in sum.
func (in *input) ReadByte() (byte, error) {
	b, err := in.take(1, "next byte")
	in.sum = crc32.Update(in.sum, crc32.IEEETable, b)
	return b[0], err
}

// at says where something is.
func at(what string, offset int64) string { return fmt.Sprintf("%s at byte %d", what, offset) }

// errVarint: an integer is longer than it has to be, or than 63 bits.
var errVarint = errors.New("integer of more bytes than it needs, or than nine")

// varint reads an integer of seven bits a byte, the lowest first.
func varint(r io.ByteReader) (v int64, err error) {
	for i := range 9 {
		b, err := r.ReadByte()
		if err != nil {
			return 0, err
		}
		v |= int64(b&0x7f) << (7 * i)
		switch {
		case b == 0 && i > 0:
			return 0, errVarint
		case b < 0x80:
			return v, nil
		}
	}
	return 0, errVarint
}
