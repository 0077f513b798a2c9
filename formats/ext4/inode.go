package ext4

import (
	"fmt"
	"math"
)

// inode is what is needed of one.
type inode struct {
	number uint32
	mode   uint16
	links  uint16
	flags  uint32
	size   int64
	block  [60]byte // root of the extent tree, or block pointers
}

// Kinds of files, in the mode.
const (
	modeKind  = 0xF000
	directory = 0x4000
	regular   = 0x8000
)

// Flags of an inode.
const (
	flagEncrypted = 0x800
	flagExtents   = 0x80000
	flagInline    = 0x10000000
)

func (n *inode) where(what string) string { return fmt.Sprintf("inode %d: %s", n.number, what) }

func (fs *FS) inode(number uint32) (*inode, error) {
	if number == 0 || number > fs.inodes {
		return nil, refuse(ErrCorrupt, "inode number", fmt.Sprintf("from 1 to %d", fs.inodes), number)
	}
	group, index := int64((number-1)/fs.perGroup), int64((number-1)%fs.perGroup)
	desc := make([]byte, fs.descSize)
	if err := readFull(fs.r, desc, (fs.first+1)*fs.blockSize+group*fs.descSize, "group descriptor"); err != nil {
		return nil, err
	}
	table := int64(le32(desc, 8))
	if fs.descSize >= 64 {
		table |= int64(le32(desc, 0x28)) << 32
	}
	if table <= 0 || table > fs.blocks || index*fs.inodeSize > (fs.blocks-table)*fs.blockSize-fs.inodeSize {
		return nil, refuse(ErrCorrupt, fmt.Sprintf("group %d: inode table", group), fmt.Sprintf("inside %d blocks", fs.blocks), table)
	}
	b := make([]byte, 128)
	if err := readFull(fs.r, b, table*fs.blockSize+index*fs.inodeSize, "inode"); err != nil {
		return nil, err
	}
	return parseInode(number, b)
}

func parseInode(number uint32, b []byte) (*inode, error) {
	n := &inode{number: number, mode: le16(b, 0), links: le16(b, 0x1A), flags: le32(b, 0x20)}
	size := uint64(le32(b, 4)) | uint64(le32(b, 0x6C))<<32
	if size > math.MaxInt64>>8 {
		return nil, refuse(ErrCorrupt, n.where("size"), "below 2^55", size)
	}
	n.size = int64(size)
	copy(n.block[:], b[0x28:])
	return n, nil
}
