package puffin

import (
	"fmt"
	"io"

	"github.com/andybalholm/brotli"

	"cowbird/formats/bsdiff"
)

const (
	// MaxPuff is the largest puff, and the largest deflate, in bytes. The usual
	// compressors make blocks of some 100 KiB.
	MaxPuff = 64 << 20
	// CacheSize is how many bytes of puffs of the source are kept by default.
	CacheSize = 5 << 20
)

// What a deflate and its puff can be to each other. So whoever declares a large
// puff of a source has to have a large source.
const (
	mostPuff = 2  // bytes a bit: a copy takes two bits or more, its puff four bytes at most
	mostBits = 16 // bits a byte: a copy takes 48 bits at most, its puff three bytes or more
)

// ZucchiniFunc applies a zucchini patch, which has been decompressed and which
// it reads to its end, to source, and writes targetSize bytes to target.
type ZucchiniFunc func(target io.Writer, targetSize int64, patch io.Reader, source io.ReaderAt, sourceSize int64) error

// ApplyOptions says how a patch is applied.
type ApplyOptions struct {
	// Zucchini is needed for patches of that kind; others do without.
	Zucchini ZucchiniFunc
	// CacheSize is how many bytes of puffs of the source are kept. Default: the
	// constant of that name. In large files with matches far apart more is faster:
	// what has been dropped is puffed again.
	CacheSize int64
}

// Patch is a patch whose header has been read and checked. It is immutable and
// safe for concurrent use, as far as the reader below is.
type Patch struct {
	r              io.ReaderAt
	offset, size   int64 // of the inner patch
	inner          Inner
	source, target *layout
}

// Open reads the header of a patch of size bytes. r must stay usable as long as
// the patch is.
func Open(r io.ReaderAt, size int64) (*Patch, error) {
	b, err := readHeader(r, size)
	if err != nil {
		return nil, err
	}
	h, err := parseHeader(b)
	if err != nil {
		return nil, err
	}
	p := &Patch{r: r, inner: Inner(h.inner), offset: fixedSize + int64(len(b))}
	p.size = size - p.offset
	if p.source, err = h.source.layout(); err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	if p.target, err = h.target.layout(); err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	return p, nil
}

func (s *streamInfo) layout() (*layout, error) {
	l, err := newLayout(s.deflates, s.puffs, s.puffLength)
	if err != nil {
		return nil, err
	}
	for i, p := range l.puffs {
		bits := int64(l.deflates[i].Length)
		if n := max(p.length, bits/8); n > MaxPuff {
			return nil, refuse(ErrLimit, fmt.Sprintf("deflate %d", i), fmt.Sprintf("at most %d bytes", MaxPuff), n)
		}
		l.largest = max(l.largest, p.length+bits/8)
		if p.length > mostPuff*bits || bits > mostBits*p.length {
			return nil, refuse(ErrCorrupt, fmt.Sprintf("puff %d", i), fmt.Sprintf("the puff of %d bits", bits), fmt.Sprintf("%d bytes", p.length))
		}
	}
	return l, nil
}

// Inner is the format of the inner patch.
func (p *Patch) Inner() Inner { return p.inner }

// SourceSize is how many bytes of the source the patch describes.
func (p *Patch) SourceSize() int64 { return p.source.size }

// TargetSize is how many bytes Apply writes.
func (p *Patch) TargetSize() int64 { return p.target.size }

// Memory is how many bytes Apply holds of deflates and puffs: one of each of the
// largest, of either side.
func (p *Patch) Memory() int64 { return p.source.largest + p.target.largest }

// Apply writes the target, TargetSize bytes, to dst. source holds sourceSize
// bytes, at least SourceSize. A patch that needs o.Zucchini and does not get it
// gives ErrUnsupported. After an error an unknown part of the target has been
// written, but nothing is written after the return; before it, dst may be called
// from another goroutine. Errors of source, dst, o.Zucchini and the patch's reader are returned
// wrapped, and those of an inner bsdiff patch are its package's.
func (p *Patch) Apply(dst io.Writer, source io.ReaderAt, sourceSize int64, o ApplyOptions) error {
	if sourceSize < p.source.size {
		return refuse(ErrCorrupt, "size of the source", fmt.Sprintf("at least %d", p.source.size), sourceSize)
	}
	if o.CacheSize == 0 {
		o.CacheSize = CacheSize
	}
	puffed := newView(p.source, source, o.CacheSize)
	w := &writer{layout: p.target, dst: dst}
	if err := p.applyInner(w, puffed, o.Zucchini); err != nil {
		return err
	}
	return w.Close()
}

// applyInner makes the puffed target, and huffs a large one in the background.
func (p *Patch) applyInner(w io.Writer, puffed *view, zucchini ZucchiniFunc) (err error) {
	if p.target.puffedSize >= behindFrom {
		b := writeBehind(w)
		defer func() {
			if closed := b.Close(); err == nil {
				err = closed
			}
		}()
		w = b
	}
	if p.inner == Zucchini {
		return p.applyZucchini(w, puffed, zucchini)
	}
	return p.applyBsdiff(w, puffed)
}

func (p *Patch) applyBsdiff(w io.Writer, puffed *view) error {
	inner, err := bsdiff.Open(io.NewSectionReader(p.r, p.offset, p.size), p.size)
	if err != nil {
		return err
	}
	if n := inner.TargetSize(); n != p.target.puffedSize {
		return refuse(ErrCorrupt, "target of the inner patch", fmt.Sprintf("%d bytes", p.target.puffedSize), n)
	}
	return inner.Apply(w, puffed, puffed.puffedSize)
}

func (p *Patch) applyZucchini(w io.Writer, puffed *view, zucchini ZucchiniFunc) error {
	if zucchini == nil {
		return refuse(ErrUnsupported, "inner patch", Bsdiff, p.inner)
	}
	patch := brotli.NewReader(io.NewSectionReader(p.r, p.offset, p.size))
	return zucchini(w, p.target.puffedSize, patch, puffed, puffed.puffedSize)
}
