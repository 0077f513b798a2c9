package cowfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
)

// letters tells the ops of a version 2 file in order, | for a cluster op and F
// for the footer.
func letters(t *testing.T, b []byte) string {
	t.Helper()
	names := map[OpType]string{OpCopy: "c", OpReplace: "r", OpZero: "z", OpXor: "x", OpLabel: "l", OpSequence: "s", OpCluster: "|", OpFooter: "F"}
	s, ops := "", uint64(0)
	err := WalkRaw(bytes.NewReader(b), int64(len(b)), func(o RawOp) bool {
		if s += names[o.Type]; o.Type == OpFooter {
			if o.Source != ops || o.NewBlock != opSizeV2*ops || o.Offset+footerSizeV2 != int64(len(b)) {
				t.Errorf("footer %+v: expected %d ops and the end of the file at %d", o, ops, len(b)) // COW-030
			}
		}
		ops++
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// write makes the calls that letters stand for: F is a finish, digits are
// labels, and < with a digit continues at that label.
func write(t *testing.T, opts WriterOptions, calls string) []byte {
	t.Helper()
	d := diskFile{newDisk(nil)}
	w, err := NewWriter(d, opts)
	for i := 0; i < len(calls) && err == nil; i++ {
		o := Op{NewBlock: uint32(i)}
		switch c := calls[i]; c {
		case 'F':
			before := w.Size().Bytes
			var size int64
			if size, err = w.Finish(); err == nil && (size != before || size != w.Size().Bytes || size != int64(len(d.b))) {
				t.Errorf("%s: size %d of the file, %d from Finish, %d and %d from Size", calls, len(d.b), size, before, w.Size().Bytes)
			}
		case '<':
			i++
			w, err = OpenWriter(d, int64(len(d.b)), uint64(calls[i]-'0'), opts)
		case 'r':
			o.Type = OpReplace
			err = w.Add(o, bytes.Repeat([]byte{byte(i)}, BlockSize))
		case 'x':
			o.Type, o.Source = OpXor, 5000<<12
			err = w.Add(o, bytes.Repeat([]byte{byte(i)}, BlockSize))
		case 'c':
			o.Type, o.Source = OpCopy, 5000
			err = w.Add(o, nil)
		case 'z':
			o.Type = OpZero
			err = w.Add(o, nil)
		case 's':
			err = w.Sequence([]uint32{1})
		default:
			err = w.Label(uint64(c - '0'))
		}
	}
	if err != nil {
		t.Fatalf("%s: %v", calls, err)
	}
	return d.b
}

// COW-018, COW-021, COW-024, COW-028 to COW-035: where clusters end, and how
// they go on after a finish and at a label.
func TestLayoutV2(t *testing.T) {
	for _, tc := range []struct {
		name        string
		cluster     int
		calls, want string
	}{
		{"empty", 4, "F", "F"},
		{"COW-018", 2, "rrF", "r|r|F"},
		{"COW-021", Unclustered, "crzzF", "crzzF"},
		{"COW-028: the fourth slot", 4, "rrrrF", "rrr|r|F"},
		{"COW-029: labels take slots", 4, "r1rzz2zF", "rlr|zzl|zF"},
		{"COW-030: without data the footer takes the next slot", 1024, "czzF", "czzF"},
		{"COW-031: in a cluster that was finished", 3, "r1F<1rF", "rl|r|F"},
		{"COW-031: without data", 3, "z1F<1zzF", "zl|zz|F"},
		{"COW-032", 1024, "rFzF", "rz|F"},
		{"COW-032: no data yet", 1024, "zFrF", "zr|F"},
		{"COW-032: nothing new", 4, "rzFF", "rz|F"},
		{"COW-032: unclustered", Unclustered, "rFzFxF", "rzxF"},
		{"COW-033: label in the middle", 7, "rrrr1r<1rrrrF", "rrrrlr|rrr|F"},
		{"COW-034: label at the end", 5, "rrr1<1rrrrrF", "rrrl|rrrr|r|F"},
		{"COW-034: and finished", 5, "rrr1F<1rrrrrF", "rrrl|rrrr|r|F"},
		{"COW-035: ops behind the label dropped", 5, "rrr1rr<1F", "rrrl|F"},
		{"COW-035: in the same cluster", 9, "rrr1rrF<1F", "rrrl|F"},
		{"COW-026: an earlier label", 6, "r1r2r3rF<1zF", "rlz|F"},
		{"COW-039: a sequence", 6, "sc1r<1zF", "sclz|F"},
		{"unclustered, an earlier label", Unclustered, "r1x2rF<1zF", "rlzF"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var files [][]byte
			for _, batch := range []bool{false, true} {
				opts := WriterOptions{Version: 2, ClusterOps: tc.cluster, NoScratch: true, Batch: batch}
				b := write(t, opts, tc.calls)
				files = append(files, b)
				if got := letters(t, b); got != tc.want {
					t.Errorf("expected %s, found %s", tc.want, got)
				}
				f := (&file{b}).open(t)
				if c := f.Counts(); c.Cluster != strings.Count(tc.want, "|") || c.Label != strings.Count(tc.want, "l") {
					t.Errorf("found %+v", c)
				}
			}
			if !bytes.Equal(files[0], files[1]) {
				t.Error("batches make another file")
			}
		})
	}
}

// Unused slots are zero and skipped by the cluster op, with the data: section
// 4.1, COW-028.
func TestLayoutUnusedSlots(t *testing.T) {
	b := write(t, WriterOptions{Version: 2, ClusterOps: 10, NoScratch: true}, "rrrF")
	cluster := b[38+3*20:][:20]
	if skip := binary.LittleEndian.Uint64(cluster[12:]); OpType(cluster[0]) != OpCluster || skip != 6*20+3*4096 {
		t.Errorf("expected 6 slots and 3 blocks to be skipped, found %d", skip)
	}
	if unused := b[38+4*20 : 38+10*20]; bytes.Count(unused, []byte{0}) != len(unused) {
		t.Errorf("unused slots: % x", unused)
	}
}

// COW-045 to COW-047: a label between the ops changes nothing about their order.
func TestLabelAndMergeOrder(t *testing.T) {
	for _, version := range []int{2, 3} {
		for _, tc := range []struct {
			ops []Op
			ok  bool
		}{
			{[]Op{{Type: OpCopy, NewBlock: 3, Source: 2}, {Type: OpCopy, NewBlock: 2, Source: 1}}, true},
			{[]Op{{Type: OpCopy, NewBlock: 3, Source: 2}, {Type: OpCopy, NewBlock: 2, Source: 1}, {Type: OpCopy, NewBlock: 4, Source: 2}}, false},
		} {
			d := diskFile{newDisk(nil)}
			w, err := NewWriter(d, WriterOptions{Version: version, OpCountMax: 9, NoScratch: true})
			for i, o := range tc.ops {
				err = errors.Join(err, w.Add(o, nil), w.Label(uint64(i)))
			}
			_, err2 := w.Finish()
			if err := errors.Join(err, err2); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(d, int64(len(d.b)), nil); (err == nil) != tc.ok || !tc.ok && !errors.Is(err, ErrMergeOrder) {
				t.Errorf("version %d, %d copies: %v", version, len(tc.ops), err)
			}
		}
	}
}

// COW-101: what only version 3 has reads as zero from a version 2 file.
func TestHeaderOfV2(t *testing.T) {
	b := write(t, WriterOptions{Version: 2, NoScratch: true, NumMergeOps: 1}, "zrF")
	h, err := ReadHeader(bytes.NewReader(b), int64(len(b)))
	want := Header{Major: 2, HeaderSize: 38, FooterSize: 84, OpSize: 20, BlockSize: 4096, ClusterOps: 1024, NumMergeOps: 1}
	if err != nil || h != want {
		t.Errorf("expected %+v, found %+v, %v", want, h, err)
	}
}

// COW-132: more ops than the table has slots, or than the file has bytes.
func TestOpCountIsBounded(t *testing.T) {
	good := write(t, WriterOptions{Version: 3, NoScratch: true, OpCountMax: 4}, "zzF")
	for _, tc := range []struct{ count, capacity uint64 }{{5, 4}, {1 << 40, 1 << 40}, {5, 5}, {1<<64 - 1, 1<<64 - 1}, {3, 4}} {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint64(b[54:], tc.count)
		binary.LittleEndian.PutUint64(b[62:], tc.capacity)
		if _, err := Open(bytes.NewReader(b), int64(len(b)), nil); err == nil {
			t.Errorf("op_count %d of %d in a file of %d bytes was accepted", tc.count, tc.capacity, len(b))
		}
	}
}

// COW-118: a header that has changed is seen by whoever opens the file again.
func TestOpenAgain(t *testing.T) {
	d := diskFile{newDisk(nil)}
	w, err := NewWriter(d, WriterOptions{Version: 3, NoScratch: true, OpCountMax: 4})
	if err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		if _, err := w.Finish(); err != nil {
			t.Fatal(err)
		}
		if f := (&file{d.b}).open(t); f.NumOps() != n || f.Header().OpCount != uint64(n) {
			t.Errorf("expected %d ops, found %d", n, f.NumOps())
		}
		if err := w.Add(Op{Type: OpZero, NewBlock: uint32(n)}, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// What a writer refuses leaves it as it was; a file that is sealed last takes no
// labels, and is no COW before.
func TestWriterRefusals(t *testing.T) {
	for _, o := range []WriterOptions{{Version: 2, ClusterOps: 5}, {Version: 2, ClusterOps: Unclustered}, {Version: 3, OpCountMax: 3}} {
		for _, headerLast := range []bool{false, true} {
			o.NoScratch, o.HeaderLast = true, headerLast
			d := diskFile{newDisk(nil)}
			w, err := NewWriter(d, o)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ReadHeader(d, int64(len(d.b))); headerLast != errors.Is(err, ErrNotCOW) {
				t.Errorf("%+v: header of a new file: %v", o, err)
			}
			bad := func() {
				t.Helper()
				errs := []error{w.Sequence(nil), w.Add(Op{Type: OpLabel}, nil), w.Add(Op{Type: OpReplace}, nil)}
				if headerLast {
					errs = append(errs, w.Label(1))
				}
				if o.ClusterOps == Unclustered {
					errs = append(errs, w.Sequence([]uint32{1}))
				}
				for i, err := range errs {
					if !errors.Is(err, ErrRequest) {
						t.Errorf("%+v, request %d: expected ErrRequest, found %v", o, i, err)
					}
				}
			}
			bad()
			size := w.Size()
			if bad(); w.Size() != size {
				t.Error("a refusal changed the size")
			}
			if err := w.Add(Op{Type: OpZero, NewBlock: 7}, nil); err != nil {
				t.Fatal(err)
			}
			bad()
			if _, err := w.Finish(); err != nil {
				t.Fatal(err)
			}
			if f := (&file{d.b}).open(t); f.NumOps() != 1 {
				t.Errorf("expected 1 op, found %d", f.NumOps())
			}
		}
	}
}

// Section 6.5: one sequence, before everything else.
func TestSequenceV3(t *testing.T) {
	open := func() (diskFile, Writer) {
		d := diskFile{newDisk(nil)}
		w, err := NewWriter(d, WriterOptions{Version: 3, NoScratch: true, OpCountMax: 9})
		if err != nil {
			t.Fatal(err)
		}
		return d, w
	}
	for name, before := range map[string]func(Writer) error{
		"op":       func(w Writer) error { return w.Add(Op{Type: OpZero}, nil) },
		"label":    func(w Writer) error { return w.Label(0) },
		"sequence": func(w Writer) error { return w.Sequence([]uint32{1, 2}) },
	} {
		d, w := open()
		if err := before(w); err != nil {
			t.Fatal(err)
		}
		if err := w.Sequence([]uint32{3}); !errors.Is(err, ErrRequest) {
			t.Errorf("behind a %s: expected ErrRequest, found %v", name, err)
		}
		if _, err := w.Finish(); err != nil {
			t.Fatal(err)
		}
		if int64(len(d.b)) != w.Size().Bytes {
			t.Errorf("behind a %s: %d bytes, expected %d", name, len(d.b), w.Size().Bytes)
		}
	}
	// With a sequence the table's order is free.
	d, w := open()
	err := errors.Join(w.Sequence([]uint32{1}), w.Add(Op{Type: OpZero, NewBlock: 2}, nil), w.Add(Op{Type: OpCopy, NewBlock: 1, Source: 9}, nil))
	if _, err2 := w.Finish(); errors.Join(err, err2) != nil {
		t.Fatal(err, err2)
	}
	if f := (&file{d.b}).open(t); f.OrderedOps() != 1 || f.Op(0).Type != OpZero {
		t.Error("expected the copy to be merged first")
	}
}
