package generate

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"path"
	"strings"

	"cowbird/formats/bsdiff"
	"cowbird/formats/payload/pb"
	"cowbird/formats/puffin"
	"cowbird/formats/zucchini"
)

// Xor is consecutive blocks of an item's data that devices may store as the difference
// to bytes of its source.
type Xor struct {
	Block  uint32 // of the data
	Count  uint32 // blocks
	Source int64  // byte of the item's source, which follow each other
}

// Result is what an item has become. It does not depend on where the blocks are.
type Result struct {
	Type opType
	Blob []byte
	// SrcHash is the SHA-256 of the blocks that are read; nil for none.
	SrcHash []byte
	Xors    []Xor
}

// Run makes an item that is Work.
func (p *Plan) Run(ctx context.Context, partition int, it *Item) (*Result, error) {
	part := p.o.Partitions[partition]
	r := &making{o: p.o, it: it}
	var err error
	if r.target, err = readRanges(part.New, it.Dst); err != nil {
		return nil, fmt.Errorf("new image: %w", err)
	}
	if it.Kind == Full {
		return r.replace()
	}
	if r.source, err = readRanges(*part.Old, it.Src); err != nil {
		return nil, fmt.Errorf("old image: %w", err)
	}
	if len(it.File) > 0 {
		if r.file, err = readRanges(part.New, it.File); err != nil {
			return nil, fmt.Errorf("new image: %w", err)
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return r.diff(ctx)
}

// making is a diff in the making.
type making struct {
	o                    *Options
	it                   *Item
	target, source, file []byte
	old, new             puffin.File // with their deflate streams
	quick                int         // quickSize, once it is known
}

// price is what a diff costs in the manifest besides its data, in bytes
// (specs/payload.md 13).
func (r *making) price() int { return 36 + 6*len(r.it.Src) }

// replace is the data without a source.
func (r *making) replace() (*Result, error) {
	quick, err := r.quickSize()
	if err != nil {
		return nil, err
	}
	e, err := r.o.replace(r.target, quick)
	return &Result{Type: e.kind, Blob: e.blob}, err
}

// quickSize is that of the target.
func (r *making) quickSize() (_ int, err error) {
	if r.quick == 0 {
		r.quick, err = quickSize(r.target)
	}
	return r.quick, err
}

// diff tries the kinds of patches that devices know, and the data as they are.
func (r *making) diff(ctx context.Context) (*Result, error) {
	if r.o.Minor >= 5 {
		r.findDeflates()
	}
	patch, err := r.bsdiff()
	if errors.Is(err, bsdiff.ErrNotWorth) {
		return r.replace()
	}
	if err != nil {
		return nil, err
	}
	best := encoding{r.bsdiffType(), patch}
	if err := r.lz4diff(&best); err != nil {
		return nil, fmt.Errorf("lz4diff: %w", err)
	}
	if err := r.puffdiff(&best); err != nil {
		return nil, fmt.Errorf("puffdiff: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if r.o.Minor >= 8 && r.o.Effort != Fast {
		if err := r.zucchini(&best); err != nil {
			return nil, fmt.Errorf("zucchini: %w", err)
		}
	}
	full, err := r.full(len(best.blob))
	if err != nil {
		return nil, err
	}
	if full != nil && len(full.blob) <= len(best.blob)+r.price() {
		return &Result{Type: full.kind, Blob: full.blob}, nil
	}
	hash := r.it.srcHash
	if hash == nil {
		hash = sum(r.source)
	}
	out := &Result{Type: best.kind, Blob: best.blob, SrcHash: hash}
	out.Xors, err = r.xors(patch)
	return out, err
}

// littleLeft is how many times smaller than the data a diff is, so that nobody need look
// whether they are even smaller without a source.
const littleLeft = 16

// full is the data without a source, unless a quick look says that they are not likely to
// be smaller than a diff: hardly ever are they smaller by a quarter than what zstd makes
// of them in no time.
func (r *making) full(diff int) (*encoding, error) {
	if r.o.Effort == Fast {
		return &encoding{pb.InstallOperation_REPLACE, r.target}, nil
	}
	if r.o.Effort != Max && diff*littleLeft < len(r.target) {
		return nil, nil
	}
	quick, err := r.quickSize()
	if err != nil || r.o.Effort != Max && quick/4*3 > diff+r.price() {
		return nil, err
	}
	e, err := r.o.replace(r.target, quick)
	return &e, err
}

func (r *making) bsdiffType() opType {
	if r.o.Minor >= 4 {
		return pb.InstallOperation_BROTLI_BSDIFF
	}
	return pb.InstallOperation_SOURCE_BSDIFF
}

// Qualities of brotli: the best one takes thirty times as long, for a tenth less.
const (
	quickQuality = 5
	bestQuality  = 11
)

func (r *making) bsdiffOptions() bsdiff.Options {
	o := bsdiff.Options{Legacy: r.o.Minor < 4}
	switch r.o.Effort {
	case Fast, Default:
		o.BrotliQuality, o.Quick = quickQuality, true
		if !o.Legacy {
			o.Algorithms = []bsdiff.Algorithm{bsdiff.Brotli}
		}
	}
	return o
}

// bsdiff makes the patch that every other is compared with. It fails with
// bsdiff.ErrNotWorth if the data are likely to be smaller without a source.
func (r *making) bsdiff() ([]byte, error) {
	o := r.bsdiffOptions()
	if r.o.Effort == Default && !r.it.packed() && !r.puffable() {
		o.Worth = r.worth
	}
	var b bytes.Buffer
	err := bsdiff.Create(&b, r.source, r.target, o)
	return b.Bytes(), err
}

// worth compares what zstd makes of a patch's streams in no time with what it makes of the
// data. Where that of the streams is not even clearly larger, the patch is tried: xz gains
// more over zstd than brotli does.
func (r *making) worth(control, diff, extra []byte) bool {
	if len(extra) < len(r.target)/8 {
		return true
	}
	quick, err := r.quickSize()
	if err != nil {
		return true // and see the error later
	}
	streams := len(control) / 4 // zstd finds less in it than brotli
	for _, s := range [][]byte{diff, extra} {
		n, err := quickSize(s)
		if err != nil {
			return true
		}
		streams += n
	}
	return streams <= quick+quick/20
}

// findDeflates finds the deflate streams of files that have some in both versions.
func (r *making) findDeflates() {
	r.old = puffin.File{Data: r.source, Deflates: deflates(r.it.Name, r.source)}
	if len(r.old.Deflates) > 0 {
		r.new = puffin.File{Data: r.target, Deflates: r.remaining(deflates(r.it.Name, r.file))}
	}
}

func (r *making) puffable() bool { return len(r.old.Deflates) > 0 && len(r.new.Deflates) > 0 }

func (r *making) puffdiff(best *encoding) error {
	if !r.puffable() {
		return nil
	}
	var b bytes.Buffer
	if err := puffin.Create(&b, r.old, r.new, puffin.Options{Bsdiff: r.bsdiffOptions(), OldClients: r.o.Minor <= 5}); err != nil {
		return err
	}
	best.smaller(pb.InstallOperation_PUFFDIFF, b.Bytes())
	return nil
}

// deflates finds streams in zip archives of all names, gzip files and PNG images.
func deflates(name string, file []byte) []puffin.BitExtent {
	switch {
	case bytes.HasPrefix(file, []byte("PK\x03\x04")):
		return puffin.FindZip(file)
	case strings.EqualFold(path.Ext(name), ".png"):
		return puffin.FindPNG(file)
	}
	return puffin.Find(name, file)
}

// remaining are the streams of the file that lie completely in data that the item
// makes, where they are there.
func (r *making) remaining(all []puffin.BitExtent) (left []puffin.BitExtent) {
	in := r.it.inFile()
	const bits = blockSize * 8
	for _, e := range all {
		first, last := int(e.Offset/bits), int((e.End()-1)/bits)
		if last >= len(in) || in[first] < 0 {
			continue
		}
		whole := true
		for b := first; b <= last && whole; b++ {
			whole = in[b] == in[first]+b-first
		}
		if whole {
			left = append(left, puffin.BitExtent{Offset: e.Offset - uint64(first)*bits + uint64(in[first])*bits, Length: e.Length})
		}
	}
	return left
}

// largestProgram bounds what is compared as programs, in bytes: that takes fifteen
// times as much.
const largestProgram = 24 << 20

const (
	// worthPrograms is how long a diff is, in bytes, before it is tried to make it shorter
	// by knowing programs.
	worthPrograms = 1024
	// otherPrograms is what part of a program a diff is that has other code, and not just
	// other addresses: knowing programs saves little there.
	otherPrograms = 8
)

var elf = []byte("\x7fELF")

func (r *making) zucchini(best *encoding) error {
	if !bytes.HasPrefix(r.source, elf) || !bytes.HasPrefix(r.target, elf) || len(r.source)+len(r.target) > 2*largestProgram {
		return nil
	}
	if n := len(best.blob); r.o.Effort != Max && (n < worthPrograms || n > len(r.target)/otherPrograms) {
		return nil
	}
	blob, err := r.programs(r.source, r.target)
	if err == nil {
		best.smaller(pb.InstallOperation_ZUCCHINI, blob)
	}
	return err
}

// programs is a zucchini patch, as payloads have it.
func (r *making) programs(source, target []byte) ([]byte, error) {
	p, err := zucchini.Create(source, target)
	if err != nil {
		return nil, err
	}
	quality := quickQuality
	if r.o.Effort == Max {
		quality = bestQuality
	}
	return zucchini.Pack(p.AppendTo(nil), quality)
}

// worthXor is how many bytes of a block may differ from the source, so that the
// difference is worth storing.
const worthXor = blockSize / 2

// xors are the blocks that a patch takes from one place of the source nearly as they
// are.
func (r *making) xors(patch []byte) (all []Xor, err error) {
	p, err := bsdiff.Open(bytes.NewReader(patch), int64(len(patch)))
	if err != nil {
		return nil, err
	}
	next := int64(0) // block that has no xor yet
	err = p.Copies(func(c bsdiff.Copy) {
		first := max(next, (c.Target+blockSize-1)/blockSize)
		end := (c.Target + c.Length + blockSize/2) / blockSize // the last one may be a half
		for b := first; b < min(end, int64(len(r.target)/blockSize)); b++ {
			from := c.Source + b*blockSize - c.Target
			if !r.similar(b, from) {
				continue
			}
			next = b + 1
			if n := len(all); n > 0 {
				if x := &all[n-1]; int64(x.Block+x.Count) == b && x.Source+int64(x.Count)*blockSize == from {
					x.Count++
					continue
				}
			}
			all = append(all, Xor{uint32(b), 1, from})
		}
	})
	return all, err
}

func (r *making) similar(block, from int64) bool {
	if from < 0 || from+blockSize > int64(len(r.source)) {
		return false
	}
	return differing(r.target[block*blockSize:][:blockSize], r.source[from:][:blockSize]) <= worthXor
}

// differing is how many bytes of blocks differ.
func differing(a, b []byte) (n int) {
	const low = 0x7f7f7f7f7f7f7f7f // of each byte; with it, all but 0 reach the highest bit
	for i := 0; i < blockSize; i += 8 {
		x := binary.LittleEndian.Uint64(a[i:]) ^ binary.LittleEndian.Uint64(b[i:])
		n += bits.OnesCount64((x&low + low | x) &^ low)
	}
	return n
}
