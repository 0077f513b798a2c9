package xz

import (
	"errors"
	"fmt"
)

var (
	// ErrNotXZ: the input does not begin with the magic of a stream.
	ErrNotXZ = errors.New("not an xz stream")
	// ErrUnsupported: a filter, a check or a flag that is not known here.
	ErrUnsupported = errors.New("unsupported xz stream")
	// ErrDictionary: the dictionary is longer than the reader was allowed.
	ErrDictionary = errors.New("xz dictionary too long")
	// ErrCorrupt: the stream breaks a rule of its format, or data have another check.
	ErrCorrupt = errors.New("corrupt xz stream")
)

// refuse says why a stream is refused. kind is one of the errors above.
func refuse(kind error, where string, expected, found any) error {
	return fmt.Errorf("%w: %s: expected %v, found %v", kind, where, expected, found)
}
