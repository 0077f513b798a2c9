package cow

import "errors"

var (
	// ErrSource: an op reads beyond the end of the source. The COW belongs
	// to another base, or the base is not complete.
	ErrSource = errors.New("source too small")
	// ErrMerging: a merge of this snapshot is running already.
	ErrMerging = errors.New("merge is running already")
	// ErrMismatch: the contents are not those that were asked for.
	ErrMismatch = errors.New("contents differ")
	// ErrSize: a size that is not a whole number of blocks, or too large.
	ErrSize = errors.New("bad size")
	// ErrClosed: the snapshot has been closed.
	ErrClosed = errors.New("snapshot is closed")
)
