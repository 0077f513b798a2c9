package ext4

import (
	"errors"
	"fmt"
)

var (
	// ErrNotExt4: no superblock where it should be.
	ErrNotExt4 = errors.New("not an ext4 image")
	// ErrUnsupported: a feature that is not understood here.
	ErrUnsupported = errors.New("unsupported ext4 image")
	// ErrCorrupt: the image breaks a rule of the format.
	ErrCorrupt = errors.New("corrupt ext4 image")
)

// refuse says why something is refused; kind is one of the errors above.
func refuse(kind error, where string, expected, found any) error {
	return fmt.Errorf("%w: %s: expected %v, found %v", kind, where, expected, found)
}
