//go:build !linux

package update

import "errors"

// FileImages needs Linux.
type FileImages struct{ Images }

// OpenImages fails.
func OpenImages(string, int64) (*FileImages, error) {
	return nil, errors.New("COWs in files need Linux")
}

// ExtentImages needs Linux.
type ExtentImages struct{ FileImages }

// OpenExtentImages gives what cannot be used.
func OpenExtentImages(string, int64, string, Files) *ExtentImages { return &ExtentImages{} }

func (*ExtentImages) below() ([]Line, error) { return nil, errors.New("COWs in files need Linux") }

// Close does nothing.
func (*FileImages) Close() error { return nil }
