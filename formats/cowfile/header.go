package cowfile

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Sizes and limits of the format, in bytes unless said otherwise.
const (
	BlockSize      = 4096
	MaxUnit        = 256 << 10 // largest unit of a replace op
	DefaultScratch = 2 << 20   // what Android's writer takes
	MaxScratch     = 256 << 20 // that writers here make
	ResumePoints   = 4         // entries in a version 3 resume region

	magic         = 0x436f77634f572121
	headerSizeV1  = 34
	headerSizeV2  = 38
	headerSizeV3  = 78
	maxHeaderSize = headerSizeV3
	opSizeV2      = 20
	opSizeV3      = 16
	footerSizeV2  = 84
	resumeSize    = 16
	maxFactor     = 6 // 1<<6 blocks = MaxUnit
)

// Header is the fixed part at the start of a COW (specification: cow-format,
// section 2). Fields that a version does not have are zero.
type Header struct {
	Major, Minor     uint16
	HeaderSize       uint16 // bytes
	FooterSize       uint16 // bytes
	OpSize           uint16 // bytes
	BlockSize        uint32 // bytes
	ClusterOps       uint32 // version 2: op slots in a cluster, 0 = none
	NumMergeOps      uint64 // ops of the merge order that are in the base
	ScratchSize      uint32 // bytes of the scratch area
	SequenceCount    uint64 // version 3: u32 entries in the sequence region
	ResumePointCount uint32 // version 3: resume points ever added
	ResumePointMax   uint32 // version 3: capacity of the resume region
	OpCount          uint64 // version 3: valid ops
	OpCountMax       uint64 // version 3: capacity of the op region
	Compression      Compression
	MaxCompression   uint32 // version 3: bytes of the largest unit
}

// ReadHeader reads and checks the header of the COW in r, which is size bytes
// long. Regions that the header announces lie inside the file afterwards.
func ReadHeader(r io.ReaderAt, size int64) (Header, error) {
	var buf [maxHeaderSize]byte
	n, err := r.ReadAt(buf[:min(maxHeaderSize, max(size, 0))], 0)
	if err != nil && err != io.EOF {
		return Header{}, fmt.Errorf("read COW header: %w", err)
	}
	h, err := ParseHeader(buf[:n])
	if err != nil {
		return h, err
	}
	return h, h.checkRegions(size)
}

// ParseHeader decodes the header at the start of b and checks its fields
// against each other, not against the length of a file.
func ParseHeader(b []byte) (Header, error) {
	const prefix = 14
	if len(b) < prefix {
		return Header{}, refuse(ErrNotCOW, "file length", fmt.Sprintf("at least %d bytes", prefix), len(b))
	}
	le := binary.LittleEndian
	if m := le.Uint64(b); m != magic {
		return Header{}, refuse(ErrNotCOW, "magic at byte 0", fmt.Sprintf("%#x", uint64(magic)), fmt.Sprintf("%#x", m))
	}
	size := le.Uint16(b[12:])
	if size > maxHeaderSize || size < headerSizeV1 {
		return Header{}, refuse(ErrCorrupt, "header_size at byte 12", fmt.Sprintf("%d to %d", headerSizeV1, maxHeaderSize), size)
	}
	if len(b) < int(size) {
		return Header{}, refuse(ErrTruncated, "header", fmt.Sprintf("%d bytes", size), len(b))
	}
	var full [maxHeaderSize]byte
	copy(full[:], b[:size])
	h := decodeHeader(full[:])
	return h, h.check()
}

func decodeHeader(b []byte) Header {
	le := binary.LittleEndian
	h := Header{
		Major:            le.Uint16(b[8:]),
		Minor:            le.Uint16(b[10:]),
		HeaderSize:       le.Uint16(b[12:]),
		FooterSize:       le.Uint16(b[14:]),
		OpSize:           le.Uint16(b[16:]),
		BlockSize:        le.Uint32(b[18:]),
		ClusterOps:       le.Uint32(b[22:]),
		NumMergeOps:      le.Uint64(b[26:]),
		ScratchSize:      le.Uint32(b[34:]),
		SequenceCount:    le.Uint64(b[38:]),
		ResumePointCount: le.Uint32(b[46:]),
		ResumePointMax:   le.Uint32(b[50:]),
		OpCount:          le.Uint64(b[54:]),
		OpCountMax:       le.Uint64(b[62:]),
		MaxCompression:   le.Uint32(b[74:]),
	}
	// Kept wide until checked: an unknown number must not wrap into a known one.
	h.Compression = Compression(le.Uint32(b[70:]))
	if h.Major < 2 {
		h.ScratchSize = 0
	}
	return h
}

