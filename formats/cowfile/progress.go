package cowfile

import (
	"encoding/binary"
	"fmt"
	"io"
)

// State is the byte behind the header that says whose data the scratch area
// holds (section 9).
type State uint8

// The merge states.
const (
	StateIdle     State = 0 // no merge has begun
	StateMerging  State = 1 // the sources of the next ops are intact
	StateReadDone State = 2 // the scratch area holds the next ops' blocks
)

const scratchEntrySize = 16

// ScratchEntry says where the scratch area keeps a block.
type ScratchEntry struct {
	NewBlock uint64
	Offset   int64 // in the COW, in bytes
}

// ScratchLayout is where things are in the scratch area.
type ScratchLayout struct {
	State    int64 // offset of the state byte
	Entries  int64 // offset of the array of entries
	Data     int64 // offset of the first block
	Capacity int   // blocks that fit
}

// Scratch is the layout of the file's scratch area; its capacity is 0 if the
// file has none.
func (h *Header) Scratch() ScratchLayout {
	size := int64(h.ScratchSize)
	meta := size * scratchEntrySize / BlockSize
	l := ScratchLayout{
		State:   int64(h.HeaderSize),
		Entries: int64(h.HeaderSize) + 1,
		Data:    int64(h.HeaderSize) + meta,
	}
	// The entries begin one byte late and end with a zero entry.
	l.Capacity = int(max(0, min((size-meta)/BlockSize, (meta-1)/scratchEntrySize-1)))
	return l
}

// AppendProgress appends the bytes that record n merged ops and a state, and
// returns the offset where they belong in the file. They lie inside the first
// sector, so that one write of them is atomic.
func (h *Header) AppendProgress(b []byte, n uint64, s State) (_ []byte, off int64) {
	const numMergeOps = 26
	full := *h
	full.NumMergeOps = n
	start := len(b)
	b = full.AppendTo(b)
	if h.ScratchSize > 0 {
		b = append(b, byte(s))
	}
	return append(b[:start], b[start+numMergeOps:]...), numMergeOps
}

// AppendScratchEntry appends an entry of the scratch area to b.
func AppendScratchEntry(b []byte, e ScratchEntry) []byte {
	b = binary.LittleEndian.AppendUint64(b, e.NewBlock)
	return binary.LittleEndian.AppendUint64(b, uint64(e.Offset))
}

// ReadState reads the merge state of the file in r.
func (f *File) ReadState(r io.ReaderAt) (State, error) {
	if f.h.ScratchSize == 0 {
		return StateIdle, nil
	}
	var b [1]byte
	if err := readFull(r, b[:], f.h.Scratch().State); err != nil {
		return 0, err
	}
	if s := State(b[0]); s <= StateReadDone {
		return s, nil
	}
	return 0, refuse(ErrCorrupt, fmt.Sprintf("merge state at byte %d", f.h.HeaderSize), "0, 1 or 2", b[0])
}

// ReadScratch reads the entries of a filled scratch area and checks them
// against the next ops of the merge order, to which they must belong.
func (f *File) ReadScratch(r io.ReaderAt) ([]ScratchEntry, error) {
	l := f.h.Scratch()
	b := make([]byte, (l.Capacity+1)*scratchEntrySize)
	if err := readFull(r, b, l.Entries); err != nil {
		return nil, err
	}
	var entries []ScratchEntry
	it := f.Merge(f.NumMergeOps())
	for i := range l.Capacity {
		e := ScratchEntry{
			NewBlock: binary.LittleEndian.Uint64(b[i*scratchEntrySize:]),
			Offset:   int64(binary.LittleEndian.Uint64(b[i*scratchEntrySize+8:])),
		}
		if e.NewBlock == 0 && e.Offset == 0 {
			break
		}
		where := fmt.Sprintf("scratch entry %d", i)
		if it.Pos() >= f.nOrder {
			return nil, refuse(ErrCorrupt, where, "no more entries than ordered ops are left", fmt.Sprintf("block %d", e.NewBlock))
		}
		op, _ := it.Next()
		if want := f.Op(op).NewBlock; e.NewBlock != uint64(want) {
			return nil, refuse(ErrCorrupt, where, fmt.Sprintf("block %d, the next in merge order", want), fmt.Sprintf("block %d", e.NewBlock))
		}
		if e.Offset < l.Data || e.Offset > f.h.scratchEnd()-BlockSize {
			return nil, refuse(ErrCorrupt, where+": offset", fmt.Sprintf("%d to %d", l.Data, f.h.scratchEnd()-BlockSize), e.Offset)
		}
		entries = append(entries, e)
	}
	return entries, nil
}
