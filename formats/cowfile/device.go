package cowfile

import (
	"errors"
	"fmt"
	"io"
	"math"
	"syscall"
)

// Device is what a Writer writes to. A write may be lost or torn until Sync has
// returned. A Device that is neither Resizable nor Bounded is written as it is.
type Device interface {
	io.ReaderAt
	io.WriterAt
	// Sync makes all writes that have returned durable.
	Sync() error
}

// Resizable is a Device whose length can be set: a regular file. It is cut when
// a writer is opened; from then on it only grows.
type Resizable interface {
	Device
	// Truncate cuts the file to size bytes, or extends it with zeros that
	// take no space.
	Truncate(size int64) error
}

// Bounded is a Device with an end, such as a block device.
type Bounded interface {
	Device
	// Capacity is the length of the device in bytes.
	Capacity() int64
}

// WriteOnly makes a Device of an output that is written once, from the first op
// to Finish. Making it durable is left to its owner.
func WriteOnly(w io.WriterAt) Device { return writeOnly{w} }

type writeOnly struct{ io.WriterAt }

func (writeOnly) ReadAt([]byte, int64) (int, error) { return 0, errors.ErrUnsupported }
func (writeOnly) Sync() error                       { return nil }

// nowhere takes everything and keeps nothing.
type nowhere struct{}

func (nowhere) ReadAt([]byte, int64) (int, error)      { return 0, errors.ErrUnsupported }
func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (nowhere) Sync() error                            { return nil }
func (nowhere) Truncate(int64) error                   { return nil }

// sink is a Device behind which no write goes, and which is not asked for
// anything once it has failed.
type sink struct {
	d    Device
	end  int64 // first byte that cannot be written
	fail error // of the first operation that failed
}

func newSink(d Device) sink {
	s := sink{d: d, end: math.MaxInt64}
	if b, ok := d.(Bounded); ok {
		s.end = b.Capacity()
	}
	return s
}

// failed keeps err for every later call.
func (s *sink) failed(what string, off int64, err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		s.fail = refuse(ErrNoSpace, fmt.Sprintf("%s at byte %d", what, off), "room on the file system", err)
	} else {
		s.fail = fmt.Errorf("write COW: %s at byte %d: %w", what, off, err)
	}
	return s.fail
}

func (s *sink) put(what string, b []byte, off int64) error {
	if s.fail != nil || len(b) == 0 {
		return s.fail
	}
	if err := s.room(what, off, int64(len(b))); err != nil {
		s.fail = err
		return err
	}
	if _, err := s.d.WriteAt(b, off); err != nil {
		return s.failed(what, off, err)
	}
	return nil
}

// room checks that n bytes at off lie before the end of the device.
func (s *sink) room(what string, off, n int64) error {
	if n <= s.end-off {
		return nil
	}
	return refuse(ErrNoSpace, fmt.Sprintf("%s at byte %d", what, off), fmt.Sprintf("room for %d bytes", n),
		fmt.Sprintf("the device's end at %d", s.end))
}

// clear writes n zeros at off.
func (s *sink) clear(what string, off, n int64) error {
	zeros := make([]byte, min(n, 256<<10))
	for n > 0 {
		z := zeros[:min(n, int64(len(zeros)))]
		if err := s.put(what, z, off); err != nil {
			return err
		}
		off += int64(len(z))
		n -= int64(len(z))
	}
	return s.fail
}

func (s *sink) sync() error {
	if s.fail != nil {
		return s.fail
	}
	if err := s.d.Sync(); err != nil {
		return s.failed("sync", 0, err)
	}
	return nil
}

// resize sets the length of a file; a device keeps its own.
func (s *sink) resize(size int64) error {
	r, ok := s.d.(Resizable)
	if !ok || s.fail != nil {
		return s.fail
	}
	if err := r.Truncate(size); err != nil {
		return s.failed("length", size, err)
	}
	return nil
}
