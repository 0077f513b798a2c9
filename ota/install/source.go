package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"cowbird/formats/payload"
)

// File is a payload in a file, or in an OTA zip.
type File struct {
	*io.SectionReader
	// Package is the zip that it is in; nil: none.
	Package *payload.Package
	f       *os.File
	zip     int64 // size; 0: it is none
}

// OpenFile opens a payload or an OTA zip. The zip's other payload, for the slot that
// factories fill, is in the folder "secondary/".
func OpenFile(path, folder string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	s := &File{f: f}
	if err := s.locate(folder); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return s, nil
}

func (s *File) locate(folder string) error {
	size, err := s.f.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("expected a file that can be read at any place, found none: %w", err)
	}
	var first [4]byte
	if _, err := s.f.ReadAt(first[:], 0); err != nil && err != io.EOF {
		return err
	}
	if !payload.IsZip(first[:]) {
		s.SectionReader = io.NewSectionReader(s.f, 0, size)
		return nil
	}
	in, err := payload.InZip(s.f, size, folder)
	if err != nil {
		return err
	}
	s.zip = size
	s.SectionReader, s.Package = io.NewSectionReader(s.f, in.Payload.Offset, in.Payload.Size), in
	return nil
}

// From implements Source.
func (s *File) From(_ context.Context, off int64) (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(s, off, s.Size()-off)), nil
}

// Zip is all of an OTA zip, or nil.
func (s *File) Zip() (zip io.ReaderAt, size int64) {
	if s.zip == 0 {
		return nil, 0
	}
	return s.f, s.zip
}

// Close closes the file.
func (s *File) Close() error { return s.f.Close() }

// Once is a payload that comes once, such as standard input.
type Once struct {
	R  io.Reader
	at int64
}

// Size implements Source: it is not known.
func (o *Once) Size() int64 { return 0 }

// ErrOnce: the payload would have to come again.
var ErrOnce = errors.New("the payload comes once")

// From implements Source. Bytes before off are read and dropped.
func (o *Once) From(ctx context.Context, off int64) (io.ReadCloser, error) {
	if off < o.at {
		return nil, fmt.Errorf("%w: expected to go on from byte %d, found %d: give a file", ErrOnce, o.at, off)
	}
	n, err := io.CopyN(io.Discard, o.R, off-o.at)
	o.at += n
	return &once{o, ctx}, err
}

type once struct {
	o   *Once
	ctx context.Context
}

func (o *once) Read(p []byte) (int, error) {
	if err := context.Cause(o.ctx); err != nil {
		return 0, err
	}
	n, err := o.o.R.Read(p)
	o.o.at += int64(n)
	return n, err
}

func (o *once) Close() error { return nil }

// Part is a payload within another source, such as an OTA zip on a server.
type Part struct {
	Of    Source
	Range payload.Range
}

// Size implements Source.
func (p *Part) Size() int64 { return p.Range.Size }

// From implements Source.
func (p *Part) From(ctx context.Context, off int64) (io.ReadCloser, error) {
	r, err := p.Of.From(ctx, p.Range.Offset+off)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(r, p.Range.Size-off), r}, nil
}
