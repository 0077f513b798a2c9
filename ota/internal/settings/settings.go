// Package settings is what the configuration files of this room have in common: JSON
// without anything that is not known, and paths that are relative to the file.
//
//	c, err := settings.Read("/etc/cowbird/update.json", update.ParseConfig)
//
// The errors say what is wrong; which kind of configuration it is, is for the caller to
// add.
package settings

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// ErrTrailing: something comes after the configuration.
var ErrTrailing = errors.New("expected the end after the configuration")

// Read reads a file and has it parsed. Errors name the file.
func Read[T any](path string, parse func(b []byte, dir string) (T, error)) (c T, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	if c, err = parse(b, filepath.Dir(path)); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// Decode takes JSON apart, all of it. Names that into does not have are refused.
func Decode(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return ErrTrailing
	}
	return nil
}

// InDir makes a path absolute that is relative to a folder. None stays none.
func InDir(dir, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}
