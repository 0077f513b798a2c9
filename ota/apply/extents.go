package apply

import (
	"fmt"
	"io"
	"sort"

	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
)

// stretch is a part of a list of extents that is told by where its bytes are.
type stretch struct {
	at     int64 // in the concatenation of all
	offset int64 // in the partition; a hole's is below 0
	size   int64
}

type stretches []stretch

func newStretches(extents []*pb.Extent, blockSize int64) (s stretches, total int64) {
	for _, e := range extents {
		n := int64(e.GetNumBlocks()) * blockSize
		off := int64(-1)
		if e.GetStartBlock() != payload.Hole {
			off = int64(e.GetStartBlock()) * blockSize
		}
		if n > 0 {
			s = append(s, stretch{total, off, n})
		}
		total += n
	}
	return s, total
}

// find is the stretch that the byte at is in.
func (s stretches) find(at int64) int {
	return sort.Search(len(s), func(i int) bool { return s[i].at+s[i].size > at })
}

// extentReader reads the extents of a partition as one. It is safe for concurrent
// use.
type extentReader struct {
	r     io.ReaderAt
	parts stretches
	size  int64
}

func newExtentReader(r io.ReaderAt, extents []*pb.Extent, blockSize int64) *extentReader {
	parts, size := newStretches(extents, blockSize)
	return &extentReader{r, parts, size}
}

func (e *extentReader) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("read the source at %d", off)
	}
	for i := e.parts.find(off); n < len(p); i++ {
		if i >= len(e.parts) {
			return n, io.EOF
		}
		s := e.parts[i]
		skip := off + int64(n) - s.at
		b := p[n:min(int64(len(p)), int64(n)+s.size-skip)]
		if s.offset < 0 {
			clear(b)
		} else if k, err := e.r.ReadAt(b, s.offset+skip); k < len(b) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return n + k, &ioError{fmt.Errorf("read the old partition at byte %d: %w", s.offset+skip+int64(k), err)}
		}
		n += len(b)
	}
	return n, nil
}

// Sink takes the contents of a new partition. Its calls come in any order, from
// several goroutines, and never twice for a byte.
type Sink interface {
	io.WriterAt
	// Zero says that n bytes at off are zeros.
	Zero(off, n int64) error
}

// extentWriter writes the extents of a partition one after another.
type extentWriter struct {
	w     Sink
	parts stretches
	size  int64
	at    int64
}

func newExtentWriter(w Sink, extents []*pb.Extent, blockSize int64) *extentWriter {
	parts, size := newStretches(extents, blockSize)
	return &extentWriter{w: w, parts: parts, size: size}
}

func (e *extentWriter) Write(p []byte) (n int, err error) {
	if int64(len(p)) > e.size-e.at {
		return 0, fmt.Errorf("%w: expected %d bytes, found more", ErrOutput, e.size)
	}
	for i := e.parts.find(e.at); n < len(p); i++ {
		s := e.parts[i]
		skip := e.at - s.at
		b := p[n:min(int64(len(p)), int64(n)+s.size-skip)]
		if s.offset >= 0 {
			if _, err := e.w.WriteAt(b, s.offset+skip); err != nil {
				return n, &ioError{fmt.Errorf("write the new partition at byte %d: %w", s.offset+skip, err)}
			}
		}
		n += len(b)
		e.at += int64(len(b))
	}
	return n, nil
}

// zero writes zeros to all of it.
func (e *extentWriter) zero() error {
	for _, s := range e.parts {
		if s.offset < 0 {
			continue
		}
		if err := e.w.Zero(s.offset, s.size); err != nil {
			return &ioError{fmt.Errorf("write zeros to the new partition at byte %d: %w", s.offset, err)}
		}
	}
	e.at = e.size
	return nil
}

// finish fills the last block up with zeros, and fails if more than its rest is
// missing (specs/payload.md 3).
func (e *extentWriter) finish(blockSize int64) error {
	missing := e.size - e.at
	if missing >= blockSize {
		return fmt.Errorf("%w: expected %d bytes, found %d", ErrOutput, e.size, e.at)
	}
	if missing == 0 {
		return nil
	}
	_, err := e.Write(make([]byte, missing))
	return err
}
