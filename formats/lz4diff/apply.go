package lz4diff

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math"

	"cowbird/formats/lz4"
)

// Apply makes a target of at most size bytes from source and an inner patch, and
// fails if it becomes longer.
type Apply func(source, patch []byte, size int64) ([]byte, error)

// DefaultLimit is that of Options without one.
const DefaultLimit = 1 << 30

// Options has what applies the patches inside a patch.
type Options struct {
	BSDiff   Apply // BSDIFF40 and BSDF2
	PuffDiff Apply // PUF1; nil if it is not to be had
	// Limit is how long the contents of source and target may be together, in
	// bytes. 0 means DefaultLimit.
	Limit int64
	// Alloc gives memory that holds zeros for contents and target, which the caller
	// takes back when it is done with the target; nil: the heap.
	Alloc func(n int64) ([]byte, error)
}

func (o *Options) alloc(n int64) ([]byte, error) {
	if o.Alloc == nil {
		return make([]byte, n), nil
	}
	return o.Alloc(n)
}

func (o *Options) check(source, target int64) error {
	limit := o.Limit
	if limit == 0 {
		limit = DefaultLimit
	}
	if source+target > min(limit, math.MaxInt) {
		return refuse(ErrTooLong, "contents", fmt.Sprintf("at most %d bytes", limit), source+target)
	}
	return nil
}

// Contents returns how much memory the contents of source and target take while
// a target of size bytes is made, in bytes.
func (p *Patch) Contents(size int64) (source, target int64) {
	source, _ = p.Source.Lengths()
	target, stored := p.Target.Lengths()
	return source, target + max(size-stored, 0)
}

// Apply makes the target, which must become size bytes long. source is all that
// the source clusters are cut from. Errors wrap one of the package's or the one
// of an Apply function.
func (p *Patch) Apply(source []byte, size int64, o Options) ([]byte, error) {
	length, stored := p.Source.Lengths()
	if int64(len(source)) != stored || stored == 0 {
		return nil, refuse(ErrSource, "length", stored, len(source))
	}
	_, stored = p.Target.Lengths()
	if stored > size {
		return nil, refuse(ErrCorrupt, "target clusters", fmt.Sprintf("at most %d bytes", size), stored)
	}
	if err := o.check(p.Contents(size)); err != nil {
		return nil, err
	}
	contents, err := o.alloc(length)
	if err != nil {
		return nil, err
	}
	if contents, err = p.Source.decompress(contents[:0], source); err != nil {
		return nil, err
	}
	if contents, err = p.applyInner(contents, size, o); err != nil {
		return nil, fmt.Errorf("%v: %w", p.Inner, err)
	}
	return p.compress(contents, size, o)
}

// applyInner makes the contents of the target.
func (p *Patch) applyInner(contents []byte, size int64, o Options) ([]byte, error) {
	_, want := p.Contents(size)
	apply := o.BSDiff
	if p.Inner == PuffDiff {
		apply = o.PuffDiff
	}
	if apply == nil {
		return nil, refuse(ErrUnsupported, "inner patch", "a known format", p.Inner)
	}
	target, err := apply(contents, p.Data, want)
	if err != nil {
		return nil, err
	}
	if int64(len(target)) != want {
		return nil, refuse(ErrCorrupt, "contents of the target", fmt.Sprintf("%d bytes", want), len(target))
	}
	return target, nil
}

// compress makes the target of its contents. What follows the clusters is
// copied.
func (p *Patch) compress(contents []byte, size int64, o Options) ([]byte, error) {
	target, err := o.alloc(size)
	if err != nil {
		return nil, err
	}
	op, err := p.Target.compress(target, contents, func(i int, stored []byte) error {
		c := &p.Target.Clusters[i]
		if err := c.checkHash(i, stored); err != nil || len(c.Postfix) == 0 {
			return err
		}
		return c.fix(i, stored, o.BSDiff)
	})
	if err != nil {
		return nil, err
	}
	length, _ := p.Target.Lengths()
	copy(target[op:], contents[length:])
	return target, nil
}

// compress cuts contents into clusters, one behind the other in file, and calls
// done for each. It returns where the last one ends.
func (f *File) compress(file, contents []byte, done func(i int, stored []byte) error) (op int, err error) {
	e, err := f.encoder()
	if err != nil {
		return 0, err
	}
	length, _ := f.Lengths()
	contents = contents[:length]
	for i := range f.Clusters {
		c := &f.Clusters[i]
		stored := file[op : op+int(c.Stored)]
		if !c.compressed() {
			copy(stored, contents)
		} else if err := f.fill(e, stored, contents); err != nil {
			return 0, fmt.Errorf("cluster %d: %w", i, err)
		}
		if err := done(i, stored); err != nil {
			return 0, err
		}
		contents = contents[c.Length:]
		op += len(stored)
	}
	return op, nil
}

// fill compresses the front of contents into stored. The encoder is given more
// than fits, else it would end the block with literals: specs/payload.md 9.
func (f *File) fill(e *lz4.Encoder, stored, contents []byte) error {
	_, n, err := e.Fill(stored, contents[:min(len(contents), lz4.MaxInput)])
	if err != nil {
		return err
	}
	if f.ZeroPadding {
		copy(stored[len(stored)-n:], stored[:n])
		clear(stored[:len(stored)-n])
	} else {
		clear(stored[n:])
	}
	return nil
}

func (f *File) encoder() (*lz4.Encoder, error) {
	switch {
	case f.Algorithm == Stored:
		return nil, nil
	case f.Algorithm == LZ4:
		return lz4.NewFast(1)
	case f.Level < 1:
		return lz4.NewHigh(9) // liblz4's default
	case f.Level < lz4.MinHigh: // liblz4's versions do not agree on these
		return nil, refuse(ErrUnsupported, "LZ4HC level", "0 or at least 3", f.Level)
	}
	return lz4.NewHigh(min(int(f.Level), lz4.MaxHigh))
}

func (c *Cluster) checkHash(i int, stored []byte) error {
	if len(c.Hash) == 0 {
		return nil
	}
	if sum := sha256.Sum256(stored); !bytes.Equal(sum[:], c.Hash) {
		return refuse(ErrEncoder, fmt.Sprintf("SHA-256 of cluster %d", i), fmt.Sprintf("%x", c.Hash), fmt.Sprintf("%x", sum))
	}
	return nil
}

// fix patches what the encoder made into what the file has.
func (c *Cluster) fix(i int, stored []byte, bsdiff Apply) error {
	if bsdiff == nil {
		return refuse(ErrUnsupported, fmt.Sprintf("cluster %d", i), "no postfix patch", "one")
	}
	fixed, err := bsdiff(bytes.Clone(stored), c.Postfix, c.Stored)
	if err != nil {
		return fmt.Errorf("postfix patch of cluster %d: %w", i, err)
	}
	if int64(len(fixed)) != c.Stored {
		return refuse(ErrCorrupt, fmt.Sprintf("postfix patch of cluster %d", i), fmt.Sprintf("%d bytes", c.Stored), len(fixed))
	}
	copy(stored, fixed)
	return nil
}
