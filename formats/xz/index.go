package xz

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
)

const (
	streamMagic = "\xfd7zXZ\x00"
	footerMagic = "YZ"
)

// index is what an index says of blocks: how many there are, and a checksum of their
// sizes, so that it takes no memory for each.
type index struct {
	blocks int64
	sum    uint32
}

func (x *index) add(unpadded, size int64) {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], uint64(unpadded))
	binary.LittleEndian.PutUint64(b[8:], uint64(size))
	x.blocks++
	x.sum = crc32.Update(x.sum, crc32.IEEETable, b[:])
}

// end reads index and footer. The index begins at start, with a byte that has been read.
func (z *Reader) end(start int64) error {
	if err := z.readIndex(start); err != nil {
		return err
	}
	sum := z.in.sum
	h, err := z.in.take(4, "CRC-32 of the index")
	if err != nil {
		return err
	}
	if want := binary.LittleEndian.Uint32(h); want != sum {
		return refuse(ErrCorrupt, at("CRC-32 of the index", start), hex(want), hex(sum))
	}
	if err := z.footer(z.in.n - start); err != nil {
		return err
	}
	return io.EOF
}

// readIndex compares the index with the blocks, all but its CRC-32.
func (z *Reader) readIndex(start int64) error {
	blocks, err := z.in.varint()
	if err != nil {
		return err
	}
	if blocks != z.index.blocks {
		return refuse(ErrCorrupt, at("index", start), z.index.blocks, blocks)
	}
	var x index
	for range blocks {
		unpadded, err := z.in.varint()
		if err != nil {
			return err
		}
		size, err := z.in.varint()
		if err != nil {
			return err
		}
		x.add(unpadded, size)
	}
	if x != z.index {
		return refuse(ErrCorrupt, at("index", start), "the sizes of the blocks", "others")
	}
	return z.in.padding(z.in.n-start, "padding of the index")
}

func (z *Reader) footer(index int64) error {
	start := z.in.n
	h, err := z.in.take(12, "footer")
	if err != nil {
		return err
	}
	if got, want := crc32.ChecksumIEEE(h[4:10]), binary.LittleEndian.Uint32(h); got != want {
		return refuse(ErrCorrupt, at("CRC-32 of the footer", start), hex(want), hex(got))
	}
	if size := (int64(binary.LittleEndian.Uint32(h[4:])) + 1) * 4; size != index {
		return refuse(ErrCorrupt, at("size of the index in the footer", start), index, size)
	}
	if want := append(z.flags[:], footerMagic...); !bytes.Equal(h[8:], want) {
		return refuse(ErrCorrupt, at("end of the footer", start), hexBytes(want), hexBytes(h[8:]))
	}
	return nil
}

func (in *input) varint() (int64, error) {
	start := in.n
	v, err := varint(in)
	if err == errVarint {
		err = refuse(ErrCorrupt, at("index", start), "an integer", err)
	}
	return v, err
}

// padding reads the zeros that follow n bytes, so that they have whole words.
func (in *input) padding(n int64, what string) error {
	for ; n%4 != 0; n++ {
		b, err := in.ReadByte()
		if err != nil {
			return err
		}
		if b != 0 {
			return refuse(ErrCorrupt, at(what, in.n-1), 0, b)
		}
	}
	return nil
}
