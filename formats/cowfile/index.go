package cowfile

import "fmt"

// A run is a range of consecutive blocks that consecutive ops serve, all of
// the same factor, upwards or (single blocks only) downwards. Real deltas move
// whole files, so that runs are few; 12 bytes each, without pointers, sorted by
// block.
type run struct {
	block uint32 // lowest block
	op    uint32 // lowest op number
	meta  uint32 // ops in the run (28 bits), downwards (1), factor (3)
}

const (
	runOps    = 1<<28 - 1
	runDown   = 1 << 28
	runFactor = 29
)

func (r run) ops() uint32    { return r.meta & runOps }
func (r run) down() bool     { return r.meta&runDown != 0 }
func (r run) factor() uint32 { return r.meta >> runFactor }

// end is the block after the run; it may be 1<<32.
func (r run) end() uint64 { return uint64(r.block) + uint64(r.ops())<<r.factor() }

// opAt returns the op that serves block b of the run.
func (r run) opAt(b uint32) int {
	k := (b - r.block) >> r.factor()
	if r.down() {
		k = r.ops() - 1 - k
	}
	return int(r.op + k)
}

// extend adds the next op in file order to the run, if it continues it.
func (r *run) extend(o Op) bool {
	n := r.ops()
	if n == runOps || uint32(o.Factor) != r.factor() {
		return false
	}
	switch {
	case !r.down() && uint64(o.NewBlock) == r.end():
		r.meta++
	case o.Factor == 0 && (r.down() || n == 1) && uint64(o.NewBlock)+1 == uint64(r.block):
		r.block--
		r.meta = r.meta&^runOps | (n + 1) | runDown
	default:
		return false
	}
	return true
}

// runBuilder puts ops together to runs: first to count them, then into out.
type runBuilder struct {
	cur run
	n   int // runs that have begun
	out []run
}

// add takes the stretch that begins with o, which is op i.
func (b *runBuilder) add(o Op, i int, s stretch) {
	for left := s.ops; left > 0; {
		if b.n == 0 || !b.cur.extend(o) {
			b.finish()
			b.cur = run{block: o.NewBlock, op: uint32(i), meta: 1 | uint32(o.Factor)<<runFactor}
			b.n++
		}
		taken := 1 + b.cur.extendBy(left-1, s.down)
		left -= taken
		i += taken
		if s.down {
			o.NewBlock -= uint32(taken)
		} else {
			o.NewBlock += uint32(taken)
		}
	}
}

// finish ends the last run.
func (b *runBuilder) finish() {
	if b.n > 0 && b.out != nil {
		b.out[b.n-1] = b.cur
	}
}

func (f *File) buildIndex() error {
	var err error
	if f.runs, err = alloc[run](f, f.nRuns); err != nil {
		return err
	}
	b := runBuilder{out: f.runs}
	for i := 0; i < f.n; {
		o, _ := getOp(f.ops[i*opSizeV3:])
		s := f.stretchAt(i)
		b.add(o, i, s)
		i += s.ops
	}
	b.finish()
	sortRuns(f.runs)
	for i := 1; i < len(f.runs); i++ {
		if a, b := f.runs[i-1], f.runs[i]; a.end() > uint64(b.block) {
			return refuse(ErrCorrupt, fmt.Sprintf("block %d", b.block), "one op",
				fmt.Sprintf("op %d and op %d", a.opAt(b.block), b.opAt(b.block)))
		}
	}
	return nil
}

// Runs is the number of runs in the index.
func (f *File) Runs() int { return len(f.runs) }

// Lookup finds the op that serves block b. If there is one, n is the number of
// blocks from b to the end of b's run; they are served by op and its neighbours
// in file order. If there is none, op is −1 and n the number of blocks up to
// the next one that has an op (or up to 2^32).
//
// hint holds the place of the last lookup; a caller that goes through the
// blocks in order keeps one and does not search.
func (f *File) Lookup(hint *int, b uint32) (op int, n uint64) {
	i := f.findRun(*hint, b)
	*hint = max(i, 0)
	if i >= 0 && uint64(b) < f.runs[i].end() {
		return f.runs[i].opAt(b), f.runs[i].end() - uint64(b)
	}
	if i+1 < len(f.runs) {
		return -1, uint64(f.runs[i+1].block) - uint64(b)
	}
	return -1, 1<<32 - uint64(b)
}

// served is the first of the n ops that serve n blocks of a run of single
// blocks, if op serves the lowest of them.
func (r run) served(op int, n uint64) (first uint64) {
	if r.down() {
		return uint64(op) + 1 - n
	}
	return uint64(op)
}

// findRun returns the last run that does not begin after b, or −1.
func (f *File) findRun(hint int, b uint32) int {
	starts := func(i int) bool { return f.runs[i].block <= b }
	for i := hint; i < min(hint+2, len(f.runs)); i++ {
		if starts(i) && (i+1 == len(f.runs) || !starts(i+1)) {
			return i
		}
	}
	lo, hi := 0, len(f.runs)
	for lo < hi {
		if mid := (lo + hi) / 2; starts(mid) {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo - 1
}

// Find returns the op that serves block b, or −1.
func (f *File) Find(b uint32) int {
	hint := 0
	op, _ := f.Lookup(&hint, b)
	return op
}
