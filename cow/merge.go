package cow

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"cowbird/formats/cowfile"
)

// MergeOptions tune a merge.
type MergeOptions struct {
	// Rate limits the merge to so many bytes a second; 0 means no limit.
	Rate int64
	// Priority is that of all threads that the merge uses.
	Priority Priority
	// BatchBytes is how much is written between two commits at most, a
	// multiple of 4096; 0 means 16 MiB. What a crash makes the next merge do
	// again is at most this much.
	BatchBytes int64
	// OnProgress is called after each batch, by one goroutine at a time.
	OnProgress func(Progress)

	limits mergeLimits // for tests; zero means the defaults
}

// mergeLimits shape the batches.
type mergeLimits struct {
	batch  int // blocks between two commits
	window int // blocks of the scratch area that are used
	worth  int // length from which a conflict-free batch beats a window
	zeros  int // blocks from which a call that zeroes them beats writing
	commit commitTime
}

// commitTime is when a batch is committed that went straight to the base.
type commitTime uint8

const (
	commitAside  commitTime = iota // at once, while the next batch is being written
	commitInline                   // before anything else; for tests
	commitLate                     // when the next batch is written; for tests
)

func (l *mergeLimits) complete(capacity int) {
	l.batch = cmp.Or(l.batch, batchBlocks)
	l.worth = cmp.Or(l.worth, worthBatching)
	l.zeros = cmp.Or(l.zeros, worthZeroing)
	l.window = min(cmp.Or(l.window, capacity), capacity)
}

// MergeStats tell what one call of Merge did.
type MergeStats struct {
	BlocksWritten  int64 `json:"blocks_written"`  // to the base, 4096 bytes each
	BlocksZeroed   int64 `json:"blocks_zeroed"`   // of the base, without writing them
	ScratchWritten int64 `json:"scratch_written"` // blocks that went through the scratch area
	Batches        int64 `json:"batches"`         // commits without the scratch area
	Windows        int64 `json:"windows"`         // commits through the scratch area
	Syncs          int64 `json:"syncs"`           // of base and COW together
}

const (
	batchBlocks   = 4096    // blocks between two commits: 16 MiB
	maxBatchBytes = 1 << 30 // for 6 MiB of lists

	// A merge that is told to stop does so at the end of a batch, so that
	// batches are cut to what the storage takes in about this time, but not
	// so short that commits are most of the work.
	batchTime  = 100 * time.Millisecond
	leastBatch = 128 // blocks

	// worthBatching is the length from which a conflict-free batch (one
	// write a block, two syncs) beats a window of the scratch area (two
	// writes a block, four syncs, 510 blocks). Counting syncs alone it would
	// be 255; but a sync costs as much as writing 100 to 250 blocks, and
	// flash wears by what is written.
	worthBatching = 128

	// worthZeroing is the number of blocks from which a call that zeroes
	// them beats writing zeros: shorter ones cut a file's extents up.
	worthZeroing = 16
)

// Merge writes the target into the base until every op is merged. Reads go on
// meanwhile and stay right. Progress is in the COW's header, so that a merge
// that was stopped, by whatever, is taken up by the next call or by another
// program. When ctx is cancelled, the running batch is finished and committed,
// and the error is ctx.Err(). Any other error leaves the snapshot serving; the
// next call tries again from the last commit.
func (s *Snapshot) Merge(ctx context.Context, o MergeOptions) (MergeStats, error) {
	if !s.merge.begin(s.bytes.written.Load()) {
		return MergeStats{}, ErrMerging
	}
	h := s.file.Header()
	if o.limits.batch == 0 {
		o.limits.batch = int(min(o.BatchBytes, maxBatchBytes) / blockSize)
	}
	o.limits.complete(h.Scratch().Capacity)
	m := &merger{s: s, o: o, throttle: throttle{rate: o.Rate, interrupt: s.merge.interrupt}}
	err := o.Priority.run(func() error { return m.run(ctx) })
	s.merge.end(err)
	return m.stats, err
}

// merger is one run of a merge: it writes what a planner and its fillers have
// prepared ahead of it, and commits.
type merger struct {
	s        *Snapshot
	o        MergeOptions
	throttle throttle
	stats    MergeStats

	taken   int    // ops in batches that were begun, those before the start included
	pending *batch // written, and not known to be committed
	q       *queue

	window  []windowBlock // kept for the next one
	entries []byte
}

