package erofs

import (
	"errors"
	"fmt"
)

var (
	// ErrNotErofs: no superblock where it should be.
	ErrNotErofs = errors.New("not an erofs image")
	// ErrUnsupported: a feature that is not understood here.
	ErrUnsupported = errors.New("unsupported erofs image")
	// ErrCorrupt: the image breaks a rule of the format.
	ErrCorrupt = errors.New("corrupt erofs image")
)

// refuse says why something is refused; kind is one of the errors above.
func refuse(kind error, where string, expected, found any) error {
	return fmt.Errorf("%w: %s: expected %v, found %v", kind, where, expected, found)
}
