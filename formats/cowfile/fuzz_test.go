package cowfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
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

func smallFile(f testing.TB, o WriterOptions, sequence bool) []byte {
	f.Helper()
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
	open(t, b)
	for _, label := range []uint64{0, 1} {
		if f, err := Open(bytes.NewReader(b), int64(len(b)), &Options{Label: &label}); err == nil {
			continueAt(t, f, b, label)
		}
	}
}

// open does with a file, if it opens, all that only reads.
func open(t *testing.T, b []byte) {
	used := 0
	limit := 3*len(b) + 4096 // as Open promises
	opts := Options{Alloc: func(n int) ([]byte, error) {
		if used += n; used > limit {
			t.Fatalf("%d bytes asked for a file of %d", used, len(b))
		}
		return make([]byte, n), nil
	}}
	r := bytes.NewReader(b)
	_ = WalkRaw(r, int64(len(b)), func(RawOp) bool { return true })
	label := uint64(1)
	atLabel := opts
	atLabel.Label = &label
	_, _ = Open(r, int64(len(b)), &atLabel)
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

// FuzzResume puts arbitrary resume points into a version 3 file, and arbitrary
// numbers into the label ops of a version 2 one: a label leads to ops that are
// there, from which the file can be continued, or it is refused.
func FuzzResume(f *testing.F) {
	f.Add(points(ResumePoint{0, 2}, ResumePoint{1, 4}), uint32(2), uint64(0))
	f.Add(points(ResumePoint{7, 0}, ResumePoint{8, 5}, ResumePoint{9, 6}), uint32(9), uint64(9))
	f.Add(points(ResumePoint{3, 4}, ResumePoint{3, 2}, ResumePoint{}, ResumePoint{1, 1}), uint32(4), uint64(3))
	v2 := smallFile(f, WriterOptions{Version: 2, ClusterOps: 3, NoScratch: true, Compression: GZ}, true)
	v3 := smallFile(f, WriterOptions{Version: 3, NoScratch: true, Compression: GZ, MaxUnit: 16384, OpCountMax: 12}, true)
	h, err := ParseHeader(v3)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, region []byte, count uint32, label uint64) {
		b := bytes.Clone(v3)
		copy(b[h.resumeOffset():h.opOffset()], region)
		binary.LittleEndian.PutUint32(b[46:], count)
		openAtLabel(t, b, label)

		b = bytes.Clone(v2)
		err := WalkRaw(bytes.NewReader(v2), int64(len(v2)), func(o RawOp) bool {
			if o.Type == OpLabel && len(region) >= 8 {
				copy(b[o.Offset+12:], region[:8])
				region = region[8:]
			}
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		openAtLabel(t, b, label)
	})
}

func points(all ...ResumePoint) (b []byte) {
	for _, p := range all {
		b = binary.LittleEndian.AppendUint64(b, p.Label)
		b = binary.LittleEndian.AppendUint64(b, p.Ops)
	}
	return b
}

func openAtLabel(t *testing.T, b []byte, label uint64) {
	whole, err := Open(bytes.NewReader(b), int64(len(b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Open(bytes.NewReader(b), int64(len(b)), &Options{Label: &label})
	if errors.Is(err, ErrNoLabel) || errors.Is(err, ErrCorrupt) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if f.NumOps() > whole.NumOps() {
		t.Fatalf("label %d: %d ops of a file that has %d", label, f.NumOps(), whole.NumOps())
	}
	for i := range f.NumOps() {
		if f.Op(i) != whole.Op(i) {
			t.Fatalf("label %d: expected op %d to be %v, found %v", label, i, whole.Op(i), f.Op(i))
		}
	}
	continueAt(t, f, b, label)
}

// FuzzSequence gives a file arbitrary ordered ops, three bytes each, and an
// arbitrary merge sequence, a byte an entry. It opens if, and only if, a plain
// walk through that order finds no fault with it.
func FuzzSequence(f *testing.F) {
	f.Add([]byte("\x00\x01\x02\x00\x02\x03\x01\x05\x08\x02\x09\x00"), []byte("\x01\x02\x05"), true)
	f.Add([]byte("\x00\x01\x02\x00\x02\x03\x00\x03\x04"), []byte("\x03\x02\x01"), false)
	f.Add([]byte("\x00\x01\x02\x00\x02\x01"), []byte("\x02\x02"), true)
	f.Add([]byte("\x02\x01\x00\x01\x02\x03"), []byte("\x01\x02"), false)
	f.Fuzz(func(t *testing.T, spec, seq []byte, v3 bool) {
		if len(seq) > 1<<10 {
			return // version 2 has 64 KiB for an op's data, and the writer limits
		}
		ops := fuzzOps(spec)
		order, fault := plainOrder(ops, seq, v3)
		b, err := sequenced(t, ops, seq, v3)
		if err != nil {
			if fault == "" {
				t.Fatalf("the writer refuses what has no fault: %v", err)
			}
			return
		}
		c, err := Open(bytes.NewReader(b), int64(len(b)), nil)
		if (err == nil) != (fault == "") {
			t.Fatalf("expected a fault: %q; found %v", fault, err)
		}
		if err != nil {
			return
		}
		for it := c.Merge(0); ; {
			pos := it.Pos()
			i, ok := it.Next()
			if !ok && pos == len(order) {
				return
			}
			if !ok || pos >= len(order) || i != order[pos] {
				t.Fatalf("expected the order %v, found op %d (%v) at position %d", order, i, ok, pos)
			}
		}
	})
}

// fuzzOps has no block twice, which is for other targets.
func fuzzOps(spec []byte) (ops []Op) {
	seen := map[byte]bool{}
	for ; len(spec) >= 3 && len(ops) < 300; spec = spec[3:] {
		o := Op{NewBlock: uint32(spec[1])}
		switch spec[0] % 3 {
		case 0:
			o.Type, o.Source = OpCopy, uint64(spec[2])
		case 1:
			o.Type, o.Source, o.Compression = OpXor, uint64(spec[2])*BlockSize+uint64(spec[0])*16, LZ4
		case 2:
			o.Type = OpZero
		}
		if !seen[spec[1]] {
			ops = append(ops, o)
		}
		seen[spec[1]] = true
	}
	return ops
}

// sequenced is a file with the ops and a sequence that no writer would take.
// An error is that of the writer, which refuses to put an ordered op behind an
// unordered one without a sequence.
func sequenced(t *testing.T, ops []Op, seq []byte, v3 bool) ([]byte, error) {
	var d file
	o := WriterOptions{Version: 2, ClusterOps: 20, NoScratch: true, Compression: LZ4}
	if v3 {
		o.Version, o.ClusterOps, o.OpCountMax = 3, 0, uint32(len(ops))
	}
	w, err := NewWriter(&d, o)
	if err != nil {
		t.Fatal(err)
	}
	entries := make([]byte, 0, 4*len(seq))
	for _, b := range seq {
		entries = append(entries, b, 0, 0, 0)
	}
	at := int64(headerSizeV3)
	if len(seq) > 0 {
		stand := make([]uint32, len(seq))
		for i := range stand {
			stand[i] = uint32(i)
		}
		err = w.Sequence(stand)
	}
	for _, op := range ops {
		var unit []byte
		if op.Type == OpXor {
			unit = []byte{0} // nobody decodes it
		}
		err = errors.Join(err, w.Add(op, unit))
	}
	if errors.Is(err, ErrMergeOrder) && v3 && len(seq) == 0 {
		return nil, err
	}
	_, finished := w.Finish()
	if err := errors.Join(err, finished); err != nil {
		t.Fatal(err)
	}
	if !v3 {
		err = WalkRaw(&d, int64(len(d.b)), func(o RawOp) bool {
			if o.Type == OpSequence {
				at = o.DataOffset
			}
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	copy(d.b[at:], entries)
	return d.b, nil
}

// plainOrder is section 7.1 in its simplest words; fault says what is wrong.
func plainOrder(ops []Op, seq []byte, v3 bool) (order []int, fault string) {
	byBlock := map[uint32]int{}
	for i, o := range ops {
		byBlock[o.NewBlock] = i
	}
	listed := map[int]bool{}
	list := func(i int) { order, listed[i] = append(order, i), true }
	for _, b := range seq {
		i, ok := byBlock[uint32(b)]
		if !ok || listed[i] {
			return nil, "an entry without an op of its own"
		}
		list(i)
	}
	for i, o := range ops {
		if len(seq) == 0 && (v3 || o.Type.Ordered()) {
			list(i)
		}
	}
	for _, b := range slices.Sorted(maps.Keys(byBlock)) {
		if i := byBlock[b]; !listed[i] {
			list(i)
		}
	}
	written, unordered := map[uint64]bool{}, false
	for _, i := range order {
		o := ops[i]
		if !o.Type.Ordered() {
			unordered = true
			continue
		}
		lo, hi := o.SourceBlocks()
		if unordered || written[lo] || written[hi] {
			return nil, "a source that is not there any more"
		}
		written[uint64(o.NewBlock)] = true
	}
	return order, ""
}

// The wrappers of the decompressors: a unit is filled exactly, or there is an
// error; twice the same, whatever the decoder did before; and nothing is
// written beyond the unit.
func FuzzGZ(f *testing.F)     { fuzzDecode(f, GZ) }
func FuzzBrotli(f *testing.F) { fuzzDecode(f, Brotli) }
func FuzzLZ4(f *testing.F)    { fuzzDecode(f, LZ4) }
func FuzzZstd(f *testing.F)   { fuzzDecode(f, Zstd) }

func fuzzDecode(f *testing.F, c Compression) {
	enc := encoder(f, 3, c, min(c.DefaultLevel(), 4), BlockSize)
	add := func(unit []byte) []byte {
		stored, _, err := enc.Encode(unit)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.Clone(stored))
		return bytes.Clone(stored)
	}
	good := bytes.Repeat([]byte("seed"), BlockSize/4)
	stored := add(good)
	var text []byte
	for i := 0; len(text) < BlockSize; i++ {
		text = fmt.Appendf(text, "%d squared is %d; ", i, i*i)
	}
	add(text[:BlockSize])
	f.Fuzz(func(t *testing.T, b []byte) {
		var memory, again [2*BlockSize + 16]byte
		for _, n := range []int{BlockSize, 2 * BlockSize} {
			clear(memory[n:])
			err := Decode(c, memory[:n], b)
			if !bytes.Equal(memory[n:], make([]byte, len(memory)-n)) {
				t.Fatalf("bytes behind the unit of %d were written", n)
			}
			if err != nil && !errors.Is(err, ErrDecode) {
				t.Fatal(err)
			}
			if err := Decode(c, again[:BlockSize], stored); err != nil || !bytes.Equal(again[:BlockSize], good) {
				t.Fatalf("after other data a good unit does not decode: %v", err)
			}
			if second := Decode(c, again[:n], b); (err == nil) != (second == nil) {
				t.Fatalf("first %v, then %v", err, second)
			}
			if err == nil && !bytes.Equal(memory[:n], again[:n]) {
				t.Fatal("decoded twice to different bytes")
			}
		}
	})
}
