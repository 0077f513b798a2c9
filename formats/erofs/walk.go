package erofs

import (
	"bytes"
	"fmt"
	"strings"
)

// File is a regular file.
type File struct {
	Path string // from the root, without a slash in front
	Size int64  // bytes
	Nid  uint64 // the number of its inode
	// LinkTo is the path under which the same inode was visited first, if this
	// is another of its names; there are no extents then.
	LinkTo  string
	Extents []Extent // by Logical, without overlaps
}

const (
	// MaxPath is the length in bytes of the longest path that is taken.
	MaxPath   = 4096
	maxLevels = 128
	entrySize = 12
)

type walker struct {
	fs    *FS
	visit func(File) error
	names map[uint64]string // of inodes that have been visited
}

// Walk visits the regular files of all directories, each by name. It ends with the
// first error of visit, which it returns as it is.
func (fs *FS) Walk(visit func(File) error) error {
	fs.budget = fs.size
	w := &walker{fs: fs, visit: visit, names: map[uint64]string{}}
	root, err := fs.inode(fs.root)
	if err != nil {
		return err
	}
	if root.mode&modeKind != directory {
		return refuse(ErrCorrupt, "root", "a directory", fmt.Sprintf("mode %#o", root.mode))
	}
	w.names[fs.root] = ""
	return w.directory(root, "", 0)
}

func (w *walker) directory(n *inode, path string, level int) error {
	if level > maxLevels {
		return refuse(ErrCorrupt, n.where("directories"), fmt.Sprintf("at most %d levels", maxLevels), path)
	}
	if n.layout != flatPlain && n.layout != flatInline {
		return refuse(ErrUnsupported, n.where("directory: layout"), "flat", n.layout)
	}
	if err := w.fs.spend(n.size, n.where("directory")); err != nil {
		return err
	}
	bs := w.fs.BlockSize()
	for off := int64(0); off < n.size; off += bs {
		length := min(bs, n.size-off)
		at := int64(n.u)<<w.fs.blockBits + off
		if n.layout == flatInline && length < bs {
			at = n.end
		}
		b, err := w.fs.bytes(at, int(length), "directory")
		if err != nil {
			return err
		}
		if err := w.block(n, bytes.Clone(b), path, level); err != nil {
			return err
		}
	}
	return nil
}

// block goes through a block of a directory: entries, then their names.
func (w *walker) block(n *inode, b []byte, path string, level int) error {
	if len(b) < entrySize {
		return refuse(ErrCorrupt, n.where("directory block"), fmt.Sprintf("%d bytes at least", entrySize), len(b))
	}
	first := int(le16(b, 8))
	if first < entrySize || first%entrySize != 0 || first > len(b) {
		return refuse(ErrCorrupt, n.where("directory block: first name"), fmt.Sprintf("a multiple of %d, at most %d", entrySize, len(b)), first)
	}
	for e := 0; e < first; e += entrySize {
		start, end := int(le16(b, e+8)), len(b)
		if e+entrySize < first {
			end = int(le16(b, e+entrySize+8))
		}
		if start < first || start >= end || end > len(b) {
			return refuse(ErrCorrupt, n.where("directory block: name"), fmt.Sprintf("between %d and %d", first, len(b)), fmt.Sprintf("%d to %d", start, end))
		}
		name, _, _ := strings.Cut(string(b[start:end]), "\x00")
		if err := w.entry(le64(b, e), name, path, level); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) entry(nid uint64, name, path string, level int) error {
	if name == "." || name == ".." {
		return nil
	}
	if name == "" || strings.Contains(name, "/") {
		return refuse(ErrCorrupt, "name in "+path, "one without slashes", fmt.Sprintf("%q", name))
	}
	if path != "" {
		name = path + "/" + name
	}
	if len(name) > MaxPath {
		return refuse(ErrCorrupt, "path", fmt.Sprintf("at most %d bytes", MaxPath), len(name))
	}
	n, err := w.fs.inode(nid)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	before, seen := w.names[nid]
	switch n.mode & modeKind {
	case directory:
		if seen {
			return refuse(ErrCorrupt, n.where("directory"), "one name", name)
		}
		w.names[nid] = name
		return w.directory(n, name, level+1)
	case regular:
		f := File{Path: name, Size: n.size, Nid: nid, LinkTo: before}
		if !seen {
			w.names[nid] = name
			if f.Extents, err = w.fs.extents(n); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return w.visit(f)
	}
	return nil
}
