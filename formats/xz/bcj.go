package xz

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
)

// filter undoes what is done to programs before LZMA2, so that they compress better:
// where a branch goes was made absolute, the same for all that go there.
type filter struct {
	branches
	buf   []byte // converted up to done
	done  int
	at    uint32 // address of buf[0]
	ended bool
}

// branches makes addresses relative again in code that begins at an address. It gives how
// many bytes are done; the rest is to come again, with more behind.
type branches interface {
	relative(code []byte, at uint32) int
}

// Filters by their ids. Those of other processors are of no use on Android.
func newFilter(id int64, properties []byte) (*filter, error) {
	f := &filter{}
	alignment := uint32(4)
	switch id {
	case 4:
		f.branches, alignment = &x86{}, 1
	case 7:
		f.branches = arm{}
	case 8:
		f.branches, alignment = thumb{}, 2
	case 10:
		f.branches = arm64{}
	default:
		return nil, refuse(ErrUnsupported, "filter", "x86 (4), ARM (7), Thumb (8) or ARM64 (10)", fmt.Sprintf("%#x", id))
	}
	switch len(properties) {
	case 0:
	case 4:
		f.at = binary.LittleEndian.Uint32(properties)
	default:
		return nil, refuse(ErrUnsupported, "properties of a filter for programs", "0 or 4 bytes", len(properties))
	}
	if f.at%alignment != 0 {
		return nil, refuse(ErrUnsupported, "start of a filter for programs", fmt.Sprintf("a multiple of %d", alignment), f.at)
	}
	return f, nil
}

// more is that of chunks, with what is converted.
func (f *filter) more(c *chunks) ([]byte, error) {
	f.at += uint32(f.done)
	f.buf = append(f.buf[:0], f.buf[f.done:]...)
	data, err := c.more()
	switch {
	case err == io.EOF && !f.ended: // the last few bytes stay as they are
		f.ended, f.done = true, len(f.buf)
		return f.buf, nil
	case err != nil:
		return nil, err
	}
	f.buf = append(f.buf, data...)
	f.done = f.relative(f.buf, f.at)
	return f.buf[:f.done], nil
}

// arm has BL with a distance of 24 bits, in words.
type arm struct{}

func (arm) relative(code []byte, at uint32) int {
	i := 0
	for ; i+4 <= len(code); i += 4 {
		if code[i+3] == 0xeb {
			v := binary.LittleEndian.Uint32(code[i:])
			v -= (at + uint32(i) + 8) / 4
			binary.LittleEndian.PutUint32(code[i:], v&0xffffff|0xeb<<24)
		}
	}
	return i
}

// thumb has BL of two halves of 16 bits, each with 11 bits of the distance.
type thumb struct{}

func (thumb) relative(code []byte, at uint32) int {
	i := 0
	for ; i+4 <= len(code); i += 2 {
		if code[i+1]&0xf8 != 0xf0 || code[i+3]&0xf8 != 0xf8 {
			continue
		}
		high, low := uint32(binary.LittleEndian.Uint16(code[i:])), uint32(binary.LittleEndian.Uint16(code[i+2:]))
		v := high&0x7ff<<11 | low&0x7ff
		v -= (at + uint32(i) + 4) / 2
		binary.LittleEndian.PutUint16(code[i:], uint16(0xf000|v>>11&0x7ff))
		binary.LittleEndian.PutUint16(code[i+2:], uint16(0xf800|v&0x7ff))
		i += 2
	}
	return i
}

// arm64 has BL with a distance of 26 bits, in words, and ADRP with one of 21 bits, in
// pages, of which only those within 512 MiB were changed.
type arm64 struct{}

func (arm64) relative(code []byte, at uint32) int {
	i := 0
	for ; i+4 <= len(code); i += 4 {
		v, pc := binary.LittleEndian.Uint32(code[i:]), at+uint32(i)
		switch {
		case v>>26 == 0x25:
			v = v&^(1<<26-1) | (v-pc/4)&(1<<26-1)
		case v&0x9f000000 == 0x90000000:
			page := v>>29&3 | v>>3&0x1ffffc
			if (page+1<<17)&0x1c0000 != 0 {
				continue
			}
			page -= pc >> 12
			page = page&0x3ffff | -(page & (1 << 17)) // of 18 bits, with a sign
			v = v&0x9000001f | page&3<<29 | page&0x1ffffc<<3
		default:
			continue
		}
		binary.LittleEndian.PutUint32(code[i:], v)
	}
	return i
}

// x86 has CALL and JMP with a distance of 32 bits, at any byte. Those were changed whose
// distance is of less than 25 bits, unless what seems an opcode just before says that it
// is none. seen are the bytes before that seemed opcodes: the last one is bit 0, of 3.
type x86 struct{ seen uint32 }

func (x *x86) relative(code []byte, at uint32) int {
	i, seen := 0, x.seen
	for i+5 <= len(code) {
		if code[i]&0xfe != 0xe8 {
			seen = seen << 1 & 7
			i++
			continue
		}
		last := bits.Len32(seen)
		if !sign(code[i+4]) || bits.OnesCount32(seen) > 1 || last > 0 && sign(code[i+4-last]) {
			seen = seen<<1&7 | 1
			i++
			continue
		}
		v := binary.LittleEndian.Uint32(code[i+1:])
		binary.LittleEndian.PutUint32(code[i+1:], nearTo(v, at+uint32(i)+5, last*8))
		seen = 0
		i += 5
	}
	x.seen = seen
	return i
}

// sign tells whether a byte is one that a number of 25 bits with a sign has on top.
func sign(b byte) bool { return b == 0 || b == 0xff }

// nearTo makes an address relative to another one. If an opcode seemed to be in the
// bytes before, the highest bits that reach into what it would change are turned round.
func nearTo(v, from uint32, reach int) uint32 {
	for {
		v -= from
		if reach == 0 || !sign(byte(v>>(24-reach))) {
			break
		}
		v ^= 1<<(32-reach) - 1
	}
	return uint32(int32(v<<7) >> 7)
}
