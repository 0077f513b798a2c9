package cow

import (
	"context"
	"slices"

	"cowbird/formats/cowfile"
)

// Effort is how hard Build looks for bytes that it need not store.
type Effort uint8

const (
	// EffortDefault looks for a source of each new block at every byte of the
	// files that it is kin to, and then of the whole base.
	EffortDefault Effort = iota
	// EffortFast compares whole blocks: copies, and xor with the block that lies
	// between the sources of a block's copied neighbours.
	EffortFast
	// EffortMax tries more of what EffortDefault finds.
	EffortMax
)

// tries are how many sources of a block are compared, and of those how many are
// compressed.
func (e Effort) tries() (compared, compressed int) {
	if e == EffortMax {
		return 48, 8
	}
	return 12, 3
}

// An index of a part of the base has at most this many anchors, and so has that
// of all of it.
const (
	kinAnchors  = 1 << 19
	baseAnchors = 1 << 20
	// largeKin is the size from which on a file is searched by all workers.
	largeKin = 1 << 20
)

// findDeltas turns fresh blocks into changed ones where an xor op is worth it. It
// keeps what it learns of each block, until the end of the build: what it takes
// as a part of a unit, and as a delta.
//
// A block that lies between copied blocks probably is a new version of what lies
// between their sources (predictions). Blocks of kin are looked for in the kin,
// and what is left in the whole base, by their anchors (anchors.go): contents
// that both have name a distance, at any byte, and the distances named most are
// tried. At last settle decides for whole units.
func (b *builder) findDeltas(ctx context.Context) error {
	if b.o.NoXor || b.o.Compression == cowfile.None {
		b.progress.add(b.deltaWork())
		return nil
	}
	if b.o.Effort == EffortFast {
		return b.findAligned(ctx)
	}
	b.own, b.delta, b.shifts = make([]uint16, b.n), make([]uint16, b.n), make([]uint16, b.n)
	runs := b.freshRuns()
	for _, stage := range []func(context.Context, []run) error{b.weighFresh, b.tryPredictions, b.tryKin, b.tryBase, b.settle} {
		if err := stage(ctx, runs); err != nil {
			return err
		}
		b.progress.add(b.deltaWork() / 5)
	}
	return nil
}

// saved is what the op of a changed block saves, about.
func (b *builder) saved(i int) int {
	if b.own == nil {
		return blockSize / 2
	}
	return max(1, int(b.own[i])-int(b.delta[i]))
}

// run is some consecutive blocks.
type run struct{ first, n uint32 }

// freshRuns are the fresh blocks, cut where units are cut.
func (b *builder) freshRuns() (runs []run) {
	unit := b.o.MaxUnit / blockSize
	for i := 0; i < b.n; i++ {
		start := i
		for i < b.n && b.kind[i] == fresh && i-start < unit {
			i++
		}
		if i > start {
			runs = append(runs, run{uint32(start), uint32(i - start)})
			i--
		}
	}
	return runs
}

// weighFresh finds what each fresh block takes: of what its unit takes, the share
// that it has by itself.
func (b *builder) weighFresh(ctx context.Context, runs []run) error {
	return b.inGroups(ctx, len(runs), 16, func(t *trier, k int) error { return t.weigh(runs[k]) })
}

// inGroups calls do for 0 to n-1, on workers, a group at a time.
func (b *builder) inGroups(ctx context.Context, n, group int, do func(t *trier, k int) error) error {
	return inOrder(ctx, b.o.Workers, (n+group-1)/group, func() func(int) error {
		t := newTrier(b)
		return func(g int) error {
			for k := g * group; k < min(n, (g+1)*group); k++ {
				if err := do(t, k); err != nil {
					return err
				}
			}
			return nil
		}
	})
}

// tryPredictions tries what the neighbours say, and the block's own place.
func (b *builder) tryPredictions(ctx context.Context, _ []run) error {
	all := b.predictions()
	return b.inGroups(ctx, len(all), 64, func(t *trier, k int) error {
		p := all[k]
		t.places = append(t.places[:0], int64(p.block)*blockSize)
		for _, s := range p.sources {
			if s >= 0 {
				t.places = append(t.places, s*blockSize)
			}
		}
		return t.try(p.block)
	})
}

