package cow

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"cowbird/formats/cowfile"

	"cowbird/tools/fixture"
)

// written is a COW in the making and the target that the same requests make,
// by their definition and nothing else. Sources are the blocks of base, which
// requests do not overwrite: they are for blocks behind it.
type written struct {
	t            *testing.T
	f            *memFile
	w            *Writer
	base, target []byte
}

const baseBlocks = 64

func newWritten(t *testing.T, o WriterOptions) *written {
	t.Helper()
	if o.NewCompressor == nil {
		o.NewCompressor = fastCompressor(t, o)
	}
	r := rand.New(rand.NewPCG(1, 2))
	h := &written{t: t, f: &memFile{}, base: make([]byte, baseBlocks*blockSize)}
	for i := range h.base {
		h.base[i] = byte(r.Uint32())
	}
	h.target = bytes.Clone(h.base)
	var err error
	if h.w, err = NewWriter(h.f, o); err != nil {
		t.Fatal(err)
	}
	return h
}

func fastCompressor(t *testing.T, o WriterOptions) func() (func(dst, unit []byte) ([]byte, error), error) {
	return func() (func(dst, unit []byte) ([]byte, error), error) {
		return compressor(t, o.Compression, min(o.Compression.DefaultLevel(), 3), max(o.MaxUnit, blockSize)), nil
	}
}

