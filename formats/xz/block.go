package xz

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

const filterLZMA2 = 0x21

// block is what its header says, and what has been seen of it.
type block struct {
	start, data  int64 // where header and chunks begin in the input
	packed, size int64 // of the chunks and the data, −1: not said
	done         int64 // data given so far
	dictionary   int64
	filter       *filter // nil if there is none
}

// readBlock reads a block's header, of which the first byte has been read.
func (in *input) readBlock(first byte) (b block, err error) {
	b = block{start: in.n - 1, packed: -1, size: -1}
	h, err := in.take((int(first)+1)*4-1, "block header")
	if err != nil {
		return b, err
	}
	b.data = in.n
	body, sum := h[:len(h)-4], binary.LittleEndian.Uint32(h[len(h)-4:])
	if got := crc32.Update(crc32.ChecksumIEEE([]byte{first}), crc32.IEEETable, body); got != sum {
		return b, b.corrupt("CRC-32", hex(sum), hex(got))
	}
	return b, b.parse(body)
}

func (b *block) parse(body []byte) (err error) {
	r := bytes.NewReader(body)
	flags, _ := r.ReadByte()
	if flags&0x3c != 0 {
		return refuse(ErrUnsupported, at("flags of the block", b.start), "none of 0x3c", hex(uint32(flags)))
	}
	for i, size := range []*int64{&b.packed, &b.size} {
		if flags&(0x40<<i) != 0 {
			if *size, err = varint(r); err != nil {
				return b.corrupt("sizes", "two integers", err)
			}
		}
	}
	filters := int(flags&3) + 1
	for i := range filters {
		id, properties, err := b.readFilter(r)
		if err != nil {
			return err
		}
		if err := b.add(id, properties, filters-1-i); err != nil {
			return err
		}
	}
	if rest := body[len(body)-r.Len():]; len(bytes.Trim(rest, "\x00")) > 0 {
		return refuse(ErrUnsupported, at("block header", b.start), "zeros behind the filters", hexBytes(rest))
	}
	return nil
}

func (b *block) readFilter(r *bytes.Reader) (id int64, properties []byte, err error) {
	if id, err = varint(r); err != nil {
		return 0, nil, b.corrupt("filter", "an id", err)
	}
	n, err := varint(r)
	if err != nil || n > int64(r.Len()) {
		return 0, nil, b.corrupt(fmt.Sprintf("properties of filter %#x", id), fmt.Sprintf("at most %d bytes", r.Len()), n)
	}
	properties = make([]byte, n)
	r.Read(properties)
	return id, properties, nil
}

// add adds a filter that has so many behind it.
func (b *block) add(id int64, properties []byte, behind int) (err error) {
	switch {
	case behind == 0 && id == filterLZMA2:
		if len(properties) != 1 || properties[0] > 40 {
			return b.corrupt("properties of LZMA2", "a byte of at most 40", hexBytes(properties))
		}
		b.dictionary = min(dictionaryBytes(properties[0]), 1<<32-1)
		return nil
	case behind == 1 && b.filter == nil:
		if b.filter, err = newFilter(id, properties); err != nil {
			return fmt.Errorf("%s: %w", at("block", b.start), err)
		}
		return nil
	}
	return refuse(ErrUnsupported, at("filters of the block", b.start), "LZMA2, or one for programs and LZMA2", fmt.Sprintf("%#x with %d behind", id, behind))
}

func (b *block) corrupt(what string, expected, found any) error {
	return refuse(ErrCorrupt, at(what+" of the block", b.start), expected, found)
}

func hex(v uint32) string { return fmt.Sprintf("%#x", v) }

func hexBytes(b []byte) string { return fmt.Sprintf("% x", b) }
