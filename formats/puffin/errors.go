package puffin

import (
	"errors"
	"fmt"
)

var (
	// ErrNotPatch: the input does not begin with the magic of a patch.
	ErrNotPatch = errors.New("not a puffin patch")
	// ErrUnsupported: a version or an inner patch that is not known here, or for
	// which the caller has given nothing.
	ErrUnsupported = errors.New("unsupported puffin patch")
	// ErrCorrupt: the patch breaks a rule of its format.
	ErrCorrupt = errors.New("corrupt puffin patch")
	// ErrDeflate: bits that should be deflate blocks are not.
	ErrDeflate = errors.New("not a deflate stream")
	// ErrPuff: bytes that should be a puff are not, or not the puff of a deflate
	// of the expected length.
	ErrPuff = errors.New("not a puff")
	// ErrLimit: a deflate or its puff is larger than MaxPuff.
	ErrLimit = errors.New("deflate too large")
)

// refuse says why something is refused. kind is one of the errors above.
func refuse(kind error, where string, expected, found any) error {
	return fmt.Errorf("%w: %s: expected %v, found %v", kind, where, expected, found)
}