func (m *merger) run(ctx context.Context) error {
	s := m.s
	if s.complete && s.base.Size() >= s.size {
		return nil
	}
	if err := m.growBase(); err != nil {
		return err
	}
	if s.complete { // there are no ops, and so no commit
		return m.sync(s.base, "base")
	}
	if err := m.confirm(); err != nil {
		return err
	}
	for !s.complete {
		if err := s.merge.proceed(ctx); err != nil {
			return err
		}
		if err := m.mergeUntilPaused(ctx); err != nil {
			return err
		}
	}
	return nil
}

// mergeUntilPaused merges batches until the last one, the end of ctx or a
// pause, and holds memory only so long.
func (m *merger) mergeUntilPaused(ctx context.Context) (err error) {
	defer faultToError(debug.SetPanicOnFault(true), &err)
	s := m.s
	s.merge.goOn(s.bytes.written.Load())
	if s.window != nil {
		if err := m.finishWindow(ctx); err != nil {
			return err
		}
	}
	limits := m.o.limits
	limits.batch = m.throttle.limit(limits.batch)
	q, err := s.prepare(limits, m.o.Priority)
	if err != nil {
		return err
	}
	defer q.close()
	q.help(m.o.Priority, func() { m.runCommitter(q) })
	m.q, m.taken = q, s.merged
	for err == nil && m.taken < s.file.NumOps() && s.merge.mayProceed(ctx) {
		start, written, slept := time.Now(), m.stats.BlocksWritten, m.throttle.slept
		err = m.mergeBatch(ctx)
		q.pace.adapt(m.stats.BlocksWritten-written, time.Since(start)-(m.throttle.slept-slept))
	}
	return cmp.Or(err, m.settle())
}

// pace is how many blocks a batch may have, as the storage's speed allows.
type pace struct {
	most  int64
	limit atomic.Int64
}

// adapt learns from a batch of that many blocks, which took that long. A short one
// tells how long it takes to begin, not how fast the storage is.
func (p *pace) adapt(blocks int64, took time.Duration) {
	if blocks < leastBatch {
		return
	}
	inTime := int64(float64(blocks) * float64(batchTime) / float64(max(took, 1)))
	p.limit.Store(min(p.most, max(leastBatch, inTime)))
}

// mergeBatch merges a batch. Until its commit, or until it is in the scratch
// area, its ops read intact sources, however often it is begun.
//
// While a batch is being committed, the next one may already be written, if it
// leaves what the first one reads: should the first commit not come to pass, both
// can be done again from the start of the first. Together they are one batch then,
// as far as a crash can tell.
func (m *merger) mergeBatch(ctx context.Context) error {
	var b *batch
	for scratched, last := 0, false; !last; {
		l, err := m.q.next()
		if err != nil {
			return err
		}
		if l.batch.window || l.overwrites {
			if err := m.settle(); err != nil {
				return err
			}
		}
		b, last = l.batch, l.last
		if b.window {
			err = m.writeScratch(l, scratched)
			scratched += len(l.buf) / blockSize
		} else {
			err = m.writeBase(ctx, l, m.q.zeros)
			m.q.written(l)
		}
		if err != nil {
			return err
		}
		m.q.giveBack(l)
	}
	m.taken += len(b.ops)
	if b.window {
		err := m.openWindow(ctx, b.ops)
		m.q.recycle(b)
		return err
	}
	m.stats.Batches++
	return m.finishBatch(b)
}

// finishBatch has a batch committed that is in the base, after the one before.
func (m *merger) finishBatch(b *batch) error {
	if err := m.settle(); err != nil {
		return err
	}
	m.pending = b
	switch m.o.limits.commit {
	case commitAside:
		m.q.commit <- b
	case commitInline:
		return m.settle()
	}
	return nil
}

// settle waits until nothing is pending.
func (m *merger) settle() error {
	b := m.pending
	if b == nil {
		return nil
	}
	m.pending = nil
	defer m.q.recycle(b)
	if m.o.limits.commit == commitAside {
		return <-m.q.done
	}
	return m.commit(b.ops)
}

// runCommitter commits batches beside the merger, which asks for the next one
// when the last one is done.
func (m *merger) runCommitter(q *queue) {
	for b := range q.commit {
		q.done <- func() (err error) {
			defer faultToError(debug.SetPanicOnFault(true), &err)
			return m.commit(b.ops)
		}()
	}
}