func (h *written) ok(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// block returns n blocks of the target from first.
func (h *written) block(first, n uint64) []byte {
	if need := int((first+n)*blockSize) - len(h.target); need > 0 {
		h.target = append(h.target, make([]byte, need)...)
	}
	return h.target[first*blockSize : (first+n)*blockSize]
}

func (h *written) copy(first, old, n uint64) {
	h.t.Helper()
	h.ok(h.w.Copy(first, old, n))
	copy(h.block(first, n), h.base[old*blockSize:])
}

func (h *written) zero(first, n uint64) {
	h.t.Helper()
	h.ok(h.w.Zero(first, n))
	clear(h.block(first, n))
}

func (h *written) replace(first uint64, data []byte) {
	h.t.Helper()
	h.ok(h.w.Replace(first, data))
	copy(h.block(first, uint64(len(data)/blockSize)), data)
}

func (h *written) xor(first uint64, delta []byte, old, offset uint64) {
	h.t.Helper()
	h.ok(h.w.Xor(first, delta, old, offset))
	to := h.block(first, uint64(len(delta)/blockSize))
	copy(to, h.base[old*blockSize+offset:])
	xorBytes(to, delta)
}

// open finishes the COW and reads the target back through it.
func (h *written) open() *cowfile.File {
	h.t.Helper()
	size, err := h.w.Finish()
	h.ok(err)
	if int(size) != len(h.f.b) || size != h.w.Size().Bytes {
		h.t.Errorf("size: %d of the file, %d from Finish, %d from Size", len(h.f.b), size, h.w.Size().Bytes)
	}
	s, err := Open(Options{Cow: newMem(h.f.b), Base: newMem(h.base), Size: int64(len(h.target))})
	h.ok(err)
	defer s.Close()
	got := make([]byte, len(h.target))
	h.ok(readFull(s, got, 0))
	for i := 0; i < len(got); i += blockSize {
		if !bytes.Equal(got[i:i+blockSize], h.target[i:i+blockSize]) {
			h.t.Fatalf("block %d reads otherwise than it was written", i/blockSize)
		}
	}
	f, err := cowfile.Open(h.f, size, nil)
	h.ok(err)
	return f
}

// text is a reference block of the format's own tests.
func text(s string) []byte {
	b := make([]byte, blockSize)
	copy(b, s)
	return b
}

var believe = text("This is some data, believe it")

// noise returns blocks of which some compress and some do not.
func noise(r *rand.Rand, blocks int) []byte {
	b := make([]byte, blocks*blockSize)
	for i := range blocks {
		copy(b[i*blockSize:], random(r, 1)[:[]int{64, 1200, blockSize}[r.IntN(3)]])
	}
	return b
}

// random returns blocks that do not compress.
func random(r *rand.Rand, blocks int) []byte {
	b := make([]byte, 0, blocks*blockSize)
	for range blocks * blockSize / 8 {
		b = binary.LittleEndian.AppendUint64(b, r.Uint64())
	}
	return b
}

// both runs a test with either version.
func both(t *testing.T, c cowfile.Compression, test func(t *testing.T, o WriterOptions)) {
	for _, version := range []int{2, 3} {
		t.Run(fmt.Sprint("v", version), func(t *testing.T) {
			test(t, WriterOptions{Version: version, Compression: c, MaxBlocks: 1 << 16})
		})
	}
}

// COW-001, COW-003, COW-110, COW-126: a copy request is an op a block.
func TestWriteCopy(t *testing.T) {
	for _, n := range []uint64{1, 40, 1000} {
		both(t, cowfile.None, func(t *testing.T, o WriterOptions) {
			f := &memFile{}
			w, err := NewWriter(f, o)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Copy(10, 1000+10, n); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Finish(); err != nil {
				t.Fatal(err)
			}
			c, err := cowfile.Open(f, int64(len(f.b)), nil)
			if err != nil || c.NumOps() != int(n) {
				t.Fatalf("expected %d ops, %v", n, err)
			}
			for i := range c.NumOps() {
				want := cowfile.Op{Type: cowfile.OpCopy, NewBlock: uint32(10 + i), Source: uint64(1010 + i)}
				if o := c.Op(i); o != want {
					t.Fatalf("expected %v, found %v", want, o)
				}
			}
		})
	}
}

// COW-002 to COW-009, COW-027, COW-030, section 15.1: the file that an older
// writer of Android's made, op by op and, with the fixtures, byte by byte.
func TestWriteGoldenV2(t *testing.T) {
	f := &memFile{}
	w, err := NewWriter(f, WriterOptions{Version: 2, ClusterOps: 5, NumMergeOps: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{w.Copy(0, 5, 1), w.Replace(2, believe), w.Label(1), w.Xor(50, believe, 24, 10), w.Zero(5, 10), w.Label(2)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	before := w.Size().Bytes
	if size, err := w.Finish(); err != nil || size != before || size != int64(len(f.b)) || size != 2105826 {
		t.Fatalf("size: expected 2105826, found %d before, %d, %d, %v", before, size, len(f.b), err)
	}
	h, err := cowfile.ReadHeader(f, int64(len(f.b)))
	if want := (cowfile.Header{
		Major: 2, HeaderSize: 38, FooterSize: 84, OpSize: 20, BlockSize: 4096, ClusterOps: 5, NumMergeOps: 1, ScratchSize: 2 << 20,
	}); err != nil || h != want {
		t.Errorf("header: expected %+v, found %+v, %v", want, h, err)
	}
	checkGoldenOps(t, f)
	t.Run("bytes", func(t *testing.T) {
		c := fixtureNamed(t, "aosp_cow_v2")
		sameBytes(t, c.ReadAll(t), f.b)
	})
}

func checkGoldenOps(t *testing.T, f *memFile) {
	t.Helper()
	zero := func(at int64, b uint64) cowfile.RawOp {
		return cowfile.RawOp{Type: cowfile.OpZero, NewBlock: b, Offset: at}
	}
	want := []cowfile.RawOp{
		{Type: cowfile.OpCopy, Source: 5, Offset: 2097190},
		{Type: cowfile.OpReplace, NewBlock: 2, DataLength: 4096, Source: 2097290, Offset: 2097210},
		{Type: cowfile.OpLabel, Source: 1, Offset: 2097230},
		{Type: cowfile.OpXor, NewBlock: 50, Source: 98314, DataLength: 4096, Offset: 2097250},
		{Type: cowfile.OpCluster, Source: 8192, Offset: 2097270},
		zero(2105482, 5), zero(2105502, 6), zero(2105522, 7), zero(2105542, 8), {Type: cowfile.OpCluster, Offset: 2105562},
		zero(2105582, 9), zero(2105602, 10), zero(2105622, 11), zero(2105642, 12), {Type: cowfile.OpCluster, Offset: 2105662},
		zero(2105682, 13), zero(2105702, 14),
		{Type: cowfile.OpLabel, Source: 2, Offset: 2105722},
		{Type: cowfile.OpFooter, DataLength: 64, NewBlock: 360, Source: 18, Offset: 2105742},
	}
	i := 0
	err := cowfile.WalkRaw(f, int64(len(f.b)), func(o cowfile.RawOp) bool {
		if o.Type == cowfile.OpXor && o.DataOffset != 2101386 {
			t.Errorf("xor data: expected at 2101386, found at %d", o.DataOffset)
		}
		o.DataOffset = 0
		if i >= len(want) || o != want[i] {
			t.Fatalf("op %d: found %+v", i, o)
		}
		i++
		return true
	})
	if err != nil || i != len(want) {
		t.Errorf("expected %d ops and the end, found %d, %v", len(want), i, err)
	}
}

// COW-009, COW-111, COW-112, COW-113: every kind of op in one file, each reads
// its own data, wherever that is.
func TestWriteMixed(t *testing.T) {
	for c := cowfile.None; c <= cowfile.Zstd; c++ {
		for _, cluster := range []int{0, 3, cowfile.Unclustered} {
			both(t, c, func(t *testing.T, o WriterOptions) {
				o.ClusterOps, o.OpCountMax = cluster, 100
				h := newWritten(t, o)
				r := rand.New(rand.NewPCG(3, 3))
				h.copy(100, 3, 4)
				h.xor(110, noise(r, 1), 24, 10)
				h.xor(111, noise(r, 3), 30, 0)
				h.copy(120, 9, 1)
				h.xor(121, noise(r, 1), 5, 4095)
				h.zero(130, 5)
				h.replace(140, noise(r, 4))
				h.zero(150, 1)
				if n := h.open().NumOps(); n != 20 {
					t.Errorf("expected 20 ops, found %d", n)
				}
			})
		}
	}
}

// COW-012, COW-013, COW-104, COW-133: with workers and batches or without, the
// same file.
func TestWriteThreads(t *testing.T) {
	both(t, cowfile.LZ4, func(t *testing.T, o WriterOptions) {
		if o.Version == 3 {
			o.MaxUnit = 16 << 10
		}
		var first []byte
		for _, v := range []struct {
			workers int
			batch   bool
		}{{0, false}, {2, true}, {1, true}, {5, false}} {
			o.Workers, o.Batch = v.workers, v.batch
			h := newWritten(t, o)
			r := rand.New(rand.NewPCG(4, 4))
			h.xor(100, noise(r, 1), 24, 10)
			for _, n := range []int{2048, 259, 1, 2, 4} {
				h.replace(uint64(len(h.target)/blockSize), noise(r, n))
			}
			h.zero(uint64(len(h.target)/blockSize), 2)
			h.open()
			if first == nil {
				first = h.f.b
			}
			sameBytes(t, first, h.f.b)
		}
	})
}

// COW-010, COW-011, COW-019, COW-020, COW-114: the stock zlib streams of the reference
// blocks, 56 and 41 bytes, are stored and read back as they are; our own
// encoder takes a byte more for the first.
func TestWriteReferenceBlocks(t *testing.T) {
	more := text("More data!")
	streams := map[string]string{
		string(believe): "78daedc2510900200c4041a32c80712c3071e040f163627ecd21efb8d23de48d354d9a6ecd526db81d13df090000000000fce002f8ca0a48",
		string(more):    "78daedc1410900200c0040a3cc408618e87b20f6c71ee3ee56dd133b5fce0100000034f501e491036f",
	}
	stock := func() (func(dst, unit []byte) ([]byte, error), error) {
		return func(dst, unit []byte) ([]byte, error) {
			b, err := hex.DecodeString(streams[string(unit)])
			return append(dst, b...), err
		}, nil
	}
	for _, cluster := range []int{2, 1024, cowfile.Unclustered} {
		both(t, cowfile.GZ, func(t *testing.T, o WriterOptions) {
			o.ClusterOps, o.NewCompressor = cluster, stock
			h := newWritten(t, o)
			h.replace(70, append(bytes.Clone(believe), more...))
			f := h.open()
			if a, b := f.Op(0), f.Op(1); a.DataLength != 56 || b.DataLength != 41 || f.Find(71) != 1 || f.DataOffset(1, b) == f.DataOffset(0, a) {
				t.Errorf("found %v, %v", a, b)
			}
		})
	}
	own, err := compressor(t, cowfile.GZ, 9, blockSize)(nil, believe)
	if err != nil || len(own) > 57 {
		t.Errorf("own stream: expected at most 57 bytes, found %d, %v", len(own), err)
	}
}

// COW-049: a stream of exactly a block's length is decompressed in version 2
// and never stored in version 3.
func TestWriteStreamAsLongAsBlock(t *testing.T) {
	stream := func(dst, unit []byte) ([]byte, error) {
		// A deflate stream can be padded with empty stored blocks.
		b, err := hex.DecodeString("78daedc2510900200c4041a32c80712c3071e040f163627ecd21efb8d23de48d354d9a6ecd526db81d13df090000000000fce002f8ca0a48")
		if err != nil || !bytes.Equal(unit, believe) {
			return nil, errors.New("another unit")
		}
		pad := append([]byte{0x78, 0xda}, bytes.Repeat([]byte{0, 0, 0, 0xff, 0xff}, (blockSize-len(b))/5)...)
		return append(dst, append(pad, b[2:]...)...), nil
	}
	both(t, cowfile.GZ, func(t *testing.T, o WriterOptions) {
		o.NewCompressor = func() (func(dst, unit []byte) ([]byte, error), error) { return stream, nil }
		h := newWritten(t, o)
		h.replace(70, believe)
		f := h.open()
		op := f.Op(0)
		stored := h.f.b[f.DataOffset(0, op):][:op.DataLength]
		if len(stored) != blockSize || bytes.Equal(stored, believe) != (o.Version == 3) {
			t.Errorf("version %d: %v", o.Version, op)
		}
	})
}

// COW-103, COW-104, COW-105, COW-116, COW-127: a request that does not fit the
// op table changes nothing, whatever is cached, and less still fits.
func TestWriteOpLimit(t *testing.T) {
	for _, workers := range []int{0, 1, 2} {
		o := WriterOptions{Version: 3, OpCountMax: 20, Workers: workers, Compression: cowfile.LZ4}
		h := newWritten(t, o)
		refusedBy(t, cowfile.ErrLimit, h, h.w.Zero(100, 21), h.w.Copy(100, 0, 21), h.w.Replace(100, make([]byte, 21*blockSize)), h.w.Xor(100, make([]byte, 21*blockSize), 0, 0))
		h.zero(100, 19)
		refusedBy(t, cowfile.ErrLimit, h, h.w.Zero(200, 19), h.w.Replace(200, make([]byte, 2*blockSize)))
		if n := binary.LittleEndian.Uint64(h.f.b[54:]); n != 0 {
			t.Errorf("op_count in the file before a label: expected 0, found %d", n)
		}
		h.zero(119, 1)
		refusedBy(t, cowfile.ErrLimit, h, h.w.Replace(200, believe))
		if f := h.open(); f.Header().OpCount != 20 || f.Counts().Zero != 20 {
			t.Errorf("found %+v", f.Header())
		}
	}
}

// refusedBy checks that requests were refused, and that the file and what the
// writer says of it are as they were without them.
func refusedBy(t *testing.T, kind error, h *written, errs ...error) {
	t.Helper()
	for i, err := range errs {
		var e *cowfile.Error
		if !errors.As(err, &e) || e.Kind != kind || e.Where == "" || e.Expected == "" || e.Found == "" {
			t.Errorf("request %d: expected %v, found %v", i, kind, err)
		}
	}
	if h.w.err != nil {
		t.Errorf("a refusal stays: %v", h.w.err)
	}
}

// The op limit counts units, not blocks (section 8.5).
func TestWriteOpLimitCountsUnits(t *testing.T) {
	h := newWritten(t, WriterOptions{Version: 3, OpCountMax: 2, MaxUnit: 64 << 10, Compression: cowfile.LZ4})
	refusedBy(t, cowfile.ErrLimit, h, h.w.Replace(100, make([]byte, 7*blockSize)))
	h.replace(100, noise(rand.New(rand.NewPCG(1, 1)), 24))
	if f := h.open(); f.NumOps() != 2 || f.Op(0).Blocks() != 16 || f.Op(1).Blocks() != 8 {
		t.Errorf("found %v, %v", f.Op(0), f.Op(1))
	}
}

// Section 8.2: what is refused, and leaves the writer as it was.
func TestWriteRefuses(t *testing.T) {
	both(t, cowfile.LZ4, func(t *testing.T, o WriterOptions) {
		o.MaxBlocks = 100
		plain, h := newWritten(t, o), newWritten(t, o)
		block := make([]byte, blockSize)
		bad := func() {
			refusedBy(t, cowfile.ErrLimit, h, h.w.Copy(100, 0, 1), h.w.Copy(99, 0, 2), h.w.Copy(1<<63, 0, 1<<63), h.w.Zero(0, 101),
				h.w.Zero(1, 1<<64-1), h.w.Replace(100, block), h.w.Xor(99, make([]byte, 2*blockSize), 0, 0), h.w.Sequence([]uint32{3, 100}),
				h.w.Copy(1, 1<<36, 1), h.w.Copy(1, 1<<64-1, 1), h.w.Xor(1, block, 1<<36-1, 1), h.w.Xor(1, block, 1<<63, 0))
			refusedBy(t, cowfile.ErrRequest, h, h.w.Replace(1, block[1:]), h.w.Xor(1, make([]byte, blockSize+1), 0, 0),
				h.w.Xor(1, block, 0, blockSize), h.w.Sequence(nil))
		}
		bad()
		h.zero(5, 2)
		bad()
		if o.Version == 3 {
			refusedBy(t, cowfile.ErrRequest, h, h.w.Sequence([]uint32{5}))
			refusedBy(t, cowfile.ErrMergeOrder, h, h.w.Copy(9, 1, 1), h.w.Xor(9, block, 1, 1))
		}
		h.replace(7, believe)
		h.open()
		plain.zero(5, 2)
		plain.replace(7, believe)
		plain.open()
		sameBytes(t, plain.f.b, h.f.b)
	})
	for _, o := range []WriterOptions{
		{Version: 3}, {Version: 4, MaxBlocks: 1}, {Version: 2, ClusterOps: 1}, {Version: 2, MaxUnit: 8192}, {MaxBlocks: 1, MaxUnit: 12288},
		{MaxBlocks: 1, MaxUnit: 512 << 10}, {MaxBlocks: 1<<32 + 1}, {MaxBlocks: 1, Workers: -1}, {MaxBlocks: 1, NumMergeOps: 1},
		{MaxBlocks: 1, ClusterOps: -2}, {MaxBlocks: 1, Compression: 7, NewCompressor: func() (func(dst, unit []byte) ([]byte, error), error) { return nil, nil }},
	} {
		f := &memFile{}
		if _, err := NewWriter(f, o); err == nil || len(f.b) > 0 {
			t.Errorf("%+v: accepted, or %d bytes written; %v", o, len(f.b), err)
		}
	}
	h := newWritten(t, WriterOptions{Version: 2, ClusterOps: cowfile.Unclustered})
	refusedBy(t, cowfile.ErrRequest, h, h.w.Sequence([]uint32{1}))
}

// COW-036, COW-037, COW-038, COW-041, COW-042, COW-119, COW-120: a sequence is
// the merge order of what it lists; the others follow by block.
func TestWriteSequence(t *testing.T) {
	both(t, cowfile.None, func(t *testing.T, o WriterOptions) {
		const n = 16384
		seq := make([]uint32, n)
		for i := range seq {
			seq[i] = uint32(1000 + (i*7919)%n)
		}
		h := newWritten(t, o)
		h.ok(h.w.Sequence(seq))
		for _, b := range []uint64{50000, 49000, 51000} {
			h.zero(b, 1)
		}
		h.ok(h.w.Copy(1000, 40000, n-1)) // of a larger base
		if _, err := h.w.Finish(); err != nil {
			t.Fatal(err)
		}
		if _, err := cowfile.Open(h.f, int64(len(h.f.b)), nil); !errors.Is(err, cowfile.ErrCorrupt) {
			t.Errorf("a listed block without an op: expected ErrCorrupt, found %v", err)
		}
		h.ok(h.w.Copy(1000+n-1, 39999, 1))
		if _, err := h.w.Finish(); err != nil {
			t.Fatal(err)
		}
		f, err := cowfile.Open(h.f, int64(len(h.f.b)), nil)
		// Version 2 has 2048 entries an op.
		if err != nil || f.SequenceLen() != n || o.Version == 2 && f.Counts().Sequence != n/2048 {
			t.Fatal(err)
		}
		it := f.Merge(0)
		for _, b := range append(slices.Clone(seq), 49000, 50000, 51000) {
			if i, ok := it.Next(); !ok || f.Op(i).NewBlock != b {
				t.Fatalf("merge position %d: expected block %d", it.Pos()-1, b)
			}
		}
		if _, ok := it.Next(); ok {
			t.Error("expected the end")
		}
	})
}

// COW-039, COW-121: a sequence outlives being resumed, and what it lists can
// come later; also in a table of 2^32-1 ops, nearly all of it a hole.
func TestWriteResumeSequence(t *testing.T) {
	for _, o := range []WriterOptions{{Version: 2}, {Version: 3, OpCountMax: 100}, {Version: 3, OpCountMax: 1<<32 - 1}} {
		t.Run(fmt.Sprintf("v%d/%d", o.Version, o.OpCountMax), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x.cow")
			d := createDevice(t, path)
			w, err := NewWriter(d.Output(), o)
			if err != nil {
				t.Fatal(err)
			}
			for _, err := range []error{w.Sequence([]uint32{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}), w.Copy(1, 20, 1), w.Label(1), w.Copy(7, 9, 1)} {
				if err != nil {
					t.Fatal(err)
				}
			}
			label := uint64(1)
			f, err := cowfile.Open(d, fileSize(t, path), &cowfile.Options{Label: &label})
			if err != nil || f.NumOps() != 1 || f.OrderedOps() != 0 {
				t.Fatalf("at the label: expected 1 op and no merge order, %v", err)
			}
			if w, err = OpenWriter(d.Output(), fileSize(t, path), 1, o); err != nil {
				t.Fatal(err)
			}
			if err := w.Copy(2, 21, 9); err != nil {
				t.Fatal(err)
			}
			size, err := w.Finish()
			if err != nil || size != fileSize(t, path) {
				t.Fatalf("size: %d from Finish, %d of the file, %v", size, fileSize(t, path), err)
			}
			checkSparse(t, path, o, size)
			f, err = cowfile.Open(d, size, nil)
			if err != nil || f.OrderedOps() != 10 {
				t.Fatal(err)
			}
			for it, b := f.Merge(0), uint32(1); b <= 10; b++ {
				if i, _ := it.Next(); f.Op(i).NewBlock != b || f.Op(i).Source != uint64(19+b) {
					t.Errorf("merge position %d: found %v", b-1, f.Op(i))
				}
			}
		})
	}
}

// checkSparse looks at the room that a file really takes.
func checkSparse(t *testing.T, path string, o WriterOptions, size int64) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	taken := st.Sys().(*syscall.Stat_t).Blocks * 512
	if taken > 4<<20 {
		t.Errorf("expected at most 4 MiB on the disk, found %d", taken)
	}
	if want := int64(78 + 2<<20 + 40 + 64 + 16*int64(o.OpCountMax)); o.Version == 3 && size != want {
		t.Errorf("size: expected %d, the data offset, found %d", want, size)
	}
}

func createDevice(t *testing.T, path string) *FileDevice {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := OpenDevice(path, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// COW-115, COW-116, COW-117, COW-118, COW-131: labels of version 3 in the file.
func TestWriteLabelsV3(t *testing.T) {
	o := WriterOptions{Version: 3, OpCountMax: 100, Compression: cowfile.LZ4}
	h := newWritten(t, o)
	header := func() cowfile.Header {
		t.Helper()
		x, err := cowfile.ReadHeader(h.f, int64(len(h.f.b)))
		h.ok(err)
		return x
	}
	h.zero(100, 15)
	if x := header(); x.OpCount != 0 || x.ResumePointCount != 0 || x.ResumePointMax != 4 || x.SequenceCount != 0 {
		t.Errorf("before the label: %+v", x)
	}
	h.ok(h.w.Label(0))
	if x := header(); x.OpCount != 15 || x.ResumePointCount != 1 {
		t.Errorf("after the label: %+v", x)
	}
	h.zero(200, 15)
	if x := header(); x.OpCount != 15 {
		t.Errorf("behind the label: %+v", x)
	}
	if h.open(); header().OpCount != 30 {
		t.Errorf("finished: %+v", header())
	}
	for label := range uint64(6) {
		h.ok(h.w.Label(10 + label))
	}
	points := func(want string) {
		t.Helper()
		p, err := cowfile.ReadResumePoints(h.f, header())
		if fmt.Sprint(p) != want || err != nil {
			t.Errorf("resume points: expected %s, found %v, %v", want, p, err)
		}
	}
	points("[{12 30} {13 30} {14 30} {15 30}]")
	if n := header().ResumePointCount; n != 7 {
		t.Errorf("resume points ever: expected 7, found %d", n)
	}
	h.ok(h.w.Label(14)) // drops 14 and 15
	points("[{12 30} {13 30} {14 30}]")
}

// COW-115: the end of the same.
func TestWriteResumeLabelZero(t *testing.T) {
	both(t, cowfile.LZ4, func(t *testing.T, o WriterOptions) {
		h := newWritten(t, o)
		h.zero(100, 15)
		h.ok(h.w.Label(0))
		size := h.w.Size().Bytes
		h.zero(200, 15)
		if n := h.open().NumOps(); n != 30 {
			t.Fatalf("expected 30 ops, found %d", n)
		}
		o.NewCompressor = fastCompressor(t, o)
		w, err := OpenWriter(h.f, int64(len(h.f.b)), 0, o)
		h.ok(err)
		h.w, h.target = w, h.target[:200*blockSize]
		if f := h.open(); f.NumOps() != 15 || int64(len(h.f.b)) != size {
			t.Errorf("expected 15 ops in %d bytes, found %d in %d", size, f.NumOps(), len(h.f.b))
		}
		o.Compression = cowfile.GZ
		if _, err := OpenWriter(h.f, int64(len(h.f.b)), 0, o); o.Version == 3 && !errors.Is(err, cowfile.ErrRequest) {
			t.Errorf("another compression: expected ErrRequest, found %v", err)
		}
	})
}

// COW-107, COW-108, COW-109: one call, many ops; data one after the other.
func TestWriteReplace(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 6))
	for _, c := range []cowfile.Compression{cowfile.None, cowfile.LZ4} {
		both(t, c, func(t *testing.T, o WriterOptions) {
			h := newWritten(t, o)
			h.replace(100, noise(r, 4096))
			for i := range uint64(5) {
				h.replace(5000+i, noise(r, 1))
			}
			f := h.open()
			for i := range f.NumOps() - 1 {
				a, b := f.Op(i), f.Op(i+1)
				gap := b.Source - a.Source - uint64(a.DataLength)
				if gap != 0 && (o.Version == 3 || gap != 1024*20) {
					t.Fatalf("between op %d (%v) and the next (%v): %d bytes", i, a, b, gap)
				}
			}
			if f.NumOps() != 4101 {
				t.Errorf("expected 4101 ops, found %d", f.NumOps())
			}
		})
	}
}

// COW-128, COW-129, COW-130, COW-133: every algorithm, unit, number of workers
// and size of batches; the whole and every block of it.
func TestWriteUnits(t *testing.T) {
	for c := cowfile.None; c <= cowfile.Zstd; c++ {
		for unit := blockSize; unit <= cowfile.MaxUnit; unit *= 2 {
			for i, v := range [][2]int{{0, 0}, {2, 100}, {2, 0}, {0, 100}} {
				if raceDetector && (i > 1 || unit == 8<<10 || unit == 32<<10 || unit == 128<<10) {
					continue // left to the run without it
				}
				o := WriterOptions{Version: 3, Compression: c, MaxUnit: unit, Workers: v[0], ClusterOps: v[1], MaxBlocks: 1 << 12}
				h := newWritten(t, o)
				r := rand.New(rand.NewPCG(7, uint64(unit)))
				blocks := []int{259, 1, 2, 4}
				for _, n := range blocks {
					h.replace(uint64(len(h.target)/blockSize), noise(r, n))
				}
				h.replace(uint64(len(h.target)/blockSize), random(r, 16))
				checkUnits(t, h, h.open(), o, append(blocks, 16))
			}
		}
	}
}

// checkUnits checks the split rule of section 5.2 and single blocks.
func checkUnits(t *testing.T, h *written, f *cowfile.File, o WriterOptions, requests []int) {
	t.Helper()
	chunk := o.ClusterOps
	if chunk == 0 {
		chunk = 1024
	}
	i := 0
	for _, n := range requests {
		for n > 0 {
			for c := min(n, chunk); c > 0; i++ {
				want := o.MaxUnit / blockSize
				for want > c {
					want /= 2
				}
				if got := int(f.Op(i).Blocks()); got != want {
					t.Fatalf("op %d: expected a unit of %d blocks, found %v", i, want, f.Op(i))
				}
				c, n = c-want, n-want
			}
		}
	}
	s, err := Open(Options{Cow: newMem(h.f.b), Base: newMem(h.base), Size: int64(len(h.target))})
	h.ok(err)
	defer s.Close()
	// COW-016, COW-017: a part of a unit, and not from its start.
	for _, at := range []int{baseBlocks*blockSize + 10, (baseBlocks+5)*blockSize + 4000, len(h.target) - 510} {
		got := make([]byte, 500)
		if h.ok(readFull(s, got, int64(at))); !bytes.Equal(got, h.target[at:at+500]) {
			t.Fatalf("500 bytes at %d read otherwise", at)
		}
	}
}

// COW-050: what does not compress comes back under each algorithm.
func TestWriteIncompressible(t *testing.T) {
	data := random(rand.New(rand.NewPCG(1, 9)), 2)
	for c := cowfile.None; c <= cowfile.Zstd; c++ {
		both(t, c, func(t *testing.T, o WriterOptions) {
			h := newWritten(t, o)
			h.xor(90, data, 7, 1)
			h.replace(100, data)
			h.open()
		})
	}
}

// COW-125: an estimate is what the file takes that has as many slots.
func TestEstimate(t *testing.T) {
	both(t, cowfile.LZ4, func(t *testing.T, o WriterOptions) {
		o.MaxBlocks, o.MaxUnit = 0, 0
		if o.Version == 3 {
			o.MaxUnit = 32 << 10
		}
		o.NewCompressor = fastCompressor(t, o)
		requests := func(w *Writer) {
			r := rand.New(rand.NewPCG(2, 2))
			for _, err := range []error{w.Copy(5, 100, 30), w.Label(1), w.Zero(100, 1000), w.Replace(2000, noise(r, 300)), w.Label(2)} {
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		e, err := NewEstimator(o)
		if err != nil {
			t.Fatal(err)
		}
		requests(e)
		o.OpCountMax = uint32(e.Size().OpCountMax)
		f := &memFile{}
		w, err := NewWriter(f, o)
		if err != nil {
			t.Fatal(err)
		}
		requests(w)
		size, err := w.Finish()
		if err != nil || size != e.Size().Bytes || o.Version == 3 && w.low.OpsLeft() != 0 {
			t.Errorf("expected the estimated %+v, found %d, %v", e.Size(), size, err)
		}
	})
}

// brokenFile fails its n-th write.
type brokenFile struct {
	memFile
	left int
}

func (f *brokenFile) WriteAt(p []byte, off int64) (int, error) {
	if f.left--; f.left < 0 {
		return 0, io.ErrClosedPipe
	}
	return f.memFile.WriteAt(p, off)
}

// After an error that is no refusal, every call returns it.
func TestWriteFails(t *testing.T) {
	both(t, cowfile.LZ4, func(t *testing.T, o WriterOptions) {
		o.ClusterOps, o.Workers, o.NewCompressor = 8, 2, fastCompressor(t, o)
		f := &brokenFile{left: 20}
		w, err := NewWriter(f, o)
		if err != nil {
			t.Fatal(err)
		}
		data := noise(rand.New(rand.NewPCG(1, 1)), 300)
		for err == nil {
			err = w.Replace(0, data)
		}
		if !errors.Is(err, io.ErrClosedPipe) {
			t.Fatalf("expected the file's error, found %v", err)
		}
		_, end := w.Finish()
		for i, again := range []error{w.Copy(1, 1, 1), w.Zero(1, 1), w.Replace(1, data), w.Xor(1, data, 1, 1), w.Sequence([]uint32{1}), w.Label(1), end} {
			if again != err {
				t.Errorf("call %d: expected %v, found %v", i, err, again)
			}
		}
	})
	broken := func() (func(dst, unit []byte) ([]byte, error), error) {
		return func(dst, unit []byte) ([]byte, error) { return nil, io.ErrNoProgress }, nil
	}
	h := newWritten(t, WriterOptions{MaxBlocks: 1000, Compression: cowfile.GZ, NewCompressor: broken, Workers: 3})
	for range 2 {
		if err := h.w.Replace(0, make([]byte, 500*blockSize)); !errors.Is(err, io.ErrNoProgress) {
			t.Errorf("expected the compressor's error, found %v", err)
		}
	}
}

// A block device has an end and cannot be cut: the rest of it stays.
func TestWriteToBlockDevice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dev")
	if err := os.WriteFile(path, bytes.Repeat([]byte{0xee}, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := &FileDevice{f: f, size: 4 << 20} // as of a device
	out := d.Output()
	if _, ok := out.(cowfile.Resizable); ok {
		t.Error("a device cannot be cut")
	}
	w, err := NewWriter(out, WriterOptions{MaxBlocks: 1 << 20, OpCountMax: 1000})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Replace(1, make([]byte, 400*blockSize)); err != nil {
		t.Fatal(err)
	}
	if err := w.Label(1); err != nil {
		t.Fatal(err)
	}
	err = w.Replace(500, make([]byte, 400*blockSize))
	if err == nil {
		err = w.Label(2)
	}
	if !errors.Is(err, cowfile.ErrNoSpace) {
		t.Fatalf("expected ErrNoSpace, found %v", err)
	}
	if w, err = OpenWriter(d.Output(), d.Size(), 1, WriterOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(); err != nil || fileSize(t, path) != 4<<20 {
		t.Errorf("finished at label 1: %v, %d bytes", err, fileSize(t, path))
	}
	if c, err := cowfile.Open(d, d.Size(), nil); err != nil || c.NumOps() != 400 {
		t.Errorf("read back: %v", err)
	}
}

// A file system that is full is told as such.
func TestWriteFileSystemFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=3m"); err != nil {
		fixture.Missing(t, "no small file system can be mounted: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	path := filepath.Join(dir, "x.cow")
	d := createDevice(t, path)
	w, err := NewWriter(d.Output(), WriterOptions{MaxBlocks: 1 << 20, OpCountMax: 1000, ClusterOps: 16})
	for label := uint64(1); err == nil && label < 1000; label++ {
		if err = w.Replace(label, make([]byte, blockSize)); err == nil {
			err = w.Label(label)
		}
	}
	if !errors.Is(err, cowfile.ErrNoSpace) {
		t.Fatalf("expected ErrNoSpace, found %v", err)
	}
	h, err := cowfile.ReadHeader(d, fileSize(t, path))
	if err != nil || h.OpCount < 100 {
		t.Fatalf("the header after that: %+v, %v", h, err)
	}
	w, err = OpenWriter(d.Output(), fileSize(t, path), h.OpCount, WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(); err != nil {
		t.Error(err)
	}
}

// COW-049 with the block that Android's tests found.
func TestWriteAndroidsIncompressible(t *testing.T) {
	c := fixtureNamed(t, "aosp_incompressible_v2_gz")
	block := c.Bytes(t, "aosp_incompressible_block.img.zst")
	for _, name := range []string{"aosp_incompressible_v2_gz", "aosp_incompressible_v3_gz"} {
		want := fixtureNamed(t, name)
		stream := oracleOf(t, c.ReadAll(t))
		f, w := newMemWriter(t, WriterOptions{Version: want.Version, Compression: cowfile.GZ, OpCountMax: 1}, stream)
		if err := w.Replace(0, block); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Finish(); err != nil {
			t.Fatal(err)
		}
		sameBytes(t, want.ReadAll(t), f.b)
	}
}
