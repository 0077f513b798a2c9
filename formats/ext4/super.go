package ext4

import (
	"encoding/binary"
	"fmt"
	"io"
)

const (
	superOffset = 1024
	superSize   = 1024
	superMagic  = 0xEF53
	rootInode   = 2
)

// Incompatible features, which a reader must understand.
const (
	hasFiletype   = 0x2
	hasExtents    = 0x40
	has64bit      = 0x80
	hasFlexGroups = 0x200
	hasEAInode    = 0x400
	hasCsumSeed   = 0x2000
	hasLargeDir   = 0x4000
	hasInlineData = 0x8000
	hasCasefold   = 0x20000

	understood = hasFiletype | hasExtents | has64bit | hasFlexGroups | hasEAInode | hasCsumSeed | hasLargeDir | hasInlineData | hasCasefold
)

// FS is an open image.
type FS struct {
	r         io.ReaderAt
	blockSize int64
	blocks    int64 // of the file system
	first     int64 // block of the superblock
	inodes    uint32
	perGroup  uint32 // inodes
	inodeSize int64
	descSize  int64
}

// Open reads the superblock of an image of size bytes, which may be larger than
// the file system in it. Errors are those of r and this package's.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	if size < superOffset+superSize {
		return nil, refuse(ErrNotExt4, "size", fmt.Sprintf("at least %d bytes", superOffset+superSize), size)
	}
	b := make([]byte, superSize)
	if err := readFull(r, b, superOffset, "superblock"); err != nil {
		return nil, err
	}
	fs := &FS{r: r}
	if err := fs.parse(b); err != nil {
		return nil, err
	}
	return fs, fs.check(b, size)
}

// BlockSize is the number of bytes of a block of the file system.
func (fs *FS) BlockSize() int64 { return fs.blockSize }

// Size is the number of bytes of the file system.
func (fs *FS) Size() int64 { return fs.blocks * fs.blockSize }

func (fs *FS) parse(b []byte) error {
	if m := le16(b, 0x38); m != superMagic {
		return refuse(ErrNotExt4, "superblock: magic", fmt.Sprintf("%#x", superMagic), fmt.Sprintf("%#x", m))
	}
	features := le32(b, 0x60)
	if unknown := features &^ understood; unknown != 0 {
		return refuse(ErrUnsupported, "superblock: incompatible features", fmt.Sprintf("among %#x", understood), fmt.Sprintf("%#x too", unknown))
	}
	shift := le32(b, 0x18)
	if shift > 6 {
		return refuse(ErrCorrupt, "superblock: block size", "at most 64 KiB", fmt.Sprintf("1 KiB << %d", shift))
	}
	fs.blockSize = 1024 << shift
	fs.blocks = int64(le32(b, 0x4))
	fs.inodes, fs.perGroup, fs.first = le32(b, 0), le32(b, 0x28), int64(le32(b, 0x14))
	fs.inodeSize, fs.descSize = 128, 32
	if le32(b, 0x4C) > 0 {
		fs.inodeSize = int64(le16(b, 0x58))
	}
	if features&has64bit != 0 {
		fs.descSize = int64(le16(b, 0xFE))
		if hi := le32(b, 0x150); hi < 1<<16 { // else check finds the image too short
			fs.blocks |= int64(hi) << 32
		} else {
			fs.blocks = 1 << 48
		}
	}
	return nil
}

func (fs *FS) check(b []byte, size int64) error {
	wantFirst := int64(0)
	if fs.blockSize == 1024 {
		wantFirst = 1
	}
	perGroup := int64(le32(b, 0x20))
	switch {
	case fs.first != wantFirst:
		return refuse(ErrCorrupt, "superblock: first block", wantFirst, fs.first)
	case fs.blocks <= fs.first || fs.blocks > size/fs.blockSize:
		return refuse(ErrCorrupt, "superblock: blocks", fmt.Sprintf("at most %d, as the image has", size/fs.blockSize), fs.blocks)
	case perGroup == 0 || perGroup > 8*fs.blockSize:
		return refuse(ErrCorrupt, "superblock: blocks a group", fmt.Sprintf("from 1 to %d", 8*fs.blockSize), perGroup)
	case fs.inodeSize < 128 || fs.inodeSize > fs.blockSize || fs.inodeSize&(fs.inodeSize-1) != 0:
		return refuse(ErrCorrupt, "superblock: inode size", "a power of two from 128 to the block size", fs.inodeSize)
	case fs.descSize < 32 || fs.descSize > 1024 || fs.descSize&(fs.descSize-1) != 0:
		return refuse(ErrCorrupt, "superblock: descriptor size", "a power of two from 32 to 1024", fs.descSize)
	case fs.perGroup == 0 || int64(fs.perGroup) > 8*fs.blockSize:
		return refuse(ErrCorrupt, "superblock: inodes a group", fmt.Sprintf("from 1 to %d", 8*fs.blockSize), fs.perGroup)
	}
	groups := (fs.blocks - fs.first + perGroup - 1) / perGroup
	if most := groups * int64(fs.perGroup); int64(fs.inodes) > most || fs.inodes < rootInode || int64(fs.inodes)*fs.inodeSize > fs.Size() {
		return refuse(ErrCorrupt, "superblock: inodes", fmt.Sprintf("from %d to %d, of %d bytes each", rootInode, most, fs.inodeSize), fs.inodes)
	}
	if end := (fs.first+1)*fs.blockSize + groups*fs.descSize; end > fs.Size() {
		return refuse(ErrCorrupt, "group descriptors: end", fmt.Sprintf("at most %d", fs.Size()), end)
	}
	return nil
}

func readFull(r io.ReaderAt, b []byte, off int64, what string) error {
	if n, err := r.ReadAt(b, off); n < len(b) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("ext4: read %s at byte %d: %w", what, off, err)
	}
	return nil
}

func le16(b []byte, off int) uint16 { return binary.LittleEndian.Uint16(b[off:]) }
func le32(b []byte, off int) uint32 { return binary.LittleEndian.Uint32(b[off:]) }
