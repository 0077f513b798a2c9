package cowfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// RawOp is an op of a version 2 file as it stands there, metadata ops
// included.
type RawOp struct {
	Type        OpType
	Compression Compression
	DataLength  uint16
	NewBlock    uint64
	Source      uint64
	Offset      int64 // of the op, in bytes
	DataOffset  int64 // where the op's data are, or would be
}

func (o RawOp) hasData() bool {
	return o.Type == OpReplace || o.Type == OpXor || o.Type == OpSequence
}

func parseRawOp(b []byte) RawOp {
	le := binary.LittleEndian
	return RawOp{
		Type:        OpType(b[0]),
		Compression: Compression(b[1]),
		DataLength:  le.Uint16(b[2:]),
		NewBlock:    le.Uint64(b[4:]),
		Source:      le.Uint64(b[12:]),
	}
}

// walker steps through the ops of a version 2 file (section 4.2). It reads
// ahead in one buffer, so that a cluster costs a read or two.
type walker struct {
	r       io.ReaderAt
	h       *Header
	size    int64
	next    int64 // offset of the next op
	data    int64 // where its data are
	buf     []byte
	bufOff  int64
	bufFill int
}

func newWalker(r io.ReaderAt, h *Header, size int64) *walker {
	w := &walker{r: r, h: h, size: size, next: h.scratchEnd(), buf: make([]byte, 1024*opSizeV2)}
	w.data = w.next + w.opSpan()
	return w
}

// opSpan is the distance from the first op of a cluster to the cluster's data.
func (w *walker) opSpan() int64 { return opSizeV2 * max(int64(w.h.ClusterOps), 1) }

// step returns the op at the current position and moves to the next one.
func (w *walker) step() (RawOp, error) {
	var b [opSizeV2]byte
	if w.next+opSizeV2 > w.size {
		return RawOp{}, refuse(ErrTruncated, fmt.Sprintf("op at byte %d", w.next), "an op or the footer", fmt.Sprintf("end of file at %d", w.size))
	}
	if err := w.read(b[:], w.next); err != nil {
		return RawOp{}, err
	}
	o := parseRawOp(b[:])
	o.Offset, o.DataOffset = w.next, w.data
	skip := int64(0)
	switch {
	case o.Type == OpCluster:
		// Bounded by the file, so that the sum cannot wrap and every step
		// moves forward.
		if o.Source > uint64(w.size) {
			return o, refuse(ErrCorrupt, fmt.Sprintf("cluster op at byte %d: distance", o.Offset), fmt.Sprintf("at most %d", w.size), o.Source)
		}
		skip = int64(o.Source)
	case w.h.ClusterOps == 0 && (o.Type == OpReplace || o.Type == OpXor):
		skip = int64(o.DataLength)
	}
	w.next += opSizeV2 + skip
	w.data += int64(o.DataLength)
	if o.Type == OpCluster || w.h.ClusterOps == 0 {
		w.data += w.opSpan()
	}
	return o, nil
}

func (w *walker) read(b []byte, off int64) error {
	if off < w.bufOff || off+int64(len(b)) > w.bufOff+int64(w.bufFill) {
		n := int(min(int64(len(w.buf)), w.size-off))
		if err := readFull(w.r, w.buf[:n], off); err != nil {
			return err
		}
		w.bufOff, w.bufFill = off, n
	}
	copy(b, w.buf[off-w.bufOff:])
	return nil
}

// WalkRaw calls visit for each op of a version 1 or 2 file in file order,
// metadata ops included and the footer last, until visit returns false. It
// checks no more than it needs to find the next op.
func WalkRaw(r io.ReaderAt, size int64, visit func(RawOp) bool) error {
	h, err := ReadHeader(r, size)
	if err != nil {
		return err
	}
	if h.Major > 2 {
		return refuse(ErrVersion, "version at byte 8", "1 or 2", h.Major)
	}
	w := newWalker(r, &h, size)
	for {
		o, err := w.step()
		if err != nil {
			return err
		}
		if !visit(o) || o.Type == OpFooter {
			return nil
		}
	}
}

// loadV2 walks the file twice: once to check it and to learn the exact sizes,
// once to fill the arena.
func (f *File) loadV2(r io.ReaderAt) error {
	var s scanV2
	if err := f.scanV2(r, &s); err != nil {
		return err
	}
	f.n = f.counts.Ops()
	if int64(f.n) > maxOps {
		return refuse(ErrCorrupt, "data ops", fmt.Sprintf("at most %d", maxOps), f.n)
	}
	var err error
	if f.ops, err = alloc[byte](f, opSizeV3*f.n); err != nil {
		return err
	}
	if f.seq, err = alloc[byte](f, s.seqBytes); err != nil {
		return err
	}
	if f.counts.Xor > 0 {
		if f.marks, err = alloc[mark](f, s.marks); err != nil {
			return err
		}
	}
	f.nRuns = s.runs.n
	return f.fillV2(r, s.ops)
}

