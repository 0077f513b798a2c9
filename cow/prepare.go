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

// preparer plans the batches of a merge, and reads and decodes their blocks.
type preparer struct {
	s      *Snapshot
	q      *queue
	limits mergeLimits

	it      *cowfile.MergeIter
	peeked  int // op that the iterator has given but no batch has taken, or −1
	planned int // ops in batches, those before the start included

	reads  []uint64 // set of the blocks that ops of the batch read
	delta  []byte   // decoded data of an xor op
	stored []byte   // compressed data

	b   *batch
	cur *load
}

// prepare starts a preparer behind the ops that are merged.
func (s *Snapshot) prepare(limits mergeLimits) (*queue, error) {
	readWords := (int(s.source.Size()/blockSize) + 64) / 64
	q, mem, err := newQueue(max(limits.batch, limits.window), readWords*8+blockSize+s.file.MaxStored())
	if err != nil {
		return nil, err
	}
	p := &preparer{s: s, q: q, limits: limits, it: s.file.Merge(s.merged), peeked: -1, planned: s.merged}
	p.reads, mem = words(mem[:readWords*8]), mem[readWords*8:]
	p.delta, p.stored = mem[:blockSize], mem[blockSize:]
	go func() {
		defer close(q.full)
		q.err = p.run()
	}()
	return q, nil
}

// errQuit is what the merger's leaving looks like to the preparer.
var errQuit = errors.New("the merge has been stopped")

func (p *preparer) run() (err error) {
	defer faultToError(debug.SetPanicOnFault(true), &err)
	for p.planned < p.s.file.NumOps() {
		if err := p.step(); err != nil {
			return err
		}
	}
	return io.EOF
}

// step prepares one batch.
func (p *preparer) step() error {
	select {
	case p.b = <-p.q.lists:
	case <-p.q.quit:
		return errQuit
	}
	work := p.unordered
	if p.planned < p.s.file.OrderedOps() {
		p.plan()
		work = p.ordered
	}
	if err := work(); err != nil {
		return err
	}
	if len(p.b.ops) == 0 {
		return fmt.Errorf("%w: expected %d ops in it, found %d", cowfile.ErrMergeOrder, p.s.file.NumOps(), p.planned)
	}
	p.planned += len(p.b.ops)
	return p.send(true)
}

