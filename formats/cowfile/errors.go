package cowfile

import (
	"errors"
	"fmt"
)

var (
	// ErrNotCOW: the input does not begin with a COW header.
	ErrNotCOW = errors.New("not a COW file")
	// ErrVersion: a COW of a version that is not known here.
	ErrVersion = errors.New("unsupported COW version")
	// ErrCorrupt: the file breaks a rule of its own format.
	ErrCorrupt = errors.New("corrupt COW file")
	// ErrTruncated: the file ends too early. Written files end so when the
	// writer was interrupted; such a file can be resumed at one of its labels.
	ErrTruncated = errors.New("truncated COW file")
	// ErrNoLabel: the label that was asked for is not in the file.
	ErrNoLabel = errors.New("label not found")
	// ErrMergeOrder: merging in this file's order would overwrite a block
	// before another op has read it.
	ErrMergeOrder = errors.New("unsafe merge order")
	// ErrDecode: the data of an op do not decompress to exactly one unit.
	ErrDecode = errors.New("data do not decode")
	// ErrLimit: an op does not fit what the writer was opened for.
	ErrLimit = errors.New("limit reached")
	// ErrRequest: a request to a writer that makes no sense, or not now.
	ErrRequest = errors.New("request refused")
	// ErrNoSpace: the device or file system that is written to is full.
	ErrNoSpace = errors.New("no space left for the COW")
)

// Error says why a file is refused. It wraps one of the errors above.
type Error struct {
	Kind     error  // one of the package's sentinel errors
	Where    string // field, op or byte offset
	Expected string
	Found    string
}

func (e *Error) Error() string {
	return fmt.Sprintf("%v: %s: expected %s, found %s", e.Kind, e.Where, e.Expected, e.Found)
}

func (e *Error) Unwrap() error { return e.Kind }

func refuse(kind error, where string, expected, found any) error {
	return &Error{Kind: kind, Where: where, Expected: fmt.Sprint(expected), Found: fmt.Sprint(found)}
}
