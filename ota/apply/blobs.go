package apply

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"cowbird/formats/payload"
)

// Blobs gives the data of operations. Calls come from one goroutine.
type Blobs interface {
	// Blob gives n bytes from off, counted from the first byte of data. done
	// is called once, by any goroutine, when they have been read.
	Blob(off, n int64) (data *io.SectionReader, done func(), err error)
}

// BlobsAt reads where it is told to: a payload in a file.
func BlobsAt(m *payload.Metadata, whole io.ReaderAt) Blobs { return blobsAt{whole, m.BlobOffset()} }

type blobsAt struct {
	r    io.ReaderAt
	base int64
}

func (b blobsAt) Blob(off, n int64) (*io.SectionReader, func(), error) {
	return io.NewSectionReader(b.r, b.base+off, n), func() {}, nil
}

// ErrOrder: the data cannot be had a second time.
var ErrOrder = errors.New("payload data are not in the order of the operations")

// StreamOptions bound what a stream's data take.
type StreamOptions struct {
	// Hold is the largest blob that is held in memory, in bytes; larger ones
	// go to a file without a name in Spool. 0 means 16 MiB.
	Hold int64
	// Memory is how much is held at once; 0 means 32 MiB.
	Memory int64
	// Spool is a folder; "" means that of temporary files.
	Spool string
}

// Stream reads a payload that comes once, from its first byte of data on. A
// payload whose data are not in order (see payload.Metadata.InOrder) needs a file.
func Stream(r io.Reader, o StreamOptions) Blobs { return StreamFrom(r, 0, o) }

// StreamFrom is a Stream that begins with a later byte of data.
func StreamFrom(r io.Reader, at int64, o StreamOptions) Blobs {
	if o.Hold == 0 {
		o.Hold = 16 << 20
	}
	if o.Memory == 0 {
		o.Memory = 32 << 20
	}
	return &stream{r: r, at: at, o: o, room: newRoom(o.Memory)}
}

type stream struct {
	r    io.Reader
	at   int64
	o    StreamOptions
	room *room
}

func (s *stream) Blob(off, n int64) (*io.SectionReader, func(), error) {
	if off < s.at {
		return nil, nil, fmt.Errorf("%w: expected data from byte %d on, found %d: give a file", ErrOrder, s.at, off)
	}
	if skipped, err := io.CopyN(io.Discard, s.r, off-s.at); err != nil {
		return nil, nil, s.failed(off-s.at-skipped, err)
	}
	s.at = off
	if n > s.o.Hold {
		return s.spool(n)
	}
	s.room.take(n)
	b := make([]byte, n)
	got, err := io.ReadFull(s.r, b)
	s.at += int64(got)
	if err != nil {
		s.room.giveBack(n)
		return nil, nil, s.failed(n-int64(got), err)
	}
	return io.NewSectionReader(bytes.NewReader(b), 0, n), func() { s.room.giveBack(n) }, nil
}

func (s *stream) failed(missing int64, err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = fmt.Errorf("%w: expected %d more bytes of data", payload.ErrTruncated, missing)
	}
	return fmt.Errorf("read the payload: %w", err)
}

// spool keeps a large blob in a file.
func (s *stream) spool(n int64) (*io.SectionReader, func(), error) {
	f, err := os.CreateTemp(s.o.Spool, "blob.*")
	if err != nil {
		return nil, nil, fmt.Errorf("a file for %d bytes of the payload: %w", n, err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	got, err := io.CopyN(f, s.r, n)
	s.at += got
	if err != nil {
		_ = f.Close()
		return nil, nil, s.failed(n-got, err)
	}
	return io.NewSectionReader(f, 0, n), func() { _ = f.Close() }, nil
}
