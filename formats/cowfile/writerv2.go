package cowfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// writerV2 puts ops into the slots of the open cluster and their data behind
// the slots; without clusters, data behind each op.
//
// Behind the last op there is always an empty slot, as far as the device goes,
// so that nobody takes what an earlier writer left there for ops.
type writerV2 struct {
	sink
	h          Header
	comp       Compression
	at         int64  // where the open cluster, or the first op, begins
	used       int64  // bytes of ops in it; without clusters, of data too
	dataLen    int64  // bytes of data in the open cluster
	stored     int64  // bytes of data of replace and xor ops in all
	ops, data  []byte // of these, the last ones, not yet written
	numOps     uint64
	batch      bool
	headerLast bool
}

const (
	batchBytesV2    = 4 << 20 // what a batch keeps
	sequenceEntries = 2 * BlockSize / 4
)

func newWriterV2(d Device, opts WriterOptions) (*writerV2, error) {
	cluster := max(opts.ClusterOps, 0)
	if opts.ClusterOps == 0 {
		cluster = DefaultClusterOps
	}
	if cluster == 1 {
		return nil, refuse(ErrLimit, "cluster ops", "none, or at least 2", cluster)
	}
	if opts.MaxUnit > BlockSize {
		return nil, refuse(ErrLimit, "unit in version 2", BlockSize, opts.MaxUnit)
	}
	w := &writerV2{sink: newSink(d), comp: opts.Compression, batch: opts.Batch, headerLast: opts.HeaderLast, h: Header{
		Major: 2, HeaderSize: headerSizeV2, FooterSize: footerSizeV2, OpSize: opSizeV2, BlockSize: BlockSize,
		ClusterOps: uint32(cluster), ScratchSize: opts.scratch(), NumMergeOps: opts.NumMergeOps,
	}}
	w.at = w.h.scratchEnd()
	return w, nil
}

func (w *writerV2) create() error {
	if err := w.blank(w.at); err != nil {
		return err
	}
	if err := w.putThenEmpty("first op", nil, w.at); err != nil || w.headerLast {
		return err
	}
	if err := w.sync(); err != nil {
		return err
	}
	return w.putHeader(&w.h)
}

// resumeV2 replays the ops up to the label (section 8.4).
func resumeV2(d Device, f *File, label uint64, opts WriterOptions) (Writer, error) {
	w := &writerV2{sink: newSink(d), h: f.h, comp: opts.Compression, batch: opts.Batch, at: f.h.scratchEnd()}
	r := newWalker(d, &w.h, f.size)
	for {
		o, err := r.step()
		if err != nil {
			return nil, err
		}
		w.numOps++
		if o.Type == OpCluster {
			w.at, w.used, w.dataLen = r.next, 0, 0
			continue
		}
		w.account(o.Type, int64(o.DataLength))
		if o.Type == OpLabel && o.Source == label {
			break
		}
	}
	if err := w.dropLabels(r); err != nil {
		return nil, err
	}
	if err := w.resize(w.written()); err != nil {
		return nil, err
	}
	if err := w.putThenEmpty("op", nil, w.at+w.used); err != nil {
		return nil, err
	}
	if err := w.closeIfFull(); err != nil {
		return nil, err
	}
	return w, w.sync()
}

// dropLabels blanks the labels and the footer that stand behind the last op, to
// which r has come. New ops could lead to them while a write is torn.
func (w *writerV2) dropLabels(r *walker) error {
	for w.fail == nil {
		o, err := r.step()
		var end *Error
		if err != nil && !errors.As(err, &end) {
			return err
		}
		if err != nil || o.Type == 0 || o.Type > OpSequence && o.Type != OpFooter {
			break // what follows cannot be come to
		}
		// Not among data that are kept: what is behind may be anything.
		behind := o.Offset+opSizeV2 <= w.dataStart() || o.Offset >= w.dataPos() || !w.clustered()
		if behind && (o.Type == OpLabel || o.Type == OpFooter) {
			_ = w.clear("dropped label", o.Offset, opSizeV2)
		}
		if o.Type == OpFooter {
			break
		}
	}
	return w.fail
}

