package dm

import (
	"errors"
	"fmt"
	"syscall"
)

// What calls fail with, for errors.Is. The error itself is an *Error, from which
// errors.As gets the ioctl and its errno.
var (
	// ErrUnavailable: this kernel has no device-mapper, or we may not use it.
	ErrUnavailable = errors.New("device-mapper is not available")
	// ErrExists: a device of this name or UUID is there already.
	ErrExists = errors.New("device exists")
	// ErrNotFound: no device has this name.
	ErrNotFound = errors.New("no such device")
	// ErrBusy: the device is open or mounted.
	ErrBusy = errors.New("device is in use")
	// ErrNoTarget: the kernel has no target of this kind.
	ErrNoTarget = errors.New("no such kind of target")
	// ErrTable: the kernel refuses the table; its log says why.
	ErrTable = errors.New("table refused")
	// ErrArgument: a name, UUID or target that cannot be put into a request.
	ErrArgument = errors.New("argument does not fit")
	// ErrReply: an answer of the kernel's that makes no sense.
	ErrReply = errors.New("malformed reply")
)

// An Error is a failed request about a device.
type Error struct {
	Op    string // create, load, ...
	Name  string // of the device; empty if it was about none
	Errno syscall.Errno
}

func (e *Error) Error() string {
	if e.Name == "" {
		return fmt.Sprintf("device-mapper %s: %v", e.Op, e.Errno)
	}
	return fmt.Sprintf("device-mapper %s %q: %v", e.Op, e.Name, e.Errno)
}

// Unwrap gives the errno.
func (e *Error) Unwrap() error { return e.Errno }

// Is says which of this package's errors the errno means for this request.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrExists:
		return e.Op == opCreate && (e.Errno == syscall.EBUSY || e.Errno == syscall.EEXIST)
	case ErrBusy:
		return e.Op != opCreate && e.Errno == syscall.EBUSY
	case ErrNotFound:
		return e.Errno == syscall.ENXIO
	case ErrNoTarget:
		return e.Op == opTarget && e.Errno == syscall.EINVAL
	case ErrTable:
		return e.Op == opLoad && e.Errno != syscall.ENXIO
	case ErrUnavailable:
		return e.Op == opOpen
	}
	return false
}

// The names of requests, as errors show them.
const (
	opOpen    = "open"
	opVersion = "version"
	opTargets = "list targets"
	opTarget  = "find target"
	opList    = "list"
	opCreate  = "create"
	opLoad    = "load"
	opClear   = "clear"
	opSuspend = "suspend"
	opResume  = "resume"
	opRemove  = "remove"
	opKeep    = "keep"
	opInfo    = "info"
	opStatus  = "status"
	opTable   = "table"
)
