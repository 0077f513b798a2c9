package xz

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
)

// Reader decodes a stream. It is not safe for concurrent use.
type Reader struct {
	in     input
	limit  int64 // of the dictionary
	flags  [2]byte
	check  check
	chunks chunks
	block  block
	inside bool // a block
	index  index
	ready  []byte // decoded, not read
	err    error
}

// NewReader reads the header of a stream. A dictionary longer than limit bytes is
// refused. Of r no more is read than the stream, by small reads too: it had better be
// buffered.
func NewReader(r io.Reader, limit int) (*Reader, error) {
	z := &Reader{limit: int64(limit)}
	return z, z.Reset(r)
}

// Reset begins another stream, and keeps the memory that the last one took. The error is
// also that of each Read.
func (z *Reader) Reset(r io.Reader) error {
	z.in.r, z.in.n = r, 0
	z.ready, z.inside, z.index = nil, false, index{}
	z.err = z.header()
	return z.err
}

// Read gives data, and io.EOF once all of the stream has been read and found right.
// Errors wrap one of this package's, and io.ErrUnexpectedEOF if the stream is cut short,
// or are those of the reader below.
func (z *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(z.ready) == 0 && z.err == nil {
		z.err = z.more()
	}
	if len(z.ready) == 0 {
		return 0, z.err
	}
	n := copy(p, z.ready)
	z.ready = z.ready[n:]
	return n, nil
}

func (z *Reader) header() error {
	h, err := z.in.take(12, "stream header")
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(h, []byte(streamMagic)) {
		return refuse(ErrNotXZ, "magic", hexBytes([]byte(streamMagic)), hexBytes(h[:6]))
	}
	if got, want := crc32.ChecksumIEEE(h[6:8]), binary.LittleEndian.Uint32(h[8:]); got != want {
		return refuse(ErrCorrupt, "CRC-32 of the stream header", hex(want), hex(got))
	}
	z.flags = [2]byte(h[6:8])
	var known bool
	if z.check, known = newCheck(h[7]); !known || h[6] != 0 {
		return refuse(ErrUnsupported, "flags of the stream", "0, and a check that is 0, 1, 4 or 10", hexBytes(h[6:8]))
	}
	return nil
}

// more decodes what comes next.
func (z *Reader) more() (err error) {
	if !z.inside {
		return z.next()
	}
	var data []byte
	if z.block.filter != nil {
		data, err = z.block.filter.more(&z.chunks)
	} else {
		data, err = z.chunks.more()
	}
	if err == io.EOF {
		return z.endBlock()
	}
	if err != nil {
		return err
	}
	b := &z.block
	if b.done += int64(len(data)); b.size >= 0 && b.done > b.size {
		return b.corrupt("data", b.size, "more")
	}
	z.check.update(data)
	z.ready = data
	return nil
}

// next begins a block, or reads what is behind the last.
func (z *Reader) next() error {
	z.in.sum = 0
	start := z.in.n
	first, err := z.in.ReadByte()
	if err != nil {
		return err
	}
	if first == 0 {
		return z.end(start)
	}
	if z.block, err = z.in.readBlock(first); err != nil {
		return err
	}
	if d := z.block.dictionary; d > z.limit {
		return refuse(ErrDictionary, at("block", start), z.limit, d)
	}
	z.chunks.reset(&z.in, int(z.block.dictionary))
	z.inside = true
	return nil
}

func (z *Reader) endBlock() error {
	b := &z.block
	packed := z.in.n - b.data
	if b.size >= 0 && b.done != b.size {
		return b.corrupt("data", b.size, b.done)
	}
	if b.packed >= 0 && packed != b.packed {
		return b.corrupt("compressed data", b.packed, packed)
	}
	if err := z.in.padding(packed, "padding of a block"); err != nil {
		return err
	}
	want, err := z.in.take(z.check.size, "check")
	if err != nil {
		return err
	}
	if got := z.check.end(); !bytes.Equal(got, want) {
		return b.corrupt("check", hexBytes(want), hexBytes(got))
	}
	z.index.add(b.data-b.start+packed+int64(len(want)), b.done)
	z.inside = false
	return nil
}
