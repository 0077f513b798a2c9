package erofs

import (
	"encoding/binary"
	"fmt"
	"io"
)

const (
	superOffset = 1024
	superSize   = 128
	superMagic  = 0xE0F5E1E2

	featurePadded  = 0x1
	featureKnown   = 0x7F // the last one: long xattr prefixes
	windowSize     = 64 << 10
	inodeAlignment = 32
)

// FS is an open image.
type FS struct {
	// Padded tells that LZ4 clusters have their data at the end.
	Padded bool

	r         io.ReaderAt
	size      int64 // of the image
	blockBits uint
	meta      int64 // byte where inode 0 is
	root      uint64
	window    []byte // of the image, from windowAt on
	windowAt  int64
	budget    int64 // index entries and directory bytes that may still be read
}

// Open reads the superblock of an image of size bytes. Errors are those of r and
// this package's.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	if size < superOffset+superSize {
		return nil, refuse(ErrNotErofs, "size", fmt.Sprintf("at least %d bytes", superOffset+superSize), size)
	}
	fs := &FS{r: r, size: size}
	b, err := fs.bytes(superOffset, superSize, "superblock")
	if err != nil {
		return nil, err
	}
	if m := le32(b, 0); m != superMagic {
		return nil, refuse(ErrNotErofs, "superblock: magic", fmt.Sprintf("%#x", uint32(superMagic)), fmt.Sprintf("%#x", m))
	}
	features := le32(b, 80)
	if features&^featureKnown != 0 || le16(b, 86) != 0 || b[90] != 0 {
		return nil, refuse(ErrUnsupported, "superblock: features", fmt.Sprintf("%#x at most, one device, directory blocks of the usual size", featureKnown),
			fmt.Sprintf("%#x, %d more devices, shift %d", features, le16(b, 86), b[90]))
	}
	if bits := b[12]; bits < 9 || bits > 16 {
		return nil, refuse(ErrCorrupt, "superblock: block size", "512 bytes to 64 KiB", fmt.Sprintf("1<<%d", bits))
	}
	fs.blockBits, fs.Padded, fs.root = uint(b[12]), features&featurePadded != 0, uint64(le16(b, 14))
	fs.meta = int64(le32(b, 40)) << fs.blockBits
	if n := int64(le32(b, 36)); n > size>>fs.blockBits {
		return nil, refuse(ErrCorrupt, "superblock: blocks", fmt.Sprintf("at most %d, as the image has", size>>fs.blockBits), n)
	}
	return fs, nil
}

// BlockSize is the number of bytes of a block of the file system.
func (fs *FS) BlockSize() int64 { return 1 << fs.blockBits }

// bytes returns n bytes of the image, at most windowSize, valid until the next
// call.
func (fs *FS) bytes(off int64, n int, what string) ([]byte, error) {
	if off < 0 || off > fs.size-int64(n) {
		return nil, refuse(ErrCorrupt, what, fmt.Sprintf("inside %d bytes", fs.size), fmt.Sprintf("%d bytes at %d", n, off))
	}
	if at := off - fs.windowAt; at >= 0 && at+int64(n) <= int64(len(fs.window)) {
		return fs.window[at:][:n], nil
	}
	if fs.window == nil {
		fs.window = make([]byte, 0, windowSize)
	}
	b := fs.window[:min(windowSize, fs.size-off)]
	fs.window = fs.window[:0]
	if m, err := fs.r.ReadAt(b, off); m < len(b) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("erofs: read %s at byte %d: %w", what, off, err)
	}
	fs.window, fs.windowAt = b, off
	return b[:n], nil
}

// spend takes n from the budget.
func (fs *FS) spend(n int64, what string) error {
	if n < 0 || n > fs.budget {
		return refuse(ErrCorrupt, what, fmt.Sprintf("no more than the image has bytes, %d", fs.size), "more")
	}
	fs.budget -= n
	return nil
}

func le16(b []byte, off int) uint16 { return binary.LittleEndian.Uint16(b[off:]) }
func le32(b []byte, off int) uint32 { return binary.LittleEndian.Uint32(b[off:]) }
func le64(b []byte, off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }
