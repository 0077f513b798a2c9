package cow

import (
	"context"
	"errors"
	"fmt"

	"cowbird/formats/cowfile"
)

// WriterOptions say what COW to write. Those of a COW that is continued must be
// those that it was begun with.
type WriterOptions struct {
	Version     int // of the format, 2 or 3; 0 means 3
	Compression cowfile.Compression
	// NewCompressor makes a compressor for that algorithm and units of up to
	// MaxUnit bytes, one for each worker; package formats/compress has them.
	NewCompressor func() (func(dst, unit []byte) ([]byte, error), error)
	// MaxUnit is the largest unit in bytes (version 3), a power of two from
	// 4 KiB to 256 KiB; 0 means 4 KiB. ClusterOps bounds it as well.
	MaxUnit int
	// MaxBlocks is the size of the target; 0 means 2^32.
	MaxBlocks uint64
	// OpCountMax is the capacity of the op table (version 3); 0 means
	// MaxBlocks, one of which must be given.
	OpCountMax uint32
	// ClusterOps, NoScratch, Batch and NumMergeOps are those of
	// cowfile.WriterOptions. In version 3 units do not cross a multiple of
	// ClusterOps blocks of their request.
	ClusterOps  int
	NoScratch   bool
	Batch       bool
	NumMergeOps uint64
	// Workers is the number of goroutines that compress; with 0 or 1 the
	// caller does. The file does not depend on it.
	Workers int
}

// Writer writes a COW request by request, as an installer does that learns
// piece by piece what the target is made of.
//
// Requests are checked as a whole: one that is refused (cowfile.ErrLimit,
// ErrRequest, ErrMergeOrder) has changed nothing. After any other error, such
// as cowfile.ErrNoSpace, every call returns that error, and the COW can be
// continued at its last label. Buffers belong to the caller again when a call
// returns.
//
// Beyond what cowfile.Writer keeps, a Writer holds a compressor and a unit a
// worker and, during a request and with Workers, 5 MiB a worker. Not safe for
// concurrent use.
type Writer struct {
	low   cowfile.Writer
	enc   pipeline
	o     WriterOptions
	chunk uint32 // blocks of a request that are cut into units at a time
	unit  uint32 // blocks of the largest unit
	err   error  // after which nothing can be trusted
}

// NewWriter starts a COW at the beginning of d.
func NewWriter(d cowfile.Device, o WriterOptions) (*Writer, error) {
	return o.open(true, func(low cowfile.WriterOptions) (cowfile.Writer, error) { return cowfile.NewWriter(d, low) })
}

// NewEstimator returns a Writer to nowhere, whose Size is that of the COW. In
// version 3 the op table has just the ops, if OpCountMax says no more.
func NewEstimator(o WriterOptions) (*Writer, error) { return o.open(false, cowfile.NewEstimator) }

// OpenWriter continues the COW in d, which is size bytes long, at a label. What
// comes behind the label is gone when OpenWriter returns.
func OpenWriter(d cowfile.Device, size int64, label uint64, o WriterOptions) (*Writer, error) {
	h, err := cowfile.ReadHeader(d, size)
	if err != nil {
		return nil, err
	}
	o.Version, o.MaxUnit = int(h.Major), int(h.MaxCompression)
	return o.open(false, func(low cowfile.WriterOptions) (cowfile.Writer, error) {
		return cowfile.OpenWriter(d, size, label, low)
	})
}

func (o WriterOptions) open(create bool, open func(cowfile.WriterOptions) (cowfile.Writer, error)) (*Writer, error) {
	if err := o.complete(create); err != nil {
		return nil, err
	}
	w := &Writer{o: o, chunk: uint32(max(o.ClusterOps, 1)), unit: uint32(o.MaxUnit / blockSize)}
	if o.ClusterOps == 0 {
		w.chunk = cowfile.DefaultClusterOps
	}
	w.enc = pipeline{threads: o.Workers, maxUnit: o.MaxUnit, newEncoder: func() (*cowfile.Encoder, error) {
		return newEncoder(o.Version, o.Compression, o.NewCompressor)
	}}
	if o.Workers == 1 {
		w.enc.threads = 0
	}
	if _, err := w.enc.worker(0); err != nil { // before anything is written
		return nil, err
	}
	var err error
	w.low, err = open(cowfile.WriterOptions{
		Version: o.Version, Compression: o.Compression, MaxUnit: o.MaxUnit, OpCountMax: o.OpCountMax, ClusterOps: o.ClusterOps,
		NoScratch: o.NoScratch, Batch: o.Batch, NumMergeOps: o.NumMergeOps,
	})
	return w, err
}

