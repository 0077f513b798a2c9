package vbmeta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	// FooterSize is how many bytes a footer has, at the end of a partition.
	FooterSize = 64

	footerMagic = "AVBf"
	blockSize   = 4096
)

// Footer says where in a partition its metadata are. Numbers are bytes.
type Footer struct {
	Minor             uint32 // the version 1.x
	OriginalImageSize int64  // before anything was appended
	VBMetaOffset      int64
	VBMetaSize        int64
}

// ReadFooter reads the last 64 of a partition's size bytes. The error wraps
// ErrNoFooter where there is none, and ErrCorrupt or ErrVersion if it is wrong.
func ReadFooter(r io.ReaderAt, size int64) (*Footer, error) {
	if size < FooterSize {
		return nil, refuse(ErrNoFooter, "bytes of the partition", fmt.Sprintf("at least %d", FooterSize), size)
	}
	b := make([]byte, FooterSize)
	if err := readFull(r, b, size-FooterSize); err != nil {
		return nil, err
	}
	return parseFooter(b, size)
}

func parseFooter(b []byte, size int64) (*Footer, error) {
	be := binary.BigEndian
	if string(b[:4]) != footerMagic {
		return nil, refuse(ErrNoFooter, "magic", fmt.Sprintf("%q", footerMagic), fmt.Sprintf("%q", b[:4]))
	}
	if v := be.Uint32(b[4:]); v != 1 {
		return nil, refuse(ErrVersion, "footer version", 1, v)
	}
	original, offset, n := be.Uint64(b[12:]), be.Uint64(b[20:]), be.Uint64(b[28:])
	room := uint64(size - FooterSize)
	if original > room {
		return nil, refuse(ErrCorrupt, "original image size", fmt.Sprintf("at most %d", room), original)
	}
	if offset > room || n > room-offset {
		return nil, refuse(ErrCorrupt, "metadata", fmt.Sprintf("to end before the footer at %d", room), fmt.Sprintf("%d bytes at %d", n, offset))
	}
	if n < HeaderSize || n > MaxSize {
		return nil, refuse(ErrCorrupt, "bytes of metadata", fmt.Sprintf("%d to %d", HeaderSize, MaxSize), n)
	}
	f := &Footer{be.Uint32(b[8:]), int64(original), int64(offset), int64(n)}
	if !bytes.Equal(f.encode(), b) {
		return nil, refuse(ErrCorrupt, "footer", "zeros where it is reserved", "other bytes")
	}
	return f, nil
}

func (f *Footer) encode() []byte {
	be := binary.BigEndian
	b := make([]byte, FooterSize)
	copy(b, footerMagic)
	be.PutUint32(b[4:], 1)
	be.PutUint32(b[8:], f.Minor)
	be.PutUint64(b[12:], uint64(f.OriginalImageSize))
	be.PutUint64(b[20:], uint64(f.VBMetaOffset))
	be.PutUint64(b[28:], uint64(f.VBMetaSize))
	return b
}

// FromPartition reads the metadata of a partition of so many bytes: those its footer
// tells of, or, where it has none, those at its start.
func FromPartition(r io.ReaderAt, size int64) (*VBMeta, error) {
	f, err := ReadFooter(r, size)
	switch {
	case errors.Is(err, ErrNoFooter):
		return read(r, 0, size)
	case err != nil:
		return nil, err
	}
	v, err := read(r, f.VBMetaOffset, f.VBMetaSize)
	if err != nil {
		return nil, fmt.Errorf("metadata of the footer, at %d: %w", f.VBMetaOffset, err)
	}
	return v, nil
}

// Layout is where the parts of a partition with a hash tree go. Numbers are bytes.
type Layout struct {
	OriginalImageSize    int64 // of the image alone
	ImageSize            int64 // the same in whole blocks
	TreeOffset, TreeSize int64
	FECOffset, FECSize   int64
	VBMetaOffset         int64
}

// NewLayout puts a hash tree and then error correction behind an image; either may
// have no bytes. Each part begins at a whole block of 4096 bytes.
func NewLayout(image, tree, fec int64) Layout {
	l := Layout{OriginalImageSize: image, ImageSize: blocks(image), TreeSize: tree, FECSize: fec}
	l.TreeOffset = l.ImageSize
	l.FECOffset = l.TreeOffset + blocks(tree)
	l.VBMetaOffset = l.FECOffset + blocks(fec)
	return l
}

// Hashtree is a descriptor with the layout's numbers; the rest is left to the
// caller.
func (l Layout) Hashtree() *Hashtree {
	h := &Hashtree{ImageSize: l.ImageSize, TreeOffset: l.TreeOffset, TreeSize: l.TreeSize, DataBlockSize: blockSize, HashBlockSize: blockSize}
	if l.FECSize > 0 {
		h.FECOffset, h.FECSize = l.FECOffset, l.FECSize
	}
	return h
}

// PartitionSize is the least that takes metadata of so many bytes and the footer.
func (l Layout) PartitionSize(vbmeta int) int64 {
	return l.VBMetaOffset + blocks(int64(vbmeta)) + blockSize
}

// CheckRoom tells whether a partition takes metadata of so many bytes. The error wraps
// ErrNoRoom.
func (l Layout) CheckRoom(vbmeta int, partitionSize int64) error {
	if need := l.PartitionSize(vbmeta); partitionSize < need || partitionSize%blockSize != 0 {
		return refuse(ErrNoRoom, "partition", fmt.Sprintf("a multiple of %d bytes, at least %d", blockSize, need), partitionSize)
	}
	return nil
}

// AppendFooter writes the metadata and, at the end of the partition, the footer. With a
// partition size of 0 that is right behind them. What lies between is left alone; where
// the output is a file that was shorter, it is a hole. The error wraps ErrNoRoom if the
// partition is too small.
func AppendFooter(w io.WriterAt, l Layout, vbmeta []byte, partitionSize int64) (*Footer, error) {
	if partitionSize == 0 {
		partitionSize = l.PartitionSize(len(vbmeta))
	}
	if err := l.CheckRoom(len(vbmeta), partitionSize); err != nil {
		return nil, err
	}
	f := &Footer{OriginalImageSize: l.OriginalImageSize, VBMetaOffset: l.VBMetaOffset, VBMetaSize: int64(len(vbmeta))}
	padded := make([]byte, blocks(int64(len(vbmeta))))
	copy(padded, vbmeta)
	if _, err := w.WriteAt(padded, l.VBMetaOffset); err != nil {
		return nil, fmt.Errorf("write the metadata: %w", err)
	}
	last := make([]byte, blockSize)
	copy(last[blockSize-FooterSize:], f.encode())
	if _, err := w.WriteAt(last, partitionSize-blockSize); err != nil {
		return nil, fmt.Errorf("write the footer: %w", err)
	}
	return f, nil
}

// blocks rounds bytes up to whole blocks.
func blocks(n int64) int64 { return (n + blockSize - 1) &^ (blockSize - 1) }
