package cow

import (
	"context"
	"testing"

	"pgregory.net/rapid"

	"cowbird/formats/cowfile"
)

// However blocks move, each op is in the order once, and before the one that
// overwrites what it reads; and there are not more runs than pay.
func TestOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := &builder{n: rapid.IntRange(1, 1500).Draw(t, "blocks")}
		b.kind, b.source = make([]kind, b.n), make([]uint32, b.n)
		up := rapid.Bool().Draw(t, "up") // one way, so that there are no rings
		for at := 0; at < b.n; {
			n := min(rapid.IntRange(1, 300).Draw(t, "extent"), b.n-at)
			by := rapid.IntRange(1, 400).Draw(t, "by")
			k := rapid.SampledFrom([]kind{same, zero, fresh, copied, changed}).Draw(t, "kind")
			alike := rapid.Bool().Draw(t, "all from one block")
			for i := at; i < at+n; i++ {
				from := i + by
				switch {
				case alike && up:
					from = at + n + by
				case alike:
					from = at - by
				case !up:
					from = i - by
				}
				if b.kind[i] = k; k.ordered() && from < 0 {
					b.kind[i] = fresh
				}
				b.source[i] = uint32(max(0, from)) // may be behind the end
			}
			at += n
		}
		if err := b.orderOps(context.Background()); err != nil {
			t.Fatal(err)
		}
		checkOrder(t, b)
	})
}

func checkOrder(t rapid.TB, b *builder) {
	t.Helper()
	place := make([]int, b.n)
	for k, i := range b.order {
		if place[i] > 0 || !b.kind[i].ordered() {
			t.Fatalf("block %d, of kind %d, is in the order at %d and %d", i, b.kind[i], place[i]-1, k)
		}
		place[i] = k + 1
	}
	for i := range b.n {
		if b.kind[i].ordered() && place[i] == 0 {
			t.Fatalf("block %d is not in the order", i)
		}
		for slot := range 2 {
			if s, ok := b.successor(i, slot); ok && b.kind[i].ordered() && place[i] >= place[s] {
				t.Fatalf("block %d is merged at %d, after block %d at %d, which it reads", i, place[i], s, place[s])
			}
		}
	}
}

// moved is a builder whose target has extents of n blocks, each moved down by
// the same number of blocks.
func moved(extents, n, by int) *builder {
	b := &builder{n: extents * (n + by)}
	b.kind, b.source = make([]kind, b.n), make([]uint32, b.n)
	for e := range extents {
		for i := e * (n + by); i < e*(n+by)+n; i++ {
			b.kind[i], b.source[i] = copied, uint32(i+by)
		}
	}
	return b
}

// Files that all move by less than their length are merged side by side: in
// few batches, with no scratch area, while neighbours are enough for the index.
func TestOrderMakesWaves(t *testing.T) {
	for _, tc := range []struct {
		extents, n, by int
		batches        int // conflict-free ones, as the planner cuts them
	}{
		{200, 256, 32, 13},  // 51200 blocks, chains of 8: 12.5 batches
		{40, 512, 64, 9},    // 20480 blocks, chains of 8, of which each is a batch
		{400, 100, 100, 10}, // no overlaps
	} {
		b := moved(tc.extents, tc.n, tc.by)
		if err := b.orderOps(context.Background()); err != nil {
			t.Fatal(err)
		}
		checkOrder(t, b)
		batches := 1
		reads, ops := map[uint32]bool{}, 0
		for _, i := range b.order {
			if ops == batchBlocks || reads[i] {
				batches++
				ops = 0
				clear(reads)
			}
			reads[b.source[i]] = true
			ops++
		}
		if batches > tc.batches {
			t.Errorf("%+v: expected at most %d batches, found %d", tc, tc.batches, batches)
		}
		o := orderer{b: b}
		if n := o.runs(); n*opsPerRun > len(b.order) {
			t.Errorf("%+v: expected at most a run for %d ops, found %d for %d", tc, opsPerRun, n, len(b.order))
		}
	}
}

// runs counts as the index does.
func TestRunsOfOrder(t *testing.T) {
	for _, order := range [][]uint32{
		{}, {7}, {1, 2, 3}, {3, 2, 1}, {5, 6, 9, 8, 7}, {1, 3, 5}, {4, 5, 3, 2, 1, 7, 6, 8},
	} {
		o := orderer{b: &builder{order: order}}
		if n, want := o.runs(), indexRuns(t, order); n != want {
			t.Errorf("%v: expected %d runs, found %d", order, want, n)
		}
	}
}

func indexRuns(t *testing.T, order []uint32) int {
	t.Helper()
	mem := &growMem{}
	w, err := cowfile.NewWriter(cowfile.WriteOnly(mem), cowfile.WriterOptions{Version: 3, NoScratch: true, OpCountMax: 100})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range order {
		if err := w.Add(cowfile.Op{Type: cowfile.OpCopy, NewBlock: i, Source: uint64(i) + 100}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	s, err := Open(Options{Cow: newMem(mem.b), Base: newMem(make([]byte, 200*blockSize))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	return s.file.Runs()
}
