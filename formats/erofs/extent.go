package erofs

import "fmt"

// Extent is a stretch of a file that lies in one piece in the image. All numbers
// but Algorithm are bytes.
type Extent struct {
	Logical  int64 // offset in the file
	Length   int64 // of the file's contents
	Physical int64 // offset in the image
	Stored   int64 // bytes in the image; for what is not compressed, whole blocks
	// Compressed tells that the image has them compressed, by Algorithm: 0 is LZ4,
	// 1 LZMA, 2 deflate, 3 zstd.
	Compressed bool
	Algorithm  uint8
}

type mapper struct {
	fs      *FS
	n       *inode
	extents []Extent
}

func (fs *FS) extents(n *inode) ([]Extent, error) {
	m := &mapper{fs: fs, n: n}
	var err error
	switch n.layout {
	case flatPlain:
		err = m.add(0, n.size, int64(n.u)<<fs.blockBits)
	case flatInline:
		err = m.add(0, n.size&^(fs.BlockSize()-1), int64(n.u)<<fs.blockBits)
	case chunks:
		err = m.chunks()
	default:
		err = m.clusters()
	}
	return m.extents, err
}

// add takes an uncompressed extent.
func (m *mapper) add(logical, length, physical int64) error {
	if length == 0 {
		return nil
	}
	stored := (length + m.fs.BlockSize() - 1) &^ (m.fs.BlockSize() - 1)
	if err := m.check(physical, stored); err != nil {
		return err
	}
	if k := len(m.extents) - 1; k >= 0 {
		if e := &m.extents[k]; !e.Compressed && e.Logical+e.Length == logical && e.Physical+e.Length == physical {
			e.Length += length
			e.Stored = physical + stored - e.Physical
			return nil
		}
	}
	m.extents = append(m.extents, Extent{Logical: logical, Length: length, Physical: physical, Stored: stored})
	return nil
}

func (m *mapper) check(physical, stored int64) error {
	if physical <= 0 || physical > m.fs.size-stored {
		return refuse(ErrCorrupt, m.n.where("data"), fmt.Sprintf("inside %d bytes", m.fs.size), fmt.Sprintf("%d at %d", stored, physical))
	}
	return nil
}

const hole = 1<<32 - 1

// chunks maps a file of chunks, each with an address of 4 bytes, or 8 with a
// device in front of it.
func (m *mapper) chunks() error {
	if m.n.u>>6 != 0 {
		return refuse(ErrUnsupported, m.n.where("chunks"), "format bits below 64", m.n.u)
	}
	bits, width := m.fs.blockBits+uint(m.n.u&31), int64(4)
	if m.n.u&32 != 0 {
		width = 8
	}
	count := m.n.size>>min(bits, 62) + 1
	if err := m.fs.spend(count, m.n.where("chunks")); err != nil {
		return err
	}
	at := (m.n.end + width - 1) &^ (width - 1)
	for k := int64(0); k<<bits < m.n.size; k++ {
		b, err := m.fs.bytes(at+k*width, int(width), "chunk")
		if err != nil {
			return err
		}
		if width == 8 && le16(b, 2) != 0 {
			return refuse(ErrUnsupported, m.n.where("chunk"), "on this device", le16(b, 2))
		}
		if block := le32(b, int(width)-4); block != hole {
			if err := m.add(k<<bits, min(m.n.size-k<<bits, 1<<bits), int64(block)<<m.fs.blockBits); err != nil {
				return err
			}
		}
	}
	return nil
}
