package bootctl

import "errors"

var (
	// ErrBlank: nothing has been written yet, or the flash is erased.
	ErrBlank = errors.New("blank block")
	// ErrMagic: something else is there.
	ErrMagic = errors.New("wrong magic")
	// ErrVersion: a layout that is not known.
	ErrVersion = errors.New("unsupported version")
	// ErrChecksum: the bytes and their CRC32 differ, as after a torn write.
	ErrChecksum = errors.New("wrong checksum")
	// ErrValue: a field has a value that it cannot have.
	ErrValue = errors.New("value out of range")
	// ErrSize: too few bytes.
	ErrSize = errors.New("wrong size")
	// ErrSlot: there is no such slot.
	ErrSlot = errors.New("no such slot")
	// ErrUnbootable: no slot can be booted.
	ErrUnbootable = errors.New("no bootable slot")
)
