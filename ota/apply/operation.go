package apply

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/dsnet/compress/bzip2"
	"github.com/klauspost/compress/zstd"

	"cowbird/formats/bsdiff"
	"cowbird/formats/lz4diff"
	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
	"cowbird/formats/puffin"
	"cowbird/formats/xz"
	"cowbird/formats/zucchini"
	"cowbird/ota/verify"
)

const (
	// xzDictionary is the largest dictionary of an xz stream, in bytes
	// (specs/payload.md 6).
	xzDictionary = 64 << 20
	// zstdWindow is the largest window of a zstd stream.
	zstdWindow = 128 << 20
	// largestPatch is how much a zucchini patch may decompress to.
	largestPatch = 1 << 30

	copySize = 256 << 10
)

// Operation is one of a payload's, with what it reads.
type Operation struct {
	*pb.InstallOperation
	// Partition is whose it is, and Number its place there.
	Partition *pb.PartitionUpdate
	Number    int
	BlockSize int64
	// Blob is the data in the payload; nil if the type has none.
	Blob *io.SectionReader
	// Old is the old partition; nil if the type reads none.
	Old io.ReaderAt
	// Known may save the hashing of what it reads of Old.
	Known Known
	// Memory is what it shares with others; nil: nothing bounds it.
	Memory *Memory

	arena *arena // from Reserve to the end of Run
}

// Operations are those of a partition, with what they read.
type Operations struct {
	Partition *pb.PartitionUpdate
	BlockSize int64 // bytes
	Blobs     Blobs
	// Old may be nil if no operation reads the old partition.
	Old    io.ReaderAt
	Known  Known
	Memory *Memory
}

// At is operation n, also if its blob cannot be had. done is to be called when it has
// run.
func (s *Operations) At(n int) (o *Operation, done func(), err error) {
	op := s.Partition.GetOperations()[n]
	o, done = &Operation{InstallOperation: op, Partition: s.Partition, Number: n, BlockSize: s.BlockSize, Known: s.Known, Memory: s.Memory}, func() {}
	if payload.HasSource(op.GetType()) {
		o.Old = s.Old
	}
	if payload.HasBlob(op.GetType()) {
		o.Blob, done, err = s.Blobs.Blob(int64(op.GetDataOffset()), int64(op.GetDataLength()))
	}
	return o, done, err
}

// Need is how many bytes an operation holds while it runs, over some hundred
// kilobytes that all of them do, as far as that can be told from the manifest. A
// puffdiff also holds the largest deflate of either side, as it is and puffed, which
// its blob tells.
func Need(op *pb.InstallOperation, blockSize int64) int64 {
	source := int64(payload.Blocks(op.GetSrcExtents())) * blockSize
	target := int64(payload.Blocks(op.GetDstExtents())) * blockSize
	switch op.GetType() {
	case pb.InstallOperation_REPLACE_XZ: // what has been decoded, which grows by doubling
		return min(2*target, xzDictionary)
	case pb.InstallOperation_REPLACE_ZSTD:
		return min(target, xzDictionary)
	case pb.InstallOperation_REPLACE_BZ:
		return 4 << 20
	case pb.InstallOperation_SOURCE_BSDIFF, pb.InstallOperation_BROTLI_BSDIFF:
		return 12 << 20
	case pb.InstallOperation_PUFFDIFF:
		return 12<<20 + puffin.CacheSize
	case pb.InstallOperation_ZUCCHINI:
		return 3 * (source + target)
	case pb.InstallOperation_LZ4DIFF_BSDIFF, pb.InstallOperation_LZ4DIFF_PUFFDIFF:
		return 4 * (source + target)
	}
	return 0
}

// Reserve waits for the memory that Run takes, and gives back. It is for operations that
// wait for each other in other ways as well: the memory is to be taken in that order.
// Without it Run takes it itself.
func (o *Operation) Reserve() { o.arena = o.Memory.take(o.need()) }

