package bsdiff

import (
	"encoding/binary"
	"fmt"
	"io"
)

// HeaderSize is the number of bytes before the first stream.
const HeaderSize = 32

const (
	magicLegacy = "BSDIFF40"
	magic2      = "BSDF2" // three algorithms follow
)

// Algorithm is how a stream is compressed, by its number in the format.
type Algorithm uint8

// The algorithms. Android neither writes nor reads None.
const (
	None Algorithm = iota
	Bzip2
	Brotli
)

func (a Algorithm) String() string {
	switch a {
	case None:
		return "none"
	case Bzip2:
		return "bzip2"
	case Brotli:
		return "brotli"
	}
	return fmt.Sprintf("algorithm %d", uint8(a))
}

// part is one of the three streams as it lies in the patch.
type part struct {
	name        string
	algorithm   Algorithm
	offset, len int64
}

// Patch is a patch whose header has been read and checked. It is immutable and
// safe for concurrent use, as far as the reader below is.
type Patch struct {
	r          io.ReaderAt
	targetSize int64
	parts      [3]part // control, diff, extra
}

// Open reads the header of a patch of size bytes. The magic decides what it is.
// r must stay usable as long as the patch is.
func Open(r io.ReaderAt, size int64) (*Patch, error) {
	if size < HeaderSize {
		return nil, refuse(ErrCorrupt, "size of the patch", fmt.Sprintf("at least %d", HeaderSize), size)
	}
	var h [HeaderSize]byte
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, HeaderSize), h[:]); err != nil {
		return nil, fmt.Errorf("header of a bsdiff patch: %w", err)
	}
	algorithms, err := parseMagic(h[:8])
	if err != nil {
		return nil, err
	}
	control, diff, target := parseInt(h[8:]), parseInt(h[16:]), parseInt(h[24:])
	rest := size - HeaderSize
	switch {
	case control < 0 || control > rest:
		return nil, refuse(ErrCorrupt, "length of control at byte 8", fmt.Sprintf("0 to %d", rest), control)
	case diff < 0 || diff > rest-control:
		return nil, refuse(ErrCorrupt, "length of diff at byte 16", fmt.Sprintf("0 to %d", rest-control), diff)
	case target < 0:
		return nil, refuse(ErrCorrupt, "size of the target at byte 24", "at least 0", target)
	}
	return &Patch{r, target, [3]part{
		{"control", algorithms[0], HeaderSize, control},
		{"diff", algorithms[1], HeaderSize + control, diff},
		{"extra", algorithms[2], HeaderSize + control + diff, rest - control - diff},
	}}, nil
}

func parseMagic(b []byte) (a [3]Algorithm, err error) {
	if string(b) == magicLegacy {
		return [3]Algorithm{Bzip2, Bzip2, Bzip2}, nil
	}
	if string(b[:len(magic2)]) != magic2 {
		return a, refuse(ErrNotPatch, "magic at byte 0", magicLegacy+" or "+magic2, fmt.Sprintf("%q", b))
	}
	for i, c := range b[len(magic2):] {
		if a[i] = Algorithm(c); a[i] > Brotli {
			return a, refuse(ErrAlgorithm, fmt.Sprintf("byte %d", len(magic2)+i), "0 (none), 1 (bzip2) or 2 (brotli)", c)
		}
	}
	return a, nil
}

// TargetSize is how many bytes Apply writes.
func (p *Patch) TargetSize() int64 { return p.targetSize }

// Algorithms says how control, diff and extra are compressed.
func (p *Patch) Algorithms() [3]Algorithm {
	return [3]Algorithm{p.parts[0].algorithm, p.parts[1].algorithm, p.parts[2].algorithm}
}

// Integers are a sign in bit 63 and 63 bits of magnitude (specs/payload.md 7).
const sign = 1 << 63

func parseInt(b []byte) int64 {
	u := binary.LittleEndian.Uint64(b)
	if u&sign != 0 {
		return -int64(u &^ sign)
	}
	return int64(u)
}

func appendInt(b []byte, v int64) []byte {
	u := uint64(v)
	if v < 0 {
		u = uint64(-v) | sign
	}
	return binary.LittleEndian.AppendUint64(b, u)
}
