package cowfile

import (
	"encoding/binary"
	"fmt"
	"io"
)

// WriterOptions say what file to write.
type WriterOptions struct {
	Version     int // 2 or 3
	Compression Compression
	// MaxUnit is the largest unit in bytes (version 3); 0 means 4096.
	MaxUnit int
	// OpCountMax is the capacity of the op table (version 3). Every op takes
	// 16 bytes of the file, used or not.
	OpCountMax int
	// ClusterOps is the number of op slots in a cluster (version 2); 0 means
	// 1024.
	ClusterOps int
	// NoScratch leaves the scratch area out. A merge of ordered ops is not
	// safe against power cuts then.
	NoScratch bool
}

// Writer writes a COW from the first op to the last. It keeps a cluster's or
// some kilobytes of ops and data, never the whole table.
//
// Ops are added in the order of the file, which must be a valid merge order:
// ordered ops first. A refused op leaves the writer as it was; after a failed
// write it is of no use. Not safe for concurrent use.
type Writer interface {
	// Add appends a data op. For replace and xor, stored is what Encode
	// returned and o.Compression its compression; Source of a replace op
	// and DataLength are filled in. stored is not kept.
	Add(o Op, stored []byte) error
	// Finish writes what is left, the header last. It returns the file's
	// size in bytes. A file without a finished header is not a COW.
	Finish() (size int64, err error)
}

// NewWriter starts a COW at the beginning of w, whose old contents do not
// matter.
func NewWriter(w io.WriterAt, opts WriterOptions) (Writer, error) {
	if opts.Compression > Zstd {
		return nil, refuse(ErrVersion, "compression", "0 to 4", uint32(opts.Compression))
	}
	scratch := uint32(DefaultScratch)
	if opts.NoScratch {
		scratch = 0
	}
	switch opts.Version {
	case 2:
		return newWriterV2(w, opts, scratch)
	case 3:
		return newWriterV3(w, opts, scratch)
	}
	return nil, refuse(ErrVersion, "version to write", "2 or 3", opts.Version)
}

// span collects bytes that belong at consecutive offsets.
type span struct {
	w   io.WriterAt
	off int64 // where buf belongs
	buf []byte
}

const spanSize = 256 << 10

func (s *span) add(b []byte) error {
	if len(s.buf)+len(b) > cap(s.buf) {
		if err := s.flush(); err != nil {
			return err
		}
	}
	if len(b) > cap(s.buf) {
		_, err := s.w.WriteAt(b, s.off)
		s.off += int64(len(b))
		return err
	}
	s.buf = append(s.buf, b...)
	return nil
}

func (s *span) flush() error {
	_, err := s.w.WriteAt(s.buf, s.off)
	s.off += int64(len(s.buf))
	s.buf = s.buf[:0]
	return err
}

// end is the offset of the next byte.
func (s *span) end() int64 { return s.off + int64(len(s.buf)) }

// start clears the header and zeroes the scratch area, so that neither old
// bytes nor an interrupted writer can be taken for a COW.
func start(w io.WriterAt, h *Header) error {
	s := span{w: w, buf: make([]byte, 0, spanSize)}
	zeros := make([]byte, 64<<10)
	for left := h.scratchEnd(); left > 0; {
		n := min(left, int64(len(zeros)))
		if err := s.add(zeros[:n]); err != nil {
			return fmt.Errorf("write scratch area: %w", err)
		}
		left -= n
	}
	return s.flush()
}

type writerV3 struct {
	w         io.WriterAt
	h         Header
	ops, data span
	unordered bool
}

