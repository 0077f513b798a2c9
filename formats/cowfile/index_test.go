package cowfile

import (
	"bytes"
	"cmp"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestSortRuns(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, n := range []int{0, 1, 2, shortRuns, shortRuns + 1, 1000, 70000} {
		for name, block := range map[string]func(i int) uint32{
			"random":     func(int) uint32 { return r.Uint32() },
			"near":       func(int) uint32 { return r.Uint32N(300) },
			"descending": func(i int) uint32 { return uint32(n - i) },
			"ascending":  func(i int) uint32 { return uint32(i) },
			"two":        func(i int) uint32 { return uint32(i%2) * (1<<32 - 1) },
			"high":       func(int) uint32 { return 1<<31 | r.Uint32N(5000) },
		} {
			got := make([]run, n)
			for i := range got {
				got[i] = run{block(i), uint32(i), 1}
			}
			want := slices.Clone(got)
			sortRuns(got)
			slices.SortFunc(want, func(a, b run) int { return cmp.Compare(a.block, b.block) })
			for i := range got {
				if got[i].block != want[i].block {
					t.Fatalf("%d runs, %s: at %d expected block %d, found %d", n, name, i, want[i].block, got[i].block)
				}
			}
			// None lost, none twice.
			slices.SortFunc(got, func(a, b run) int { return cmp.Compare(a.op, b.op) })
			for i := range got {
				if got[i].op != uint32(i) {
					t.Fatalf("%d runs, %s: op %d is missing", n, name, i)
				}
			}
		}
	}
}

// Stretches are as long as they can be, and end where a number would overflow.
func TestStretchAt(t *testing.T) {
	c := func(block uint32, source uint64) Op { return Op{Type: OpCopy, NewBlock: block, Source: source} }
	x := func(block uint32, offset uint64) Op {
		return Op{Type: OpXor, NewBlock: block, Source: offset, DataLength: 1 + block}
	}
	z := func(block uint32) Op { return Op{Type: OpZero, NewBlock: block} }
	top, last := uint32(1<<32-1), uint64(sourceMask)
	for _, tc := range []struct {
		ops  []Op
		want stretch
	}{
		{[]Op{c(5, 9)}, stretch{1, false}},
		{[]Op{c(5, 9), c(6, 10), c(7, 11), c(9, 12)}, stretch{3, false}},
		{[]Op{c(5, 9), c(4, 8), c(3, 7), c(2, 7)}, stretch{3, true}},
		{[]Op{c(5, 9), c(6, 8)}, stretch{1, false}},
		{[]Op{c(5, 9), c(4, 10)}, stretch{1, false}},
		{[]Op{z(5), z(6), c(7, 0)}, stretch{2, false}},
		{[]Op{z(1), z(0), z(top)}, stretch{2, true}},
		{[]Op{z(top - 1), z(top), z(0)}, stretch{2, false}},
		{[]Op{c(7, last-1), c(8, last), c(9, 0)}, stretch{2, false}},
		{[]Op{c(7, 1), c(6, 0), c(5, last)}, stretch{2, true}},
		{[]Op{x(3, 0), x(4, 0)}, stretch{1, false}},
		{[]Op{x(3, 5), x(4, 4101), x(5, 8197), x(6, 8197)}, stretch{3, false}},
		{[]Op{x(3, 8197), x(2, 4101), x(1, 5), x(0, 1<<48-4091)}, stretch{3, true}},
		{[]Op{x(3, 1<<48-4097), x(4, 1<<48-1), x(5, 4095)}, stretch{2, false}},
		{[]Op{x(3, 4096), c(4, 2)}, stretch{1, false}},
	} {
		f := &File{n: len(tc.ops), ops: make([]byte, opSizeV3*len(tc.ops))}
		for i, o := range tc.ops {
			putOp(f.ops[i*opSizeV3:], o, 0)
		}
		if got := f.stretchAt(0); got != tc.want {
			t.Errorf("%v: expected %+v, found %+v", tc.ops, tc.want, got)
		}
	}
}

// The merge order is judged the same by stretches as op by op.
func TestOrderByStretches(t *testing.T) {
	for _, tc := range []struct {
		name                string
		block, source, n, d int // n ops from block on, by d
		before              int // blocks 0 to before−1 are copied before, from far away
		good                bool
	}{
		{"forwards onto what was read", 10, 15, 50, 1, 0, true},
		{"forwards onto what will be read", 15, 10, 50, 1, 0, false},
		{"just not", 60, 10, 50, 1, 0, true},
		{"by one too many", 59, 10, 50, 1, 0, false},
		{"backwards onto what was read", 115, 110, 50, -1, 0, true},
		{"backwards onto what will be read", 110, 115, 50, -1, 0, false},
		{"onto themselves", 10, 10, 50, 1, 0, true},
		{"from what was overwritten before", 100, 10, 50, 1, 11, false},
		{"from what was not", 100, 11, 50, 1, 11, true},
		{"backwards from what was overwritten before", 200, 60, 50, -1, 12, false},
		{"backwards from what was not", 200, 61, 50, -1, 12, true},
	} {
		var ops []Op
		for i := range tc.before {
			ops = append(ops, Op{Type: OpCopy, NewBlock: uint32(i), Source: uint64(1000 + i)})
		}
		for k := range tc.n {
			ops = append(ops, Op{Type: OpCopy, NewBlock: uint32(tc.block + k*tc.d), Source: uint64(tc.source + k*tc.d)})
		}
		if good := orderIsGood(ops); good != tc.good {
			t.Fatalf("%s: the definition says %v", tc.name, good)
		}
		f := &File{h: Header{Major: 3}, n: len(ops), ops: make([]byte, opSizeV3*len(ops))}
		var runs runBuilder
		for i, o := range ops {
			putOp(f.ops[i*opSizeV3:], o, 0)
			f.count(o, stretch{ops: 1})
			runs.add(o, i, stretch{ops: 1})
		}
		f.nRuns = runs.n
		if err := f.buildIndex(); err != nil {
			t.Fatal(err)
		}
		if err := f.buildOrder(); (err == nil) != tc.good {
			t.Errorf("%s: expected good: %v, found %v", tc.name, tc.good, err)
		} else if err == nil && f.OrderedOps() != len(ops) {
			t.Errorf("%s: expected %d ordered ops, found %d", tc.name, len(ops), f.OrderedOps())
		}
	}
}

// orderIsGood is the definition of section 7.4.
func orderIsGood(ops []Op) bool {
	written := map[uint64]bool{}
	for _, o := range ops {
		if first, last := o.SourceBlocks(); written[first] || written[last] {
			return false
		}
		written[uint64(o.NewBlock)] = true
	}
	return true
}

// Extents that are copied or changed, up and down, with sources at any byte, are
// refused if, and only if, the definition says so; and data are where a plain sum
// of their lengths says.
func TestStretchesAreAsSingleOps(t *testing.T) {
	good := 0
	rapid.Check(t, func(t *rapid.T) {
		var ops []Op
		var sum []int64
		next, pos := 0, int64(0)
		for range rapid.IntRange(1, 6).Draw(t, "extents") {
			n := rapid.IntRange(1, 40).Draw(t, "length")
			from := rapid.IntRange(0, 300).Draw(t, "source")
			shift := rapid.SampledFrom([]int{-1, 0, 0, 1, 2048}).Draw(t, "byte")
			down, xor := rapid.Bool().Draw(t, "down"), rapid.Bool().Draw(t, "xor")
			for k := range n {
				if down {
					k = n - 1 - k
				}
				o := Op{Type: OpCopy, NewBlock: uint32(next + k), Source: uint64(from + k)}
				if xor {
					o.Type, o.Source = OpXor, uint64(max(0, (from+k)*BlockSize+shift))
					o.DataLength, o.Compression = uint32(1+k%7), LZ4
				}
				ops, sum = append(ops, o), append(sum, pos)
				pos += int64(o.DataLength)
			}
			next += n + rapid.IntRange(0, 1).Draw(t, "gap")
		}
		var d file
		w, err := NewWriter(&d, WriterOptions{Version: 3, NoScratch: true, Compression: LZ4, OpCountMax: uint32(len(ops))})
		for _, o := range ops {
			err = errors.Join(err, w.Add(o, make([]byte, o.DataLength)))
		}
		_, finished := w.Finish()
		if err := errors.Join(err, finished); err != nil {
			t.Fatal(err)
		}
		f, err := Open(bytes.NewReader(d.b), int64(len(d.b)), nil)
		if want := orderIsGood(ops); (err == nil) != want {
			t.Fatalf("expected good: %v, found %v", want, err)
		}
		if err != nil {
			return
		}
		good++
		for i, o := range ops {
			if f.Op(i) != o || f.Find(o.NewBlock) != i {
				t.Fatalf("expected op %d to be %v, found %v; by its block %d", i, o, f.Op(i), f.Find(o.NewBlock))
			}
			if o.Type != OpXor {
				continue
			}
			if at, want := f.DataOffset(i, o), f.h.dataOffset()+sum[i]; at != want {
				t.Fatalf("op %d: expected its data at %d, found %d", i, want, at)
			}
		}
		if c := f.Counts(); c.DataBytes != pos || c.Ops() != len(ops) {
			t.Fatalf("expected %d ops with %d bytes, found %+v", len(ops), pos, c)
		}
	})
	if good == 0 {
		t.Error("no file was good")
	}
}

// What can be read at once: see UnitsUp.
func TestUnitsUp(t *testing.T) {
	r := func(block uint32, source uint64, length uint32) Op {
		return Op{Type: OpReplace, NewBlock: block, Source: source, DataLength: length, Compression: LZ4}
	}
	large := r(4, 1100, 50)
	large.Factor = 1
	for _, tc := range []struct {
		name      string
		ops       []Op
		n, most   int
		wantOps   int
		wantBytes int64
	}{
		{"all", []Op{r(3, 1000, 100), r(4, 1100, 50), r(5, 1150, 70)}, 9, 1000, 3, 220},
		{"as many as asked for", []Op{r(3, 1000, 100), r(4, 1100, 50), r(5, 1150, 70)}, 2, 1000, 2, 150},
		{"as much as there is room for", []Op{r(3, 1000, 100), r(4, 1100, 50), r(5, 1150, 70)}, 9, 219, 2, 150},
		{"one, however long", []Op{r(3, 1000, 100), r(4, 1100, 50)}, 9, 10, 1, 100},
		{"a cluster's end between the data", []Op{r(3, 1000, 100), r(4, 1140, 50)}, 9, 1000, 1, 100},
		{"another block", []Op{r(3, 1000, 100), r(5, 1100, 50)}, 9, 1000, 1, 100},
		{"downwards", []Op{r(3, 1000, 100), r(2, 1100, 50)}, 9, 1000, 1, 100},
		{"another size", []Op{r(3, 1000, 100), large}, 9, 1000, 1, 100},
		{"not compressed", []Op{r(3, 1000, 100), r(4, 1100, BlockSize)}, 9, 10000, 1, 100},
		{"zeros", []Op{r(3, 1000, 100), {Type: OpZero, NewBlock: 4}}, 9, 1000, 1, 100},
	} {
		f := &File{h: Header{Major: 3}, comp: LZ4, n: len(tc.ops), ops: make([]byte, opSizeV3*len(tc.ops))}
		for i, o := range tc.ops {
			putOp(f.ops[i*opSizeV3:], o, 0)
		}
		if ops, stored := f.UnitsUp(0, tc.n, tc.most); ops != tc.wantOps || stored != tc.wantBytes {
			t.Errorf("%s: expected %d ops and %d bytes, found %d and %d", tc.name, tc.wantOps, tc.wantBytes, ops, stored)
		}
	}
}