// Run does the operation: it checks the hashes of what it reads, and writes the
// blocks. After an error some of them may have been written.
func (o *Operation) Run(w Sink) error {
	if o.arena != nil {
		defer o.arena.giveBack()
	}
	if err := o.CheckBlob(); err != nil {
		return err
	}
	if o.arena == nil {
		o.Reserve()
		defer o.arena.giveBack()
	}
	if err := o.checkSource(); err != nil {
		return err
	}
	out := newExtentWriter(w, o.GetDstExtents(), o.BlockSize)
	if err := o.run(out); err != nil {
		return err
	}
	return out.finish(o.BlockSize)
}

// need is Need, with what the blob tells.
func (o *Operation) need() int64 {
	n := Need(o.InstallOperation, o.BlockSize)
	if o.GetType() == pb.InstallOperation_PUFFDIFF {
		if p, err := puffin.Open(o.Blob, o.Blob.Size()); err == nil { // else it fails when it runs
			n += p.Memory()
		}
	}
	return n
}

// CheckBlob compares the hash of the data, if there is one. The error wraps ErrBlob
// and a *verify.Error.
func (o *Operation) CheckBlob() error {
	if o.Blob == nil || len(o.GetDataSha256Hash()) == 0 {
		return nil
	}
	got, err := sum(io.NewSectionReader(o.Blob, 0, o.Blob.Size()))
	if err != nil {
		return fmt.Errorf("read %d bytes of the payload: %w", o.Blob.Size(), err)
	}
	return mark(ErrBlob, verify.Blob(o.Partition, o.Number, got))
}

func (o *Operation) checkSource() error {
	if o.Old == nil || len(o.GetSrcSha256Hash()) == 0 {
		return nil
	}
	if o.Known.Old != nil {
		if known, err := o.sourceKnown(); known || err != nil {
			return err
		}
	}
	r := o.source()
	got, err := sum(io.NewSectionReader(r, 0, r.size))
	if err != nil {
		return err
	}
	if verify.Source(o.Partition, o.Number, got, nil) == nil {
		return nil
	}
	whole, err := sum(io.NewSectionReader(o.Old, 0, int64(o.Partition.GetOldPartitionInfo().GetSize())))
	if err != nil {
		return err
	}
	return mark(ErrSource, verify.Source(o.Partition, o.Number, got, whole[:]))
}

// sourceKnown asks who knows what the old partition has.
func (o *Operation) sourceKnown() (bool, error) {
	b := copyBuffers.Get().(*[copySize]byte)
	defer copyBuffers.Put(b)
	for _, e := range o.GetSrcExtents() {
		if e.GetStartBlock() == payload.Hole {
			continue
		}
		off, end := int64(e.GetStartBlock())*o.BlockSize, int64(e.GetStartBlock()+e.GetNumBlocks())*o.BlockSize
		for ; off < end; off += copySize {
			n := min(copySize, end-off)
			if k, err := o.Old.ReadAt(b[:n], off); int64(k) < n {
				return false, &ioError{fmt.Errorf("read %d bytes of the old partition at %d: %w", n, off, err)}
			}
			if !o.Known.Old(off, b[:n]) {
				return false, nil
			}
		}
	}
	return true, nil
}

// mark makes a refusal one of this package's errors as well.
func mark(kind, refusal error) error {
	if refusal == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", kind, refusal)
}

// checkTarget compares the hash of a new partition.
func checkTarget(p *pb.PartitionUpdate, hash [sha256.Size]byte) error {
	return mark(ErrTarget, verify.Partition(p, hash))
}

// where says which operation an error is of.
func (o *Operation) where(err error) error {
	return fmt.Errorf("operation %d (%v): %w", o.Number, o.GetType(), err)
}

func (o *Operation) source() *extentReader {
	return newExtentReader(o.Old, o.GetSrcExtents(), o.BlockSize)
}