func newWriterV3(w io.WriterAt, opts WriterOptions, scratch uint32) (*writerV3, error) {
	h := Header{
		Major: 3, HeaderSize: headerSizeV3, OpSize: opSizeV3, BlockSize: BlockSize, ScratchSize: scratch,
		ResumePointMax: ResumePoints, OpCountMax: uint64(opts.OpCountMax),
		Compression: opts.Compression, MaxCompression: uint32(max(opts.MaxUnit, BlockSize)),
	}
	if err := h.check(); err != nil {
		return nil, err
	}
	if opts.OpCountMax < 0 || opts.OpCountMax > maxOps {
		return nil, refuse(ErrLimit, "capacity of the op table", fmt.Sprintf("0 to %d", maxOps), opts.OpCountMax)
	}
	if err := start(w, &h); err != nil {
		return nil, err
	}
	resume := make([]byte, resumeSize*ResumePoints)
	if _, err := w.WriteAt(resume, h.resumeOffset()); err != nil {
		return nil, fmt.Errorf("write resume points: %w", err)
	}
	return &writerV3{
		w: w, h: h,
		ops:  span{w: w, off: h.opOffset(), buf: make([]byte, 0, 64<<10)},
		data: span{w: w, off: h.dataOffset(), buf: make([]byte, 0, spanSize)},
	}, nil
}

func (w *writerV3) Add(o Op, stored []byte) error {
	if w.h.OpCount == w.h.OpCountMax {
		return refuse(ErrLimit, "op table", fmt.Sprintf("at most %d ops", w.h.OpCountMax), "one more")
	}
	o.DataLength = uint32(len(stored))
	if o.Type == OpReplace {
		o.Source = uint64(w.data.end())
	}
	if err := checkOp(o, int(w.h.OpCount), w.h.MaxCompression); err != nil {
		return err
	}
	if err := checkAdd(o, w.h.Compression, &w.unordered); err != nil {
		return err
	}
	if len(stored) > 0 && (o.Compression == None) != (len(stored) == o.Unit()) {
		return refuse(ErrLimit, fmt.Sprintf("%v: stored bytes", o), fmt.Sprintf("fewer than %d if compressed, else so many", o.Unit()), len(stored))
	}
	var b [opSizeV3]byte
	putOp(b[:], o, 0)
	if err := w.ops.add(b[:]); err != nil {
		return fmt.Errorf("write ops: %w", err)
	}
	if err := w.data.add(stored); err != nil {
		return fmt.Errorf("write data: %w", err)
	}
	w.h.OpCount++
	return nil
}

func (w *writerV3) Finish() (int64, error) {
	if err := w.ops.flush(); err != nil {
		return 0, fmt.Errorf("write ops: %w", err)
	}
	// An unused tail of the table may lie behind the last byte written.
	unused := make([]byte, opSizeV3)
	for left := w.h.OpCountMax - w.h.OpCount; left > 0; left-- {
		if err := w.ops.add(unused); err != nil {
			return 0, fmt.Errorf("write ops: %w", err)
		}
	}
	for _, s := range []*span{&w.ops, &w.data} {
		if err := s.flush(); err != nil {
			return 0, fmt.Errorf("write data: %w", err)
		}
	}
	_, err := w.w.WriteAt(w.h.AppendTo(nil), 0)
	return w.data.end(), err
}

// checkAdd checks what both versions ask of an op in addition to checkOp.
func checkAdd(o Op, c Compression, unordered *bool) error {
	if o.Compression != None && o.Compression != c {
		return refuse(ErrLimit, fmt.Sprintf("%v: compression", o), fmt.Sprintf("none or %v", c), o.Compression)
	}
	if o.Source > sourceMask {
		return refuse(ErrLimit, fmt.Sprintf("%v: source", o), "below 2^48", o.Source)
	}
	if o.Type.Ordered() && *unordered {
		return refuse(ErrMergeOrder, fmt.Sprint(o), "every copy and xor op before the first other op", "it behind one")
	}
	*unordered = *unordered || !o.Type.Ordered()
	return nil
}

type writerV2 struct {
	w         io.WriterAt
	h         Header
	comp      Compression
	at        int64  // where the open cluster begins
	slots     []byte // its ops
	data      []byte // and their data
	numOps    uint64
	unordered bool
}

