package cowfile

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
)

// writerV3 keeps ops and data until a batch of them can be written. The header
// in the file counts only what a label or Finish has made durable.
type writerV3 struct {
	sink
	h          Header // OpCount includes the kept ops
	dataLen    int64  // bytes of data, kept ones included
	ops, data  []byte // kept: the last of the table and of the data
	points     []ResumePoint
	batch      int // blocks
	unordered  bool
	growing    bool // the table's capacity follows its use
	headerLast bool
}

func newWriterV3(d Device, opts WriterOptions) (*writerV3, error) {
	if opts.NumMergeOps != 0 && !opts.HeaderLast {
		return nil, refuse(ErrRequest, "merge progress of a new version 3 file", "0, or the header to be written last", opts.NumMergeOps)
	}
	w := &writerV3{sink: newSink(d), batch: batchBlocks(opts), headerLast: opts.HeaderLast, h: Header{
		Major: 3, HeaderSize: headerSizeV3, OpSize: opSizeV3, BlockSize: BlockSize, ScratchSize: opts.scratch(),
		ResumePointMax: ResumePoints, OpCountMax: uint64(opts.OpCountMax),
		Compression: opts.Compression, MaxCompression: uint32(max(opts.MaxUnit, BlockSize)), NumMergeOps: opts.NumMergeOps,
	}}
	if err := w.h.check(); err != nil {
		err.(*Error).Kind = ErrRequest
		return nil, err
	}
	return w, nil
}

func batchBlocks(opts WriterOptions) int {
	if opts.ClusterOps == 0 {
		return DefaultClusterOps
	}
	return max(opts.ClusterOps, 1)
}

func (w *writerV3) create() error {
	if err := w.room("op table", 0, w.h.dataOffset()); err != nil {
		return err
	}
	if err := w.blank(w.h.opOffset()); err != nil {
		return err
	}
	// An unused tail of the table is a hole in the file.
	if err := w.resize(w.h.dataOffset()); err != nil || w.headerLast {
		return err
	}
	return w.putHeader(&w.h)
}

// resumeV3 continues at a label that f was opened at.
func resumeV3(d Device, f *File, label uint64, opts WriterOptions) (Writer, error) {
	points, err := ReadResumePoints(d, f.h)
	if err != nil {
		return nil, err
	}
	w := &writerV3{sink: newSink(d), h: f.h, batch: batchBlocks(opts), dataLen: f.end - f.h.dataOffset()}
	w.unordered = f.counts.Zero+f.counts.Replace > 0
	w.h.OpCount = uint64(f.n)
	w.points = slices.DeleteFunc(points, func(p ResumePoint) bool { return p.Label > label || p.Ops > w.h.OpCount })
	// The points go first: none may speak of ops that are overwritten next.
	if err := w.putPoints(); err != nil {
		return nil, err
	}
	if err := w.commit(); err != nil {
		return nil, err
	}
	return w, w.resize(w.Size().Bytes)
}

func (w *writerV3) dataEnd() int64 { return w.h.dataOffset() + w.dataLen }

// Size implements Writer.
func (w *writerV3) Size() Size {
	end := w.h.scratchEnd()
	return Size{Bytes: w.dataEnd(), Header: end, Ops: w.h.dataOffset() - end, Data: w.dataLen, OpCountMax: w.h.OpCountMax}
}

// OpsLeft implements Writer. A table may be larger than what readers can
// address.
func (w *writerV3) OpsLeft() uint64 {
	if w.growing {
		return maxOps - w.h.OpCount
	}
	return min(w.h.OpCountMax, maxOps) - w.h.OpCount
}

func (w *writerV3) Add(o Op, stored []byte) error {
	if w.fail != nil {
		return w.fail
	}
	o.DataLength = uint32(len(stored))
	if o.Type == OpReplace {
		o.Source = uint64(w.dataEnd())
	}
	if err := w.check(o); err != nil {
		return err
	}
	w.ops = append(w.ops, make([]byte, opSizeV3)...)
	putOp(w.ops[len(w.ops)-opSizeV3:], o, 0)
	w.data = append(w.data, stored...)
	w.dataLen += int64(len(stored))
	w.h.OpCount++
	w.h.OpCountMax = max(w.h.OpCountMax, w.h.OpCount) // of an estimator
	w.unordered = w.unordered || !o.Type.Ordered()
	if len(w.data) >= w.batch*BlockSize || len(w.ops) >= 16*opSizeV3*w.batch {
		return w.flush()
	}
	return nil
}

func (w *writerV3) check(o Op) error {
	if w.OpsLeft() == 0 {
		return refuse(ErrLimit, "op table", fmt.Sprintf("at most %d ops", w.h.OpCount), "one more")
	}
	if err := checkAdd(o, int(w.h.OpCount), w.h.MaxCompression, w.h.Compression); err != nil {
		return err
	}
	if n := int(o.DataLength); n > 0 && (n > o.Unit() || (o.Compression == None) != (n == o.Unit())) {
		return refuse(ErrLimit, fmt.Sprintf("%v: stored bytes", o), fmt.Sprintf("fewer than %d if compressed, else so many", o.Unit()), n)
	}
	// Without a sequence the table is the merge order (section 7.1).
	if o.Type.Ordered() && w.unordered && w.h.SequenceCount == 0 {
		return refuse(ErrMergeOrder, fmt.Sprint(o), "a merge sequence, or every copy and xor op before the first other op", "it behind one")
	}
	return nil
}

