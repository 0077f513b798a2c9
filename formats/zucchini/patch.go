package zucchini

import (
	"bytes"
	"fmt"
	"io"

	"github.com/andybalholm/brotli"
)

const (
	magic      = "Zucc"
	major      = 1
	minor      = 0
	elementVer = 1 // of every kind of element
	noPool     = 255

	// maxOffset is the bound of offsets: the highest bit is for labels.
	maxOffset = 1<<31 - 1
)

// Kind is what an element of a patch is taken for.
type Kind uint32

// The kinds. Those of Windows are not made for Android.
const (
	NoOp     = Kind('N' | 'o'<<8 | 'O'<<16 | 'p'<<24)
	ElfX86   = Kind('E' | 'x'<<8 | '8'<<16 | '6'<<24)
	ElfX64   = Kind('E' | 'x'<<8 | '6'<<16 | '4'<<24)
	ElfARM   = Kind('E' | 'A'<<8 | '3'<<16 | '2'<<24)
	ElfARM64 = Kind('E' | 'A'<<8 | '6'<<16 | '4'<<24)
	Dex      = Kind('D' | 'E'<<8 | 'X'<<16 | ' '<<24)
	Text     = Kind('Z' | 'T'<<8 | 'F'<<16 | ' '<<24)
)

func (k Kind) String() string {
	return fmt.Sprintf("%q", []byte{byte(k), byte(k >> 8), byte(k >> 16), byte(k >> 24)})
}

func (k Kind) known() bool {
	switch k {
	case NoOp, ElfX86, ElfX64, ElfARM, ElfARM64, Dex, Text:
		return true
	}
	return false
}

// Patch is a parsed patch.
type Patch struct {
	SourceSize, TargetSize uint32 // in bytes
	SourceCRC, TargetCRC   uint32 // CRC-32/IEEE
	Elements               []Element
}

// Region is a part of a file.
type Region struct{ Offset, Length uint32 }

func (r Region) end() uint64 { return uint64(r.Offset) + uint64(r.Length) }

// Element is the patch of one region of the target.
type Element struct {
	Kind           Kind
	Source, Target Region

	// The streams, as they are in the patch.
	srcSkip, dstSkip, copyCount []byte
	extra                       []byte
	rawSkip, rawDiff            []byte
	refDelta                    []byte
	pools                       []pool
}

// pool is what the target has among a pool's targets that the source has not.
type pool struct {
	tag   byte
	extra []byte
}

// Unpack decompresses a patch from the brotli stream that payloads keep it in.
// It may become limit bytes long; memory is taken as it grows.
func Unpack(blob []byte, limit int64) ([]byte, error) {
	patch, err := io.ReadAll(io.LimitReader(brotli.NewReader(bytes.NewReader(blob)), limit+1))
	if err != nil {
		return nil, fmt.Errorf("%w: brotli stream after %d bytes: %w", ErrCorrupt, len(patch), err)
	}
	if int64(len(patch)) > limit {
		return nil, refuse(ErrLength, "patch", fmt.Sprintf("at most %d bytes", limit), "more")
	}
	return patch, nil
}

// Parse reads a patch, which the result refers to. Errors wrap ErrNotPatch,
// ErrCorrupt or ErrUnsupported.
func Parse(b []byte) (*Patch, error) {
	if !bytes.HasPrefix(b, []byte(magic)) {
		return nil, refuse(ErrNotPatch, "offset 0", magic, fmt.Sprintf("%q", b[:min(len(b), len(magic))]))
	}
	r, p := newReader(b), new(Patch)
	r.take("magic", uint64(len(magic)))
	if v := r.u16("version"); r.err == nil && v != major {
		return nil, refuse(ErrUnsupported, "version at offset 4", major, v)
	}
	r.u16("minor version")
	p.SourceSize, p.SourceCRC = r.u32("source length"), r.u32("source checksum")
	p.TargetSize, p.TargetCRC = r.u32("target length"), r.u32("target checksum")
	if p.SourceSize >= maxOffset || p.TargetSize >= maxOffset {
		r.fail(ErrCorrupt, "lengths before", fmt.Sprintf("less than %d", maxOffset), fmt.Sprint(p.SourceSize, " and ", p.TargetSize))
	}
	p.readElements(r)
	if r.err == nil && len(r.b) > 0 {
		r.fail(ErrCorrupt, "rest", "no more bytes", len(r.b))
	}
	return p, r.err
}

// readElements: they tile the target.
func (p *Patch) readElements(r *reader) {
	var end uint64
	n := r.u32("element count")
	for i := uint32(0); i < n && r.err == nil; i++ {
		e := readElement(r)
		if r.err == nil && uint64(e.Target.Offset) != end {
			r.fail(ErrCorrupt, "element before", fmt.Sprintf("target offset %d", end), e.Target.Offset)
		}
		end = e.Target.end()
		if e.Source.end() > uint64(p.SourceSize) || end > uint64(p.TargetSize) {
			r.fail(ErrCorrupt, "element before", fmt.Sprintf("regions in files of %d and %d bytes", p.SourceSize, p.TargetSize),
				fmt.Sprintf("%+v and %+v", e.Source, e.Target))
		}
		p.Elements = append(p.Elements, e)
	}
	if r.err == nil && end != uint64(p.TargetSize) {
		r.fail(ErrCorrupt, "last element before", fmt.Sprintf("the target's end at %d", p.TargetSize), end)
	}
}

func readElement(r *reader) (e Element) {
	e.Source = Region{r.u32("source offset"), r.u32("source length")}
	e.Target = Region{r.u32("target offset"), r.u32("target length")}
	if r.err == nil && (e.Source.Length == 0 || e.Target.Length == 0) {
		r.fail(ErrCorrupt, "element before", "regions that are not empty", fmt.Sprintf("%+v and %+v", e.Source, e.Target))
	}
	e.Kind = Kind(r.u32("kind"))
	if r.err == nil && !e.Kind.known() {
		r.fail(ErrUnsupported, "kind before", "a known one", e.Kind)
	}
	if v := r.u16("element version"); r.err == nil && v != elementVer {
		r.fail(ErrUnsupported, "element version before", elementVer, v)
	}
	e.srcSkip, e.dstSkip, e.copyCount = r.buffer("source skips"), r.buffer("target skips"), r.buffer("copy counts")
	e.extra = r.buffer("extra data")
	e.rawSkip, e.rawDiff = r.buffer("raw delta skips"), r.buffer("raw deltas")
	e.refDelta = r.buffer("reference deltas")
	e.readPools(r)
	return e
}

func (e *Element) readPools(r *reader) {
	var seen [noPool + 1]bool
	n := r.u32("pool count")
	for i := uint32(0); i < n && r.err == nil; i++ {
		tag := r.u8("pool tag")
		if r.err == nil && (tag == noPool || seen[tag]) {
			r.fail(ErrCorrupt, "pool tag before", "a new one below 255", tag)
		}
		seen[tag] = true
		e.pools = append(e.pools, pool{tag, r.buffer("extra targets")})
	}
}

// extraTargets returns what the patch adds to a pool.
func (e *Element) extraTargets(tag byte) ascending {
	a := ascending{numbers: numbers{what: fmt.Sprintf("extra targets of pool %d", tag)}}
	for _, p := range e.pools {
		if p.tag == tag {
			a.b = p.extra
		}
	}
	return a
}