func (o *Operation) run(out *extentWriter) error {
	switch o.GetType() {
	case pb.InstallOperation_ZERO, pb.InstallOperation_DISCARD:
		return out.zero()
	case pb.InstallOperation_SOURCE_COPY:
		r := o.source()
		return copyAll(out, io.NewSectionReader(r, 0, r.size))
	case pb.InstallOperation_SOURCE_BSDIFF, pb.InstallOperation_BROTLI_BSDIFF:
		r := o.source()
		return o.badBlob(applyBsdiff(out, o.Blob, r, r.size))
	case pb.InstallOperation_PUFFDIFF:
		r := o.source()
		return o.badBlob(o.puffdiff(out, o.Blob, r, r.size))
	case pb.InstallOperation_ZUCCHINI:
		return o.badBlob(o.zucchini(out))
	case pb.InstallOperation_LZ4DIFF_BSDIFF, pb.InstallOperation_LZ4DIFF_PUFFDIFF:
		return o.badBlob(o.lz4diff(out))
	}
	return o.replace(out)
}

// badBlob marks errors of decoders: all but those of partitions.
func (o *Operation) badBlob(err error) error {
	var partition *ioError
	if err == nil || errors.Is(err, ErrOutput) || errors.As(err, &partition) {
		return err
	}
	return mark(ErrBlob, verify.Operation(err))
}

// replace writes what the blob decompresses to.
func (o *Operation) replace(out *extentWriter) error {
	in := bufio.NewReaderSize(io.NewSectionReader(o.Blob, 0, o.Blob.Size()), 64<<10)
	var r io.Reader = in
	switch o.GetType() {
	case pb.InstallOperation_REPLACE:
	case pb.InstallOperation_REPLACE_BZ:
		z, err := bzip2Decoder(in)
		if err != nil {
			return o.badBlob(err)
		}
		defer bzip2Decoders.Put(z)
		r = z
	case pb.InstallOperation_REPLACE_XZ:
		z, err := xzDecoder(in)
		if err != nil {
			return o.badBlob(err)
		}
		defer xzDecoders.Put(z)
		r = z
	case pb.InstallOperation_REPLACE_ZSTD:
		z, err := zstdDecoder(in)
		if err != nil {
			return o.badBlob(err)
		}
		defer giveBackZstd(z)
		r = z
	default:
		return fmt.Errorf("%w: operation type %v", errors.ErrUnsupported, o.GetType())
	}
	if err := copyAll(out, r); err != nil {
		return o.badBlob(err)
	}
	if _, err := in.ReadByte(); err != io.EOF {
		return o.badBlob(errors.New("expected the end of the compressed data, found more"))
	}
	return nil
}

// Decoders are kept for the next operation: they hold megabytes.
var xzDecoders, bzip2Decoders, zstdDecoders sync.Pool

func xzDecoder(r io.Reader) (*xz.Reader, error) {
	if z, ok := xzDecoders.Get().(*xz.Reader); ok {
		return z, z.Reset(r)
	}
	return xz.NewReader(r, xzDictionary)
}

func bzip2Decoder(r io.Reader) (*bzip2.Reader, error) {
	if z, ok := bzip2Decoders.Get().(*bzip2.Reader); ok {
		return z, z.Reset(r)
	}
	return bzip2.NewReader(r, nil)
}

func zstdDecoder(r io.Reader) (*zstd.Decoder, error) {
	if z, ok := zstdDecoders.Get().(*zstd.Decoder); ok {
		return z, z.Reset(r)
	}
	return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(zstdWindow))
}

func giveBackZstd(z *zstd.Decoder) {
	if z.Reset(nil) == nil {
		zstdDecoders.Put(z)
	}
}

func applyBsdiff(out io.Writer, blob *io.SectionReader, source io.ReaderAt, size int64) error {
	p, err := bsdiff.Open(blob, blob.Size())
	if err != nil {
		return err
	}
	return p.Apply(out, source, size)
}

func (o *Operation) puffdiff(out io.Writer, blob *io.SectionReader, source io.ReaderAt, size int64) error {
	p, err := puffin.Open(blob, blob.Size())
	if err != nil {
		return err
	}
	return p.Apply(out, source, size, puffin.ApplyOptions{Zucchini: o.innerZucchini})
}

