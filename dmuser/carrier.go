package dmuser

import (
	"context"
	"io"
)

// Backend is the block data that a carrier serves. It is all that this package
// knows of a snapshot.
//
// ReadAt follows io.ReaderAt with two additions: it must be safe for concurrent
// use, and p is lent only for the length of the call. Offsets and lengths are
// in bytes and need not be aligned; a carrier never asks for bytes past Size.
// An error fails that one request with the unix.Errno it wraps, or EIO; the
// carrier goes on serving.
type Backend interface {
	io.ReaderAt
	// Size is the length of the device in bytes, a multiple of 512. It never
	// changes.
	Size() int64
}

// FileBackend is a Backend of which stretches lie in a file as they are, so that
// the kernel can be told to read them there. A carrier may make use of it.
type FileBackend interface {
	Backend
	// HoldFile says where the n bytes at off are: in the file fd, from byte
	// at. It is ok only if all of them are, and then they stay there, and as
	// they are, until ReleaseFile. It must not wait for anything that waits for
	// a ReleaseFile: what would have to wait is not ok. fd is the backend's,
	// and reads of it go through the page cache.
	HoldFile(off int64, n int) (fd int, at int64, ok bool)
	// ReleaseFile ends one HoldFile that was ok. Any goroutine may call it.
	ReleaseFile()
}

// Carrier makes block devices out of backends in one particular way. Its
// methods are safe for concurrent use.
type Carrier interface {
	// Name is the word that selects this carrier: "fuse", "ublk", ….
	Name() string
	// Probe reports whether this kernel can run the carrier: nil, or an error
	// that wraps ErrUnsupported and says which driver or version would.
	Probe() error
	// Attach serves b as a block device until the Device is closed. name
	// identifies the device to people and to Sweep; it is not a path. ctx
	// bounds the set-up only.
	Attach(ctx context.Context, name string, b Backend) (Device, error)
	// Sweep removes what earlier processes left behind and nobody uses any
	// more. Devices of processes that still live are not touched. It returns
	// the names of what it removed and, joined, an ErrBusy for each device
	// that it could not remove because something still holds it.
	Sweep() ([]string, error)
}

// Device is one served block device. Its methods are safe for concurrent use.
type Device interface {
	// Path is the block device's node, such as /dev/loop3.
	Path() string
	// Close takes the device away. While somebody else holds the device open
	// (a mount, a reader) it changes nothing and returns an error that wraps
	// ErrBusy and names a holder where it can be found out. When it returns
	// nil the backend is not called any more. A second Close does nothing.
	Close() error
	// Abort takes the device away even while it is in use: whoever still
	// holds it gets I/O errors from then on. It returns ErrBusy when
	// somebody did, so that the caller can say so, and nil otherwise. It does
	// not wait for the backend: see Done.
	Abort() error
	// Leave stops serving, and keeps the device for a process that attaches a
	// backend of the same name and size: whoever has it open waits for that
	// one (see the package's page for how long). It waits until what was asked
	// before is answered; the backend is not called any more then. Some drivers
	// take a device to be left only when this process has ended: serving is true
	// then, and nothing has changed. A device that cannot outlive this process
	// fails with ErrUnsupported, and is served as before.
	Leave() (serving bool, err error)
	// Done is closed when the device has stopped serving, for any reason, and
	// the last call of the backend has returned.
	Done() <-chan struct{}
}
