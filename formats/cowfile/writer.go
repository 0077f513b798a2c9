package cowfile

import (
	"fmt"
	"math"
)

// DefaultClusterOps is the number of op slots in a cluster, and of blocks in a
// batch, unless the options say otherwise.
const DefaultClusterOps = 1024

// Unclustered, as WriterOptions.ClusterOps, puts each op's data right behind it
// (version 2), or writes each op at once (version 3).
const Unclustered = -1

// WriterOptions say what file to write.
type WriterOptions struct {
	Version     int // 2 or 3
	Compression Compression
	// MaxUnit is the largest unit in bytes (version 3); 0 means 4096.
	MaxUnit int
	// OpCountMax is the capacity of the op table (version 3). Every op takes
	// 16 bytes of the file, used or not.
	OpCountMax uint32
	// ClusterOps is the number of op slots in a cluster (version 2, at least
	// 2), or of blocks that are collected before they are written (version
	// 3); 0 means DefaultClusterOps.
	ClusterOps int
	// NoScratch leaves the scratch area out. Android's daemon does not merge
	// ordered ops safely then.
	NoScratch bool
	// ScratchSize is the size of the scratch area in bytes, a multiple of
	// 64 KiB up to MaxScratch; 0 means DefaultScratch. Merges of overlapping
	// ops go through it in pieces, so that a larger one makes them faster.
	ScratchSize uint32
	// Batch collects the ops and data of a cluster and writes them at once
	// (version 2). The file is the same.
	Batch bool
	// NumMergeOps is the progress that a new file begins with; in version 3
	// only together with HeaderLast, since no header may count ops that are
	// not there.
	NumMergeOps uint64
	// HeaderLast leaves the header to Finish, so that an unfinished file is
	// no COW at all. It cannot be resumed: labels are refused.
	HeaderLast bool
}

// Size is what a file takes, as if finished now.
type Size struct {
	Bytes      int64  // all of it: the sum of the following three
	Header     int64  // bytes of header and scratch area
	Ops        int64  // bytes that describe the data: op table or clusters, sequence, resume points, footer
	Data       int64  // stored bytes of replace and xor ops
	OpCountMax uint64 // version 3: capacity of the op table
}

// Writer writes a COW (sections 8.3 to 8.5).
//
// Ops are added in the order of the file. In version 3 without a sequence that
// is the merge order too, so ordered ops have to come first.
//
// A call that is refused (ErrLimit, ErrRequest, ErrMergeOrder) leaves the
// writer as it was. After a failed write, sync or lack of space (ErrNoSpace)
// every call returns that error; what was durable at the last label can be
// resumed.
//
// A writer keeps what it has not yet written and no more: up to 4 MiB and one
// op's data in version 2 with Batch, one op without; in version 3 ClusterOps
// blocks and one unit, and 256 bytes for each of ClusterOps. Not safe for
// concurrent use.
type Writer interface {
	// Add appends a data op. For replace and xor, stored is what Encode
	// returned and o.Compression its compression; Source of a replace op
	// and DataLength are filled in. stored is not kept.
	Add(o Op, stored []byte) error
	// Sequence gives the blocks of the ordered ops in merge order. Version
	// 3 takes one, before everything else; version 2 several, which count
	// as one, in clustered files.
	Sequence(blocks []uint32) error
	// Label makes everything so far durable under a number by which the
	// writing can be resumed. Numbers should rise: version 3 forgets those
	// that are not below the new one, and all but the newest 4; version 2
	// resumes at the first of equal ones.
	Label(label uint64) error
	// Finish makes the file complete and durable and returns its size in
	// bytes. More may be added and the file finished again.
	Finish() (size int64, err error)
	// Size tells what the file would take if it were finished now.
	Size() Size
	// OpsLeft is the number of ops that Add still takes.
	OpsLeft() uint64
}

// versionWriter is the part of a writer that depends on the version.
type versionWriter interface {
	Writer
	create() error
}

// NewWriter starts a COW at the beginning of d, whose old contents do not
// matter: a file is cut to nothing first.
func NewWriter(d Device, opts WriterOptions) (Writer, error) {
	w, err := newVersionWriter(d, opts)
	if err != nil {
		return nil, err
	}
	if err := w.create(); err != nil {
		return nil, err
	}
	return w, nil
}

