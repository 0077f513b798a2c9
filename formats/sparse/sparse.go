package sparse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sort"
)

var (
	// ErrMagic: not a sparse image.
	ErrMagic = errors.New("not a sparse image")
	// ErrCorrupt: a sparse image that contradicts itself, or ends too early.
	ErrCorrupt = errors.New("corrupt sparse image")
	// ErrSize: an image that cannot be made sparse.
	ErrSize = errors.New("unusable size for a sparse image")
)

const (
	// MaxChunks is how many chunks an image may have.
	MaxChunks = 1 << 22
	// Magic is what a sparse image begins with, in little-endian order.
	Magic = 0xed26ff3a

	headerSize = 28
	chunkSize  = 12
	typeRaw    = 0xcac1
	typeFill   = 0xcac2
	typeSkip   = 0xcac3
	typeCRC    = 0xcac4
	maxRaw     = 64 << 20 // bytes of a raw chunk that is written
)

func refuse(kind error, where string, expected, found any) error {
	return fmt.Errorf("%w: %s: expected %v, found %v", kind, where, expected, found)
}

// piece is a chunk that covers something.
type piece struct {
	start int64 // in the image
	data  int64 // raw: where its bytes are in the file; otherwise negative
	fill  [4]byte
}

// Image is an open sparse image. It is immutable and safe for concurrent use, if
// the file is.
type Image struct {
	r      io.ReaderAt
	size   int64
	pieces []piece
}

// header is what is needed of the file's.
type header struct {
	block, blocks, chunks uint32
	size, chunkSize       int64 // of the headers
}

// Open reads the headers of all chunks of a file of size bytes.
func Open(r io.ReaderAt, size int64) (*Image, error) {
	h, err := readHeader(r)
	if err != nil {
		return nil, err
	}
	m := &Image{r: r, size: int64(h.blocks) * int64(h.block)}
	off, block := h.size, int64(0)
	for i := range h.chunks {
		n, length, err := m.readChunk(h, off, size, block)
		if err != nil {
			return nil, fmt.Errorf("chunk %d at %d: %w", i, off, err)
		}
		off, block = off+length, block+n
	}
	if block != int64(h.blocks) {
		return nil, refuse(ErrCorrupt, "blocks of all chunks", h.blocks, block)
	}
	return m, nil
}

func readHeader(r io.ReaderAt) (h header, err error) {
	var b [headerSize]byte
	if err := readFull(r, b[:], 0); err != nil {
		return h, err
	}
	le := binary.LittleEndian
	if m := le.Uint32(b[:]); m != Magic {
		return h, refuse(ErrMagic, "magic", fmt.Sprintf("%#x", uint32(Magic)), fmt.Sprintf("%#x", m))
	}
	h = header{le.Uint32(b[12:]), le.Uint32(b[16:]), le.Uint32(b[20:]), int64(le.Uint16(b[8:])), int64(le.Uint16(b[10:]))}
	switch {
	case le.Uint16(b[4:]) != 1:
		return h, refuse(ErrCorrupt, "major version", 1, le.Uint16(b[4:]))
	case h.size < headerSize || h.chunkSize < chunkSize:
		return h, refuse(ErrCorrupt, "sizes of headers", "28 and 12, or more", fmt.Sprintf("%d and %d", h.size, h.chunkSize))
	case h.block == 0 || h.block%4 != 0:
		return h, refuse(ErrCorrupt, "block size", "a multiple of 4", h.block)
	case h.chunks > MaxChunks:
		return h, refuse(ErrCorrupt, "chunks", fmt.Sprintf("at most %d", MaxChunks), h.chunks)
	case int64(h.blocks) > math.MaxInt64/int64(h.block):
		return h, refuse(ErrCorrupt, "blocks", "less than 2^63 bytes", h.blocks)
	}
	return h, nil
}

// readChunk takes the chunk at off in, whose first block is given. It tells how
// many blocks it has and how many bytes of the file.
func (m *Image) readChunk(h header, off, size, block int64) (blocks, length int64, err error) {
	var b [chunkSize + 4]byte
	if off > size-h.chunkSize {
		return 0, 0, refuse(ErrCorrupt, "end of the file", fmt.Sprintf("at least %d", off+h.chunkSize), size)
	}
	if err := readFull(m.r, b[:chunkSize], off); err != nil {
		return 0, 0, err
	}
	le := binary.LittleEndian
	kind := le.Uint16(b[:])
	blocks, length = int64(le.Uint32(b[4:])), int64(le.Uint32(b[8:]))
	data, err := dataOf(kind, blocks*int64(h.block))
	switch {
	case err != nil:
		return 0, 0, err
	case length != h.chunkSize+data:
		return 0, 0, refuse(ErrCorrupt, "total size", h.chunkSize+data, length)
	case length > size-off:
		return 0, 0, refuse(ErrCorrupt, "end of the file", fmt.Sprintf("at least %d", off+length), size)
	case blocks > int64(h.blocks)-block || kind == typeCRC && blocks > 0:
		return 0, 0, refuse(ErrCorrupt, "blocks", fmt.Sprintf("at most the %d that are left", int64(h.blocks)-block), blocks)
	}
	p := piece{start: block * int64(h.block), data: -1}
	switch kind {
	case typeRaw:
		p.data = off + h.chunkSize
	case typeFill:
		if err := readFull(m.r, b[chunkSize:], off+h.chunkSize); err != nil {
			return 0, 0, err
		}
		copy(p.fill[:], b[chunkSize:])
	}
	if blocks > 0 {
		m.pieces = append(m.pieces, p)
	}
	return blocks, length, nil
}