func (o *WriterOptions) complete(create bool) error {
	if o.Version == 0 {
		o.Version = 3
	}
	if create && o.Version == 3 && o.OpCountMax == 0 {
		if o.MaxBlocks == 0 {
			return refused(cowfile.ErrRequest, "options", "OpCountMax or MaxBlocks", "neither")
		}
		o.OpCountMax = uint32(min(o.MaxBlocks, 1<<32-1))
	}
	if o.MaxBlocks == 0 {
		o.MaxBlocks = 1 << 32
	}
	if o.MaxBlocks > 1<<32 {
		return refused(cowfile.ErrLimit, "blocks of the target", "at most 2^32", o.MaxBlocks)
	}
	o.MaxUnit = max(o.MaxUnit, blockSize)
	if u := o.MaxUnit; u > cowfile.MaxUnit || u&(u-1) != 0 || o.Version < 3 && u > blockSize {
		return refused(cowfile.ErrRequest, "unit", fmt.Sprintf("a power of two from %d to %d (version 2: %d)", blockSize, cowfile.MaxUnit, blockSize), u)
	}
	if o.Workers < 0 || o.Workers > maxWorkers {
		return refused(cowfile.ErrLimit, "workers", fmt.Sprintf("0 to %d", maxWorkers), o.Workers)
	}
	return nil
}

const maxWorkers = 1024

func refused(kind error, where string, expected, found any) error {
	return &cowfile.Error{Kind: kind, Where: where, Expected: fmt.Sprint(expected), Found: fmt.Sprint(found)}
}

// Copy makes n blocks of the target from first those of the source from old.
func (w *Writer) Copy(first, old, n uint64) error {
	where := fmt.Sprintf("copy of %d blocks from %d to %d", n, old, first)
	if err := w.check(where, first, n, n); err != nil {
		return err
	}
	if old+n > maxSource || old > maxSource {
		return refused(cowfile.ErrLimit, where+": source", "below block 2^36", old)
	}
	return w.each(n, func(i uint64) cowfile.Op {
		return cowfile.Op{Type: cowfile.OpCopy, NewBlock: uint32(first + i), Source: old + i}
	})
}

// Zero makes n blocks from first zeros.
func (w *Writer) Zero(first, n uint64) error {
	if err := w.check(fmt.Sprintf("%d zero blocks from %d", n, first), first, n, n); err != nil {
		return err
	}
	return w.each(n, func(i uint64) cowfile.Op { return cowfile.Op{Type: cowfile.OpZero, NewBlock: uint32(first + i)} })
}

// Replace makes the blocks from first those of data, which are whole blocks.
func (w *Writer) Replace(first uint64, data []byte) error {
	where := fmt.Sprintf("%d bytes for blocks from %d", len(data), first)
	n, err := wholeBlocks(where, data)
	if err != nil {
		return err
	}
	if err := w.check(where, first, n, 0); err != nil {
		return err
	}
	ops := w.units(uint32(first), uint32(n))
	if err := w.check(where, first, n, uint64(len(ops))); err != nil {
		return err
	}
	return w.encode(ops, first, data)
}

// Xor makes the blocks from first those of the source from byte offset of block
// old, each XORed with a block of data. offset is less than a block.
func (w *Writer) Xor(first uint64, data []byte, old, offset uint64) error {
	where := fmt.Sprintf("xor of %d bytes with block %d + %d for blocks from %d", len(data), old, offset, first)
	n, err := wholeBlocks(where, data)
	if err != nil {
		return err
	}
	if err := w.check(where, first, n, n); err != nil {
		return err
	}
	if offset >= blockSize {
		return refused(cowfile.ErrRequest, where+": offset", fmt.Sprintf("less than %d", blockSize), offset)
	}
	if old+n >= maxSource || old > maxSource {
		return refused(cowfile.ErrLimit, where+": source", "below block 2^36", old)
	}
	ops := make([]cowfile.Op, n)
	for i := range ops {
		ops[i] = cowfile.Op{Type: cowfile.OpXor, NewBlock: uint32(first) + uint32(i), Source: (old+uint64(i))*blockSize + offset}
	}
	return w.encode(ops, first, data)
}