// growBase lengthens the base to the snapshot's size while no request reads it.
// It is durable before the first commit, by that commit's sync.
func (m *merger) growBase() error {
	s := m.s
	if s.base.Size() >= s.size {
		return nil
	}
	g, ok := s.base.(Growing)
	if !ok {
		return fmt.Errorf("%w: expected a base of at least %d bytes, found %d", ErrSize, s.size, s.base.Size())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := g.Grow(s.size); err != nil {
		return fmt.Errorf("grow the base: %w", err)
	}
	return nil
}

// confirm makes the progress durable that Open has found. A process that was
// killed between writing and syncing it leaves it to the page cache, where a
// power cut can still undo it; but from here on blocks are overwritten that only
// the ops behind it do without. It is written again, since a sync that has
// failed may have left the page looking clean.
func (m *merger) confirm() error {
	s := m.s
	if s.confirmed || s.merged == 0 && s.window == nil {
		return nil
	}
	state := cowfile.StateMerging
	if s.window != nil {
		state = cowfile.StateReadDone
		if err := m.confirmJournal(); err != nil {
			return err
		}
	}
	if err := m.record(s.merged, state); err != nil {
		return err
	}
	s.confirmed = true
	return nil
}

// writeBase writes a load to the base, no faster than asked.
func (m *merger) writeBase(ctx context.Context, l *load, zeros []byte) error {
	b := l.buf
	for _, r := range l.runs {
		if r.zero {
			if err := m.zeroRun(ctx, r, zeros); err != nil {
				return err
			}
			continue
		}
		if err := m.writeRun(ctx, b[:r.bytes], r.block); err != nil {
			return err
		}
		b = b[r.bytes:]
	}
	return nil
}

func (m *merger) zeroRun(ctx context.Context, r loadRun, zeros []byte) error {
	if d, ok := m.s.base.(Zeroing); ok && r.bytes >= m.o.limits.zeros*blockSize {
		err := d.Zero(int64(r.block)*blockSize, int64(r.bytes))
		if err == nil {
			m.stats.BlocksZeroed += int64(r.bytes / blockSize)
			return nil
		}
		if !errors.Is(err, errors.ErrUnsupported) {
			return fmt.Errorf("zero %d bytes at block %d of the base: %w", r.bytes, r.block, err)
		}
	}
	for r.bytes > 0 {
		n := min(r.bytes, len(zeros))
		if err := m.writeRun(ctx, zeros[:n], r.block); err != nil {
			return err
		}
		r.block += uint32(n / blockSize)
		r.bytes -= n
	}
	return nil
}

func (m *merger) writeRun(ctx context.Context, b []byte, block uint32) error {
	m.throttle.wait(ctx, len(b))
	if _, err := m.s.base.WriteAt(b, int64(block)*blockSize); err != nil {
		return fmt.Errorf("write %d bytes at block %d of the base: %w", len(b), block, err)
	}
	m.stats.BlocksWritten += int64(len(b) / blockSize)
	return nil
}

// commit makes the blocks of the next ops of the merge order durable, then
// records it, then lets readers know. Only afterwards may anything overwrite
// what the ops read.
func (m *merger) commit(ops []batchOp) error {
	s := m.s
	if err := m.sync(s.base, "base"); err != nil {
		return err
	}
	merged := s.merged + len(ops)
	if err := m.record(merged, cowfile.StateMerging); err != nil {
		return err
	}
	blocks := int64(0)
	for _, b := range ops {
		blocks += int64(s.file.Op(int(b.op)).Blocks())
	}
	s.bytes.written.Add(blocks * blockSize)
	s.publish(ops, merged)
	if m.o.OnProgress != nil {
		m.o.OnProgress(s.Progress())
	}
	return nil
}

func (s *Snapshot) publish(ops []batchOp, merged int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range ops {
		s.markMerged(int(b.op))
	}
	s.merged = merged
	s.window = nil
	s.complete = merged == s.file.NumOps()
}

// record writes the progress and the merge state in one write to the first
// sector of the COW, and makes it durable.
func (m *merger) record(merged int, state cowfile.State) error {
	h := m.s.file.Header()
	b, off := h.AppendProgress(nil, uint64(merged), state)
	if _, err := m.s.cow.WriteAt(b, off); err != nil {
		return fmt.Errorf("write merge progress to the COW: %w", err)
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
