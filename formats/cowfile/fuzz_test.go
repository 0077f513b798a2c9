package cowfile

import (
	"bytes"
	"errors"
	"testing"
)

// seeds are small files with something of everything. Real ones, with their
// scratch area of 2 MiB, are for tests: a fuzzer would spend its time on zeros.
func seeds(f *testing.F, version int) {
	for _, o := range []WriterOptions{
		{ClusterOps: 3, Compression: LZ4}, {Compression: GZ}, {ClusterOps: Unclustered},
		{ClusterOps: 9, MaxUnit: 16384, Compression: Zstd},
	} {
		o.Version, o.NoScratch, o.OpCountMax = version, true, 12
		if version == 2 {
			o.MaxUnit = 0
		}
		for _, sequence := range []bool{false, true} {
			if sequence && version == 2 && o.ClusterOps == Unclustered {
				continue
			}
			f.Add(smallFile(f, o, sequence))
		}
	}
}

func smallFile(f *testing.F, o WriterOptions, sequence bool) []byte {
	var d file
	w, err := NewWriter(&d, o)
	add := func(op Op, unit []byte) {
		if err == nil && unit != nil {
			op.Compression = o.Compression
			unit = unit[:len(unit)/20] // nobody decodes it
			if o.Compression == None {
				unit = make([]byte, op.Unit())
			}
		}
		if err == nil {
			err = w.Add(op, unit)
		}
	}
	if err == nil && sequence {
		err = w.Sequence([]uint32{7, 1})
	}
	add(Op{Type: OpCopy, NewBlock: 1, Source: 2}, nil)
	add(Op{Type: OpXor, NewBlock: 7, Source: 5000}, make([]byte, BlockSize))
	err = errors.Join(err, w.Label(0))
	add(Op{Type: OpZero, NewBlock: 2}, nil)
	add(Op{Type: OpReplace, NewBlock: 3}, make([]byte, BlockSize))
	err = errors.Join(err, w.Label(1))
	if o.MaxUnit > BlockSize {
		add(Op{Type: OpReplace, NewBlock: 10, Factor: 2}, make([]byte, 4*BlockSize))
	}
	_, finished := w.Finish()
	if err := errors.Join(err, finished); err != nil {
		f.Fatal(err)
	}
	return d.b
}

// A header is refused, or says the same when it is written and read again.
func FuzzHeader(f *testing.F) {
	seeds(f, 2)
	seeds(f, 3)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ReadHeader(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		again, err := ParseHeader(h.AppendTo(nil))
		if err != nil || again != h {
			t.Fatalf("%+v became %+v, %v", h, again, err)
		}
	})
}

// FuzzOpTable opens version 3 files, FuzzClusters version 2 files. What opens
// can be walked, looked up and decoded without a panic, and within bounded
// memory.
func FuzzOpTable(f *testing.F) {
	seeds(f, 3)
	f.Fuzz(func(t *testing.T, b []byte) { openAndUse(t, b) })
}

func FuzzClusters(f *testing.F) {
	seeds(f, 2)
	f.Fuzz(func(t *testing.T, b []byte) { openAndUse(t, b) })
}

func openAndUse(t *testing.T, b []byte) {
	used := 0
	limit := 3*len(b) + 4096
	opts := Options{Alloc: func(n int) ([]byte, error) {
		if used += n; used > limit {
			t.Fatalf("%d bytes asked for a file of %d", used, len(b))
		}
		return make([]byte, n), nil
	}}
	r := bytes.NewReader(b)
	_ = WalkRaw(r, int64(len(b)), func(RawOp) bool { return true })
	for _, label := range []uint64{0, 1} {
		opts := opts
		opts.Label = &label
		if f, err := Open(r, int64(len(b)), &opts); err == nil {
			continueAt(t, f, b, label)
		}
	}
	used = 0
	f, err := Open(r, int64(len(b)), &opts)
	if err != nil {
		return
	}
	if s, err := f.ReadState(r); err == nil && s == StateReadDone {
		_, _ = f.ReadScratch(r)
	}
	unit := make([]byte, f.MaxUnit())
	n := 0
	for it := f.Merge(0); ; n++ {
		i, ok := it.Next()
		if !ok {
			break
		}
		o := f.Op(i)
		if f.Find(o.NewBlock) != i {
			t.Fatalf("op %d is not found by its block", i)
		}
		if o.DataLength > 0 && n < 16 {
			off := f.DataOffset(i, o)
			_ = Decode(o.Compression, unit[:o.Unit()], b[off:off+int64(o.DataLength)])
		}
	}
	if n != f.NumOps() {
		t.Fatalf("%d ops, %d in merge order", f.NumOps(), n)
	}
}

// continueAt: what opens at a label can be continued there, and opens again.
func continueAt(t *testing.T, f *File, b []byte, label uint64) {
	if f.h.OpCountMax > 1<<16 || f.h.ClusterOps > 1<<16 {
		return // a hole of gigabytes, which memory has not
	}
	d := diskFile{newDisk(b)}
	w, err := OpenWriter(d, int64(len(b)), label, WriterOptions{Compression: f.Compression()})
	if f.h.NumMergeOps > 0 && errors.Is(err, ErrRequest) {
		return // its merge has begun
	}
	if err != nil {
		t.Fatalf("opens at label %d and cannot be continued there: %v", label, err)
	}
	if err := w.Add(Op{Type: OpZero, NewBlock: 1<<32 - 1}, nil); err != nil && !errors.Is(err, ErrLimit) {
		t.Fatal(err)
	}
	_, err = w.Finish()
	if err := errors.Join(err, w.Label(label)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	if int64(len(d.b)) != w.Size().Bytes {
		t.Fatalf("%d bytes, expected %d", len(d.b), w.Size().Bytes)
	}
	again, err := Open(d, int64(len(d.b)), &Options{Label: &label})
	if err != nil || again.NumOps() < f.NumOps() {
		var twice *Error
		if errors.As(err, &twice) && twice.Expected == "one op" {
			return // the file had an op for that block
		}
		t.Fatalf("%d ops at the label before, %v after", f.NumOps(), err)
	}
}

// FuzzDecode feeds arbitrary data to the decoders.
func FuzzDecode(f *testing.F) {
	for c := None; c <= Zstd; c++ {
		enc := encoder(f, 3, c, min(c.DefaultLevel(), 4), BlockSize)
		stored, _, err := enc.Encode(bytes.Repeat([]byte("seed"), BlockSize/4))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint32(c), append([]byte(nil), stored...))
	}
	f.Fuzz(func(t *testing.T, c uint32, b []byte) {
		var unit [2 * BlockSize]byte
		_ = Decode(Compression(c), unit[:], b)
		_ = Decode(Compression(c), unit[:BlockSize], b)
	})
}
