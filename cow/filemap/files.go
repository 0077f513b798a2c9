package filemap

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"

	"cowbird/formats/erofs"
	"cowbird/formats/ext4"
)

// MaxExtents is how many extents the files of an image may have.
const MaxExtents = 1 << 20

// ErrTooMany: an image with more extents than MaxExtents.
var ErrTooMany = errors.New("too many extents")

// Extent is a stretch of a file that lies in one piece in the image. All numbers
// are bytes.
type Extent struct {
	Logical  int64 // offset in the file
	Length   int64 // of the file's contents
	Physical int64 // offset in the image
	Stored   int64 // bytes in the image; Length, but for compressed ones
	// Compressed tells that the image holds the contents in compressed form.
	Compressed bool
	// Algorithm of what is compressed: 0 is LZ4; see formats/erofs.
	Algorithm uint8
}

// File is a regular file of an image.
type File struct {
	Path    string // from the root, without a slash in front
	Size    int64
	Extents []Extent // by Logical, without overlaps; holes have none
}

// Map is what Files found in an image.
type Map struct {
	System string // "ext4", "erofs", or "" for an image of no known file system
	// Padded tells that compressed extents have their data at the end, behind zeros.
	Padded bool
	Files  []File // by path, in byte order; a file with several names is there once
}

// Files lists the files of an image of size bytes. An unknown file system is an
// empty Map, and no error.
func Files(r io.ReaderAt, size int64) (Map, error) {
	m, err := ext4Files(r, size)
	if errors.Is(err, ext4.ErrNotExt4) {
		m, err = erofsFiles(r, size)
	}
	if errors.Is(err, erofs.ErrNotErofs) {
		return Map{}, nil
	}
	if err != nil {
		return Map{}, err
	}
	slices.SortFunc(m.Files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	return m, nil
}

// extentBudget counts extents.
type extentBudget int

func (b *extentBudget) take(n int) error {
	if *b += extentBudget(n); *b > MaxExtents {
		return fmt.Errorf("%w: expected at most %d in the image, found more", ErrTooMany, MaxExtents)
	}
	return nil
}

func ext4Files(r io.ReaderAt, size int64) (Map, error) {
	fs, err := ext4.Open(r, size)
	if err != nil {
		return Map{}, err
	}
	m := Map{System: "ext4"}
	var budget extentBudget
	err = fs.Walk(func(f ext4.File) error {
		if f.LinkTo != "" || len(f.Extents) == 0 {
			return nil
		}
		extents := make([]Extent, len(f.Extents))
		for i, e := range f.Extents {
			extents[i] = Extent{Logical: e.Logical, Length: e.Length, Physical: e.Physical, Stored: e.Length}
		}
		m.Files = append(m.Files, File{f.Path, f.Size, extents})
		return budget.take(1 + len(extents))
	})
	if err != nil {
		return Map{}, err
	}
	return m, nil
}

func erofsFiles(r io.ReaderAt, size int64) (Map, error) {
	fs, err := erofs.Open(r, size)
	if err != nil {
		return Map{}, err
	}
	m := Map{System: "erofs", Padded: fs.Padded}
	var budget extentBudget
	err = fs.Walk(func(f erofs.File) error {
		if f.LinkTo != "" || len(f.Extents) == 0 {
			return nil
		}
		extents := make([]Extent, len(f.Extents))
		for i, e := range f.Extents {
			extents[i] = Extent{e.Logical, e.Length, e.Physical, e.Stored, e.Compressed, e.Algorithm}
		}
		m.Files = append(m.Files, File{f.Path, f.Size, extents})
		return budget.take(1 + len(extents))
	})
	if err != nil {
		return Map{}, err
	}
	return m, nil
}
