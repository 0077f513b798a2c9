package zucchini

import (
	"errors"
	"fmt"
)

var (
	// ErrNotPatch: the input does not begin as a zucchini patch does.
	ErrNotPatch = errors.New("not a zucchini patch")
	// ErrCorrupt: the patch breaks a rule of its own format.
	ErrCorrupt = errors.New("corrupt zucchini patch")
	// ErrUnsupported: a version or a kind of element that is not known here.
	ErrUnsupported = errors.New("unsupported zucchini patch")
	// ErrSource: the source is not the one that the patch was made for.
	ErrSource = errors.New("wrong source for this zucchini patch")
	// ErrImage: an element is not an image of the kind that the patch says.
	ErrImage = errors.New("element is no such image")
	// ErrTarget: what the patch makes has another checksum than the target.
	// Either it is damaged, or its producer had an order of its own for
	// equivalences that tie.
	ErrTarget = errors.New("zucchini patch makes another target")
	// ErrLength: a file is empty, or longer than the format or the caller allows.
	ErrLength = errors.New("length out of range for a zucchini patch")
)

// refuse says why a patch is refused; kind is one of the errors above.
func refuse(kind error, where string, expected, found any) error {
	return fmt.Errorf("%w: %s: expected %v, found %v", kind, where, expected, found)
}
