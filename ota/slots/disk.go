package slots

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// disk is how storage is reached. What changes it is durable on return, and is one
// point at which the power may go.
type disk interface {
	// readAt fills b; io.ErrUnexpectedEOF says that there is less.
	readAt(path string, b []byte, at int64) error
	// readFile reads a file of at most so many bytes.
	readFile(path string, limit int) ([]byte, error)
	// list is the names in a folder, sorted.
	list(dir string) ([]string, error)
	// writeAt overwrites bytes that exist, of a file or block device. It may be torn.
	writeAt(path string, b []byte, at int64) error
	// replace puts a file in the place of another, or where none is. It is never torn.
	replace(path string, b []byte) error
	// rename changes a name within a folder.
	rename(dir, from, to string) error
	// remove removes a file.
	remove(dir, name string) error
}

type osDisk struct{}

func (osDisk) readAt(path string, b []byte, at int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err = f.ReadAt(b, at); err == io.EOF {
		err = fmt.Errorf("%s: expected %d bytes at %d: %w", path, len(b), at, io.ErrUnexpectedEOF)
	}
	return err
}

func (osDisk) readFile(path string, limit int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err == nil && len(b) > limit {
		err = fmt.Errorf("%w: %s: expected at most %d bytes, found more", ErrState, path, limit)
	}
	return b, err
}

func (osDisk) list(dir string) (names []string, err error) {
	all, err := os.ReadDir(dir)
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names, err
}

func (osDisk) writeAt(path string, b []byte, at int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, at)
	return errors.Join(err, f.Sync(), f.Close())
}

func (osDisk) replace(path string, b []byte) error {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // renaming would replace the link
	}
	mode := os.FileMode(0o644)
	if info, err := os.Stat(path); err == nil {
		mode = info.Mode().Perm()
	}
	other := path + ".tmp"
	f, err := os.OpenFile(other, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(other, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(other))
	}
	return syncDir(filepath.Dir(path))
}

func (osDisk) rename(dir, from, to string) error {
	if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
		return err
	}
	return syncDir(dir)
}

func (osDisk) remove(dir, name string) error {
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
