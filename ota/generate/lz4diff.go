package generate

import (
	"bytes"
	"errors"
	"io"

	"google.golang.org/protobuf/proto"

	"cowbird/formats/bsdiff"
	"cowbird/formats/lz4diff"
	"cowbird/formats/payload/pb"
	"cowbird/formats/puffin"
	"cowbird/ota/apply"
)

// packedItem are an item's data by their contents.
type packedItem struct {
	source, file, target lz4diff.File // file is all of the new file
	contents             []byte       // of file
	stretches            []stretch    // of contents that the item makes
}

// lz4diff compares the contents of files that erofs has compressed. The device has to
// compress them again, so what comes out is tried before it counts.
func (r *making) lz4diff(best *encoding) error {
	if !r.it.packed() || r.o.Minor < lz4diffMinor || len(best.blob) <= r.it.Old.leastHeader() {
		return nil
	}
	p, err := r.packed()
	if err != nil || p == nil {
		return err
	}
	patch, err := lz4diff.Create(r.source, r.target, p.source, p.target, lz4diff.Differs{
		BSDiff: func(source, target []byte) ([]byte, error) { return bsdiffOf(source, target, r.bsdiffOptions()) },
		PuffDiff: func(source, target []byte) ([]byte, error) {
			streams, err := r.puffContents(p, source, target)
			if err != nil {
				return nil, err
			}
			programs, err := r.zucchiniContents(p, source, target)
			if programs == nil || streams != nil && len(streams) <= len(programs) {
				return streams, err
			}
			return programs, err
		},
		Postfix: func(source, target []byte) ([]byte, error) {
			return bsdiffOf(source, target, bsdiff.Options{Legacy: true})
		},
		Terse: true,
	})
	if err != nil {
		return unlessStrange(err)
	}
	blob, err := patch.AppendTo(nil)
	if err != nil || len(blob) >= len(best.blob) {
		return err
	}
	kind := pb.InstallOperation_LZ4DIFF_BSDIFF
	if patch.Inner == lz4diff.PuffDiff {
		kind = pb.InstallOperation_LZ4DIFF_PUFFDIFF
	}
	if r.gives(kind, blob) {
		best.smaller(kind, blob)
	}
	return nil
}

// lz4diffMinor is the first minor version with LZ4DIFF.
const lz4diffMinor = 9

// unlessStrange drops the errors of files that are not compressed as they seem to be:
// those are compared as they are.
func unlessStrange(err error) error {
	for _, e := range []error{lz4diff.ErrSource, lz4diff.ErrCorrupt, lz4diff.ErrUnsupported, lz4diff.ErrTooLong} {
		if errors.Is(err, e) {
			return nil
		}
	}
	return err
}

// packed finds out how the files are compressed; nil if that is not understood.
func (r *making) packed() (*packedItem, error) {
	p := &packedItem{source: r.it.Old.file(), file: r.it.New.file()}
	made, stretches, ok := r.it.New.made(r.it.inFile())
	if !ok {
		return nil, nil
	}
	p.stretches = stretches
	old, err := p.source.Contents(r.source)
	if err != nil {
		return nil, unlessStrange(err)
	}
	if p.contents, err = p.file.Contents(r.file); err != nil {
		return nil, unlessStrange(err)
	}
	if err := errors.Join(p.source.Detect(r.source, old), p.file.Detect(r.file, p.contents)); err != nil {
		return nil, err
	}
	p.target = made.file()
	p.target.Algorithm, p.target.Level = p.file.Algorithm, p.file.Level
	return p, nil
}

func bsdiffOf(source, target []byte, o bsdiff.Options) ([]byte, error) {
	var b bytes.Buffer
	err := bsdiff.Create(&b, source, target, o)
	return b.Bytes(), err
}

// puffContents compares contents with deflate streams; nil if there are none.
func (r *making) puffContents(p *packedItem, old, contents []byte) ([]byte, error) {
	source := puffin.File{Data: old, Deflates: deflates(r.it.Name, old)}
	target := puffin.File{Data: contents, Deflates: p.remaining(deflates(r.it.Name, p.contents))}
	if len(source.Deflates) == 0 || len(target.Deflates) == 0 {
		return nil, nil
	}
	var b bytes.Buffer
	err := puffin.Create(&b, source, target, puffin.Options{Bsdiff: r.bsdiffOptions()})
	return b.Bytes(), err
}

// zucchiniContents compares contents as programs; nil if they are none. A puffdiff may
// have a zucchini patch inside, which is the only way to have one in an LZ4DIFF.
func (r *making) zucchiniContents(p *packedItem, old, contents []byte) ([]byte, error) {
	whole := len(contents) == len(p.contents)
	if r.o.Effort == Fast || !whole || !bytes.HasPrefix(old, elf) || !bytes.HasPrefix(contents, elf) || len(old)+len(contents) > 2*largestProgram {
		return nil, nil
	}
	inside, err := r.programs(old, contents)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = puffin.WrapZucchini(&b, int64(len(old)), int64(len(contents)), inside)
	return b.Bytes(), err
}

// remaining are the streams of the file's contents that lie completely in what the
// item makes, where they are there.
func (p *packedItem) remaining(all []puffin.BitExtent) (left []puffin.BitExtent) {
	for _, s := range p.stretches {
		for _, e := range puffin.Within(all, s.inFile, s.length) {
			left = append(left, puffin.BitExtent{Offset: e.Offset + uint64(s.inItem)*8, Length: e.Length})
		}
	}
	return left
}

// gives tells whether an operation of these data makes the item, by doing it.
func (r *making) gives(kind opType, blob []byte) bool {
	extents := func(b []byte) []*pb.Extent { return []*pb.Extent{extent(0, uint64(len(b)/blockSize))} }
	op := apply.Operation{
		InstallOperation: &pb.InstallOperation{Type: kind.Enum(), SrcExtents: extents(r.source), DstExtents: extents(r.target), DataLength: proto.Uint64(uint64(len(blob)))},
		Partition:        &pb.PartitionUpdate{}, BlockSize: blockSize,
		Blob: io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob))), Old: bytes.NewReader(r.source),
	}
	out := &expected{want: r.target}
	return op.Run(out) == nil && out.n == int64(len(r.target))
}

// expected is a partition that takes what it should become, and nothing else.
type expected struct {
	want []byte
	n    int64 // bytes taken
}

var errUnexpected = errors.New("other bytes than expected")

// WriteAt implements apply.Sink.
func (e *expected) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(e.want)) || !bytes.HasPrefix(e.want[off:], b) {
		return 0, errUnexpected
	}
	e.n += int64(len(b))
	return len(b), nil
}

// Zero implements apply.Sink.
func (e *expected) Zero(off, n int64) error {
	_, err := e.WriteAt(make([]byte, n), off)
	return err
}
