package update

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Files is the folder with the state of an update. Names are relative to it, with
// slashes. Errors of what is not there are fs.ErrNotExist.
type Files interface {
	// Lock waits for the lock that programs share which know the folder.
	Lock(exclusive bool) (unlock func(), err error)
	Read(name string) ([]byte, error)
	// Write makes or replaces a file, whose contents are durable afterwards; its
	// name need not be.
	Write(name string, b []byte) error
	Rename(from, to string) error
	Remove(name string) error
	// List gives the names in a folder, sorted.
	List(dir string) ([]string, error)
	MakeDir(dir string) error
	// SyncDir makes names in a folder durable, and that others are gone.
	SyncDir(dir string) error
}

const (
	temporary = ".tmp"
	// maxFile is more than any of these files has.
	maxFile = 1 << 20
)

// Dir is a Files in a file system. Links do not lead out of it.
type Dir struct{ root *os.Root }

// OpenDir opens a folder, which is made if it is not there.
func OpenDir(dir string) (*Dir, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("folder for the state of updates: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("folder for the state of updates: %w", err)
	}
	return &Dir{root}, nil
}

// Close closes the folder.
func (d *Dir) Close() error { return d.root.Close() }

// Lock implements Files.
func (d *Dir) Lock(exclusive bool) (unlock func(), err error) {
	f, err := d.root.Open(".")
	if err != nil {
		return nil, err
	}
	how := unix.LOCK_SH
	if exclusive {
		how = unix.LOCK_EX
	}
	for {
		if err = unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", d.root.Name(), err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// Read implements Files. What is no regular file, or is too long, is refused.
func (d *Dir) Read(name string) ([]byte, error) {
	f, err := d.root.OpenFile(filepath.FromSlash(name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxFile {
		return nil, fmt.Errorf("%s: expected a regular file of at most %d bytes, found %v of %d", f.Name(), maxFile, st.Mode(), st.Size())
	}
	return io.ReadAll(f)
}

// Write implements Files.
func (d *Dir) Write(name string, b []byte) error {
	name = filepath.FromSlash(name)
	// A link in its place would be followed.
	if err := d.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := d.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Rename implements Files.
func (d *Dir) Rename(from, to string) error {
	return d.root.Rename(filepath.FromSlash(from), filepath.FromSlash(to))
}

// Remove implements Files.
func (d *Dir) Remove(name string) error { return d.root.Remove(filepath.FromSlash(name)) }

// List implements Files.
func (d *Dir) List(dir string) ([]string, error) {
	f, err := d.root.Open(filepath.FromSlash(dir))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// MakeDir implements Files.
func (d *Dir) MakeDir(dir string) error {
	err := d.root.Mkdir(filepath.FromSlash(dir), 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// SyncDir implements Files.
func (d *Dir) SyncDir(dir string) error {
	f, err := d.root.Open(filepath.FromSlash(dir))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// put replaces a file as a whole: a power cut leaves the old contents or the new.
func put(f Files, name string, b []byte) error {
	err := f.Write(name+temporary, b)
	if err == nil {
		err = f.Rename(name+temporary, name)
	}
	if err == nil {
		err = f.SyncDir(path.Dir(name))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// get reads a file; one that is not there is empty.
func get(f Files, name string) ([]byte, error) {
	b, err := f.Read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// drop removes files, durably. What is not there is fine.
func drop(f Files, names ...string) error {
	dirs := map[string]bool{}
	for _, name := range names {
		err := f.Remove(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("remove %s: %w", name, err)
		}
		if dir := path.Dir(name); !dirs[dir] {
			dirs[dir] = true
		}
	}
	for dir := range dirs {
		if err := f.SyncDir(dir); err != nil {
			return fmt.Errorf("sync %s: %w", dir, err)
		}
	}
	return nil
}

// list gives the files of a folder without those that were being written.
func list(f Files, dir string) ([]string, error) {
	names, err := f.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return slices.DeleteFunc(names, func(n string) bool { return strings.HasSuffix(n, temporary) }), err
}
