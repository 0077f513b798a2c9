package cow

import (
	"container/heap"
	"context"
	"slices"
)

// orderOps finds a merge order for the copied and changed blocks: each must be
// merged before a block that it reads is overwritten by another ordered op.
// (Replaced and zero blocks are merged later anyway.) Where there is none,
// breakCycles replaces blocks.
func (b *builder) orderOps(ctx context.Context) error {
	if err := b.breakCycles(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	for o := (orderer{b: b, neighbours: 2}); ; o.neighbours *= 2 {
		o.run()
		if o.runs()*opsPerRun <= len(b.order) || o.neighbours > batchBlocks {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// opsPerRun is how many ordered ops there must be for each run of neighbours,
// if waves are to make more of these. A run costs the device 12 bytes for as
// long as the snapshot is mapped; its budget is a byte an op.
const opsPerRun = 14

// successor is an ordered op that overwrites what block i's op reads: the first
// block (slot 0), or the second one (slot 1), which only an xor op at a byte
// offset has. An op may read the block that it writes; that is no successor.
func (b *builder) successor(i, slot int) (int, bool) {
	s := int(b.source[i]) + slot
	return s, s < b.n && s != i && b.kind[s].ordered() && (slot == 0 || b.shift(i) > 0)
}

// shift is how many bytes behind the beginning of its source block a block's op
// reads.
func (b *builder) shift(i int) int {
	if b.shifts == nil || b.kind[i] != changed {
		return 0
	}
	return int(b.shifts[i])
}

// orderer sorts ops topologically, in an order that merges well: in batches
// that can be written at once because none of their ops reads what another one
// writes (plan.go). A wave is a batch of ops for which nothing waits when it
// begins. It prefers those on which the longest chains of moves depend, so that
// the other ones fill up later waves: thousands of files that each move by a few
// blocks are merged together, in about as few batches as their length allows.
//
// What is left when waves get short, and blocks that move by next to nothing,
// are for the scratch area. They are taken by sweeps over the target, also those
// ops that become free on the way, and at last, when those do not pay either, in
// runs of neighbours.
type orderer struct {
	b          *builder
	neighbours int      // that a wave takes at a time, at least
	waits      []uint32 // by target block: ops that must be merged before
	done       []bool
	behind     []uint32 // by target block: see chains
	ready      blockHeap
}

func (o *orderer) run() {
	o.reset()
	o.waves()
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

func (o *orderer) reset() {
	if o.waits == nil {
		o.waits, o.done, o.behind = make([]uint32, o.b.n), make([]bool, o.b.n), o.chains()
	}
	clear(o.waits)
	clear(o.done)
	total := 0
	for i := range o.b.n {
		if o.b.kind[i].ordered() {
			total++
			for slot := range 2 {
				if w, ok := o.b.successor(i, slot); ok {
					o.waits[w]++
				}
			}
		}
	}
	o.b.order = slices.Grow(o.b.order[:0], total)
}

// runs counts those of neighbours in the order, up or down.
func (o *orderer) runs() (n int) {
	step := 0 // of the run under way; 0 while it is a single block
	for k, i := range o.b.order {
		if k > 0 {
			d := int(i) - int(o.b.order[k-1])
			if d == step || step == 0 && (d == 1 || d == -1) {
				step = d
				continue
			}
		}
		n, step = n+1, 0
	}
	return n
}

// waves takes waves until one is too short for a batch.
func (o *orderer) waves() {
	ready := chainHeap{behind: o.behind}
	for i := range o.b.n {
		if o.free(i) {
			ready.blocks = append(ready.blocks, uint32(i))
		}
	}
	heap.Init(&ready)
	// What a wave makes free is for the wave after the next, where there is
	// enough: that one can be written while this one is being committed.
	wave, freed := make([]uint32, 0, batchBlocks), make([]uint32, 0, batchBlocks)
	add := func() {
		for _, i := range freed {
			heap.Push(&ready, i)
		}
		freed = freed[:0]
	}
	for len(ready.blocks)+len(freed) >= worthBatching {
		if len(ready.blocks) < batchBlocks {
			add()
		}
		wave = wave[:0]
		for len(wave) < batchBlocks && len(ready.blocks) > 0 {
			wave = append(wave, heap.Pop(&ready).(uint32))
		}
		add()
		slices.Sort(wave)
		for _, i := range longRuns(wave, o.neighbours) {
			freed = o.take(int(i), freed)
		}
	}
}

// longRuns keeps of a sorted wave what is at least that many neighbours.
func longRuns(wave []uint32, neighbours int) []uint32 {
	kept := wave[:0]
	for start := 0; start < len(wave); {
		end := start + 1
		for end < len(wave) && wave[end] == wave[end-1]+1 {
			end++
		}
		if end-start >= neighbours {
			kept = append(kept, wave[start:end]...)
		}
		start = end
	}
	return kept
}

// chains counts, by target block, the ordered ops that must wait for its op, one
// after the other, at most.
func (o *orderer) chains() []uint32 {
	behind := make([]uint32, o.b.n)
	seen := make([]bool, o.b.n)
	var path []hop
	for i := range o.b.n {
		if !o.b.kind[i].ordered() || seen[i] {
			continue
		}
		seen[i] = true
		path = append(path[:0], hop{block: i})
		for len(path) > 0 {
			top := &path[len(path)-1]
			if top.slot == 2 {
				behind[top.block] = o.chain(top.block, behind)
				path = path[:len(path)-1]
				continue
			}
			s, ok := o.b.successor(top.block, top.slot)
			top.slot++
			if ok && !seen[s] {
				seen[s] = true
				path = append(path, hop{block: s})
			}
		}
	}
	return behind
}

func (o *orderer) chain(i int, behind []uint32) (longest uint32) {
	for slot := range 2 {
		if s, ok := o.b.successor(i, slot); ok {
			longest = max(longest, behind[s]+1)
		}
	}
	return longest
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
			o.take(i, nil)
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
		for _, s := range o.take(i, nil) {
			heap.Push(&o.ready, s)
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

// take appends to freed the ops that this makes free.
func (o *orderer) take(i int, freed []uint32) []uint32 {
	o.b.order = append(o.b.order, uint32(i))
	o.done[i] = true
	for slot := range 2 {
		if s, ok := o.b.successor(i, slot); ok {
			if o.waits[s]--; o.waits[s] == 0 {
				freed = append(freed, uint32(s))
			}
		}
	}
	return freed
}

// chainHeap gives the op with the longest chain behind it first.
type chainHeap struct {
	blocks []uint32
	behind []uint32
}

func (h *chainHeap) Len() int      { return len(h.blocks) }
func (h *chainHeap) Swap(i, j int) { h.blocks[i], h.blocks[j] = h.blocks[j], h.blocks[i] }
func (h *chainHeap) Push(x any)    { h.blocks = append(h.blocks, x.(uint32)) }
func (h *chainHeap) Less(i, j int) bool {
	a, b := h.blocks[i], h.blocks[j]
	if h.behind[a] != h.behind[b] {
		return h.behind[a] > h.behind[b]
	}
	return a < b
}
func (h *chainHeap) Pop() any {
	last := len(h.blocks) - 1
	x := h.blocks[last]
	h.blocks = h.blocks[:last]
	return x
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
