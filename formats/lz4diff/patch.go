package lz4diff

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
)

const (
	magic      = "LZ4DIFF"
	version    = 1
	headerSize = 16 // the last byte is not used: specs/payload.md 9
)

// Algorithm is how the clusters of a file are compressed.
type Algorithm int32

// The algorithms.
const (
	Stored Algorithm = iota
	LZ4
	LZ4HC
)

// Inner is the format of the inner patch.
type Inner int32

// The inner formats.
const (
	BSDiff Inner = iota
	PuffDiff
)

func (i Inner) String() string {
	switch i {
	case BSDiff:
		return "bsdiff"
	case PuffDiff:
		return "puffdiff"
	}
	return fmt.Sprintf("inner patch %d", int32(i))
}

// Cluster is a piece of a file that is compressed by itself. It is stored as it
// is unless Stored is less than Length.
type Cluster struct {
	Length int64 // of the contents, in bytes
	Stored int64 // length in the file, in bytes
	// Hash is the SHA-256 of the cluster as the encoder makes it, empty if it is
	// not known. Postfix, if not empty, is a BSDIFF40 patch from these bytes to
	// the real ones. Both are for targets only.
	Hash, Postfix []byte
}

func (c *Cluster) compressed() bool { return c.Stored < c.Length }

// File tells how a file is cut into clusters.
type File struct {
	Algorithm Algorithm
	Level     int32 // for LZ4HC
	// ZeroPadding puts the zeros that fill a cluster up before the compressed
	// bytes instead of behind them.
	ZeroPadding bool
	Clusters    []Cluster
}

// Lengths returns the sums of what the clusters contain and of what they take in
// the file, in bytes.
func (f *File) Lengths() (contents, stored int64) {
	for i := range f.Clusters {
		contents += f.Clusters[i].Length
		stored += f.Clusters[i].Stored
	}
	return contents, stored
}

// Patch is a parsed patch.
type Patch struct {
	Source, Target File
	Inner          Inner
	Data           []byte // the inner patch
}

// Parse reads a patch, which the result refers to. Errors wrap ErrNotPatch,
// ErrCorrupt or ErrUnsupported.
func Parse(b []byte) (*Patch, error) {
	if !bytes.HasPrefix(b, []byte(magic)) {
		return nil, refuse(ErrNotPatch, "offset 0", magic, fmt.Sprintf("%q", b[:min(len(b), len(magic))]))
	}
	if len(b) < headerSize {
		return nil, refuse(ErrCorrupt, "header", fmt.Sprintf("%d bytes", headerSize), len(b))
	}
	if v := binary.BigEndian.Uint32(b[7:]); v != version {
		return nil, refuse(ErrUnsupported, "version at offset 7", version, v)
	}
	if b[15] != 0 {
		return nil, refuse(ErrCorrupt, "offset 15", 0, b[15])
	}
	n, rest := binary.BigEndian.Uint32(b[11:]), b[headerSize:]
	if uint64(n) > uint64(len(rest)) {
		return nil, refuse(ErrCorrupt, "header length at offset 11", fmt.Sprintf("at most %d", len(rest)), n)
	}
	p := &Patch{Data: rest[n:]}
	if err := p.parseHeader(rest[:n]); err != nil {
		return nil, err
	}
	return p, p.check()
}

// AppendTo appends the patch, as Parse reads it, to b. Equal patches give equal
// bytes.
func (p *Patch) AppendTo(b []byte) ([]byte, error) {
	h := p.header()
	if int64(len(h)) > math.MaxUint32 {
		return nil, refuse(ErrUnsupported, "header length", "at most 4 GiB", len(h))
	}
	b = append(b, magic...)
	b = binary.BigEndian.AppendUint32(b, version)
	b = binary.BigEndian.AppendUint32(b, uint32(len(h)))
	b = append(b, 0)
	b = append(b, h...)
	return append(b, p.Data...), nil
}

func (p *Patch) check() error {
	if p.Inner != BSDiff && p.Inner != PuffDiff {
		return refuse(ErrUnsupported, "inner type", "0 or 1", p.Inner)
	}
	if err := p.Source.check("source"); err != nil {
		return err
	}
	return p.Target.check("target")
}

// maxLength keeps sums of lengths far from overflow.
const maxLength = 1 << 40

func (f *File) check(name string) error {
	if f.Algorithm < Stored || f.Algorithm > LZ4HC {
		return refuse(ErrUnsupported, name+" algorithm", "0 to 2", f.Algorithm)
	}
	var sum int64
	for i := range f.Clusters {
		c := &f.Clusters[i]
		where := fmt.Sprintf("%s cluster %d", name, i)
		if c.Stored == 0 {
			return refuse(ErrCorrupt, where, "a stored length", 0)
		}
		if c.Length > MaxRatio*c.Stored {
			return refuse(ErrCorrupt, where, fmt.Sprintf("contents of at most %d times %d bytes", MaxRatio, c.Stored), c.Length)
		}
		if !c.compressed() && c.Length != c.Stored {
			return refuse(ErrCorrupt, where, fmt.Sprintf("a stored length of at most %d", c.Length), c.Stored)
		}
		if sum += c.Stored; sum > maxLength {
			return refuse(ErrCorrupt, where, fmt.Sprintf("at most %d bytes of clusters", int64(maxLength)), sum)
		}
		if c.compressed() && f.Algorithm == Stored {
			return refuse(ErrCorrupt, where, "no compression", fmt.Sprintf("%d bytes in %d", c.Length, c.Stored))
		}
	}
	return nil
}
