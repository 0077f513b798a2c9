package cow

import (
	"cmp"
	"context"
	"fmt"
	"runtime/debug"
	"slices"

	"cowbird/formats/cowfile"

	"golang.org/x/sys/unix"
)

// MergeOptions tune a merge.
type MergeOptions struct {
	// Rate limits the merge to so many bytes a second; 0 means no limit.
	Rate int64
	// OnProgress is called after each batch, from the merging goroutine.
	OnProgress func(Progress)

	limits mergeLimits // for tests; zero means the defaults
}

// mergeLimits shape the batches.
type mergeLimits struct {
	batch  int // blocks between two commits
	window int // blocks of the scratch area that are used
	worth  int // length from which a conflict-free batch beats a window
}

func (l *mergeLimits) complete(capacity int) {
	l.batch = cmp.Or(l.batch, batchBlocks)
	l.worth = cmp.Or(l.worth, worthBatching)
	l.window = min(cmp.Or(l.window, capacity), capacity)
}

// MergeStats tell what one call of Merge did.
type MergeStats struct {
	BlocksWritten  int64 `json:"blocks_written"`  // to the base, 4096 bytes each
	ScratchWritten int64 `json:"scratch_written"` // blocks that went through the scratch area
	Batches        int64 `json:"batches"`         // commits without the scratch area
	Windows        int64 `json:"windows"`         // commits through the scratch area
	Syncs          int64 `json:"syncs"`           // of base and COW together
}

const (
	bufferBlocks = 128  // blocks read or decoded before they are written: 512 KiB
	buffers      = 3    // one being filled, one being written, one between
	batchBlocks  = 8192 // blocks between two commits: 32 MiB

	// worthBatching is the length from which a conflict-free batch (one
	// write a block, two syncs) beats a window of the scratch area (two
	// writes a block, four syncs, 510 blocks).
	worthBatching = 255
)

// Merge writes the target into the base until every op is merged. Reads go on
// meanwhile and stay right. Progress is in the COW's header, so that a merge
// that was stopped, by whatever, is taken up by the next call or by another
// program. When ctx is cancelled, the running batch is finished and committed,
// and the error is ctx.Err(). Any other error leaves the snapshot serving; the
// next call tries again from the last commit.
func (s *Snapshot) Merge(ctx context.Context, o MergeOptions) (MergeStats, error) {
	if !s.merge.begin() {
		return MergeStats{}, ErrMerging
	}
	h := s.file.Header()
	o.limits.complete(h.Scratch().Capacity)
	m := &merger{s: s, o: o, throttle: throttle{rate: o.Rate}}
	err := m.run(ctx)
	s.merge.end(err)
	return m.stats, err
}

// merger is one run of a merge.
type merger struct {
	s        *Snapshot
	o        MergeOptions
	throttle throttle
	stats    MergeStats

	it     *cowfile.MergeIter
	peeked int // op that the iterator has given but no batch has taken, or −1

	mem    []byte     // one mapping for all of the following
	batch  []batchOp  // never longer than its capacity
	free   chan *load // those that hold nothing
	delta  []byte     // decoded data of an xor op
	stored []byte     // compressed data
	reads  []uint64   // blocks that ops of the batch read
}

// batchOp is an op and its first block.
type batchOp struct {
	block uint32
	op    uint32
}

func (m *merger) run(ctx context.Context) (err error) {
	s := m.s
	if s.complete {
		return nil
	}
	defer faultToError(debug.SetPanicOnFault(true), &err)
	if err := m.setUp(); err != nil {
		return err
	}
	defer m.tearDown()
	if s.window != nil {
		if err := m.finishWindow(); err != nil {
			return err
		}
	}
	m.it, m.peeked = s.file.Merge(s.merged), -1
	for !s.complete {
		if err := s.merge.proceed(ctx); err != nil {
			return err
		}
		if err := m.step(ctx); err != nil {
			return err
		}
		if m.o.OnProgress != nil {
			m.o.OnProgress(s.Progress())
		}
	}
	return nil
}

// step merges one batch.
func (m *merger) step(ctx context.Context) error {
	if m.s.merged >= m.s.file.OrderedOps() {
		return m.mergeUnordered(ctx)
	}
	return m.mergeOrdered(ctx)
}

