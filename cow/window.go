package cow

import (
	"context"
	"fmt"

	"cowbird/formats/cowfile"
)

// The window: ordered ops that conflict with each other are merged through the
// COW's scratch area (specification: cow-format, section 9). Their new contents
// are made durable there before the first block of the base is overwritten; the
// state byte says since when they are the truth.

// mergeWindow merges the gathered ops, the op that ended the batch and those
// that follow, as many as the scratch area holds.
func (m *merger) mergeWindow(ctx context.Context, conflict, capacity int) error {
	m.extendWindow(conflict, capacity)
	w, err := m.fillScratch()
	if err != nil {
		return err
	}
	if err := m.record(m.s.merged, cowfile.StateReadDone); err != nil {
		return err
	}
	m.s.mu.Lock()
	m.s.setWindow(w)
	m.s.mu.Unlock()
	return m.writeWindow(ctx)
}

// extendWindow makes the batch as long as the window can be. What the conflict
// search took too much is given back to the iterator by starting it anew.
func (m *merger) extendWindow(conflict, capacity int) {
	if len(m.batch) >= capacity {
		m.batch = m.batch[:capacity]
		m.it, m.peeked = m.s.file.Merge(m.s.merged+capacity), -1
		return
	}
	m.unget(conflict)
	for len(m.batch) < capacity {
		i, o, ok := m.next(true)
		if !ok {
			return
		}
		m.batch = append(m.batch, batchOp{o.NewBlock, uint32(i)})
	}
}

// fillScratch writes the new contents of the batch's blocks and their list to
// the scratch area, and makes them durable.
func (m *merger) fillScratch() ([]windowBlock, error) {
	s := m.s
	h := s.file.Header()
	l := h.Scratch()
	spare := <-m.free
	defer m.giveBack(spare)
	buf := spare.buf[:bufferBlocks*blockSize]
	window := make([]windowBlock, len(m.batch))
	entries := make([]byte, 0, (len(m.batch)+1)*16)
	for k := 0; k < len(m.batch); {
		n := min(bufferBlocks, len(m.batch)-k)
		if err := m.readOrdered(m.batch[k:k+n], buf[:n*blockSize]); err != nil {
			return nil, err
		}
		off := l.Data + int64(k)*blockSize
		if _, err := s.cow.WriteAt(buf[:n*blockSize], off); err != nil {
			return nil, fmt.Errorf("write to the scratch area: %w", err)
		}
		for ; n > 0; n-- {
			window[k] = windowBlock{m.batch[k].block, l.Data + int64(k)*blockSize}
			entries = cowfile.AppendScratchEntry(entries, cowfile.ScratchEntry{NewBlock: uint64(m.batch[k].block), Offset: window[k].off})
			k++
		}
	}
	entries = cowfile.AppendScratchEntry(entries, cowfile.ScratchEntry{}) // the end
	if _, err := s.cow.WriteAt(entries, l.Entries); err != nil {
		return nil, fmt.Errorf("write to the scratch area: %w", err)
	}
	m.stats.ScratchWritten += int64(len(window))
	return window, m.sync(s.cow, "COW")
}

// finishWindow completes a window that an earlier run left in the scratch area.
func (m *merger) finishWindow() error {
	s := m.s
	it := s.file.Merge(s.merged)
	m.batch = m.batch[:0]
	for range s.window {
		i, _ := it.Next()
		m.batch = append(m.batch, batchOp{s.file.Op(i).NewBlock, uint32(i)})
	}
	return m.writeWindow(context.Background())
}

// writeWindow copies the window from the scratch area to the base. It can be
// done again from its start at any time.
func (m *merger) writeWindow(ctx context.Context) error {
	w := m.s.window
	err := m.transfer(ctx, func(c *carriage) error {
		for k := 0; k < len(w); {
			n := 1
			for k+n < len(w) && n < c.left() && w[k+n].block == w[k+n-1].block+1 {
				n++
			}
			if err := m.readWindow(w[k:k+n], c.room(w[k].block, n)); err != nil {
				return err
			}
			k += n
		}
		return nil
	})
	if err != nil {
		return err
	}
	m.stats.Windows++
	return m.commit(len(w))
}

// readWindow reads blocks from the scratch area into dst.
func (m *merger) readWindow(w []windowBlock, dst []byte) error {
	if err := readStretches(m.s.cow, dst, len(w), func(k int) int64 { return w[k].off }); err != nil {
		return fmt.Errorf("scratch area: %w", err)
	}
	return nil
}