// maxSource is the first source block whose byte offset takes more than the 48
// bits that an op has for it.
const maxSource = 1 << (48 - 12)

func wholeBlocks(where string, data []byte) (uint64, error) {
	if len(data)%blockSize != 0 {
		return 0, refused(cowfile.ErrRequest, where, fmt.Sprintf("a multiple of %d bytes", blockSize), len(data))
	}
	return uint64(len(data) / blockSize), nil
}

// check refuses a request for n blocks from first that takes so many ops.
func (w *Writer) check(where string, first, n, ops uint64) error {
	if w.err != nil {
		return w.err
	}
	if m := w.o.MaxBlocks; n > m || first > m-n {
		return refused(cowfile.ErrLimit, where, fmt.Sprintf("blocks below %d", m), fmt.Sprintf("%d blocks from %d", n, first))
	}
	if left := w.low.OpsLeft(); ops > left {
		return refused(cowfile.ErrLimit, where, fmt.Sprintf("at most the %d ops that are left", left), ops)
	}
	return nil
}

// units cuts n blocks into ops (section 5.2).
func (w *Writer) units(first, n uint32) []cowfile.Op {
	ops := make([]cowfile.Op, 0, n/w.unit+8)
	for n > 0 {
		c := min(n, w.chunk)
		ops = appendUnits(ops, first, c, w.unit)
		first, n = first+c, n-c
	}
	return ops
}

// each adds n ops without data.
func (w *Writer) each(n uint64, op func(i uint64) cowfile.Op) error {
	for i := range n {
		if err := w.low.Add(op(i), nil); err != nil {
			return w.failed(i == 0, err)
		}
	}
	return nil
}

// encode adds ops that cover the blocks of data, which begin at first.
func (w *Writer) encode(ops []cowfile.Op, first uint64, data []byte) error {
	p := &w.enc
	if len(ops) < 2 { // not worth a goroutine
		p = &pipeline{maxUnit: p.maxUnit, workers: p.workers}
	}
	added, left := 0, ops
	err := p.run(context.Background(), job{
		next: func() (o cowfile.Op, ok bool) {
			if len(left) == 0 {
				return o, false
			}
			o, left = left[0], left[1:]
			return o, true
		},
		fill: func(o cowfile.Op, _ []byte) ([]byte, error) {
			return data[(uint64(o.NewBlock)-first)*blockSize:][:o.Unit()], nil
		},
		add: func(o cowfile.Op, stored []byte) error {
			err := w.low.Add(o, stored)
			if err == nil {
				added++
			}
			return err
		},
	})
	return w.failed(added == 0, err)
}

// failed keeps an error for later calls, unless it is a refusal that came
// before anything had changed.
func (w *Writer) failed(unchanged bool, err error) error {
	var refusal *cowfile.Error
	if err == nil || unchanged && errors.As(err, &refusal) && refusal.Kind != cowfile.ErrNoSpace {
		return err
	}
	w.err = err
	return err
}

// Sequence gives the blocks of the ordered ops in merge order: version 3 takes
// one sequence, before everything else.
func (w *Writer) Sequence(blocks []uint32) error {
	if w.err != nil {
		return w.err
	}
	for _, b := range blocks {
		if uint64(b) >= w.o.MaxBlocks {
			return refused(cowfile.ErrLimit, "merge sequence", fmt.Sprintf("blocks below %d", w.o.MaxBlocks), b)
		}
	}
	return w.failed(true, w.low.Sequence(blocks))
}

// Label makes everything so far durable under a number by which the COW can be
// continued; see cowfile.Writer.
func (w *Writer) Label(label uint64) error {
	if w.err != nil {
		return w.err
	}
	return w.failed(true, w.low.Label(label))
}

// Finish makes the COW complete and durable and returns its size in bytes. More
// requests may follow, and another Finish.
func (w *Writer) Finish() (int64, error) {
	if w.err != nil {
		return 0, w.err
	}
	size, err := w.low.Finish()
	return size, w.failed(true, err)
}

// Size tells what the COW would take if it were finished now.
func (w *Writer) Size() cowfile.Size { return w.low.Size() }
