package cowfile

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/bits"
	"unsafe"
)

// Options tune Open. The zero value, or nil, is fine.
type Options struct {
	// Label opens an unfinished file as it was at this label. Ops after the
	// label are ignored, and the file has no merge order.
	Label *uint64
	// Alloc returns n zeroed bytes, aligned to 8, that live as long as the
	// File. Nil means the heap.
	Alloc func(n int) ([]byte, error)
	// Free gives back what Alloc returned and is not needed after Open.
	Free func([]byte)
	// Map returns the n bytes of the file at off, for as long as the File
	// lives, without a copy. Nil means that they are read to an allocation.
	Map func(off int64, n int) ([]byte, error)
}

// Counts are the numbers of ops and bytes in a file.
type Counts struct {
	Copy, Replace, Zero, Xor int
	Label, Cluster, Sequence int    // version 2 metadata ops
	StoredRaw                int    // data ops whose data are not compressed
	StoredCompressed         int    // data ops whose data are
	ByFactor                 [8]int // data ops with data, by factor
	DataBytes                int64  // stored bytes of replace and xor ops
	LastLabel                int64  // highest label seen, −1 if none
	BlocksCovered            uint32 // blocks that have an op
	LastBlock                uint32 // the highest of them; meaningless without ops
}

// Ops is the number of data ops.
func (c *Counts) Ops() int { return c.Copy + c.Replace + c.Zero + c.Xor }

// File is an open COW.
type File struct {
	h      Header
	size   int64
	opts   Options
	counts Counts
	comp   Compression // of data that are not stored raw
	end    int64       // byte after the last op's data
	n      int         // data ops
	ops    []byte      // n packed ops in file order
	seq    []byte      // merge sequence, u32 each
	marks  []mark      // where xor data are; empty without xor ops
	runs   []run       // sorted by block
	nRuns  int         // how many there will be
	placed []uint64    // bit per op: in the explicit part of the merge order
	starts []uint64    // bit per op: begins a stretch; version 3, during Open only
	order  orderKind
	listed int // ops in the explicit part of the merge order
	nOrder int // ordered ops at the start of the merge order

	sourceEnd uint64 // byte behind what ordered ops that are not merged read, to a whole block
}

// Open reads the COW in r, which is size bytes long (for a block device, the
// device's size), and checks everything that can be checked without the base
// and without decoding data. It takes at most three bytes of memory a byte of
// the file, and 4 KiB, mapped regions counted as memory.
func Open(r io.ReaderAt, size int64, opts *Options) (*File, error) {
	h, err := ReadHeader(r, size)
	if err != nil {
		return nil, err
	}
	f := &File{h: h, size: size}
	f.counts.LastLabel = -1
	if opts != nil {
		f.opts = *opts
	}
	if h.Major < 3 {
		err = f.loadV2(r)
	} else {
		err = f.loadV3(r)
	}
	if err != nil {
		return nil, err
	}
	if err := f.buildIndex(); err != nil {
		return nil, err
	}
	if f.opts.Label == nil {
		err = f.buildOrder()
	}
	release(f, f.starts)
	f.starts = nil
	return f, err
}

// Header is the file's header as it was at Open.
func (f *File) Header() Header { return f.h }

// Size is the file's size in bytes as given to Open.
func (f *File) Size() int64 { return f.size }

// End is the offset of the first byte behind everything that the ops refer to;
// for version 2, behind the footer.
func (f *File) End() int64 { return f.end }

// Compression is the algorithm of those data that are compressed.
func (f *File) Compression() Compression { return f.comp }

// Counts tells what is in the file.
func (f *File) Counts() Counts { return f.counts }

// NumOps is the number of data ops.
func (f *File) NumOps() int { return f.n }

// MaxUnit is the size in bytes of the largest unit in the file.
func (f *File) MaxUnit() int {
	if f.h.Major < 3 {
		return BlockSize
	}
	return int(f.h.MaxCompression)
}

// MaxStored is the largest DataLength that an op of the file can have.
func (f *File) MaxStored() int {
	if f.h.Major < 3 {
		return 1<<16 - 1
	}
	return f.MaxUnit()
}

// Op returns the i-th data op in file order.
func (f *File) Op(i int) Op {
	o, flags := getOp(f.ops[i*opSizeV3:])
	if f.storedCompressed(o, flags) {
		o.Compression = f.comp
	}
	return o
}

// storedCompressed is the rule of section 5.1, with version 2's half of it
// already decided when the op was packed.
func (f *File) storedCompressed(o Op, flags uint64) bool {
	if o.DataLength == 0 || f.comp == None {
		return false
	}
	if f.h.Major < 3 {
		return flags&rawBit == 0
	}
	return int(o.DataLength) != o.Unit()
}

