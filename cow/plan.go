package cow

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"

	"cowbird/formats/cowfile"
)

// planner cuts the merge order into batches, and batches into loads.
type planner struct {
	s      *Snapshot
	q      *queue
	limits mergeLimits

	it      *cowfile.MergeIter
	peeked  int      // op that the iterator has given but no batch has taken, or −1
	planned int      // ops in batches, those before the start included
	reads   blockSet // what ops of the batch read
	before  blockSet // what ops of the batch before it read

	b   *batch
	cur *load
	cut int // ops of the batch that are in loads before cur
}

// prepare starts a planner behind the ops that are merged, and the workers that
// read and decode what it has planned.
func (s *Snapshot) prepare(limits mergeLimits, prio Priority) (*queue, error) {
	readWords := (int(s.source.Size()/blockSize) + 64) / 64
	q, err := newQueue(s, max(limits.batch, limits.window), readWords, prio)
	if err != nil {
		return nil, err
	}
	q.pace.most = int64(limits.batch)
	q.pace.limit.Store(q.pace.most)
	p := &planner{s: s, q: q, limits: limits, it: s.file.Merge(s.merged), peeked: -1, planned: s.merged, reads: q.sets[0], before: q.sets[1]}
	go func() {
		defer close(q.full)
		defer close(q.work)
		q.err = p.run()
	}()
	return q, nil
}

// errQuit is what the merger's leaving looks like to the planner.
var errQuit = errors.New("the merge has been stopped")

func (p *planner) run() (err error) {
	defer faultToError(debug.SetPanicOnFault(true), &err)
	for p.planned < p.s.file.NumOps() {
		if err := p.step(); err != nil {
			return err
		}
	}
	return io.EOF
}

// step plans one batch.
func (p *planner) step() error {
	select {
	case p.b = <-p.q.lists:
		p.cut = 0
	case <-p.q.quit:
		return errQuit
	}
	work := p.unordered
	if p.planned < p.s.file.OrderedOps() {
		p.choose()
		work = p.ordered
	}
	err := work()
	p.reads, p.before = p.before, p.reads
	p.reads.clear()
	if err != nil {
		return err
	}
	if len(p.b.ops) == 0 {
		return fmt.Errorf("%w: expected %d ops in it, found %d", cowfile.ErrMergeOrder, p.s.file.NumOps(), p.planned)
	}
	p.planned += len(p.b.ops)
	return p.send(len(p.b.ops), true)
}

// next returns the next op of the merge order, if there is one and it is
// ordered or not, as wanted. unget gives it back.
func (p *planner) next(ordered bool) (int, cowfile.Op, bool) {
	i := p.peeked
	if i < 0 {
		var ok bool
		if i, ok = p.it.Next(); !ok {
			return 0, cowfile.Op{}, false
		}
	}
	p.peeked = -1
	o := p.s.file.Op(i)
	if o.Type.Ordered() != ordered {
		p.peeked = i
		return 0, o, false
	}
	return i, o, true
}

func (p *planner) unget(i int) { p.peeked = i }

// choose takes the next ordered ops: a conflict-free batch if one of a decent
// length begins here, else a window for the scratch area.
func (p *planner) choose() {
	b, limit := p.b, int(p.q.pace.limit.Load())
	conflict := p.gather(limit)
	window := min(p.limits.window, limit)
	switch {
	case conflict < 0:
	case len(b.ops) < p.limits.worth && window > 0:
		p.extendWindow(conflict, window)
	case len(b.ops) == 0:
		// An op that reads the block that it writes, in a file without a
		// scratch area: see journal.go.
		b.ops = append(b.ops, batchOp{p.s.file.Op(conflict).NewBlock, uint32(conflict)})
		b.window = true
	default:
		p.unget(conflict)
	}
	if b.window {
		p.reads.clear() // it is committed before anything else is written
	} else {
		slices.SortFunc(b.ops, func(a, b batchOp) int { return cmp.Compare(a.block, b.block) })
	}
}

// gather fills the batch with up to limit ordered ops of which none writes a
// block that an op of the batch reads. It returns the op that ended the batch
// because it would, or −1.
func (p *planner) gather(limit int) (conflict int) {
	for len(p.b.ops) < limit {
		i, o, ok := p.next(true)
		if !ok {
			return -1
		}
		first, last := o.SourceBlocks()
		own := uint64(o.NewBlock)
		if p.reads.has(own) || first <= own && own <= last {
			return i
		}
		p.reads.add(first, last)
		p.b.ops = append(p.b.ops, batchOp{o.NewBlock, uint32(i)})
	}
	return -1
}

