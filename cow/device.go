package cow

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"cowbird/formats/cowfile"
)

// Device is the storage that a base, a source or a COW lies on. Everything that
// this package makes durable goes through it: a write may be lost or torn at
// 512-byte boundaries until Sync has returned. Methods are safe for concurrent
// use. Offsets and sizes are in bytes.
type Device interface {
	io.ReaderAt
	io.WriterAt
	// Sync makes all writes that have returned durable.
	Sync() error
	// Size is the length of the device or file.
	Size() int64
}

// Growing is a Device that can be made longer: a regular file.
type Growing interface {
	Device
	// Grow extends the device with zeros to size bytes.
	Grow(size int64) error
}

// Zeroing is a Device that can be told to hold zeros, which is cheaper than
// writing them.
type Zeroing interface {
	Device
	// Zero makes n bytes at off zero, like a write: durable after Sync.
	// A device that cannot do it fails with an error that is
	// errors.ErrUnsupported, and has changed nothing.
	Zero(off, n int64) error
}

// Flushing is a Device that keeps writes in memory for a while.
type Flushing interface {
	Device
	// Flush begins to write out what was written to n bytes at off, and does
	// not wait for it. It makes nothing durable, but the next Sync shorter.
	Flush(off, n int64)
}

// Mapping is a Device whose bytes can be mapped into memory.
type Mapping interface {
	Device
	// Map maps n bytes from off, read-only and shared.
	Map(off int64, n int) (*MappedBytes, error)
}

// MappedBytes are bytes of a file in memory.
type MappedBytes struct {
	B     []byte
	pages []byte
}

// Drop lets go of the pages; they come back when they are looked at.
func (m *MappedBytes) Drop() { _ = unix.Madvise(m.pages, unix.MADV_DONTNEED) }

// Unmap ends the mapping. B must not be used any more.
func (m *MappedBytes) Unmap() { _ = unix.Munmap(m.pages) }

// FileDevice is a regular file or a block device.
type FileDevice struct {
	f       *os.File
	size    int64
	regular bool
}

var (
	_ Growing  = (*FileDevice)(nil)
	_ Zeroing  = (*FileDevice)(nil)
	_ Flushing = (*FileDevice)(nil)
	_ Mapping  = (*FileDevice)(nil)
)

// OpenDevice opens a regular file or a block device. The caller closes it.
func OpenDevice(path string, writable bool) (*FileDevice, error) {
	mode := os.O_RDONLY
	if writable {
		mode = os.O_RDWR
	}
	f, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, err
	}
	d, err := NewFileDevice(f)
	if err != nil {
		f.Close()
	}
	return d, err
}

// NewFileDevice takes over an open file.
func NewFileDevice(f *os.File) (*FileDevice, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	d := &FileDevice{f: f, size: st.Size(), regular: st.Mode().IsRegular()}
	if d.regular {
		return d, nil
	}
	if st.Mode()&os.ModeDevice == 0 || st.Mode()&os.ModeCharDevice != 0 {
		return nil, fmt.Errorf("%s: expected a regular file or a block device, found %v", f.Name(), st.Mode().Type())
	}
	if d.size, err = f.Seek(0, io.SeekEnd); err != nil {
		return nil, fmt.Errorf("size of %s: %w", f.Name(), err)
	}
	return d, nil
}

// Path is the name that the file was opened by.
func (d *FileDevice) Path() string { return d.f.Name() }

// IsRegular tells a regular file from a block device.
func (d *FileDevice) IsRegular() bool { return d.regular }

// Size implements Device.
func (d *FileDevice) Size() int64 { return d.size }

// ReadAt implements io.ReaderAt.
func (d *FileDevice) ReadAt(p []byte, off int64) (int, error) { return d.f.ReadAt(p, off) }

// WriteAt implements io.WriterAt.
func (d *FileDevice) WriteAt(p []byte, off int64) (int, error) { return d.f.WriteAt(p, off) }

// Zero implements Zeroing. Blocks of a file stay allocated, so that a later
// write cannot run out of space.
func (d *FileDevice) Zero(off, n int64) error {
	if off < 0 || off+n > d.size {
		return fmt.Errorf("zero %s: expected a range inside %d bytes, found %d to %d", d.Path(), d.size, off, off+n)
	}
	for {
		err := unix.Fallocate(int(d.f.Fd()), unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		switch err {
		case unix.EINTR:
		case unix.EOPNOTSUPP, unix.ENOSYS, unix.ENODEV, unix.EINVAL: // EINVAL: a device of larger blocks
			return fmt.Errorf("zero %s: %w", d.Path(), errors.ErrUnsupported)
		default:
			return err
		}
	}
}

// Sync implements Device. File contents and size matter, times do not.
func (d *FileDevice) Sync() error {
	for {
		err := unix.Fdatasync(int(d.f.Fd()))
		if err != unix.EINTR {
			return err
		}
	}
}

// Flush implements Flushing. An error is not its caller's: whatever cannot be
// written out fails the next Sync.
func (d *FileDevice) Flush(off, n int64) {
	_ = unix.SyncFileRange(int(d.f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

// Grow implements Growing. It must not run beside other calls.
func (d *FileDevice) Grow(size int64) error {
	if !d.regular {
		return fmt.Errorf("%w: %s has %d bytes, %d are needed: enlarge the partition", ErrSize, d.Path(), d.size, size)
	}
	if err := d.f.Truncate(size); err != nil {
		return err
	}
	d.size = size
	return nil
}

// Map implements Mapping.
func (d *FileDevice) Map(off int64, n int) (*MappedBytes, error) {
	if end := off + int64(n); off < 0 || end > d.size {
		return nil, fmt.Errorf("map %s: expected a range inside %d bytes, found %d to %d", d.Path(), d.size, off, end)
	}
	inPage := int(off % int64(os.Getpagesize()))
	b, err := unix.Mmap(int(d.f.Fd()), off-int64(inPage), n+inPage, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", d.Path(), err)
	}
	return &MappedBytes{B: b[inPage:], pages: b}, nil
}

// Close closes the file.
func (d *FileDevice) Close() error { return d.f.Close() }

// readFull fills p from off. A device that ends too early is an error.
func readFull(d io.ReaderAt, p []byte, off int64) error {
	n, err := d.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
}

// Output is the device as what a COW is written to: a file that is cut and
// extended as needed, or a device that has an end. Only the result is used
// while the COW is written.
func (d *FileDevice) Output() cowfile.Device {
	if d.regular {
		return &outputFile{d}
	}
	return outputDevice{d}
}

type outputFile struct{ *FileDevice }

func (o *outputFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := o.f.WriteAt(p, off)
	o.size = max(o.size, off+int64(n))
	return n, err
}

// Truncate implements cowfile.Resizable.
func (o *outputFile) Truncate(size int64) error {
	err := o.f.Truncate(size)
	if err == nil {
		o.size = size
	}
	return err
}

type outputDevice struct{ *FileDevice }

// Capacity implements cowfile.Bounded.
func (o outputDevice) Capacity() int64 { return o.size }