func (m *merger) setUp() error {
	s := m.s
	if s.base.Size() < s.size {
		g, ok := s.base.(Growing)
		if !ok {
			return fmt.Errorf("%w: expected a base of at least %d bytes, found %d", ErrSize, s.size, s.base.Size())
		}
		// Durable before the first commit, by that commit's sync.
		if err := s.grow(g); err != nil {
			return err
		}
	}
	readWords := (int(s.source.Size()/blockSize) + 64) / 64
	bufferSize := bufferBlocks*blockSize + s.file.MaxUnit()
	batchOps := max(m.o.limits.batch, m.o.limits.window, len(s.window))
	var err error
	if m.mem, err = mapAnonymous((readWords+batchOps)*8 + buffers*bufferSize + blockSize + s.file.MaxStored()); err != nil {
		return err
	}
	rest := m.mem
	cut := func(n int) []byte { b := rest[:n:n]; rest = rest[n:]; return b }
	m.reads = words(cut(readWords * 8))
	m.batch = batchOpsIn(cut(batchOps * 8))
	m.free = make(chan *load, buffers)
	for range buffers {
		m.free <- &load{buf: cut(bufferSize)[:0]}
	}
	m.delta, m.stored = cut(blockSize), rest
	return nil
}

func (m *merger) tearDown() { _ = unix.Munmap(m.mem) }

// grow lengthens the base while no request reads it.
func (s *Snapshot) grow(g Growing) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := g.Grow(s.size); err != nil {
		return fmt.Errorf("grow the base: %w", err)
	}
	return nil
}

// next returns the next op of the merge order, if there is one and it is
// ordered or not, as wanted. unget gives it back.
func (m *merger) next(ordered bool) (int, cowfile.Op, bool) {
	i := m.peeked
	if i < 0 {
		var ok bool
		if i, ok = m.it.Next(); !ok {
			return 0, cowfile.Op{}, false
		}
	}
	m.peeked = -1
	o := m.s.file.Op(i)
	if o.Type.Ordered() != ordered {
		m.peeked = i
		return 0, o, false
	}
	return i, o, true
}

func (m *merger) unget(i int) { m.peeked = i }

// mergeOrdered merges the next ordered ops: in a conflict-free batch if one of
// a decent length begins here, else through the scratch area.
func (m *merger) mergeOrdered(ctx context.Context) error {
	limit := m.throttle.limit(m.o.limits.batch)
	conflict := m.gather(limit)
	window := min(m.o.limits.window, limit)
	if conflict < 0 || len(m.batch) >= m.o.limits.worth || window == 0 {
		if conflict >= 0 {
			m.unget(conflict)
		}
		if len(m.batch) == 0 {
			return m.mergeOntoItself(ctx)
		}
		return m.mergeBatch(ctx)
	}
	return m.mergeWindow(ctx, conflict, window)
}

// gather fills the batch with up to limit ordered ops of which none writes a
// block that an op of the batch reads. It returns the op that ended the batch
// because it would, or −1.
func (m *merger) gather(limit int) (conflict int) {
	m.forgetReads()
	m.batch = m.batch[:0]
	for len(m.batch) < limit {
		i, o, ok := m.next(true)
		if !ok {
			return -1
		}
		first, last := o.SourceBlocks()
		own := uint64(o.NewBlock)
		if m.isRead(own) || first <= own && own <= last {
			return i
		}
		m.setRead(first)
		m.setRead(last)
		m.batch = append(m.batch, batchOp{o.NewBlock, uint32(i)})
	}
	return -1
}

// A block beyond the source's end is read by nobody.
func (m *merger) isRead(b uint64) bool {
	return b/64 < uint64(len(m.reads)) && m.reads[b/64]>>(b%64)&1 != 0
}

func (m *merger) setRead(b uint64) { m.reads[b/64] |= 1 << (b % 64) }

func (m *merger) forgetReads() {
	for _, b := range m.batch {
		first, last := m.s.file.Op(int(b.op)).SourceBlocks()
		m.reads[first/64], m.reads[last/64] = 0, 0
	}
}

