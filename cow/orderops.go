package cow

import (
	"container/heap"
	"context"
)

// orderOps finds a merge order for the copied and changed blocks: each must be
// merged before the block that it reads is overwritten by another ordered op.
// (Replaced and zero blocks are merged later anyway.)
//
// Each op reads one block, so that it must precede at most one other op, and
// the cycles are disjoint rings: replacing one block of each is necessary and
// enough. The block replaced is the one that compresses best.
func (b *builder) orderOps(ctx context.Context) error {
	if err := b.breakCycles(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	o := orderer{b: b, waits: make([]uint32, b.n), done: make([]bool, b.n)}
	total := 0
	for i := range b.n {
		if b.kind[i].ordered() {
			total++
			if w, ok := b.successor(i); ok {
				o.waits[w]++
			}
		}
	}
	b.order = make([]uint32, 0, total)
	o.run()
	return nil
}

// successor is the ordered op that overwrites what block i's op reads.
func (b *builder) successor(i int) (int, bool) {
	s := int(b.source[i])
	return s, s < b.n && b.kind[s].ordered()
}

func (b *builder) breakCycles() error {
	const (
		unseen uint8 = iota
		onPath
		finished
	)
	state := make([]uint8, b.n)
	var path []int
	for i := range b.n {
		if !b.kind[i].ordered() || state[i] != unseen {
			continue
		}
		path = path[:0]
		at, more := i, true
		for more && state[at] == unseen {
			state[at] = onPath
			path = append(path, at)
			at, more = b.successor(at)
		}
		if more && state[at] == onPath {
			for path[0] != at {
				state[path[0]] = finished
				path = path[1:]
			}
			if err := b.replaceOne(path); err != nil {
				return err
			}
		}
		for _, p := range path {
			state[p] = finished
		}
	}
	return nil
}

// maxWeighed bounds the blocks of a ring that are compressed to find the
// smallest.
const maxWeighed = 64

func (b *builder) replaceOne(ring []int) error {
	enc, err := b.newEncoder()
	if err != nil {
		return err
	}
	best, bestSize := ring[0], int(^uint(0)>>1)
	buf := make([]byte, blockSize)
	for _, i := range ring[:min(len(ring), maxWeighed)] {
		if _, err := readBlocks(b.o.Target, "target", i, buf); err != nil {
			return err
		}
		stored, _, err := enc.Encode(buf)
		if err != nil {
			return err
		}
		if len(stored) < bestSize || len(stored) == bestSize && i < best {
			best, bestSize = i, len(stored)
		}
	}
	b.kind[best] = fresh
	b.stats.CyclesBroken++
	return nil
}

// orderer sorts ops topologically, in an order that merges well. It sweeps over
// the target, against the direction in which most blocks move, and takes what
// nothing waits for any more: an update that pushes files apart is then merged
// from its end to its beginning, in stretches that are written at once, and a
// stretch of the length of the move is a conflict-free batch. Blocks that move
// the other way are taken by sweeps back. What is left when sweeps do not pay
// any more, small tangles, is taken in runs of neighbours.
type orderer struct {
	b     *builder
	waits []uint32 // by target block: ops that must be merged before
	done  []bool
	ready blockHeap
}

func (o *orderer) run() {
	step := o.direction()
	for o.sweep(step)+o.sweep(-step) >= worthBatching {
	}
	for i := range o.b.n {
		if o.free(i) {
			o.ready = append(o.ready, uint32(i))
		}
	}
	heap.Init(&o.ready)
	for len(o.ready) > 0 {
		start := heap.Pop(&o.ready).(uint32)
		if !o.done[start] {
			o.takeRun(int(start))
		}
	}
}

// direction is that of the first sweep: downwards, −1, if most blocks move up.
func (o *orderer) direction() int {
	up := 0
	for i := range o.b.n {
		switch {
		case !o.b.kind[i].ordered():
		case int(o.b.source[i]) < i:
			up++
		default:
			up--
		}
	}
	if up > 0 {
		return -1
	}
	return 1
}

// sweep goes through all blocks once and takes those that nothing waits for,
// also those that become so on the way. It returns their number.
func (o *orderer) sweep(step int) (taken int) {
	i := 0
	if step < 0 {
		i = o.b.n - 1
	}
	for ; i >= 0 && i < o.b.n; i += step {
		if o.free(i) {
			o.take(i)
			taken++
		}
	}
	return taken
}

// takeRun takes a block and its neighbours above, or else below, as long as
// nothing waits for them.
func (o *orderer) takeRun(start int) {
	step := 1
	if !o.free(start + 1) {
		step = -1
	}
	for i := start; ; i += step {
		o.take(i)
		if s, ok := o.b.successor(i); ok && o.waits[s] == 0 && !o.done[s] {
			heap.Push(&o.ready, uint32(s))
		}
		if step == 1 && i == start && !o.free(i+1) && o.free(i-1) {
			step = -1
		}
		if !o.free(i + step) {
			return
		}
	}
}

func (o *orderer) free(i int) bool {
	return i >= 0 && i < o.b.n && o.b.kind[i].ordered() && !o.done[i] && o.waits[i] == 0
}

func (o *orderer) take(i int) {
	o.b.order = append(o.b.order, uint32(i))
	o.done[i] = true
	if s, ok := o.b.successor(i); ok {
		o.waits[s]--
	}
}

type blockHeap []uint32

func (h blockHeap) Len() int           { return len(h) }
func (h blockHeap) Less(i, j int) bool { return h[i] < h[j] }
func (h blockHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *blockHeap) Push(x any)        { *h = append(*h, x.(uint32)) }
func (h *blockHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}
