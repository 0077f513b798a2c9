package ext4

import "fmt"

// Extent is a stretch of a file that lies in one piece in the image. All numbers
// are bytes and multiples of the block size.
type Extent struct {
	Logical  int64 // offset in the file
	Physical int64 // offset in the image
	Length   int64
}

// mapper collects the extents of an inode.
type mapper struct {
	fs      *FS
	n       *inode
	limit   int64 // blocks of the file
	next    int64 // first block of the file that an extent may begin at
	extents []Extent
	budget  *int64 // blocks of trees and pointers that may still be read
}

// extents maps an inode. Budget is counted down for each block that is read.
func (fs *FS) extents(n *inode, budget *int64) ([]Extent, error) {
	if n.flags&flagInline != 0 {
		return nil, nil
	}
	m := &mapper{fs: fs, n: n, budget: budget, limit: (n.size + fs.blockSize - 1) / fs.blockSize}
	var err error
	if n.flags&flagExtents != 0 {
		err = m.tree(n.block[:], -1)
	} else {
		err = m.pointers()
	}
	return m.extents, err
}

const (
	extentMagic = 0xF30A
	maxDepth    = 5
	mostWritten = 32768 // blocks; longer extents are unwritten ones
)

// tree goes through a node of an extent tree. depth is what it must have; the
// root, −1, has any.
func (m *mapper) tree(node []byte, depth int) error {
	entries, found := int(le16(node, 2)), int(le16(node, 6))
	switch {
	case le16(node, 0) != extentMagic:
		return refuse(ErrCorrupt, m.n.where("extent tree: magic"), fmt.Sprintf("%#x", extentMagic), fmt.Sprintf("%#x", le16(node, 0)))
	case depth >= 0 && found != depth || found > maxDepth:
		return refuse(ErrCorrupt, m.n.where("extent tree: depth"), fmt.Sprintf("%d, at most %d", depth, maxDepth), found)
	case entries > len(node)/12-1:
		return refuse(ErrCorrupt, m.n.where("extent tree: entries"), fmt.Sprintf("at most %d", len(node)/12-1), entries)
	}
	for i := range entries {
		var err error
		if e := node[12+12*i:][:12]; found == 0 {
			err = m.leaf(e)
		} else {
			err = m.child(e, found-1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (m *mapper) child(e []byte, depth int) error {
	node, err := m.read(int64(le32(e, 4)) | int64(le16(e, 8))<<32)
	if err != nil {
		return err
	}
	return m.tree(node, depth)
}

func (m *mapper) leaf(e []byte) error {
	length := int64(le16(e, 4))
	unwritten := length > mostWritten
	if unwritten {
		length -= mostWritten
	}
	return m.add(int64(le32(e, 0)), int64(le32(e, 8))|int64(le16(e, 6))<<32, length, unwritten)
}

// add takes an extent, in blocks.
func (m *mapper) add(logical, physical, length int64, unwritten bool) error {
	if logical < m.next || length == 0 {
		return refuse(ErrCorrupt, m.n.where("extents"), fmt.Sprintf("some blocks, from %d on", m.next), fmt.Sprintf("%d from %d on", length, logical))
	}
	if physical <= 0 || physical > m.fs.blocks-length {
		return refuse(ErrCorrupt, m.n.where("extent"), fmt.Sprintf("inside %d blocks", m.fs.blocks), fmt.Sprintf("%d from %d on", length, physical))
	}
	m.next = logical + length
	if length = min(length, m.limit-logical); unwritten || length <= 0 {
		return nil // beyond the end: kept for the file to grow
	}
	bs := m.fs.blockSize
	e := Extent{logical * bs, physical * bs, length * bs}
	if k := len(m.extents) - 1; k >= 0 && m.extents[k].Logical+m.extents[k].Length == e.Logical && m.extents[k].Physical+m.extents[k].Length == e.Physical {
		m.extents[k].Length += e.Length
		return nil
	}
	if int64(len(m.extents)) >= m.fs.blocks {
		return refuse(ErrCorrupt, m.n.where("extents"), fmt.Sprintf("at most %d", m.fs.blocks), "more")
	}
	m.extents = append(m.extents, e)
	return nil
}

// pointers maps the blocks of an inode of ext2 and ext3.
func (m *mapper) pointers() error {
	for i := range 15 {
		if err := m.pointer(int64(le32(m.n.block[:], 4*i)), max(i-11, 0)); err != nil {
			return err
		}
	}
	return nil
}

// pointer follows a pointer to a block of the file (level 0), or of pointers.
func (m *mapper) pointer(block int64, level int) error {
	per := m.fs.blockSize / 4
	covered := int64(1)
	for range level {
		covered *= per
	}
	if m.next >= m.limit {
		return nil
	}
	if block == 0 {
		m.next += covered
		return nil
	}
	if level == 0 {
		return m.add(m.next, block, 1, false)
	}
	b, err := m.read(block)
	if err != nil {
		return err
	}
	for i := range int(per) {
		if err := m.pointer(int64(le32(b, 4*i)), level-1); err != nil {
			return err
		}
	}
	return nil
}

// read reads a block of a tree or of pointers.
func (m *mapper) read(block int64) ([]byte, error) {
	if *m.budget--; *m.budget < 0 {
		return nil, refuse(ErrCorrupt, m.n.where("blocks of extent trees"), fmt.Sprintf("at most the %d of the image", m.fs.blocks), "more")
	}
	if block <= 0 || block >= m.fs.blocks {
		return nil, refuse(ErrCorrupt, m.n.where("block of the tree"), fmt.Sprintf("from 1 to %d", m.fs.blocks-1), block)
	}
	b := make([]byte, m.fs.blockSize)
	return b, readFull(m.fs.r, b, block*m.fs.blockSize, "extent tree")
}