// AppendTo appends the header's bytes to b.
func (h *Header) AppendTo(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, magic)
	for _, v := range []uint16{h.Major, h.Minor, h.HeaderSize, h.FooterSize, h.OpSize} {
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, h.BlockSize)
	b = le.AppendUint32(b, h.ClusterOps)
	b = le.AppendUint64(b, h.NumMergeOps)
	if h.Major < 2 {
		return b
	}
	b = le.AppendUint32(b, h.ScratchSize)
	if h.Major < 3 {
		return b
	}
	b = le.AppendUint64(b, h.SequenceCount)
	b = le.AppendUint32(b, h.ResumePointCount)
	b = le.AppendUint32(b, h.ResumePointMax)
	b = le.AppendUint64(b, h.OpCount)
	b = le.AppendUint64(b, h.OpCountMax)
	b = le.AppendUint32(b, uint32(h.Compression))
	return le.AppendUint32(b, h.MaxCompression)
}

// layout is what a version demands of the fixed fields.
type layout struct{ header, footer, op uint16 }

var layouts = [...]layout{
	1: {headerSizeV1, footerSizeV2, opSizeV2},
	2: {headerSizeV2, footerSizeV2, opSizeV2},
	3: {headerSizeV3, 0, opSizeV3},
}

func (h *Header) check() error {
	if h.Major < 1 || int(h.Major) >= len(layouts) || h.Minor != 0 {
		return refuse(ErrVersion, "version at byte 8", "1.0, 2.0 or 3.0", fmt.Sprintf("%d.%d", h.Major, h.Minor))
	}
	want := layouts[h.Major]
	for _, c := range []struct {
		field           string
		expected, found uint16
	}{
		{"header_size at byte 12", want.header, h.HeaderSize},
		{"footer_size at byte 14", want.footer, h.FooterSize},
		{"op_size at byte 16", want.op, h.OpSize},
	} {
		if c.expected != c.found {
			return refuse(ErrCorrupt, fmt.Sprintf("version %d: %s", h.Major, c.field), c.expected, c.found)
		}
	}
	if h.BlockSize != BlockSize {
		return refuse(ErrCorrupt, "block_size at byte 18", BlockSize, h.BlockSize)
	}
	if h.Major < 3 {
		if h.ClusterOps == 1 {
			return refuse(ErrCorrupt, "cluster_ops at byte 22", "0 or at least 2", 1)
		}
		return nil
	}
	return h.checkV3()
}

func (h *Header) checkV3() error {
	if h.ClusterOps != 0 {
		return refuse(ErrCorrupt, "version 3: cluster_ops at byte 22", 0, h.ClusterOps)
	}
	if h.OpCount > h.OpCountMax {
		return refuse(ErrCorrupt, "op_count at byte 54", fmt.Sprintf("at most op_count_max, %d", h.OpCountMax), h.OpCount)
	}
	if h.Compression > Zstd {
		return refuse(ErrCorrupt, "compression_algorithm at byte 70", "0 to 4", uint32(h.Compression))
	}
	u := h.MaxCompression
	if u < BlockSize || u > MaxUnit || u&(u-1) != 0 {
		return refuse(ErrCorrupt, "max_compression_size at byte 74", "a power of two from 4096 to 262144", u)
	}
	return nil
}

// checkRegions makes sure that every region before the data lies inside a file
// of size bytes, so that none of the counts can ask for more memory than the
// file has bytes.
func (h *Header) checkRegions(size int64) error {
	end := int64(h.HeaderSize) + int64(h.ScratchSize)
	if end > size {
		return refuse(ErrTruncated, "scratch area", fmt.Sprintf("a file of at least %d bytes", end), size)
	}
	if h.Major < 3 {
		return nil
	}
	room := uint64(size - end)
	if h.SequenceCount > room/4 {
		return refuse(ErrTruncated, "sequence_data_count at byte 38", fmt.Sprintf("at most %d", room/4), h.SequenceCount)
	}
	room -= 4 * h.SequenceCount
	if uint64(h.ResumePointMax) > room/resumeSize {
		return refuse(ErrTruncated, "resume_point_max at byte 50", fmt.Sprintf("at most %d", room/resumeSize), h.ResumePointMax)
	}
	room -= resumeSize * uint64(h.ResumePointMax)
	if h.OpCount > room/opSizeV3 {
		return refuse(ErrTruncated, "op_count at byte 54", fmt.Sprintf("at most %d in a file of %d bytes", room/opSizeV3, size), h.OpCount)
	}
	// An empty op table may be followed by a data region that was never
	// written, so only the arithmetic has to hold here.
	if h.OpCountMax > 1<<40 {
		return refuse(ErrCorrupt, "op_count_max at byte 62", "at most 2^40", h.OpCountMax)
	}
	return nil
}

// Offsets of the regions, in bytes from the start of the file (section 6).
func (h *Header) scratchEnd() int64     { return int64(h.HeaderSize) + int64(h.ScratchSize) }
func (h *Header) sequenceOffset() int64 { return h.scratchEnd() }
func (h *Header) resumeOffset() int64   { return h.sequenceOffset() + 4*int64(h.SequenceCount) }
func (h *Header) opOffset() int64       { return h.resumeOffset() + resumeSize*int64(h.ResumePointMax) }
func (h *Header) dataOffset() int64     { return h.opOffset() + opSizeV3*int64(h.OpCountMax) }
