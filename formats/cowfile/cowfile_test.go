package cowfile

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"cowbird/formats/compress"
)

// COW-122, COW-123, COW-124: the bit fields of an op do not disturb each other.
func TestOpBits(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var b [opSizeV3]byte
	for range 1000 {
		o := Op{
			Type: OpType(1 + r.IntN(7)), Factor: uint8(r.IntN(8)), NewBlock: r.Uint32(), DataLength: r.Uint32(),
			Source: r.Uint64() & sourceMask,
		}
		putOp(b[:], o, 0)
		if got, flags := getOp(b[:]); got != o || flags != 0 {
			t.Fatalf("expected %+v, found %+v, flags %#x", o, got, flags)
		}
		putOp(b[:], o, rawBit)
		if got, flags := getOp(b[:]); got != o || flags != rawBit {
			t.Fatalf("with a flag: expected %+v, found %+v, flags %#x", o, got, flags)
		}
	}
}

// Section 15.2 of the specification: the golden op.
func TestGoldenOp(t *testing.T) {
	for _, tc := range []struct {
		factor uint8
		last   byte
	}{{0, 0x20}, {4, 0x28}} {
		var b [opSizeV3]byte
		putOp(b[:], Op{Type: OpReplace, Factor: tc.factor, DataLength: 4096, NewBlock: 5, Source: 462}, 0)
		want := []byte{0, 0x10, 0, 0, 5, 0, 0, 0, 0xce, 1, 0, 0, 0, 0, 0, tc.last}
		if !bytes.Equal(b[:], want) {
			t.Errorf("factor %d: expected % x, found % x", tc.factor, want, b)
		}
	}
}

// COW-043, COW-044.
func TestParseCompression(t *testing.T) {
	for s, want := range map[string]struct {
		c     Compression
		level int
	}{
		"": {None, 0}, "none": {None, 0}, "gz": {GZ, 9}, "gz,4": {GZ, 4}, "lz4": {LZ4, 0}, "lz4,4": {LZ4, 4},
		"brotli": {Brotli, 11}, "brotli,4": {Brotli, 4}, "zstd": {Zstd, 3}, "zstd,4": {Zstd, 4}, "zstd,-2": {Zstd, -2}, "gz,0": {GZ, 0},
	} {
		c, level, err := ParseCompression(s)
		if err != nil || c != want.c || level != want.level {
			t.Errorf("%q: expected %v, found %v level %d, %v", s, want, c, level, err)
		}
	}
	for _, s := range []string{"gz,4,4", "zstd,x", "zs,4", "zstd.4", "gz,", ",4,4"} {
		if _, _, err := ParseCompression(s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}

func encoder(t testing.TB, version int, c Compression, level, maxUnit int) *Encoder {
	t.Helper()
	f, err := compress.New(c.String(), level, maxUnit)
	if err != nil {
		t.Fatal(err)
	}
	return NewEncoder(version, c, f)
}

// file is a COW in memory.
type file struct{ b []byte }

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p) - len(f.b); need > 0 {
		f.b = append(f.b, make([]byte, need)...)
	}
	return copy(f.b[off:], p), nil
}

func (f *file) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(f.b).ReadAt(p, off) }
func (f *file) Sync() error                             { return nil }

