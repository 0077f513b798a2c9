package ext4

import (
	"fmt"
	"strings"
)

// File is a regular file.
type File struct {
	Path  string // from the root, without a slash in front
	Size  int64  // bytes
	Inode uint32
	// LinkTo is the path under which the same inode was visited first, if this
	// is another of its names; there are no extents then.
	LinkTo  string
	Extents []Extent // by Logical, without overlaps
}

const (
	// MaxPath is the length in bytes of the longest path that is taken.
	MaxPath   = 4096
	maxLevels = 128
)

// walker is one walk.
type walker struct {
	fs        *FS
	visit     func(File) error
	seen      []uint64          // a bit an inode
	names     map[uint32]string // of inodes with several links
	dirBlocks int64             // that may still be read
	trees     int64
}

// Walk visits the regular files of all directories. It ends with the first error
// of visit, which it returns as it is.
func (fs *FS) Walk(visit func(File) error) error {
	w := &walker{fs: fs, visit: visit, seen: make([]uint64, fs.inodes/64+1), names: map[uint32]string{}, dirBlocks: fs.blocks, trees: fs.blocks}
	root, err := fs.inode(rootInode)
	if err != nil {
		return err
	}
	if root.mode&modeKind != directory {
		return refuse(ErrCorrupt, "root", "a directory", fmt.Sprintf("mode %#o", root.mode))
	}
	w.see(rootInode)
	return w.directory(root, "", 0)
}

// see tells whether an inode has been seen before.
func (w *walker) see(number uint32) bool {
	word, bit := &w.seen[number/64], uint64(1)<<(number%64)
	before := *word&bit != 0
	*word |= bit
	return before
}

func (w *walker) directory(n *inode, path string, level int) error {
	if level > maxLevels {
		return refuse(ErrCorrupt, n.where("directories"), fmt.Sprintf("at most %d levels", maxLevels), path)
	}
	if n.flags&(flagInline|flagEncrypted) != 0 {
		return refuse(ErrUnsupported, n.where("directory"), "neither inline nor encrypted", path)
	}
	extents, err := w.fs.extents(n, &w.trees)
	if err != nil {
		return err
	}
	b := make([]byte, w.fs.blockSize)
	for _, e := range extents {
		for at := int64(0); at < e.Length; at += w.fs.blockSize {
			if w.dirBlocks--; w.dirBlocks < 0 {
				return refuse(ErrCorrupt, n.where("directory blocks"), fmt.Sprintf("at most the %d of the image", w.fs.blocks), "more")
			}
			if err := readFull(w.fs.r, b, e.Physical+at, "directory"); err != nil {
				return err
			}
			if err := w.block(n, b, path, level); err != nil {
				return err
			}
		}
	}
	return nil
}

// block goes through the entries of a block of a directory. (The nodes of its
// hash tree look like unused entries.)
func (w *walker) block(n *inode, b []byte, path string, level int) error {
	for at := 0; at < len(b); {
		if len(b)-at < 8 {
			return refuse(ErrCorrupt, n.where("directory entry"), "8 bytes at least", len(b)-at)
		}
		e := b[at:]
		length, nameLength := int(le16(e, 4)), int(e[6])
		if length == 0xFFFF || length == 0 && len(b) == 64<<10 {
			length = 64 << 10
		}
		if length < 8 || length%4 != 0 || length > len(e) || nameLength > length-8 {
			return refuse(ErrCorrupt, n.where("directory entry"), fmt.Sprintf("at most %d bytes, which its name fits in", len(e)), fmt.Sprintf("%d with a name of %d", length, nameLength))
		}
		if number := le32(e, 0); number != 0 {
			if err := w.entry(number, string(e[8:8+nameLength]), path, level); err != nil {
				return err
			}
		}
		at += length
	}
	return nil
}

func (w *walker) entry(number uint32, name, path string, level int) error {
	if name == "." || name == ".." {
		return nil
	}
	if name == "" || strings.ContainsAny(name, "/\x00") {
		return refuse(ErrCorrupt, "name in "+path, "one without slashes and zeros", fmt.Sprintf("%q", name))
	}
	if path != "" {
		name = path + "/" + name
	}
	if len(name) > MaxPath {
		return refuse(ErrCorrupt, "path", fmt.Sprintf("at most %d bytes", MaxPath), len(name))
	}
	n, err := w.fs.inode(number)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	switch n.mode & modeKind {
	case directory:
		if w.see(number) {
			return refuse(ErrCorrupt, n.where("directory"), "one name", name)
		}
		return w.directory(n, name, level+1)
	case regular:
		return w.file(n, name)
	}
	return nil
}

func (w *walker) file(n *inode, name string) error {
	f := File{Path: name, Size: n.size, Inode: n.number}
	if w.see(n.number) {
		first, several := w.names[n.number]
		if !several {
			return refuse(ErrCorrupt, n.where("names"), "one, as it has one link", name)
		}
		f.LinkTo = first
		return w.visit(f)
	}
	if n.links > 1 {
		w.names[n.number] = name
	}
	var err error
	if f.Extents, err = w.fs.extents(n, &w.trees); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return w.visit(f)
}