// scanV2 is what the first walk over a version 2 file finds.
type scanV2 struct {
	ops      uint64 // of any kind, before the footer or up to the label
	seqBytes int
	marks    int
	marker   marker
	runs     runBuilder
}

func (f *File) scanV2(r io.ReaderAt, s *scanV2) error {
	w := newWalker(r, &f.h, f.size)
	for cluster := w.next; ; {
		o, err := w.step()
		if err != nil {
			return f.cutShort(err)
		}
		if err := f.checkCluster(w, o, &cluster); err != nil {
			return err
		}
		if o.Type == OpFooter {
			return f.checkFooter(r, o, s.ops)
		}
		if o.Type == 0 {
			// An unused slot in front of which no cluster op stands: the
			// writer was interrupted here.
			return f.cutShort(refuse(ErrTruncated, fmt.Sprintf("op at byte %d", o.Offset), "an op or the footer", "an unused slot"))
		}
		s.ops++
		if err := f.checkRawOp(o); err != nil {
			return err
		}
		f.scanOp(o, s)
		f.end = w.next
		if f.opts.Label != nil && o.Type == OpLabel && o.Source == *f.opts.Label {
			return nil
		}
	}
}

// checkCluster makes sure that the op belongs to the cluster that begins at
// *start, and that a cluster op ends it where its slots and data end (section
// 4.1); *start moves on then.
func (f *File) checkCluster(w *walker, o RawOp, start *int64) error {
	last := *start + opSizeV2*(int64(f.h.ClusterOps)-1)
	switch {
	case f.h.ClusterOps == 0:
		if o.Type == OpCluster {
			return refuse(ErrCorrupt, o.where(), "no cluster op in an unclustered file", "one")
		}
	case o.Type == OpCluster:
		if want := w.data - w.opSpan(); w.next != want || o.Offset > last {
			return refuse(ErrCorrupt, o.where()+": where it leads to", fmt.Sprintf("byte %d, the end of the cluster's data", want), w.next)
		}
		*start = w.next
	case o.Type != OpFooter && o.Offset >= last:
		return refuse(ErrCorrupt, fmt.Sprintf("op at byte %d, the last slot of its cluster", o.Offset), "a cluster op or the footer", o.Type)
	}
	return nil
}

// cutShort explains a file that ended before its footer or the wanted label.
func (f *File) cutShort(err error) error {
	if f.opts.Label != nil && errors.Is(err, ErrTruncated) {
		return refuse(ErrNoLabel, "labels of the file", fmt.Sprintf("label %d", *f.opts.Label), fmt.Sprintf("last label %d (%v)", f.counts.LastLabel, err))
	}
	return err
}

func (f *File) scanOp(o RawOp, s *scanV2) {
	c := &f.counts
	switch o.Type {
	case OpLabel:
		c.Label++
		c.LastLabel = int64(o.Source)
	case OpCluster:
		c.Cluster++
	case OpSequence:
		c.Sequence++
		s.seqBytes += int(o.DataLength)
	default:
		if s.marker.due(c.Ops(), o.DataOffset, o.DataLength) {
			s.marks++
		}
		op := f.pack(o)
		s.runs.add(op, c.Ops(), stretch{ops: 1})
		f.count(op, stretch{ops: 1})
		f.countData(op.Factor, op.DataLength)
	}
}

// marker decides where marks are needed: every markEvery ops and wherever the
// running sum is interrupted.
type marker struct {
	expected int64
	last     int
	started  bool
}

func (m *marker) due(op int, pos int64, length uint16) bool {
	due := !m.started || pos != m.expected || op-m.last >= markEvery
	if due {
		m.last, m.started = op, true
	}
	m.expected = pos + int64(length)
	return due
}

// pack gives a version 2 op the form of version 3. Compression is None when the
// data are stored raw.
func (f *File) pack(o RawOp) Op {
	p := Op{Type: o.Type, NewBlock: uint32(o.NewBlock), DataLength: uint32(o.DataLength), Source: o.Source}
	if !o.storedRaw() {
		p.Compression = o.Compression
	}
	return p
}

// storedRaw is version 2's half of the rule of section 5.1.
func (o RawOp) storedRaw() bool {
	switch o.Compression {
	case None:
		return true
	case LZ4, Zstd:
		return o.DataLength == BlockSize
	}
	return false
}

func (o RawOp) where() string { return fmt.Sprintf("%v op at byte %d", o.Type, o.Offset) }

// checkRawOp checks an op other than the footer, and learns the file's
// algorithm.
func (f *File) checkRawOp(o RawOp) error {
	switch o.Type {
	case OpLabel, OpCluster:
		return nil
	case OpSequence:
		if f.h.ClusterOps == 0 {
			return refuse(ErrCorrupt, o.where(), "a clustered file", "cluster_ops 0")
		}
		if o.DataLength%4 != 0 {
			return refuse(ErrCorrupt, o.where()+": data_length", "a multiple of 4", o.DataLength)
		}
	default:
		if err := f.checkRawDataOp(o); err != nil {
			return err
		}
	}
	if !o.hasData() {
		return nil
	}
	if o.Type != OpXor && o.Source != uint64(o.DataOffset) {
		return refuse(ErrCorrupt, o.where()+": data offset", o.DataOffset, o.Source)
	}
	if end := o.DataOffset + int64(o.DataLength); end > f.size {
		return refuse(ErrTruncated, o.where()+": end of data", fmt.Sprintf("inside the file of %d bytes", f.size), end)
	}
	return nil
}

