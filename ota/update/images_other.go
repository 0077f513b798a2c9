//go:build !linux

package update

import "errors"

// FileImages needs Linux.
type FileImages struct{ Images }

// OpenImages fails.
func OpenImages(string, int64) (*FileImages, error) {
	return nil, errors.New("COWs in files need Linux")
}

// Close does nothing.
func (*FileImages) Close() error { return nil }