func (w *writerV2) clustered() bool  { return w.h.ClusterOps > 0 }
func (w *writerV2) slotBytes() int64 { return opSizeV2 * int64(w.h.ClusterOps) }
func (w *writerV2) dataStart() int64 { return w.at + w.slotBytes() }
func (w *writerV2) OpsLeft() uint64  { return math.MaxUint64 }

// Size implements Writer.
func (w *writerV2) Size() Size {
	s := Size{Bytes: w.written() + footerSizeV2, Header: w.h.scratchEnd(), Data: w.stored}
	s.Ops = s.Bytes - s.Header - s.Data
	return s
}

// account moves the positions behind an op with n bytes of data.
func (w *writerV2) account(t OpType, n int64) {
	w.used += opSizeV2
	if t.IsData() {
		w.stored += n
	}
	if w.clustered() {
		w.dataLen += n
	} else {
		w.used += n
	}
}

// dataPos is where the data of the next op go.
func (w *writerV2) dataPos() int64 {
	if w.clustered() {
		return w.dataStart() + w.dataLen
	}
	return w.at + w.used + opSizeV2
}

// written is where the footer goes: behind the cluster if it has data, else
// into the next slot (section 4.4).
func (w *writerV2) written() int64 {
	if w.dataLen > 0 {
		return w.dataPos()
	}
	return w.at + w.used
}

func (w *writerV2) Add(o Op, stored []byte) error {
	if w.fail != nil {
		return w.fail
	}
	o.DataLength = uint32(len(stored))
	if o.Type == OpReplace {
		o.Source = uint64(w.dataPos())
	}
	if err := checkAdd(o, int(w.numOps), BlockSize, w.comp); err != nil {
		return err
	}
	if len(stored) > 1<<16-1 || len(stored) > 0 && o.Compression == None && len(stored) != BlockSize {
		return refuse(ErrLimit, fmt.Sprintf("%v: stored bytes", o), "4096, or at most 65535 if compressed", len(stored))
	}
	// The algorithm's number stays in the op even if the block is raw.
	if len(stored) > 0 {
		o.Compression = w.comp
	}
	return w.emit(o, stored)
}

// Sequence implements Writer. One op's data are two blocks at most.
func (w *writerV2) Sequence(blocks []uint32) error {
	if w.fail != nil {
		return w.fail
	}
	if len(blocks) == 0 {
		return refuse(ErrRequest, "merge sequence", "at least one block", 0)
	}
	if !w.clustered() {
		// Readers could not find the op behind it (section 4.2).
		return refuse(ErrRequest, "merge sequence", "a clustered file", "cluster_ops 0")
	}
	for len(blocks) > 0 {
		n := min(len(blocks), sequenceEntries)
		o := Op{Type: OpSequence, Source: uint64(w.dataPos()), DataLength: uint32(4 * n)}
		if err := w.emit(o, encodeBlocks(blocks[:n])); err != nil {
			return err
		}
		blocks = blocks[n:]
	}
	return nil
}

// Label implements Writer.
func (w *writerV2) Label(label uint64) error {
	if w.fail != nil {
		return w.fail
	}
	if err := refuseLabel(w.headerLast); err != nil {
		return err
	}
	// A cut could keep the label and lose what it speaks for, so that comes first.
	if err := w.flush(); err != nil {
		return err
	}
	if err := w.sync(); err != nil {
		return err
	}
	if err := w.emit(Op{Type: OpLabel, Source: label}, nil); err != nil {
		return err
	}
	if err := w.flush(); err != nil {
		return err
	}
	return w.sync()
}