func (f *File) checkRawDataOp(o RawOp) error {
	if o.Type.IsData() {
		if o.NewBlock > 1<<32-1 {
			return refuse(ErrCorrupt, o.where()+": new_block", "below 2^32", o.NewBlock)
		}
		if o.Source > sourceMask {
			return refuse(ErrCorrupt, o.where()+": source", "below 2^48", o.Source)
		}
	}
	p := Op{Type: o.Type, NewBlock: uint32(o.NewBlock), DataLength: uint32(o.DataLength), Source: o.Source}
	if err := checkOp(p, f.counts.Ops(), BlockSize); err != nil {
		return err
	}
	if !o.hasData() {
		return nil
	}
	if o.Compression > Zstd {
		return refuse(ErrCorrupt, o.where()+": compression", "0 to 4", uint32(o.Compression))
	}
	if o.Compression != None {
		if f.comp != None && f.comp != o.Compression {
			return refuse(ErrCorrupt, o.where()+": compression", fmt.Sprintf("%v as in the ops before", f.comp), o.Compression)
		}
		f.comp = o.Compression
	}
	if o.storedRaw() && o.DataLength != BlockSize {
		return refuse(ErrCorrupt, o.where()+": uncompressed data", fmt.Sprintf("%d bytes", BlockSize), o.DataLength)
	}
	return nil
}

func (f *File) checkFooter(r io.ReaderAt, o RawOp, ops uint64) error {
	if f.opts.Label != nil {
		return refuse(ErrNoLabel, "labels of the file", fmt.Sprintf("label %d", *f.opts.Label), fmt.Sprintf("last label %d", f.counts.LastLabel))
	}
	if end := o.Offset + footerSizeV2; end > f.size {
		return refuse(ErrTruncated, fmt.Sprintf("footer at byte %d", o.Offset), fmt.Sprintf("%d bytes", footerSizeV2), f.size-o.Offset)
	}
	// In a footer the fields after the type stand for other things: bytes 4
	// and 12 are ops_size and num_ops.
	if o.Source != ops {
		return refuse(ErrCorrupt, fmt.Sprintf("footer at byte %d: num_ops", o.Offset), ops, o.Source)
	}
	if o.NewBlock != ops*opSizeV2 {
		return refuse(ErrCorrupt, fmt.Sprintf("footer at byte %d: ops_size", o.Offset), ops*opSizeV2, o.NewBlock)
	}
	f.end = o.Offset + footerSizeV2
	return nil
}

func (f *File) fillV2(r io.ReaderAt, total uint64) error {
	w := newWalker(r, &f.h, f.size)
	var (
		m          marker
		i, k, seqN int
	)
	for range total {
		o, err := w.step()
		if err != nil {
			return err
		}
		switch {
		case o.Type == OpSequence:
			end := seqN + int(o.DataLength)
			if end > len(f.seq) {
				return errChanged(o)
			}
			if err := readFull(r, f.seq[seqN:end], o.DataOffset); err != nil {
				return err
			}
			seqN = end
		case o.Type.IsData():
			if i >= f.n {
				return errChanged(o)
			}
			if due := m.due(i, o.DataOffset, o.DataLength); due && k < len(f.marks) {
				f.marks[k] = mark{pos: o.DataOffset, op: uint32(i)}
				k++
			}
			p, flags := f.pack(o), uint64(0)
			if p.Compression == None {
				flags = rawBit
			}
			putOp(f.ops[i*opSizeV3:], p, flags)
			i++
		}
	}
	if i != f.n {
		return refuse(ErrCorrupt, "second walk over the ops", fmt.Sprintf("%d data ops", f.n), i)
	}
	return nil
}

func errChanged(o RawOp) error {
	return refuse(ErrCorrupt, fmt.Sprintf("op at byte %d", o.Offset), "the ops that were there a moment ago", "another one: the file is being written")
}

// Labels lists the labels of a file of any version, in its order. The file may end
// anywhere, also within what it says of itself; whether it can be continued at a
// label is told by Open.
func Labels(r io.ReaderAt, size int64) (labels []uint64, err error) {
	h, err := ReadHeader(r, size)
	if err != nil {
		return nil, err
	}
	if h.Major > 2 {
		points, err := ReadResumePoints(r, h)
		for _, p := range points {
			labels = append(labels, p.Label)
		}
		return labels, err
	}
	_ = WalkRaw(r, size, func(o RawOp) bool {
		if o.Type == OpLabel {
			labels = append(labels, o.Source)
		}
		return o.Type != 0
	})
	return labels, nil
}
