package dmuser

import "errors"

var (
	// ErrUnsupported: this kernel, or this process's rights, do not offer
	// what the carrier needs.
	ErrUnsupported = errors.New("carrier not supported here")
	// ErrBusy: the device is in use and was left as it was.
	ErrBusy = errors.New("device is in use")
	// ErrUnknownCarrier: no carrier has that name.
	ErrUnknownCarrier = errors.New("unknown carrier")
	// ErrBadSize: the backend's size cannot be that of a block device.
	ErrBadSize = errors.New("backend size is not that of a block device")

	// errMalformed: the kernel's request does not have the form of its opcode.
	errMalformed = errors.New("malformed FUSE request")
)