// mergeBatch merges a conflict-free batch. Until its commit the ops read
// intact sources, however often it is begun.
func (m *merger) mergeBatch(ctx context.Context) error {
	n := len(m.batch)
	slices.SortFunc(m.batch, func(a, b batchOp) int { return cmp.Compare(a.block, b.block) })
	err := m.transfer(ctx, func(c *carriage) error {
		for rest := m.batch; len(rest) > 0; {
			k := consecutive(rest, c.left())
			if err := m.readOrdered(rest[:k], c.room(rest[0].block, k)); err != nil {
				return err
			}
			rest = rest[k:]
		}
		return nil
	})
	if err != nil {
		return err
	}
	m.stats.Batches++
	return m.commit(n)
}

// mergeOntoItself merges one op that reads the block that it writes, in a file
// without a scratch area: not safe against a power cut (see the package's
// caveats), but the only way.
func (m *merger) mergeOntoItself(ctx context.Context) error {
	i, o, _ := m.next(true)
	m.batch = append(m.batch, batchOp{o.NewBlock, uint32(i)})
	return m.mergeBatch(ctx)
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
func (m *merger) readOrdered(ops []batchOp, dst []byte) error {
	s := m.s
	err := readStretches(s.source, dst, len(ops), func(k int) int64 {
		off, _ := s.file.Op(int(ops[k].op)).SourceRange()
		return off
	})
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	return m.applyXor(ops, dst)
}

func (m *merger) applyXor(ops []batchOp, dst []byte) error {
	s := m.s
	for k, b := range ops {
		o := s.file.Op(int(b.op))
		if o.Type != cowfile.OpXor {
			continue
		}
		if err := s.decode(int(b.op), o, m.delta, m.stored); err != nil {
			return err
		}
		xorBytes(dst[k*blockSize:(k+1)*blockSize], m.delta)
	}
	return nil
}

// commit makes the blocks of the batch's n ops durable, then records it, then
// lets readers know. Only afterwards may anything overwrite what the ops read.
func (m *merger) commit(n int) error {
	s := m.s
	if err := m.sync(s.base, "base"); err != nil {
		return err
	}
	merged := s.merged + n
	if err := m.record(merged, cowfile.StateMerging); err != nil {
		return err
	}
	blocks := int64(0)
	for _, b := range m.batch[:n] {
		blocks += int64(s.file.Op(int(b.op)).Blocks())
	}
	s.bytes.written.Add(blocks * blockSize)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range m.batch[:n] {
		s.markMerged(int(b.op))
	}
	s.merged = merged
	s.window = nil
	s.complete = merged == s.file.NumOps()
	return nil
}

// record writes the progress and the merge state in one write to the first
// sector of the COW, and makes it durable.
func (m *merger) record(merged int, state cowfile.State) error {
	h := m.s.file.Header()
	b, off := h.AppendProgress(nil, uint64(merged), state)
	if _, err := m.s.cow.WriteAt(b, off); err != nil {
		return fmt.Errorf("write merge progress: %w", err)
	}
	return m.sync(m.s.cow, "COW")
}

func (m *merger) sync(d Device, name string) error {
	m.stats.Syncs++
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync the %s: %w", name, err)
	}
	return nil
}

// mergeUnordered merges the next replace and zero ops. They read nothing that
// changes, so that any part of the batch can be done twice.
func (m *merger) mergeUnordered(ctx context.Context) error {
	m.batch = m.batch[:0]
	err := m.transfer(ctx, func(c *carriage) error {
		limit := m.throttle.limit(m.o.limits.batch)
		for blocks := 0; blocks < limit; {
			i, o, ok := m.next(false)
			if !ok {
				break
			}
			if err := m.readUnordered(i, o, c.room(o.NewBlock, int(o.Blocks()))); err != nil {
				return err
			}
			blocks += int(o.Blocks())
			m.batch = append(m.batch, batchOp{o.NewBlock, uint32(i)})
		}
		return nil
	})
	if err != nil {
		return err
	}
	m.stats.Batches++
	return m.commit(len(m.batch))
}

func (m *merger) readUnordered(i int, o cowfile.Op, dst []byte) error {
	if o.Type == cowfile.OpZero {
		clear(dst)
		return nil
	}
	return m.s.decode(i, o, dst, m.stored)
}
