package cow

import (
	"context"
	"fmt"

	"cowbird/formats/cowfile"

	"golang.org/x/sys/unix"
)

// The window: ordered ops that conflict with each other are merged through the
// COW's scratch area (specification: cow-format, section 9). Their new contents
// are made durable there before the first block of the base is overwritten; the
// state byte says since when they are the truth.

// writeScratch writes a load to the scratch area, from its k-th block on. In a
// file without one, that is the journal.
func (m *merger) writeScratch(l *load, k int) error {
	h := m.s.file.Header()
	if h.ScratchSize == 0 {
		if err := m.prepareJournal(); err != nil {
			return err
		}
		m.stats.ScratchWritten++
		return m.writeJournal(l.ops[0], l.buf)
	}
	if _, err := m.s.cow.WriteAt(l.buf, h.Scratch().Data+int64(k)*blockSize); err != nil {
		return fmt.Errorf("write %d bytes at block %d of the scratch area in the COW: %w", len(l.buf), k, err)
	}
	m.stats.ScratchWritten += int64(len(l.buf) / blockSize)
	return nil
}

// openWindow makes the scratch area, which has the contents of the ops' blocks,
// the truth, and then writes them to the base.
func (m *merger) openWindow(ctx context.Context, ops []batchOp) error {
	s := m.s
	h := s.file.Header()
	if h.ScratchSize > 0 {
		if err := m.fillEntries(ops, h.Scratch()); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.setWindow(m.window)
	s.mu.Unlock()
	return m.writeWindow(ctx, ops)
}

// fillEntries says what is in the scratch area, and then that it counts.
func (m *merger) fillEntries(ops []batchOp, l cowfile.ScratchLayout) error {
	s := m.s
	m.window, m.entries = m.window[:0], m.entries[:0]
	for k, b := range ops {
		w := windowBlock{b.block, l.Data + int64(k)*blockSize}
		m.window = append(m.window, w)
		m.entries = cowfile.AppendScratchEntry(m.entries, cowfile.ScratchEntry{NewBlock: uint64(w.block), Offset: w.off})
	}
	m.entries = cowfile.AppendScratchEntry(m.entries, cowfile.ScratchEntry{}) // the end
	if _, err := s.cow.WriteAt(m.entries, l.Entries); err != nil {
		return fmt.Errorf("write the entries of the scratch area in the COW: %w", err)
	}
	if err := m.sync(s.cow, "COW"); err != nil {
		return err
	}
	return m.record(s.merged, cowfile.StateReadDone)
}

// finishWindow completes a window that an earlier run left in the scratch area.
func (m *merger) finishWindow(ctx context.Context) error {
	s := m.s
	it := s.file.Merge(s.merged)
	ops := make([]batchOp, len(s.window))
	for k := range ops {
		i, _ := it.Next()
		ops[k] = batchOp{s.file.Op(i).NewBlock, uint32(i)}
	}
	return m.writeWindow(ctx, ops)
}

// writeWindow copies the window from the scratch area to the base, by ascending
// block. It can be done again from its start at any time.
func (m *merger) writeWindow(ctx context.Context, ops []batchOp) error {
	buf, err := mapAnonymous(loadBlocks * blockSize)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(buf) }()
	for rest := m.s.window; len(rest) > 0; {
		n := 1
		for n < min(len(rest), loadBlocks) && rest[n].block == rest[n-1].block+1 {
			n++
		}
		b := buf[:n*blockSize]
		if k, err := readStretches(m.s.cow, b, n, func(k int) int64 { return rest[k].off }); err != nil {
			return fmt.Errorf("scratch area in the COW, block %d: %w", rest[k].block, err)
		}
		if err := m.writeRun(ctx, b, rest[0].block); err != nil {
			return err
		}
		rest = rest[n:]
	}
	m.stats.Windows++
	return m.commit(ops)
}