func newVersionWriter(d Device, opts WriterOptions) (versionWriter, error) {
	if opts.Compression > Zstd {
		return nil, refuse(ErrVersion, "compression", "0 to 4", uint32(opts.Compression))
	}
	if opts.ClusterOps < Unclustered || opts.ClusterOps > math.MaxInt32/opSizeV2 {
		return nil, refuse(ErrLimit, "cluster ops", fmt.Sprintf("none, or at most %d", math.MaxInt32/opSizeV2), opts.ClusterOps)
	}
	if err := opts.checkScratch(); err != nil {
		return nil, err
	}
	switch opts.Version {
	case 2:
		return newWriterV2(d, opts)
	case 3:
		return newWriterV3(d, opts)
	}
	return nil, refuse(ErrVersion, "version to write", "2 or 3", opts.Version)
}

// NewEstimator returns a writer to nowhere, whose Size is that of the file: in
// version 3 with the smallest op table that holds the ops, and at least
// OpCountMax (section 8.6).
func NewEstimator(opts WriterOptions) (Writer, error) {
	w, err := NewWriter(nowhere{}, opts)
	if v3, ok := w.(*writerV3); ok {
		v3.growing = true
	}
	return w, err
}

// OpenWriter continues the COW in d, which is size bytes long, at a label.
// Whatever stands behind the label is gone, durably, when OpenWriter returns;
// it may be anything. A file whose merge has begun is refused. The header
// decides about everything that opts could say, except Compression, which must
// be the file's, and Batch and (version 3) ClusterOps.
func OpenWriter(d Device, size int64, label uint64, opts WriterOptions) (Writer, error) {
	f, err := Open(d, size, &Options{Label: &label})
	if err != nil {
		return nil, err
	}
	if c := f.Compression(); c != opts.Compression && (c != None || f.h.Major > 2) {
		return nil, refuse(ErrRequest, "compression of the file to continue", opts.Compression, c)
	}
	if n := f.h.NumMergeOps; n > 0 {
		return nil, refuse(ErrRequest, "merge progress of the file to continue", "none", n)
	}
	if f.h.Major < 3 {
		return resumeV2(d, f, label, opts)
	}
	return resumeV3(d, f, label, opts)
}

func (o *WriterOptions) scratch() uint32 {
	if o.NoScratch {
		return 0
	}
	if o.ScratchSize != 0 {
		return o.ScratchSize
	}
	return DefaultScratch
}

func (o *WriterOptions) checkScratch() error {
	if o.ScratchSize%(64<<10) != 0 || o.ScratchSize > MaxScratch || o.NoScratch && o.ScratchSize > 0 {
		return refuse(ErrLimit, "scratch area", fmt.Sprintf("a multiple of 65536 bytes, at most %d", MaxScratch), o.ScratchSize)
	}
	return nil
}

// blank zeroes the header, the scratch area and what follows them up to end,
// so that neither old bytes nor an interrupted writer can be taken for a COW.
func (s *sink) blank(end int64) error {
	if err := s.resize(0); err != nil {
		return err
	}
	if err := s.clear("scratch area", 0, end); err != nil {
		return err
	}
	return s.sync()
}

func (s *sink) putHeader(h *Header) error {
	if err := s.put("header", h.AppendTo(nil), 0); err != nil {
		return err
	}
	return s.sync()
}

// checkAdd checks an op that is to be the i-th.
func checkAdd(o Op, i int, maxUnit uint32, c Compression) error {
	if err := checkOp(o, i, maxUnit); err != nil {
		err.(*Error).Kind = ErrRequest // nothing is corrupt yet
		return err
	}
	if o.Compression != None && o.Compression != c {
		return refuse(ErrRequest, fmt.Sprintf("%v: compression", o), fmt.Sprintf("none or %v", c), o.Compression)
	}
	if o.Source > sourceMask {
		return refuse(ErrLimit, fmt.Sprintf("%v: source", o), "below 2^48", o.Source)
	}
	return nil
}

func refuseLabel(headerLast bool) error {
	if headerLast {
		return refuse(ErrRequest, "label", "a file whose header is written first", "HeaderLast")
	}
	return nil
}