// DataOffset is the byte offset in the COW of the data of a replace or xor op.
func (f *File) DataOffset(i int, o Op) int64 {
	if o.Type == OpReplace {
		return int64(o.Source)
	}
	return f.dataPosition(i)
}

// A mark says that the data of op i begin at pos. From there on positions are
// a running sum up to the next mark (sections 4.3 and 6.3).
type mark struct {
	pos int64
	op  uint32
	_   uint32
}

const markEvery = 256 // ops; bounds the sum in dataPosition

func (f *File) dataPosition(i int) int64 {
	lo, hi := 0, len(f.marks)
	for lo < hi {
		if mid := (lo + hi) / 2; int(f.marks[mid].op) <= i {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	m := f.marks[lo-1]
	pos := m.pos
	for k := int(m.op); k < i; k++ {
		pos += int64(f.dataLength(k))
	}
	return pos
}

// count adds the data ops of a stretch, which begins with o, to the totals, but
// for their data. All ops must have been checked.
func (f *File) count(o Op, s stretch) {
	c := &f.counts
	switch o.Type {
	case OpCopy:
		c.Copy += s.ops
	case OpReplace:
		c.Replace++
	case OpZero:
		c.Zero += s.ops
	case OpXor:
		c.Xor += s.ops
	}
	c.BlocksCovered += uint32(s.ops) * o.Blocks()
	c.LastBlock = max(c.LastBlock, o.NewBlock+o.Blocks()-1)
	if !s.down {
		c.LastBlock = max(c.LastBlock, o.NewBlock+uint32(s.ops-1))
	}
}

// countData adds the stored bytes of an op of that factor.
func (f *File) countData(factor uint8, stored uint32) {
	if stored == 0 {
		return
	}
	c := &f.counts
	c.DataBytes += int64(stored)
	c.ByFactor[factor]++
	if stored >= BlockSize<<factor {
		c.StoredRaw++
	} else {
		c.StoredCompressed++
	}
}

// dataLength is that of op i.
func (f *File) dataLength(i int) uint32 { return binary.LittleEndian.Uint32(f.ops[i*opSizeV3:]) }

// alloc returns n zeroed values that live as long as the file. T must not
// contain pointers.
func alloc[T any](f *File, n int) ([]T, error) {
	if n == 0 {
		return nil, nil
	}
	if f.opts.Alloc == nil {
		return make([]T, n), nil
	}
	var t T
	b, err := f.opts.Alloc(n * int(unsafe.Sizeof(t)))
	if err != nil {
		return nil, fmt.Errorf("memory for the op index: %w", err)
	}
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(b))), n), nil
}

// release gives back what alloc returned before the file is closed.
func release[T any](f *File, s []T) {
	if len(s) == 0 || f.opts.Alloc == nil || f.opts.Free == nil {
		return
	}
	var t T
	f.opts.Free(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s))), len(s)*int(unsafe.Sizeof(t))))
}

// region returns n bytes of the file: mapped if the caller can, else read.
func (f *File) region(r io.ReaderAt, off, n int64) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	if n > math.MaxInt {
		return nil, refuse(ErrLimit, fmt.Sprintf("region at byte %d", off), "a size that this machine can address", n)
	}
	if f.opts.Map != nil {
		return f.opts.Map(off, int(n))
	}
	b, err := alloc[byte](f, int(n))
	if err != nil {
		return nil, err
	}
	return b, readFull(r, b, off)
}

func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		return refuse(ErrTruncated, fmt.Sprintf("read at byte %d", off), fmt.Sprintf("%d bytes", len(b)), n)
	}
	return fmt.Errorf("read COW at byte %d: %w", off, err)
}

// Bit sets over ops or blocks, 64 to a word.
func bitWords(n int) int               { return (n + 63) / 64 }
func bitSet(s []uint64, i uint64)      { s[i/64] |= 1 << (i % 64) }
func bitGet(s []uint64, i uint64) bool { return s[i/64]>>(i%64)&1 != 0 }

// bitSetRange sets n bits from i on.
func bitSetRange(s []uint64, i, n uint64) {
	for ; n > 0 && i%64 != 0; i, n = i+1, n-1 {
		bitSet(s, i)
	}
	for ; n >= 64; i, n = i+64, n-64 {
		s[i/64] = ^uint64(0)
	}
	for ; n > 0; i, n = i+1, n-1 {
		bitSet(s, i)
	}
}

// bitAny tells whether one of n bits from i on is set.
func bitAny(s []uint64, i, n uint64) bool {
	for ; n > 0 && (i%64 != 0 || n < 64); i, n = i+1, n-1 {
		if bitGet(s, i) {
			return true
		}
	}
	for ; n >= 64; i, n = i+64, n-64 {
		if s[i/64] != 0 {
			return true
		}
	}
	return n > 0 && bitAny(s, i, n)
}

func bitCount(s []uint64) (n int) {
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}