func newWriterV2(w io.WriterAt, opts WriterOptions, scratch uint32) (*writerV2, error) {
	cluster := opts.ClusterOps
	if cluster == 0 {
		cluster = 1024
	}
	if cluster < 2 || cluster > 1<<16 {
		return nil, refuse(ErrLimit, "cluster ops", "2 to 65536", cluster)
	}
	if opts.MaxUnit > BlockSize {
		return nil, refuse(ErrLimit, "unit in version 2", BlockSize, opts.MaxUnit)
	}
	h := Header{
		Major: 2, HeaderSize: headerSizeV2, FooterSize: footerSizeV2, OpSize: opSizeV2,
		BlockSize: BlockSize, ClusterOps: uint32(cluster), ScratchSize: scratch,
	}
	if err := start(w, &h); err != nil {
		return nil, err
	}
	return &writerV2{w: w, h: h, comp: opts.Compression, at: h.scratchEnd()}, nil
}

func (w *writerV2) Add(o Op, stored []byte) error {
	o.DataLength = uint32(len(stored))
	if o.Type == OpReplace {
		o.Source = uint64(w.dataStart() + int64(len(w.data)))
	}
	if err := checkOp(o, int(w.numOps), BlockSize); err != nil {
		return err
	}
	if err := checkAdd(o, w.comp, &w.unordered); err != nil {
		return err
	}
	if len(stored) > 1<<16-1 || len(stored) > 0 && o.Compression == None && len(stored) != BlockSize {
		return refuse(ErrLimit, fmt.Sprintf("%v: stored bytes", o), "4096, or at most 65535 if compressed", len(stored))
	}
	// The algorithm's number stays in the op even if the block is raw.
	if len(stored) > 0 {
		o.Compression = w.comp
	}
	w.slot(o)
	w.data = append(w.data, stored...)
	return w.closeIfFull()
}

func (w *writerV2) slot(o Op) {
	le := binary.LittleEndian
	b := append(w.slots, uint8(o.Type), uint8(o.Compression))
	b = le.AppendUint16(b, uint16(o.DataLength))
	b = le.AppendUint64(b, uint64(o.NewBlock))
	w.slots = le.AppendUint64(b, o.Source)
	w.numOps++
}

func (w *writerV2) slotBytes() int   { return int(w.h.ClusterOps) * opSizeV2 }
func (w *writerV2) dataStart() int64 { return w.at + int64(w.slotBytes()) }

func (w *writerV2) closeIfFull() error {
	if w.slotBytes() < len(w.slots)+2*opSizeV2 {
		return w.closeCluster()
	}
	return nil
}

// closeCluster ends the cluster with a cluster op, which leads the reader past
// the unused slots and the data (section 4.1).
func (w *writerV2) closeCluster() error {
	skip := len(w.data) + w.slotBytes() - len(w.slots) - opSizeV2
	w.slot(Op{Type: OpCluster, Source: uint64(skip)})
	b := append(w.slots, make([]byte, w.slotBytes()-len(w.slots))...)
	for _, part := range [][]byte{b, w.data} {
		if _, err := w.w.WriteAt(part, w.at); err != nil {
			return fmt.Errorf("write cluster: %w", err)
		}
		w.at += int64(len(part))
	}
	w.slots, w.data = w.slots[:0], w.data[:0]
	return nil
}

func (w *writerV2) Finish() (int64, error) {
	if len(w.data) > 0 {
		if err := w.closeCluster(); err != nil {
			return 0, err
		}
	}
	le := binary.LittleEndian
	b := append(w.slots, uint8(OpFooter), uint8(w.comp))
	b = le.AppendUint16(b, footerSizeV2-opSizeV2)
	b = le.AppendUint64(b, w.numOps*opSizeV2)
	b = le.AppendUint64(b, w.numOps)
	b = append(b, make([]byte, footerSizeV2-opSizeV2)...)
	if _, err := w.w.WriteAt(b, w.at); err != nil {
		return 0, fmt.Errorf("write footer: %w", err)
	}
	_, err := w.w.WriteAt(w.h.AppendTo(nil), 0)
	return w.at + int64(len(b)), err
}
