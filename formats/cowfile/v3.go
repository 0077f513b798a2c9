package cowfile

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
)

// loadV3 takes in the op table, the sequence and, with a label, the resume
// points of a version 3 file (section 6).
func (f *File) loadV3(r io.ReaderAt) error {
	h := &f.h
	f.comp = h.Compression
	count := h.OpCount
	if f.opts.Label != nil {
		var err error
		if count, err = f.opsAtLabel(r, *f.opts.Label); err != nil {
			return err
		}
	}
	if count > maxOps {
		return refuse(ErrCorrupt, "op_count at byte 54", fmt.Sprintf("at most %d", maxOps), count)
	}
	f.n = int(count)
	var err error
	if f.seq, err = f.region(r, h.sequenceOffset(), 4*int64(h.SequenceCount)); err != nil {
		return err
	}
	if f.ops, err = f.region(r, h.opOffset(), opSizeV3*int64(f.n)); err != nil {
		return err
	}
	return f.checkTableV3()
}

func (f *File) checkTableV3() error {
	var err error
	if f.starts, err = alloc[uint64](f, bitWords(f.n)); err != nil {
		return err
	}
	pos := f.h.dataOffset()
	var runs runBuilder
	for i := 0; i < f.n; {
		o, flags := getOp(f.ops[i*opSizeV3:])
		s := f.findStretch(i)
		if err := checkOp(o, i, f.h.MaxCompression); err != nil {
			return err
		}
		if flags != 0 {
			return refuse(ErrCorrupt, fmt.Sprintf("op %d (%v): reserved bits of source_info", i, o), 0, fmt.Sprintf("%#x", flags))
		}
		if o.DataLength == 0 {
			f.mark(i, s.ops, pos)
		} else if pos, err = f.takeData(o, i, s, pos); err != nil {
			return err
		}
		f.count(o, s)
		runs.add(o, i, s)
		i += s.ops // the others of a stretch are right if the first is
	}
	f.end, f.nRuns = pos, runs.n
	return nil
}

// takeData checks and counts the data of a stretch, which begins with op i, o,
// and at byte pos of the file. It returns where they end.
func (f *File) takeData(o Op, i int, s stretch, pos int64) (end int64, err error) {
	if o.Type == OpXor && f.marks == nil {
		if err := f.beginMarks(i, pos); err != nil {
			return 0, err
		}
	}
	unit := uint32(o.Unit())
	for k := range s.ops {
		n := f.dataLength(i + k)
		end = pos + int64(n)
		fits := n == unit || 0 < n && n < unit && f.comp != None
		if !fits || end > f.size || o.Type == OpReplace && int64(o.Source) != pos {
			return 0, f.refuseData(i+k, pos)
		}
		f.mark(i+k, 1, pos)
		f.countData(o.Factor, n)
		pos = end
	}
	return pos, nil
}

// refuseData says what is wrong with the data of op i, which should begin at
// byte pos of the file.
func (f *File) refuseData(i int, pos int64) error {
	o := f.Op(i)
	if err := checkOp(o, i, f.h.MaxCompression); err != nil {
		return err
	}
	if int(o.DataLength) > o.Unit() {
		return refuse(ErrCorrupt, fmt.Sprintf("op %d (%v): data_length", i, o), fmt.Sprintf("at most the unit, %d", o.Unit()), o.DataLength)
	}
	if f.comp == None && int(o.DataLength) != o.Unit() {
		return refuse(ErrCorrupt, fmt.Sprintf("op %d (%v): uncompressed data", i, o), fmt.Sprintf("%d bytes", o.Unit()), o.DataLength)
	}
	if o.Type == OpReplace && int64(o.Source) != pos {
		return refuse(ErrCorrupt, fmt.Sprintf("op %d (%v): data offset", i, o), pos, o.Source)
	}
	return refuse(ErrTruncated, fmt.Sprintf("op %d (%v): end of data", i, o), fmt.Sprintf("inside the file of %d bytes", f.size), pos+int64(o.DataLength))
}

// beginMarks makes room for marks from op i on, the first one that somebody will
// look for, whose data begin at byte pos.
func (f *File) beginMarks(i int, pos int64) error {
	marks, err := alloc[mark](f, 1+(f.n-i)/markEvery+1)
	if err != nil {
		return err
	}
	f.marks = append(marks[:0], mark{pos: pos, op: uint32(i)})
	return nil
}

// mark records the data position of every markEvery-th op, for n ops from op i
// on, of which only the last one may have data; they begin at byte pos.
func (f *File) mark(i, n int, pos int64) {
	if f.marks == nil {
		return
	}
	last := int(f.marks[len(f.marks)-1].op)
	for m := max(last/markEvery+1, (i+markEvery-1)/markEvery) * markEvery; m < i+n; m += markEvery {
		f.marks = append(f.marks, mark{pos: pos, op: uint32(m)})
	}
}

// ResumePoint says how many ops were durable at a label.
type ResumePoint struct{ Label, Ops uint64 }

// ReadResumePoints lists the resume points of a version 3 file, oldest first.
// Writers let resume_point_count run past the capacity, and past what they
// store after points were dropped; the excess is not there (section 6.4).
func ReadResumePoints(r io.ReaderAt, h Header) ([]ResumePoint, error) {
	n := min(h.ResumePointCount, h.ResumePointMax)
	b := make([]byte, resumeSize*int(n))
	if err := readFull(r, b, h.resumeOffset()); err != nil {
		return nil, err
	}
	points := make([]ResumePoint, 0, n)
	for e := range slices.Chunk(b, resumeSize) {
		p := ResumePoint{binary.LittleEndian.Uint64(e), binary.LittleEndian.Uint64(e[8:])}
		// Labels rise, so that label 0 can be the first one only.
		if p != (ResumePoint{}) || len(points) == 0 {
			points = append(points, p)
		}
	}
	return points, nil
}

func (f *File) opsAtLabel(r io.ReaderAt, label uint64) (uint64, error) {
	points, err := ReadResumePoints(r, f.h)
	if err != nil {
		return 0, err
	}
	for _, p := range points {
		if p.Label != label {
			continue
		}
		if p.Ops > f.h.OpCount {
			return 0, refuse(ErrCorrupt, fmt.Sprintf("resume point of label %d", label), fmt.Sprintf("at most op_count, %d", f.h.OpCount), p.Ops)
		}
		return p.Ops, nil
	}
	return 0, refuse(ErrNoLabel, fmt.Sprintf("label %d", label), "one of the resume points", fmt.Sprint(points))
}
