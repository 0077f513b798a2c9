package lz4diff

import (
	"errors"
	"fmt"
)

var (
	// ErrNotPatch: the input does not begin as an LZ4DIFF patch does.
	ErrNotPatch = errors.New("not an LZ4DIFF patch")
	// ErrCorrupt: the patch breaks a rule of its own format.
	ErrCorrupt = errors.New("corrupt LZ4DIFF patch")
	// ErrSource: the source is not the one that the patch was made for.
	ErrSource = errors.New("wrong source for this LZ4DIFF patch")
	// ErrEncoder: a cluster compressed to other bytes than it did at the producer.
	ErrEncoder = errors.New("cluster does not compress as the producer's did")
	// ErrTooLong: the contents are longer than the caller's limit.
	ErrTooLong = errors.New("contents too long")
	// ErrUnsupported: a compression or an inner patch that is not known here.
	ErrUnsupported = errors.New("unsupported LZ4DIFF patch")
)

// refuse says why a patch is refused; kind is one of the errors above.
func refuse(kind error, where string, expected, found any) error {
	return fmt.Errorf("%w: %s: expected %v, found %v", kind, where, expected, found)
}