// emit takes an op that has been checked.
func (w *writerV2) emit(o Op, stored []byte) error {
	w.ops = appendSlot(w.ops, o)
	if w.clustered() {
		w.data = append(w.data, stored...)
	} else {
		w.ops = append(w.ops, stored...)
	}
	w.numOps++
	w.account(o.Type, int64(len(stored)))
	if err := w.closeIfFull(); err != nil {
		return err
	}
	if w.batch && len(w.ops)+len(w.data) < batchBytesV2 {
		return nil
	}
	return w.flush()
}

func appendSlot(b []byte, o Op) []byte {
	le := binary.LittleEndian
	b = append(b, uint8(o.Type), uint8(o.Compression))
	b = le.AppendUint16(b, uint16(o.DataLength))
	b = le.AppendUint64(b, uint64(o.NewBlock))
	return le.AppendUint64(b, o.Source)
}

// flush writes what is kept of the open cluster.
func (w *writerV2) flush() error {
	if len(w.ops) == 0 {
		return w.fail
	}
	if err := w.putThenEmpty("ops", w.ops, w.at+w.used-int64(len(w.ops))); err != nil {
		return err
	}
	if err := w.put("data", w.data, w.dataPos()-int64(len(w.data))); err != nil {
		return err
	}
	w.ops, w.data = w.ops[:0], w.data[:0]
	return nil
}

// putThenEmpty writes b and an empty slot behind it, as far as that fits.
func (w *writerV2) putThenEmpty(what string, b []byte, off int64) error {
	room := max(0, min(opSizeV2, w.end-off-int64(len(b))))
	return w.put(what, append(b, make([]byte, room)...), off)
}

func (w *writerV2) closeIfFull() error {
	if !w.clustered() || w.slotBytes() >= w.used+2*opSizeV2 {
		return nil
	}
	return w.closeCluster()
}

// closeCluster ends the cluster with a cluster op, which leads the reader past
// the unused slots and the data (section 4.1).
func (w *writerV2) closeCluster() error {
	w.ops = appendSlot(w.ops, w.clusterOp())
	w.used += opSizeV2
	w.numOps++
	if err := w.putThenEmpty("data", w.data, w.dataPos()-int64(len(w.data))); err != nil {
		return err
	}
	b := append(w.ops, make([]byte, w.slotBytes()-w.used)...)
	if err := w.put("ops", b, w.dataStart()-int64(len(b))); err != nil {
		return err
	}
	w.at, w.used, w.dataLen = w.dataPos(), 0, 0
	w.ops, w.data = w.ops[:0], w.data[:0]
	return nil
}

func (w *writerV2) clusterOp() Op {
	return Op{Type: OpCluster, Source: uint64(w.dataLen + w.slotBytes() - w.used - opSizeV2)}
}

// Finish implements Writer. The open cluster is closed in the file only: here
// it stays open for ops that may follow.
func (w *writerV2) Finish() (int64, error) {
	if err := w.flush(); err != nil {
		return 0, err
	}
	ops := w.numOps
	if w.dataLen > 0 {
		ops++ // a cluster op leads to the footer
	}
	if err := w.put("footer", w.footer(ops), w.written()); err != nil {
		return 0, err
	}
	if ops > w.numOps {
		if err := w.closeInFile(); err != nil {
			return 0, err
		}
	}
	size := w.Size().Bytes
	if w.headerLast {
		return size, w.putHeader(&w.h)
	}
	return size, w.sync()
}

func (w *writerV2) closeInFile() error {
	next := w.at + w.used
	if err := w.put("cluster op", appendSlot(nil, w.clusterOp()), next); err != nil {
		return err
	}
	next += opSizeV2
	return w.clear("unused slots", next, w.dataStart()-next)
}

func (w *writerV2) footer(ops uint64) []byte {
	le := binary.LittleEndian
	b := append(make([]byte, 0, footerSizeV2), uint8(OpFooter), uint8(None)) // as Android, against section 4.4
	b = le.AppendUint16(b, footerSizeV2-opSizeV2)
	b = le.AppendUint64(b, ops*opSizeV2)
	b = le.AppendUint64(b, ops)
	return b[:footerSizeV2]
}