// dataOf is how many bytes of data a chunk has that covers so many bytes.
func dataOf(kind uint16, covered int64) (int64, error) {
	switch kind {
	case typeRaw:
		return covered, nil
	case typeFill, typeCRC:
		return 4, nil
	case typeSkip:
		return 0, nil
	}
	return 0, refuse(ErrCorrupt, "type", "0xcac1 to 0xcac4", fmt.Sprintf("%#x", kind))
}

// Size is how many bytes the image has.
func (m *Image) Size() int64 { return m.size }

// ReadAt reads from the image, as io.ReaderAt demands.
func (m *Image) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, refuse(ErrSize, "offset", "0 or more", off)
	}
	i := sort.Search(len(m.pieces), func(i int) bool { return m.pieces[i].start > off }) - 1
	for ; n < len(p) && off < m.size; i++ {
		end := m.size
		if i+1 < len(m.pieces) {
			end = m.pieces[i+1].start
		}
		part := p[n:][:min(int64(len(p)-n), end-off)]
		if err := m.readPiece(m.pieces[i], part, off); err != nil {
			return n, err
		}
		n, off = n+len(part), off+int64(len(part))
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *Image) readPiece(p piece, part []byte, off int64) error {
	if p.data >= 0 {
		return readFull(m.r, part, p.data+off-p.start)
	}
	for i := range part {
		part[i] = p.fill[(off+int64(i))%4]
	}
	return nil
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	if n, err := r.ReadAt(p, off); n < len(p) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
	}
	return nil
}

// run is blocks that become a chunk.
type run struct {
	raw    bool
	fill   [4]byte
	blocks uint32
}

// Write writes an image of size bytes, whole blocks, as a sparse one. The image is
// read twice, and must be the same both times.
func Write(w io.Writer, image io.ReaderAt, size, blockSize int64) error {
	if blockSize <= 0 || blockSize%4 != 0 || blockSize > 1<<20 {
		return refuse(ErrSize, "block size", "a multiple of 4, at most 1 MiB", blockSize)
	}
	if size < 0 || size%blockSize != 0 || size/blockSize > math.MaxUint32 {
		return refuse(ErrSize, "image", fmt.Sprintf("a multiple of %d bytes, less than 2^32 blocks", blockSize), size)
	}
	runs, err := findRuns(image, size, blockSize)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	b := le.AppendUint32(nil, Magic)
	for _, v := range []uint16{1, 0, headerSize, chunkSize} {
		b = le.AppendUint16(b, v)
	}
	for _, v := range []uint32{uint32(blockSize), uint32(size / blockSize), uint32(len(runs)), 0} {
		b = le.AppendUint32(b, v)
	}
	if _, err := w.Write(b); err != nil {
		return err
	}
	off := int64(0)
	for _, r := range runs {
		n := int64(r.blocks) * blockSize
		if err := r.write(w, io.NewSectionReader(image, off, n), n); err != nil {
			return err
		}
		off += n
	}
	return nil
}

func (r run) write(w io.Writer, data io.Reader, n int64) error {
	le := binary.LittleEndian
	kind, length := uint16(typeFill), uint32(chunkSize+4)
	if r.raw {
		kind, length = typeRaw, uint32(chunkSize+n)
	}
	b := le.AppendUint16(nil, kind)
	b = le.AppendUint16(b, 0)
	b = le.AppendUint32(b, r.blocks)
	b = le.AppendUint32(b, length)
	if !r.raw {
		b = append(b, r.fill[:]...)
	}
	if _, err := w.Write(b); err != nil || !r.raw {
		return err
	}
	if got, err := io.Copy(w, data); err != nil || got != n {
		return errors.Join(err, refuse(ErrSize, "bytes of a chunk", n, got))
	}
	return nil
}

// findRuns cuts the image into as few chunks as can be.
func findRuns(image io.ReaderAt, size, blockSize int64) (runs []run, err error) {
	buf := make([]byte, max(1<<20/blockSize, 1)*blockSize)
	for off := int64(0); off < size; off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), size-off)]
		if err := readFull(image, buf, off); err != nil {
			return nil, err
		}
		for block := range slices.Chunk(buf, int(blockSize)) {
			runs = appendBlock(runs, block)
		}
	}
	if len(runs) > MaxChunks {
		return nil, refuse(ErrSize, "chunks", fmt.Sprintf("at most %d", MaxChunks), len(runs))
	}
	return runs, nil
}

func appendBlock(runs []run, block []byte) []run {
	next := run{raw: !repeats(block), blocks: 1}
	if !next.raw {
		copy(next.fill[:], block)
	}
	if n := len(runs); n > 0 {
		last := &runs[n-1]
		full := last.raw && int64(last.blocks+1)*int64(len(block)) > maxRaw
		if last.raw == next.raw && last.fill == next.fill && !full {
			last.blocks++
			return runs
		}
	}
	return append(runs, next)
}

// repeats tells whether a block is its first four bytes, again and again.
func repeats(block []byte) bool {
	return string(block[4:]) == string(block[:len(block)-4])
}
