package bsdiff

import (
	"errors"
	"fmt"
)

var (
	// ErrNotPatch: the input does not begin with the magic of a patch.
	ErrNotPatch = errors.New("not a bsdiff patch")
	// ErrAlgorithm: a stream is compressed in a way that is not known here.
	ErrAlgorithm = errors.New("unsupported compression")
	// ErrCorrupt: the patch breaks a rule of its format, or a stream does not
	// decompress.
	ErrCorrupt = errors.New("corrupt bsdiff patch")
)

// refuse says why a patch is refused. kind is one of the errors above.
func refuse(kind error, where string, expected, found any) error {
	return fmt.Errorf("%w: %s: expected %v, found %v", kind, where, expected, found)
}