// innerZucchini is what a puffin patch may have inside.
func (o *Operation) innerZucchini(out io.Writer, size int64, patch io.Reader, source io.ReaderAt, sourceSize int64) error {
	b, err := io.ReadAll(io.LimitReader(patch, largestPatch+1))
	if err != nil {
		return err
	}
	old, err := o.readAll(source, sourceSize)
	if err != nil {
		return err
	}
	return o.writeZucchini(out, size, b, old)
}

func (o *Operation) writeZucchini(out io.Writer, size int64, patch, old []byte) error {
	p, err := zucchini.Parse(patch)
	if err != nil {
		return err
	}
	b, err := o.alloc(size)
	if err != nil {
		return err
	}
	if err := p.ApplyTo(b, old); err != nil {
		return err
	}
	_, err = out.Write(b)
	return err
}

func (o *Operation) zucchini(out *extentWriter) error {
	blob, err := o.readAll(o.Blob, o.Blob.Size())
	if err != nil {
		return err
	}
	patch, err := zucchini.Unpack(blob, largestPatch)
	if err != nil {
		return err
	}
	r := o.source()
	old, err := o.readAll(r, r.size)
	if err != nil {
		return err
	}
	return o.writeZucchini(out, out.size, patch, old)
}

func (o *Operation) lz4diff(out *extentWriter) error {
	blob, err := o.readAll(o.Blob, o.Blob.Size())
	if err != nil {
		return err
	}
	p, err := lz4diff.Parse(blob)
	if err != nil {
		return err
	}
	r := o.source()
	old, err := o.readAll(r, r.size)
	if err != nil {
		return err
	}
	b, err := p.Apply(old, out.size, lz4diff.Options{BSDiff: o.inMemory(applyBsdiff), PuffDiff: o.inMemory(o.puffdiff), Alloc: o.alloc})
	if err != nil {
		return err
	}
	_, err = out.Write(b)
	return err
}

// inMemory makes a function for lz4diff of one for streams.
func (o *Operation) inMemory(apply func(io.Writer, *io.SectionReader, io.ReaderAt, int64) error) lz4diff.Apply {
	return func(source, patch []byte, size int64) ([]byte, error) {
		b, err := o.alloc(size)
		if err != nil {
			return nil, err
		}
		out := &limited{b: b}
		err = apply(out, io.NewSectionReader(bytes.NewReader(patch), 0, int64(len(patch))), bytes.NewReader(source), int64(len(source)))
		return b[:out.n], err
	}
}

// limited is a buffer that does not become longer than it may.
type limited struct {
	b []byte
	n int
}

func (l *limited) Write(p []byte) (int, error) {
	if left := len(l.b) - l.n; len(p) > left {
		return 0, fmt.Errorf("%w: expected %d bytes less", ErrOutput, len(p)-left)
	}
	l.n += copy(l.b[l.n:], p)
	return len(p), nil
}

// alloc is memory of the operation while it runs. That there is none is no fault of
// the blob's.
func (o *Operation) alloc(n int64) ([]byte, error) {
	b, err := o.arena.alloc(n)
	if err != nil {
		return nil, &ioError{err}
	}
	return b, nil
}

func (o *Operation) readAll(r io.ReaderAt, size int64) ([]byte, error) {
	b, err := o.alloc(size)
	if err != nil {
		return nil, err
	}
	n, err := r.ReadAt(b, 0)
	if n == len(b) {
		err = nil
	}
	return b, err
}

var copyBuffers = sync.Pool{New: func() any { return new([copySize]byte) }}

func copyAll(w io.Writer, r io.Reader) error {
	b := copyBuffers.Get().(*[copySize]byte)
	defer copyBuffers.Put(b)
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, b[:])
	return err
}

func sum(r io.Reader) (s [sha256.Size]byte, err error) {
	h := sha256.New()
	err = copyAll(h, r)
	h.Sum(s[:0])
	return s, err
}
