package puffin

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"cowbird/formats/bsdiff"
)

// File is one side of a patch: its bytes, and where in them deflate blocks are,
// in order and without overlap.
type File struct {
	Data     []byte
	Deflates []BitExtent
}

// Options says how a patch is made.
type Options struct {
	// Bsdiff is for the inner patch, which must not be of the legacy format.
	Bsdiff bsdiff.Options
	// OldClients leaves out the deflates at whose end clients fail that know
	// minor versions up to 5 (specs/payload.md 8.5).
	OldClients bool
}

// Create writes a patch that makes target from source. Deflates that are no use
// are left out: those in both files, which are better compared as they are, and
// those of the target that cannot be made again from their puff. ErrDeflate
// says that one of the extents is not what the caller thinks.
func Create(patch io.Writer, source, target File, o Options) error {
	if o.Bsdiff.Legacy {
		return fmt.Errorf("inner patch: expected BSDF2, found BSDIFF40 in the options")
	}
	for _, f := range []File{source, target} {
		if err := f.check(); err != nil {
			return err
		}
	}
	removeEqual(&source, &target)
	var sides [2]puffed
	for i, f := range []File{source, target} {
		var err error
		if sides[i], err = puffFile(f, i == 1, o.OldClients); err != nil {
			return fmt.Errorf("%s: %w", [...]string{"source", "target"}[i], err)
		}
	}
	if err := writeHeader(patch, Bsdiff, sides[0].layout, sides[1].layout); err != nil {
		return err
	}
	o.Bsdiff.Local = true // a puff costs much more than the few bytes that are wanted of it
	return bsdiff.Create(patch, sides[0].data, sides[1].data, o.Bsdiff)
}

// WrapZucchini writes a patch that has a zucchini patch inside, between files without
// deflates of the sizes told, in bytes. packed is that patch as it is compressed.
func WrapZucchini(patch io.Writer, sourceSize, targetSize int64, packed []byte) error {
	if err := writeHeader(patch, Zucchini, makeLayout(nil, nil, sourceSize), makeLayout(nil, nil, targetSize)); err != nil {
		return err
	}
	if _, err := patch.Write(packed); err != nil {
		return fmt.Errorf("writing a puffin patch: %w", err)
	}
	return nil
}

func writeHeader(patch io.Writer, inner Inner, source, target *layout) error {
	header := appendHeader(make([]byte, fixedSize), inner, source, target)
	copy(header, magic)
	if len(header)-fixedSize > maxHeader {
		return refuse(ErrLimit, "header", fmt.Sprintf("at most %d bytes", maxHeader), len(header)-fixedSize)
	}
	binary.BigEndian.PutUint32(header[4:], uint32(len(header)-fixedSize))
	if _, err := patch.Write(header); err != nil {
		return fmt.Errorf("writing a puffin patch: %w", err)
	}
	return nil
}

// check refuses extents that overlap or lie outside.
func (f *File) check() error {
	from, to := uint64(0), uint64(len(f.Data))*8
	for i, e := range f.Deflates {
		if e.Offset < from || e.Offset > to || e.Length > to-e.Offset {
			return refuse(ErrDeflate, fmt.Sprintf("extent %d", i), fmt.Sprintf("bits from %d to %d", from, to), e)
		}
		from = e.End()
	}
	return nil
}

// puffed is a puffed file.
type puffed struct {
	*layout
	data []byte
}

// puffFile puffs the deflates that are fit for it.
func puffFile(f File, isTarget, oldClients bool) (puffed, error) {
	var c checker
	var kept []BitExtent
	var sizes []int64
	var puffs []byte
	for i, e := range f.Deflates {
		puff, fit, err := c.puff(f.Data, e, isTarget)
		if err != nil {
			return puffed{}, fmt.Errorf("extent %d: %w", i, err)
		}
		if fit && !(oldClients && c.puffer.tight) {
			kept = append(kept, e)
			sizes = append(sizes, int64(len(puff)))
			puffs = append(puffs, puff...)
		}
	}
	l := makeLayout(kept, sizes, int64(len(f.Data)))
	return puffed{l, l.assemble(f.Data, puffs)}, nil
}

// assemble puts the raw stretches of data and the puffs in their order.
func (l *layout) assemble(data, puffs []byte) []byte {
	v := newView(l, bytes.NewReader(data), 0)
	out := make([]byte, l.puffedSize)
	for i := 0; i <= len(l.puffs); i++ {
		if n := l.rawLen(i); n > 0 {
			_ = v.raw(out[l.rawStart(i):][:n], i, 0) // a reader of bytes does not fail
		}
		if i < len(l.puffs) {
			puffs = puffs[copy(out[l.puffs[i].offset:l.puffs[i].end()], puffs):]
		}
	}
	return out
}

// checker puffs deflates and tries the way back.
type checker struct {
	puffer puffer
	huffer huffer
	bits   bitWriter
}

// puff returns the puff of a deflate, until the next call, and whether it is
// fit for a patch: not too large, and in a target reproducible.
func (c *checker) puff(data []byte, e BitExtent, isTarget bool) (puff []byte, fit bool, err error) {
	puff, err = c.puffer.puff(c.puffer.out[:0], data, e, math.MaxInt)
	if err != nil || len(puff) > MaxPuff || e.Length/8 > MaxPuff || len(puff) == 0 {
		return nil, false, err
	}
	return puff, !isTarget || c.reproduces(data, e, puff), nil
}

func (c *checker) reproduces(data []byte, e BitExtent, puff []byte) bool {
	first, start, end := e.Offset/8, uint(e.Offset%8), uint(e.End()%8)
	c.bits = bitWriter{out: c.bits.out[:0]}
	c.bits.put(uint32(data[first])&(1<<start-1), start)
	if c.huffer.huff(&c.bits, puff) != nil || c.bits.written() != uint64(start)+e.Length {
		return false
	}
	c.bits.align()
	n := uint64(len(c.bits.out))
	if !bytes.Equal(c.bits.out, data[first:first+n]) {
		return false
	}
	return end == 0 || byte(c.bits.acc) == data[first+n]&(1<<end-1)
}

// Reproducible says whether the extent holds deflate blocks that Huff makes again
// from their puff, bit by bit. A compressor that codes a copy of 258 bytes in the
// other way that there is makes blocks for which it does not.
func Reproducible(data []byte, e BitExtent) bool {
	var c checker
	_, fit, err := c.puff(data, e, true)
	return err == nil && fit
}

// removeEqual leaves out the deflates that both files have. Only whole bytes are
// compared: the patch gets the others right anyhow.
func removeEqual(source, target *File) {
	const inSource, inTarget = 1, 2
	found := map[deflateKey]int{}
	for _, e := range source.Deflates {
		found[source.key(e)] |= inSource
	}
	for _, e := range target.Deflates {
		found[target.key(e)] |= inTarget
	}
	for _, f := range []*File{source, target} {
		var kept []BitExtent
		for _, e := range f.Deflates {
			if found[f.key(e)] != inSource|inTarget {
				kept = append(kept, e)
			}
		}
		f.Deflates = kept
	}
}

type deflateKey struct {
	length uint64
	sum    [sha256.Size]byte
}

func (f *File) key(e BitExtent) deflateKey {
	from, to := (e.Offset+7)/8, e.End()/8
	if from > to {
		from = to
	}
	return deflateKey{e.Length, sha256.Sum256(f.Data[from:to])}
}
