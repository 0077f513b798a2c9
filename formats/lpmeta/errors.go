package lpmeta

import (
	"errors"
	"fmt"
)

var (
	// ErrNotFound: no geometry where it should be: nothing was flashed here.
	ErrNotFound = errors.New("no super metadata")
	// ErrCorrupt: metadata that break a rule of the format.
	ErrCorrupt = errors.New("corrupt super metadata")
	// ErrVersion: a version that is not known here.
	ErrVersion = errors.New("unsupported version of super metadata")
	// ErrSlot: a slot that the geometry does not have.
	ErrSlot = errors.New("no such slot")
	// ErrGeometry: an update would change the geometry, or slots do not share one.
	ErrGeometry = errors.New("different geometry")
	// ErrTooLarge: metadata larger than a slot has room for, or than the device.
	ErrTooLarge = errors.New("metadata too large")
	// ErrSize: a size, block size or alignment that cannot be.
	ErrSize = errors.New("unusable size")
	// ErrNoSpace: too few free sectors, or too little room in the group.
	ErrNoSpace = errors.New("no space left in super")
	// ErrName: a name that is empty, too long, taken or malformed.
	ErrName = errors.New("unusable name")
	// ErrUnknown: a partition, group or device that is not there.
	ErrUnknown = errors.New("not in the metadata")
)

// refuse says why something is refused; kind is one of the errors above.
func refuse(kind error, where string, expected, found any) error {
	return fmt.Errorf("%w: %s: expected %v, found %v", kind, where, expected, found)
}