// next returns the next op of the merge order, if there is one and it is
// ordered or not, as wanted. unget gives it back.
func (p *preparer) next(ordered bool) (int, cowfile.Op, bool) {
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

func (p *preparer) unget(i int) { p.peeked = i }

// plan takes the next ordered ops: a conflict-free batch if one of a decent
// length begins here, else a window for the scratch area.
func (p *preparer) plan() {
	b, limit := p.b, p.limits.batch
	conflict := p.gather(limit)
	window := min(p.limits.window, limit)
	switch {
	case conflict < 0:
	case len(b.ops) < p.limits.worth && window > 0:
		p.extendWindow(conflict, window)
	case len(b.ops) == 0:
		// An op that reads the block that it writes, in a file without a
		// scratch area: not safe against a power cut (see the package's
		// caveats), but the only way.
		b.ops = append(b.ops, batchOp{p.s.file.Op(conflict).NewBlock, uint32(conflict)})
	default:
		p.unget(conflict)
	}
	if !b.window {
		slices.SortFunc(b.ops, func(a, b batchOp) int { return cmp.Compare(a.block, b.block) })
	}
}

// gather fills the batch with up to limit ordered ops of which none writes a
// block that an op of the batch reads. It returns the op that ended the batch
// because it would, or −1.
func (p *preparer) gather(limit int) (conflict int) {
	defer p.forgetReads()
	for len(p.b.ops) < limit {
		i, o, ok := p.next(true)
		if !ok {
			return -1
		}
		first, last := o.SourceBlocks()
		own := uint64(o.NewBlock)
		if p.isRead(own) || first <= own && own <= last {
			return i
		}
		p.setRead(first)
		p.setRead(last)
		p.b.ops = append(p.b.ops, batchOp{o.NewBlock, uint32(i)})
	}
	return -1
}

// A block beyond the source's end is read by nobody.
func (p *preparer) isRead(b uint64) bool {
	return b/64 < uint64(len(p.reads)) && p.reads[b/64]>>(b%64)&1 != 0
}

func (p *preparer) setRead(b uint64) { p.reads[b/64] |= 1 << (b % 64) }

func (p *preparer) forgetReads() {
	for _, b := range p.b.ops {
		first, last := p.s.file.Op(int(b.op)).SourceBlocks()
		p.reads[first/64], p.reads[last/64] = 0, 0
	}
}

// extendWindow makes the batch a window, as long as it can be. What the search
// for a conflict took too much is given back by starting the iterator anew.
func (p *preparer) extendWindow(conflict, capacity int) {
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

// ordered reads the batch's blocks.
func (p *preparer) ordered() error {
	for rest := p.b.ops; len(rest) > 0; {
		n := p.left()
		if !p.b.window { // which is written to one place
			n = consecutive(rest, n)
		}
		n = min(n, len(rest))
		dst, err := p.room(rest[0].block, n)
		if err != nil {
			return err
		}
		if err := p.readOrdered(rest[:n], dst); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

// consecutive counts the ops at the start of ops whose blocks follow each
// other, up to limit.
func consecutive(ops []batchOp, limit int) int {
	n := 1
	for n < min(len(ops), limit) && ops[n].block == ops[n-1].block+1 {
		n++
	}
	return n
}

// readOrdered reads the new contents of ordered ops into dst.
func (p *preparer) readOrdered(ops []batchOp, dst []byte) error {
	f := p.s.file
	err := readStretches(p.s.source, dst, len(ops), func(k int) int64 {
		off, _ := f.Op(int(ops[k].op)).SourceRange()
		return off
	})
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	for k, b := range ops {
		o := f.Op(int(b.op))
		if o.Type != cowfile.OpXor {
			continue
		}
		if err := p.s.decode(int(b.op), o, p.delta, p.stored); err != nil {
			return err
		}
		xorBytes(dst[k*blockSize:(k+1)*blockSize], p.delta)
	}
	return nil
}

// unordered takes the next replace and zero ops and decodes them. They read
// nothing that changes, so that any part of the batch can be done twice.
func (p *preparer) unordered() error {
	for blocks := 0; blocks < p.limits.batch; {
		i, o, ok := p.next(false)
		if !ok {
			return nil
		}
		dst, err := p.room(o.NewBlock, int(o.Blocks()))
		if err != nil {
			return err
		}
		if o.Type == cowfile.OpZero {
			clear(dst)
		} else if err := p.s.decode(i, o, dst, p.stored); err != nil {
			return err
		}
		blocks += int(o.Blocks())
		p.b.ops = append(p.b.ops, batchOp{o.NewBlock, uint32(i)})
	}
	return nil
}

// room returns the place for the next n blocks, at most loadBlocks, from block
// on. The caller fills it before it asks for more.
func (p *preparer) room(block uint32, n int) ([]byte, error) {
	if p.cur != nil && len(p.cur.buf)+n*blockSize > cap(p.cur.buf) {
		if err := p.send(false); err != nil {
			return nil, err
		}
	}
	if err := p.needLoad(); err != nil {
		return nil, err
	}
	l := p.cur
	if r := len(l.runs) - 1; r < 0 || l.runs[r].block+uint32(l.runs[r].bytes/blockSize) != block {
		l.runs = append(l.runs, loadRun{block: block})
	}
	l.runs[len(l.runs)-1].bytes += n * blockSize
	start := len(l.buf)
	l.buf = l.buf[:start+n*blockSize]
	return l.buf[start:], nil
}

// left is the number of blocks that the load under way has room for, or the
// next one if it is full.
func (p *preparer) left() int {
	if p.cur == nil || len(p.cur.buf) == cap(p.cur.buf) {
		return loadBlocks
	}
	return loadBlocks - len(p.cur.buf)/blockSize
}

func (p *preparer) needLoad() error {
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

// send passes the load on to the merger, which has room for all there are.
func (p *preparer) send(last bool) error {
	if err := p.needLoad(); err != nil {
		return err
	}
	p.cur.batch, p.cur.last = p.b, last
	p.q.full <- p.cur
	p.cur = nil
	return nil
}

// readStretches reads n pieces of a block's size into dst, the k-th from at(k).
// Pieces that follow each other on the device, upwards or downwards, are read
// at once: a merge order that goes backwards must not cost a read a block.
func readStretches(d io.ReaderAt, dst []byte, n int, at func(k int) int64) error {
	for k := 0; k < n; {
		start, count, step := at(k), 1, int64(blockSize)
		if k+1 < n && at(k+1) == start-blockSize {
			step = -blockSize
		}
		for k+count < n && at(k+count) == start+int64(count)*step {
			count++
		}
		b := dst[k*blockSize : (k+count)*blockSize]
		if err := readFull(d, b, min(start, start+int64(count-1)*step)); err != nil {
			return err
		}
		if step < 0 {
			reverseBlocks(b)
		}
		k += count
	}
	return nil
}

func reverseBlocks(b []byte) {
	var spare [blockSize]byte
	for i, j := 0, len(b)-blockSize; i < j; i, j = i+blockSize, j-blockSize {
		copy(spare[:], b[i:])
		copy(b[i:i+blockSize], b[j:])
		copy(b[j:], spare[:])
	}
}