// kinBlocks are the fresh blocks of each of the kin. A block that several have
// is the first one's.
func (b *builder) kinBlocks() [][]uint32 {
	all, claimed := make([][]uint32, len(b.o.Kin)), make([]uint64, b.n/64+1)
	for k, kin := range b.o.Kin {
		for _, r := range kin.Target {
			if r.Offset < 0 || r.Length <= 0 || r.Offset >= int64(b.n)*blockSize {
				continue
			}
			end := min((r.Offset+min(r.Length, maxSize)+blockSize-1)/blockSize, int64(b.n))
			for i := r.Offset / blockSize; i < end; i++ {
				if b.kind[i] == fresh && claimed[i/64]>>(i%64)&1 == 0 {
					claimed[i/64] |= 1 << (i % 64)
					all[k] = append(all[k], uint32(i))
				}
			}
		}
	}
	return all
}

// tryKin looks for the blocks of kin in the kin: large ones with all workers,
// small ones each with one.
func (b *builder) tryKin(ctx context.Context, _ []run) error {
	blocks := b.kinBlocks()
	var small []int
	for k, kin := range b.o.Kin {
		size := total(kin.Base)
		switch {
		case len(blocks[k]) == 0 || size == 0:
		case size < largeKin:
			small = append(small, k)
		default:
			x := newIndex(size, kinAnchors)
			if err := x.addAll(b.o.Base, kin.Base); err != nil {
				return err
			}
			if err := b.tryBlocks(ctx, x, blocks[k]); err != nil {
				return err
			}
		}
	}
	return b.inGroups(ctx, len(small), 1, func(t *trier, k int) error {
		kin := small[k]
		x := newIndex(total(b.o.Kin[kin].Base), kinAnchors)
		if err := x.addAll(b.o.Base, b.o.Kin[kin].Base); err != nil {
			return err
		}
		return t.search(x, blocks[kin])
	})
}

// tryBase looks for what is still fresh in all of the base.
func (b *builder) tryBase(ctx context.Context, _ []run) error {
	var blocks []uint32
	for i, k := range b.kind {
		if k == fresh {
			blocks = append(blocks, uint32(i))
		}
	}
	if len(blocks) == 0 {
		return nil
	}
	all := []Range{{0, int64(b.o.Base.blocks()) * blockSize}}
	x := newIndex(total(all), baseAnchors)
	if err := x.addAll(b.o.Base, all); err != nil {
		return err
	}
	return b.tryBlocks(ctx, x, blocks)
}

// searched is how many blocks are searched for with the distance of each tried
// for the next.
const searched = 64

func (b *builder) tryBlocks(ctx context.Context, x *index, blocks []uint32) error {
	parts := slices.Collect(slices.Chunk(blocks, searched))
	return b.inGroups(ctx, len(parts), 1, func(t *trier, k int) error { return t.search(x, parts[k]) })
}

// settle decides for each run of blocks that were fresh whether what has been
// found for it takes less than the whole of it compressed together: deltas tear
// a unit apart.
func (b *builder) settle(ctx context.Context, runs []run) error {
	return b.inGroups(ctx, len(runs), 16, func(t *trier, k int) error { return t.settle(runs[k]) })
}

// prediction is a fresh block and up to two base blocks that it may resemble.
type prediction struct {
	block   uint32
	sources [2]int64 // −1: none
}

func (b *builder) predictions() []prediction {
	var all []prediction
	distance, known := int64(0), false
	for i, k := range b.kind {
		switch k {
		case copied:
			distance, known = int64(b.source[i])-int64(i), true
		case same, zero:
			known = false
		case fresh:
			p := prediction{uint32(i), [2]int64{-1, -1}}
			if known {
				p.sources[0] = int64(i) + distance
			}
			all = append(all, p)
		}
	}
	known = false
	n := len(all)
	for i := b.n - 1; i >= 0; i-- {
		switch b.kind[i] {
		case copied:
			distance, known = int64(b.source[i])-int64(i), true
		case same, zero:
			known = false
		case fresh:
			n--
			if known {
				all[n].sources[1] = int64(i) + distance
			}
		}
	}
	return all
}
