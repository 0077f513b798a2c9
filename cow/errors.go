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
	// ErrProgress: a merge of the COW has begun and not ended, so that what
	// it stands for depends on the base that it is being merged into.
	ErrProgress = errors.New("a merge of this COW has begun")
	// ErrClosed: the snapshot has been closed.
	ErrClosed = errors.New("snapshot is closed")
)