// flush writes the kept ops and data, each in one piece.
func (w *writerV3) flush() error {
	end := w.h.opOffset() + opSizeV3*int64(w.h.OpCount)
	if w.growing {
		w.ops, w.data = w.ops[:0], w.data[:0]
	}
	if err := w.put("ops", w.ops, end-int64(len(w.ops))); err != nil {
		return err
	}
	if err := w.put("data", w.data, w.dataEnd()-int64(len(w.data))); err != nil {
		return err
	}
	w.ops, w.data = w.ops[:0], w.data[:0]
	return nil
}

// Sequence implements Writer. It moves the regions behind the sequence, so
// nothing may be in them yet (section 6.5).
func (w *writerV3) Sequence(blocks []uint32) error {
	if w.fail != nil {
		return w.fail
	}
	switch {
	case len(blocks) == 0:
		return refuse(ErrRequest, "merge sequence", "at least one block", 0)
	case w.h.SequenceCount > 0:
		return refuse(ErrRequest, "merge sequence", "one", "another")
	case w.h.OpCount > 0 || w.h.ResumePointCount > 0:
		return refuse(ErrRequest, "merge sequence", "it before the first op and label", fmt.Sprintf("it behind %d ops", w.h.OpCount))
	case uint64(len(blocks)) > math.MaxUint32:
		return refuse(ErrLimit, "merge sequence", "at most 2^32-1 blocks", len(blocks))
	}
	moved := w.h
	moved.SequenceCount = uint64(len(blocks))
	if err := w.room("op table", 0, moved.dataOffset()); err != nil {
		w.fail = err
		return err
	}
	if err := w.putSequence(blocks, moved.sequenceOffset()); err != nil {
		return err
	}
	w.h = moved
	if err := w.clear("resume points", w.h.resumeOffset(), resumeSize*ResumePoints); err != nil {
		return err
	}
	return w.resize(w.h.dataOffset())
}

func (w *writerV3) putSequence(blocks []uint32, off int64) error {
	for part := range slices.Chunk(blocks, 64<<10) {
		b := encodeBlocks(part)
		if err := w.put("merge sequence", b, off); err != nil {
			return err
		}
		off += int64(len(b))
	}
	return nil
}

func encodeBlocks(blocks []uint32) []byte {
	b := make([]byte, 0, 4*len(blocks))
	for _, n := range blocks {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	return b
}

// Label implements Writer (section 6.4). resume_point_count only ever grows, as
// Android's does; readers take no more points than there is room for.
func (w *writerV3) Label(label uint64) error {
	if w.fail != nil {
		return w.fail
	}
	if err := refuseLabel(w.headerLast); err != nil {
		return err
	}
	if err := w.flush(); err != nil {
		return err
	}
	w.points = slices.DeleteFunc(w.points, func(p ResumePoint) bool { return p.Label >= label })
	w.points = append(w.points, ResumePoint{label, w.h.OpCount})
	w.points = w.points[max(0, len(w.points)-int(w.h.ResumePointMax)):]
	if err := w.putPoints(); err != nil {
		return err
	}
	if w.h.ResumePointCount < math.MaxUint32 {
		w.h.ResumePointCount++
	}
	return w.commit()
}

// putPoints writes the whole region: unused entries are zero, and not what was
// there before.
func (w *writerV3) putPoints() error {
	b := make([]byte, 0, resumeSize*int(w.h.ResumePointMax))
	for _, p := range w.points {
		b = binary.LittleEndian.AppendUint64(b, p.Label)
		b = binary.LittleEndian.AppendUint64(b, p.Ops)
	}
	return w.put("resume points", b[:cap(b)], w.h.resumeOffset())
}

// commit lets the header speak of what has been written, after that is durable:
// a file opens whenever the power is cut.
func (w *writerV3) commit() error {
	if err := w.sync(); err != nil {
		return err
	}
	return w.putHeader(&w.h)
}

// Finish implements Writer.
func (w *writerV3) Finish() (int64, error) {
	if err := w.flush(); err != nil {
		return 0, err
	}
	if w.h.NumMergeOps > w.h.OpCount {
		return 0, refuse(ErrRequest, "merge progress", fmt.Sprintf("at most the %d ops of the file", w.h.OpCount), w.h.NumMergeOps)
	}
	size := w.dataEnd()
	if w.dataLen == 0 && w.h.OpCount < w.h.OpCountMax {
		// No file may end before its data begin.
		if err := w.clear("op table", size-1, 1); err != nil {
			return 0, err
		}
	}
	return size, w.commit()
}
