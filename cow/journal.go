package cow

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"cowbird/formats/cowfile"
)

// The journal stands in for the scratch area of a file that has none. Such a
// file is merged in conflict-free batches, however short; what remains are ops
// that read the very block they write. The new contents of that one block are
// made durable behind the end of the COW first, in a sector and a block:
//
//	0   8   "cowbird\n"
//	8   8   num_merge_ops at which the record counts
//	16  8   new_block
//	24  32  SHA-256 of the header's and the op's bytes, the 24 bytes above, and the block
//	512     the block
//
// The checksum takes the part of the state byte: a record is either whole or
// nothing, and one of another COW, or of another moment, is none. Android's
// daemon knows nothing of it and merges such an op unsafely.
const (
	journalMagic  = "cowbird\n"
	journalHeader = 512
	journalSize   = journalHeader + blockSize
)

// journalAt is where the journal begins, which is at a block's start so that a
// device writes its sectors whole.
func journalAt(f *cowfile.File) int64 { return (f.End() + blockSize - 1) / blockSize * blockSize }

// journalRecord is the record for an op and its block.
func (s *Snapshot) journalRecord(merged, op int, data []byte) []byte {
	h := s.file.Header()
	h.NumMergeOps = 0
	o := s.file.Op(op)
	le := binary.LittleEndian
	b := append(make([]byte, 0, journalHeader), journalMagic...)
	b = le.AppendUint64(b, uint64(merged))
	b = le.AppendUint64(b, uint64(o.NewBlock))
	sum := sha256.New()
	for _, part := range [][]byte{h.AppendTo(nil), le.AppendUint64(le.AppendUint64(nil, o.Source), uint64(s.file.End())), b, data} {
		sum.Write(part)
	}
	b = sum.Sum(b)
	return b[:journalHeader]
}

// prepareJournal makes room for the journal, if the merge needs one.
func (m *merger) prepareJournal() error {
	s, end := m.s, journalAt(m.s.file)+journalSize
	if s.cow.Size() >= end {
		return nil
	}
	g, ok := s.cow.(Growing)
	err := error(ErrSize)
	if ok {
		s.mu.Lock()
		err = g.Grow(end)
		s.mu.Unlock()
	}
	if err != nil {
		return fmt.Errorf("the COW has no scratch area, and an op reads the block that it writes: expected a COW of at least %d bytes, found %d: put it on a larger device: %w",
			end, s.cow.Size(), err)
	}
	return nil
}

// writeJournal makes a window of one op durable.
func (m *merger) writeJournal(b batchOp, data []byte) error {
	at := journalAt(m.s.file)
	record := append(m.s.journalRecord(m.s.merged, int(b.op), data), data...)
	if _, err := m.s.cow.WriteAt(record, at); err != nil {
		return fmt.Errorf("write %d bytes to the journal at %d behind the COW: %w", len(record), at, err)
	}
	m.window = append(m.window[:0], windowBlock{b.block, at + journalHeader})
	return m.sync(m.s.cow, "COW")
}

// confirmJournal makes the journal durable in which Open has found the window.
func (m *merger) confirmJournal() error {
	s := m.s
	if h := s.file.Header(); h.ScratchSize > 0 {
		return nil
	}
	data := make([]byte, blockSize)
	if err := readFull(s.cow, data, s.window[0].off); err != nil {
		return fmt.Errorf("journal behind the COW: %w", err)
	}
	i, _ := s.file.Merge(s.merged).Next()
	return m.writeJournal(batchOp{s.window[0].block, uint32(i)}, data)
}

// readJournal finds the block of the next op, if a crashed merge has left it
// behind the COW.
func (s *Snapshot) readJournal() ([]windowBlock, error) {
	at := journalAt(s.file)
	if s.file.OrderedOps() <= s.merged || s.cow.Size() < at+journalSize {
		return nil, nil
	}
	b := make([]byte, journalSize)
	if err := readFull(s.cow, b, at); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("journal behind the COW: %w", err)
	}
	if !bytes.HasPrefix(b, []byte(journalMagic)) {
		return nil, nil
	}
	i, _ := s.file.Merge(s.merged).Next()
	if !bytes.Equal(b[:journalHeader], s.journalRecord(s.merged, i, b[journalHeader:])) {
		return nil, nil
	}
	return []windowBlock{{s.file.Op(i).NewBlock, at + journalHeader}}, nil
}