// blockSet is a set of blocks of the source.
type blockSet struct {
	words  []uint64 // a bit a block
	lo, hi int      // the words from lo on and before hi may have bits
}

// has: a block beyond the source's end is in no set.
func (s *blockSet) has(b uint64) bool {
	return b/64 < uint64(len(s.words)) && s.words[b/64]>>(b%64)&1 != 0
}

// hasAny tells whether one of n blocks from b on is in the set.
func (s *blockSet) hasAny(b uint64, n int) bool {
	for end := b + uint64(n); b < end && s.hi > 0; b++ {
		if s.has(b) {
			return true
		}
	}
	return false
}

// add adds two blocks, of which the first one is not behind the other.
func (s *blockSet) add(first, last uint64) {
	s.words[first/64] |= 1 << (first % 64)
	s.words[last/64] |= 1 << (last % 64)
	if s.hi == 0 {
		s.lo = int(first / 64)
	}
	s.lo, s.hi = min(s.lo, int(first/64)), max(s.hi, int(last/64)+1)
}

func (s *blockSet) clear() {
	clear(s.words[s.lo:s.hi])
	s.lo, s.hi = 0, 0
}

// extendWindow makes the batch a window, as long as it can be. What the search
// for a conflict took too much is given back by starting the iterator anew.
func (p *planner) extendWindow(conflict, capacity int) {
	b := p.b
	b.window = true
	if len(b.ops) >= capacity {
		b.ops = b.ops[:capacity]
		p.it, p.peeked = p.s.file.Merge(p.planned+capacity), -1
		return
	}
	p.unget(conflict)
	for len(b.ops) < capacity {
		i, o, ok := p.next(true)
		if !ok {
			return
		}
		b.ops = append(b.ops, batchOp{o.NewBlock, uint32(i)})
	}
}

// ordered cuts a batch that is complete into loads.
func (p *planner) ordered() error {
	for k, b := range p.b.ops {
		if err := p.add(k, b.block, 1, false); err != nil {
			return err
		}
	}
	return nil
}

// unordered takes the next replace and zero ops. They read nothing that
// changes, so that any part of the batch can be done twice.
func (p *planner) unordered() error {
	limit := int(p.q.pace.limit.Load())
	for blocks := 0; blocks < limit; {
		i, o, ok := p.next(false)
		if !ok {
			return nil
		}
		n := int(o.Blocks())
		if err := p.add(len(p.b.ops), o.NewBlock, n, o.Type == cowfile.OpZero); err != nil {
			return err
		}
		blocks += n
		p.b.ops = append(p.b.ops, batchOp{o.NewBlock, uint32(i)})
	}
	return nil
}

// add puts the k-th op of the batch, of at most loadBlocks blocks, into the
// load under way or the next one.
func (p *planner) add(k int, block uint32, blocks int, zero bool) error {
	if p.cur != nil && !zero && len(p.cur.buf)+blocks*blockSize > cap(p.cur.buf) {
		if err := p.send(k, false); err != nil {
			return err
		}
	}
	if err := p.needLoad(); err != nil {
		return err
	}
	l := p.cur
	l.overwrites = l.overwrites || p.before.hasAny(uint64(block), blocks)
	if r := len(l.runs) - 1; r < 0 || l.runs[r].block+uint32(l.runs[r].bytes/blockSize) != block || l.runs[r].zero != zero {
		l.runs = append(l.runs, loadRun{block: block, zero: zero})
	}
	l.runs[len(l.runs)-1].bytes += blocks * blockSize
	if !zero {
		l.buf = l.buf[:len(l.buf)+blocks*blockSize]
	}
	return nil
}

func (p *planner) needLoad() error {
	if p.cur != nil {
		return nil
	}
	select {
	case p.cur = <-p.q.free:
		return nil
	case <-p.q.quit:
		return errQuit
	}
}

// send passes the load on, which ends before that op of the batch: first to the
// merger, which sees loads in this order, and then to whichever filler is free.
// Both channels have room for all loads.
func (p *planner) send(end int, last bool) error {
	if err := p.needLoad(); err != nil {
		return err
	}
	l := p.cur
	l.ops, l.batch, l.last = p.b.ops[p.cut:end], p.b, last
	p.cur, p.cut = nil, end
	p.q.full <- l
	p.q.work <- l
	return nil
}
