package bsdiff

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/andybalholm/brotli"
	"github.com/dsnet/compress/bzip2"
)

// stream is one of the three, decompressed.
type stream struct {
	part
	r     io.Reader
	from  *watch
	ahead *ahead // where r reads ahead, else nil
	read  int64
}

func open(p part, patch io.ReaderAt) *stream {
	s := &stream{part: p, from: &watch{r: io.NewSectionReader(patch, p.offset, p.len)}}
	packed := bufio.NewReaderSize(s.from, 16<<10)
	switch p.algorithm {
	case Bzip2:
		s.r = newBzip2(packed)
	case Brotli:
		s.r = brotli.NewReader(packed)
	default:
		s.r = packed
	}
	return s
}

// newBzip2 is not the standard library's, which is half as fast.
func newBzip2(r io.Reader) io.Reader {
	z, err := bzip2.NewReader(r, nil)
	if err != nil {
		panic(err) // of options, of which there are none
	}
	return z
}

// prepare has the stream decompressed in the background, if it is long. Then it
// must be closed.
func (s *stream) prepare() {
	if s.len >= aheadFrom && s.algorithm != None {
		s.ahead = readAhead(s.r)
		s.r = s.ahead
	}
}

func (s *stream) close() {
	if s.ahead != nil {
		s.ahead.stop()
	}
}

// full fills b.
func (s *stream) full(b []byte) error {
	n, err := io.ReadFull(s.r, b)
	s.read += int64(n)
	switch {
	case err == nil:
		return nil
	case err == io.EOF || err == io.ErrUnexpectedEOF && s.from.err == nil:
		return refuse(ErrCorrupt, s.name+" stream", "more data", fmt.Sprintf("its end after %d bytes", s.read))
	}
	return s.fail(err)
}

// end makes sure that the stream has no more data, and that its checksums hold.
// One without a byte was never opened by anyone and may be left out.
func (s *stream) end() error {
	if s.len == 0 {
		return nil
	}
	var b [1]byte
	switch n, err := io.ReadFull(s.r, b[:]); {
	case n > 0:
		return refuse(ErrCorrupt, s.name+" stream", fmt.Sprintf("its end after %d bytes", s.read), "more data")
	case err != io.EOF:
		return s.fail(err)
	}
	return nil
}

// fail tells damage in the stream from trouble in reading the patch.
func (s *stream) fail(err error) error {
	if s.from.err != nil {
		return fmt.Errorf("reading the %s stream of a bsdiff patch: %w", s.name, s.from.err)
	}
	return fmt.Errorf("%w: %s stream after %d bytes: %v: %w", ErrCorrupt, s.name, s.read, s.algorithm, err)
}

// watch remembers an error of the reader, which decoders may hide.
type watch struct {
	r   io.Reader
	err error
}

func (w *watch) Read(b []byte) (int, error) {
	n, err := w.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		w.err = err
	}
	return n, err
}
