package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// OutFile is an output that takes its place whole or not at all: a file is
// written beside the place where it belongs and moved there by Commit. What
// exists and is no regular file, such as a block device, is written in place.
type OutFile struct {
	*os.File
	path    string // where it belongs
	inPlace bool
	block   bool
	done    bool
}

// CreateOut opens the output for path. Discard must follow, also after Commit.
func CreateOut(path string) (*OutFile, error) {
	st, err := os.Stat(path)
	switch {
	case err == nil && st.IsDir():
		return nil, fmt.Errorf("%s is a folder: expected a file or a block device", path)
	case err == nil && !st.Mode().IsRegular():
		return openInPlace(path, st.Mode())
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return nil, err
	}
	if path, err = resolve(path, err == nil); err != nil {
		return nil, err
	}
	return createBeside(path)
}

// openInPlace opens a device. A block device that is mounted, or that another
// device lies on, is refused by the kernel.
func openInPlace(path string, mode os.FileMode) (*OutFile, error) {
	flags := os.O_RDWR
	block := mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0
	if block {
		flags |= os.O_EXCL
	}
	f, err := os.OpenFile(path, flags, 0)
	if block && errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%w: it is mounted or part of another device: unmount it, or give another -o", err)
	}
	return &OutFile{File: f, path: path, inPlace: true, block: block}, err
}

// resolve finds the file behind a symbolic link, so that the link stays.
func resolve(path string, exists bool) (string, error) {
	if !exists {
		return path, nil
	}
	return filepath.EvalSymlinks(path)
}

func createBeside(path string) (*OutFile, error) {
	dir, base := filepath.Split(path)
	temp := filepath.Join(dir, fmt.Sprintf(".%s.%d.tmp", base, os.Getpid()))
	f, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o666)
	if err != nil {
		return nil, fmt.Errorf("write beside %s: %w", path, err)
	}
	return &OutFile{File: f, path: path}, nil
}

// IsBlockDevice reports whether the output is one, and so has an end.
func (o *OutFile) IsBlockDevice() bool { return o.block }

// InPlace reports whether writes go straight to where they belong.
func (o *OutFile) InPlace() bool { return o.inPlace }

// Blank makes the start of an output that is written in place unreadable as
// what it was before, so that an interrupted command leaves nothing that looks
// complete.
func (o *OutFile) Blank(n int) error {
	if !o.inPlace {
		return nil
	}
	if _, err := o.WriteAt(make([]byte, n), 0); err != nil {
		return err
	}
	return o.sync()
}

// Commit makes the output durable and moves it where it belongs.
func (o *OutFile) Commit() error {
	if err := o.sync(); err != nil {
		return err
	}
	if o.inPlace {
		return nil
	}
	if err := os.Rename(o.Name(), o.path); err != nil {
		return err
	}
	o.done = true
	return syncDir(filepath.Dir(o.path))
}

// sync does nothing for what cannot be synced, such as /dev/null.
func (o *OutFile) sync() error {
	if err := o.Sync(); err != nil && !(o.inPlace && errors.Is(err, unix.EINVAL)) {
		return err
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Discard closes the output and removes it unless it was committed.
func (o *OutFile) Discard() {
	_ = o.Close()
	if !o.inPlace && !o.done {
		_ = os.Remove(o.Name())
	}
}

// Distinct refuses an output that is one of the inputs.
func Distinct(out string, inputs ...string) error {
	st, err := os.Stat(out)
	if err != nil {
		return nil
	}
	for _, in := range inputs {
		if other, err := os.Stat(in); err == nil && os.SameFile(st, other) {
			return Usagef("the output %s is the input %s: give another -o", out, in)
		}
	}
	return nil
}