func (f *file) open(t testing.TB) *File {
	t.Helper()
	c, err := Open(bytes.NewReader(f.b), int64(len(f.b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// COW-102, COW-103, COW-105, COW-106: the header of a new file, and a limit
// that refuses one op too many and leaves the writer usable.
func TestWriterV3Limit(t *testing.T) {
	var f file
	w, err := NewWriter(&f, WriterOptions{Version: 3, OpCountMax: 20})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if err := w.Add(Op{Type: OpZero, NewBlock: uint32(i)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Add(Op{Type: OpReplace, NewBlock: 99}, make([]byte, BlockSize)); !errors.Is(err, ErrLimit) {
		t.Errorf("expected ErrLimit, found %v", err)
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	c := f.open(t)
	want := Header{
		Major: 3, HeaderSize: 78, OpSize: 16, BlockSize: 4096, ScratchSize: 2 << 20, ResumePointMax: 4,
		OpCount: 20, OpCountMax: 20, MaxCompression: 4096,
	}
	if c.Header() != want || c.Counts().Zero != 20 {
		t.Errorf("expected %+v, found %+v", want, c.Header())
	}
}

// Section 15.2 once more, as a whole file: COW-107.
func TestWriterV3Golden(t *testing.T) {
	var f file
	w, err := NewWriter(&f, WriterOptions{Version: 3, OpCountMax: 20, NoScratch: true})
	if err != nil {
		t.Fatal(err)
	}
	block := bytes.Repeat([]byte("This is some data, believe it"), 142)[:BlockSize]
	if err := w.Add(Op{Type: OpReplace, NewBlock: 5}, block); err != nil {
		t.Fatal(err)
	}
	if size, err := w.Finish(); err != nil || size != 4558 || len(f.b) != 4558 {
		t.Fatalf("size: expected 4558, found %d, %v", size, err)
	}
	if !bytes.Equal(f.b[462:], block) || f.b[142] != 0 || f.b[143] != 0x10 {
		t.Error("op or data are not at their places")
	}
}

// A scratch area may have any size that its own rules allow, and says how many
// blocks it takes.
func TestScratchSize(t *testing.T) {
	for _, tc := range []struct {
		o        WriterOptions
		capacity int // −1: refused
	}{
		{WriterOptions{}, 510},
		{WriterOptions{ScratchSize: 64 << 10}, 14},
		{WriterOptions{ScratchSize: 16 << 20}, 4080},
		{WriterOptions{NoScratch: true}, 0},
		{WriterOptions{ScratchSize: 4096}, -1},
		{WriterOptions{ScratchSize: MaxScratch + 64<<10}, -1},
		{WriterOptions{ScratchSize: 2 << 20, NoScratch: true}, -1},
	} {
		for tc.o.Version = 2; tc.o.Version < 4; tc.o.Version++ {
			d := &file{}
			w, err := NewWriter(d, tc.o)
			if tc.capacity < 0 {
				if !errors.Is(err, ErrLimit) {
					t.Errorf("%+v: expected ErrLimit, found %v", tc.o, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			size, err := w.Finish()
			if err != nil {
				t.Fatal(err)
			}
			f, err := Open(d, size, nil)
			if err != nil {
				t.Fatal(err)
			}
			h := f.Header()
			if got := h.Scratch().Capacity; got != tc.capacity {
				t.Errorf("%+v: expected room for %d blocks, found %d", tc.o, tc.capacity, got)
			}
		}
	}
}

func TestWriterRefuses(t *testing.T) {
	open := func(o WriterOptions) Writer {
		w, err := NewWriter(&file{}, o)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	v3 := open(WriterOptions{Version: 3, OpCountMax: 9, Compression: LZ4})
	v2 := open(WriterOptions{Version: 2, Compression: LZ4})
	for _, tc := range []struct {
		name   string
		w      Writer
		o      Op
		stored []byte
	}{
		{"another compression", v3, Op{Type: OpReplace, Compression: Zstd}, make([]byte, 100)},
		{"compressed data as long as the unit", v3, Op{Type: OpReplace, Compression: LZ4}, make([]byte, BlockSize)},
		{"raw data of another length", v3, Op{Type: OpReplace}, make([]byte, 100)},
		{"unit larger than the file's", v3, Op{Type: OpReplace, Factor: 1}, make([]byte, 2*BlockSize)},
		{"source of 49 bits", v3, Op{Type: OpCopy, Source: 1 << 48}, nil},
		{"label", v3, Op{Type: OpLabel}, nil},
		{"no data", v3, Op{Type: OpReplace}, nil},
		{"data for a zero op", v3, Op{Type: OpZero}, make([]byte, 10)},
		{"unit in version 2", v2, Op{Type: OpReplace, Factor: 1}, make([]byte, 2*BlockSize)},
		{"raw data of another length in version 2", v2, Op{Type: OpReplace}, make([]byte, 4000)},
	} {
		if err := tc.w.Add(tc.o, tc.stored); err == nil {
			t.Errorf("%s: accepted", tc.name)
		}
	}
	if err := v3.Add(Op{Type: OpZero}, nil); err != nil {
		t.Errorf("after refusals: %v", err)
	}
	if err := v3.Add(Op{Type: OpCopy, NewBlock: 1, Source: 7}, nil); !errors.Is(err, ErrMergeOrder) {
		t.Errorf("copy behind zero: expected ErrMergeOrder, found %v", err)
	}
	for _, o := range []WriterOptions{{Version: 4}, {Version: 3, MaxUnit: 5000}, {Version: 2, ClusterOps: 1}, {Version: 2, MaxUnit: 8192}, {Version: 2, ClusterOps: -2}, {Version: 3, Compression: 9}} {
		if _, err := NewWriter(&file{}, o); err == nil {
			t.Errorf("%+v: accepted", o)
		}
	}
}

// COW-018, COW-028, section 14: where clusters end.
func TestWriterV2Clusters(t *testing.T) {
	var f file
	w, err := NewWriter(&f, WriterOptions{Version: 2, ClusterOps: 2, NoScratch: true, Compression: GZ})
	if err != nil {
		t.Fatal(err)
	}
	enc := encoder(t, 2, GZ, 9, BlockSize)
	for i := range 2 {
		stored, c, err := enc.Encode(bytes.Repeat([]byte{byte(i)}, BlockSize))
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Add(Op{Type: OpReplace, NewBlock: uint32(i), Compression: c}, stored); err != nil {
			t.Fatal(err)
		}
	}
	if size, err := w.Finish(); err != nil || int(size) != len(f.b) {
		t.Fatalf("size: expected %d, found %d, %v", len(f.b), size, err)
	}
	var types []OpType
	var offsets []int64
	err = WalkRaw(bytes.NewReader(f.b), int64(len(f.b)), func(o RawOp) bool {
		types, offsets = append(types, o.Type), append(offsets, o.Offset)
		return true
	})
	want := []OpType{OpReplace, OpCluster, OpReplace, OpCluster, OpFooter}
	if err != nil || fmt.Sprint(types) != fmt.Sprint(want) || offsets[0] != 38 || offsets[1] != 58 {
		t.Errorf("expected %v at 38, 58, …; found %v at %v, %v", want, types, offsets, err)
	}
	c := f.open(t)
	if c.Counts().Cluster != 2 || c.Counts().Replace != 2 {
		t.Errorf("counts: %+v", c.Counts())
	}
}

// COW-050, COW-128 … COW-130: every algorithm and unit, compressible or not.
func TestEncodeDecode(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	for c := None; c <= Zstd; c++ {
		for _, version := range []int{2, 3} {
			for unit := BlockSize; unit <= MaxUnit && (version == 3 || unit == BlockSize); unit *= 2 {
				enc := encoder(t, version, c, min(c.DefaultLevel(), 5), unit)
				for _, every := range []int{1, 3, 100} {
					data := make([]byte, unit)
					for i := 0; i < unit; i += every {
						data[i] = byte(r.Uint32())
					}
					stored, got, err := enc.Encode(data)
					if err != nil {
						t.Fatal(err)
					}
					out := make([]byte, unit)
					if err := Decode(got, out, stored); err != nil || !bytes.Equal(out, data) {
						t.Errorf("%v version %d unit %d: %v", c, version, unit, err)
					}
					if version == 3 && (got == None) != (len(stored) == unit) {
						t.Errorf("%v unit %d: %d bytes stored with %v", c, unit, len(stored), got)
					}
					if got != None {
						decodeDamaged(t, got, out, stored)
					}
				}
			}
		}
	}
}

// Damaged, shortened and lengthened data give an error, or bytes; never a
// panic, and never more than the unit.
func decodeDamaged(t *testing.T, c Compression, out, stored []byte) {
	t.Helper()
	for _, bad := range [][]byte{nil, stored[:len(stored)/2], append(append([]byte(nil), stored...), 1, 2, 3)} {
		if err := Decode(c, out, bad); err == nil && len(bad) < len(stored) {
			t.Errorf("%v: %d of %d bytes decoded", c, len(bad), len(stored))
		} else if err != nil && !errors.Is(err, ErrDecode) {
			t.Errorf("%v: expected ErrDecode, found %v", c, err)
		}
	}
	for _, n := range []int{len(out) - 1, len(out) / 2} {
		if err := Decode(c, out[:n], stored); err == nil {
			t.Errorf("%v: %d bytes decoded to %d", c, len(out), n)
		}
	}
	if err := Decode(c, append(out, 0), stored); err == nil {
		t.Errorf("%v: a unit that is too short was accepted", c)
	}
}

// COW-037, COW-040 … COW-042, COW-045 … COW-047: merge orders.
func TestMergeOrder(t *testing.T) {
	var f file
	w, err := NewWriter(&f, WriterOptions{Version: 2, NoScratch: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range []uint32{2, 10, 6, 7, 3, 5} {
		if err := w.Add(Op{Type: OpCopy, NewBlock: b, Source: 100}, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range []uint32{12, 8, 11, 4, 9, 1} {
		if err := w.Add(Op{Type: OpZero, NewBlock: b}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	c := f.open(t)
	for from := range c.NumOps() + 1 {
		var blocks []uint32
		for it := c.Merge(from); ; {
			i, ok := it.Next()
			if !ok {
				break
			}
			blocks = append(blocks, c.Op(i).NewBlock)
		}
		want := []uint32{2, 10, 6, 7, 3, 5, 1, 4, 8, 9, 11, 12}[from:]
		if fmt.Sprint(blocks) != fmt.Sprint(want) {
			t.Errorf("from %d: expected %v, found %v", from, want, blocks)
		}
	}
}

func TestMergeOrderIsChecked(t *testing.T) {
	xor := make([]byte, BlockSize)
	for _, tc := range []struct {
		name string
		ops  []Op
		ok   bool
	}{
		{"chain back to front", []Op{{Type: OpCopy, NewBlock: 3, Source: 2}, {Type: OpCopy, NewBlock: 2, Source: 1}}, true},
		{"source overwritten", []Op{{Type: OpCopy, NewBlock: 3, Source: 2}, {Type: OpCopy, NewBlock: 2, Source: 1}, {Type: OpCopy, NewBlock: 4, Source: 2}}, false},
		{"second half of an xor source overwritten", []Op{{Type: OpCopy, NewBlock: 2, Source: 1}, {Type: OpXor, NewBlock: 3, Source: 4097}}, false},
		{"aligned xor beside it", []Op{{Type: OpCopy, NewBlock: 2, Source: 1}, {Type: OpXor, NewBlock: 3, Source: 4096}}, true},
		{"block onto itself", []Op{{Type: OpXor, NewBlock: 3, Source: 3 * 4096}}, true},
		{"block twice", []Op{{Type: OpCopy, NewBlock: 3, Source: 7}, {Type: OpCopy, NewBlock: 3, Source: 8}}, false},
	} {
		for _, version := range []int{2, 3} {
			var f file
			w, err := NewWriter(&f, WriterOptions{Version: version, NoScratch: true, OpCountMax: 9})
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range tc.ops {
				var stored []byte
				if o.Type == OpXor {
					stored = xor
				}
				if err := w.Add(o, stored); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := w.Finish(); err != nil {
				t.Fatal(err)
			}
			_, err = Open(bytes.NewReader(f.b), int64(len(f.b)), nil)
			if (err == nil) != tc.ok {
				t.Errorf("%s, version %d: %v", tc.name, version, err)
			}
		}
	}
}

// The positions of xor data, which no op stores: COW-008, COW-009, COW-112.
func TestXorPositions(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	for _, version := range []int{2, 3} {
		for _, cluster := range []int{2, 3, 1024} {
			var f file
			w, err := NewWriter(&f, WriterOptions{Version: version, OpCountMax: 3000, Compression: LZ4, NoScratch: true, ClusterOps: cluster})
			if err != nil {
				t.Fatal(err)
			}
			want := map[uint32][]byte{}
			for i := range uint32(1000) {
				o := Op{Type: OpXor, NewBlock: i, Source: 1 << 30, Compression: LZ4}
				stored := make([]byte, 1+r.IntN(100))
				if r.IntN(3) == 0 {
					o, stored = Op{Type: OpCopy, NewBlock: i, Source: 1 << 30}, nil
				}
				for k := range stored {
					stored[k] = byte(r.Uint32())
				}
				want[i] = stored
				if err := w.Add(o, stored); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := w.Finish(); err != nil {
				t.Fatal(err)
			}
			c := f.open(t)
			for i := range c.NumOps() {
				o := c.Op(i)
				if o.Type == OpXor {
					off := c.DataOffset(i, o)
					if got := f.b[off : off+int64(o.DataLength)]; !bytes.Equal(got, want[o.NewBlock]) {
						t.Fatalf("version %d, cluster %d, op %d: other data at %d", version, cluster, i, off)
					}
				}
			}
		}
	}
}

// The index costs 12 bytes a run and a bit an op at most, besides 16 bytes a 64
// ops when there are xor ops; the op table of version 3 is lent.
func TestIndexMemory(t *testing.T) {
	const n = 20000
	for _, tc := range []struct {
		name   string
		block  func(i int) uint32
		perOp  float64
		lookup bool
	}{
		{"one run", func(i int) uint32 { return uint32(i) }, 0.01, true},
		{"one run downwards", func(i int) uint32 { return uint32(n - i) }, 0.01, true},
		{"single blocks", func(i int) uint32 { return uint32(i*7919) % 1000003 * 2 }, 12, true},
	} {
		var f file
		w, err := NewWriter(&f, WriterOptions{Version: 3, OpCountMax: n, NoScratch: true})
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			if err := w.Add(Op{Type: OpZero, NewBlock: tc.block(i)}, nil); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := w.Finish(); err != nil {
			t.Fatal(err)
		}
		used := 0
		c, err := Open(bytes.NewReader(f.b), int64(len(f.b)), &Options{
			Alloc: func(n int) ([]byte, error) { used += n; return make([]byte, n), nil },
			Free:  func(b []byte) { used -= len(b) },
			Map:   func(off int64, n int) ([]byte, error) { return f.b[off : off+int64(n)], nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		if float64(used) > tc.perOp*n {
			t.Errorf("%s: expected at most %v bytes an op, found %v", tc.name, tc.perOp, float64(used)/n)
		}
		for i := range n {
			if got := c.Find(tc.block(i)); got != i {
				t.Fatalf("%s: block %d: expected op %d, found %d", tc.name, tc.block(i), i, got)
			}
		}
	}
}

// Lookup with any hint gives what a search from scratch gives.
func TestLookupHint(t *testing.T) {
	var f file
	w, err := NewWriter(&f, WriterOptions{Version: 3, OpCountMax: 400, NoScratch: true})
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(6, 6))
	for b := uint32(3); b < 900; b += uint32(1 + r.IntN(2)*r.IntN(9)) {
		if w.Add(Op{Type: OpZero, NewBlock: b}, nil) != nil {
			break
		}
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	c := f.open(t)
	for range 5000 {
		b, hint := uint32(r.IntN(1000)), r.IntN(c.Runs())
		fresh := 0
		op, n := c.Lookup(&fresh, b)
		if op2, n2 := c.Lookup(&hint, b); op2 != op || n2 != n {
			t.Fatalf("block %d: %d, %d without a hint, %d, %d with one", b, op, n, op2, n2)
		}
		if op >= 0 && c.Op(op).NewBlock != b {
			t.Fatalf("block %d: op %d is for block %d", b, op, c.Op(op).NewBlock)
		}
	}
}
