package erofs

import (
	"fmt"
	"math"
)

// Layouts of a file's data.
const (
	flatPlain = iota
	clustersFull
	flatInline
	clustersCompact
	chunks
)

const (
	modeKind  = 0xF000
	directory = 0x4000
	regular   = 0x8000
)

type inode struct {
	nid    uint64
	mode   uint16
	layout int
	size   int64
	u      uint32 // address of the data, or the form of the chunks
	end    int64  // byte behind the inode and its attributes
}

func (n *inode) where(what string) string { return fmt.Sprintf("inode %d: %s", n.nid, what) }

func (fs *FS) inode(nid uint64) (*inode, error) {
	if nid > uint64(fs.size)/inodeAlignment {
		return nil, refuse(ErrCorrupt, "inode number", fmt.Sprintf("at most %d", fs.size/inodeAlignment), nid)
	}
	at := fs.meta + int64(nid)*inodeAlignment
	b, err := fs.bytes(at, 32, "inode")
	if err != nil {
		return nil, err
	}
	n := &inode{nid: nid, mode: le16(b, 4), layout: int(le16(b, 0) >> 1 & 7), size: int64(le32(b, 8)), u: le32(b, 16), end: at + 32}
	if le16(b, 0)&1 != 0 {
		size := le64(b, 8)
		if size > math.MaxInt64>>8 {
			return nil, refuse(ErrCorrupt, n.where("size"), "below 2^55", size)
		}
		n.size, n.end = int64(size), at+64
	}
	if n.layout > chunks {
		return nil, refuse(ErrUnsupported, n.where("layout"), "0 to 4", n.layout)
	}
	if attributes := int64(le16(b, 2)); attributes > 0 {
		n.end += 12 + 4*(attributes-1)
	}
	return n, nil
}
