package apply

import "errors"

var (
	// ErrBlob: the blob is not the one that the manifest means, or does not
	// decode.
	ErrBlob = errors.New("damaged payload data")
	// ErrSource: the old partition is not the one that the payload is for.
	ErrSource = errors.New("not the old partition that the payload is for")
	// ErrOutput: the operation gave more or less than its blocks.
	ErrOutput = errors.New("operation of another length")
	// ErrTarget: the new partition is not what it should be.
	ErrTarget = errors.New("new partition differs from what the payload says")
)

// ioError is a failure of a partition, wherever it comes through.
type ioError struct{ err error }

func (e *ioError) Error() string { return e.err.Error() }
func (e *ioError) Unwrap() error { return e.err }
