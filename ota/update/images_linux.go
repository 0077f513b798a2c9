package update

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"cowbird/formats/lpmeta"
)

// FileImages keeps COWs in files of a mounted file system, under loop devices. The
// boot has to mount it before the COWs are mapped; ExtentImages is for those that cannot.
// A loop device goes when nobody has it open, neither this process nor a mapped device.
type FileImages struct {
	dir *os.Root
	// keep is how many bytes of the file system are left free.
	keep int64

	mu    sync.Mutex
	loops map[string]*os.File
}

// imageSuffix is that of the files, of which there may be others in the folder.
const imageSuffix = ".img"

// OpenImages opens a folder, which is made if it is not there. keep is how many bytes
// of its file system are to be left to others.
func OpenImages(dir string, keep int64) (*FileImages, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("folder for COWs: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("folder for COWs: %w", err)
	}
	return &FileImages{dir: root, keep: keep, loops: map[string]*os.File{}}, nil
}

// Close lets go of the loop devices that nobody else has open.
func (i *FileImages) Close() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	err := i.dir.Close()
	for _, f := range i.loops {
		err = errors.Join(err, f.Close())
	}
	clear(i.loops)
	return err
}

// Room implements Images.
func (i *FileImages) Room() (int64, error) {
	room, err := i.unused()
	if err != nil {
		return 0, err
	}
	all, err := i.List() // those that are there make room when they are replaced
	if err != nil {
		return 0, err
	}
	for _, name := range all {
		if st, err := i.dir.Stat(name + imageSuffix); err == nil {
			room += st.Size()
		}
	}
	return max(0, room), nil
}

// unused is what another image may take as things are. It may be less than nothing.
func (i *FileImages) unused() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(i.dir.Name(), &st); err != nil {
		return 0, fmt.Errorf("room in %s: %w", i.dir.Name(), err)
	}
	return int64(st.Bavail)*int64(st.Bsize) - i.keep, nil
}

// Create implements Images. The file's blocks are taken at once. What there is no room
// for is not tried: the file system would be full for everybody until it failed.
func (i *FileImages) Create(name string, bytes int64) (err error) {
	if err := i.Delete(name); err != nil {
		return err
	}
	if room, err := i.unused(); err != nil {
		return err
	} else if bytes > room {
		return fmt.Errorf("%w: expected %d bytes in %s for %s, found %d", ErrNoSpace, bytes, i.dir.Name(), name, max(0, room))
	}
	f, err := i.dir.OpenFile(name+imageSuffix, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			_ = i.dir.Remove(name + imageSuffix)
		}
	}()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, bytes); errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("%w: expected %d bytes in %s for %s", ErrNoSpace, bytes, i.dir.Name(), name)
	} else if err != nil {
		return fmt.Errorf("take %d bytes in %s for %s: %w", bytes, i.dir.Name(), name, err)
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return i.sync()
}

func (i *FileImages) sync() error {
	d, err := i.dir.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Table implements Images: all of a loop device.
func (i *FileImages) Table(name string) ([]Line, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.loops[name] == nil {
		f, err := i.find(name)
		if err == nil && f == nil {
			f, err = i.attach(name)
		}
		if err != nil {
			return nil, fmt.Errorf("loop device for %s: %w", name, err)
		}
		i.loops[name] = f
	}
	st, err := i.dir.Stat(name + imageSuffix)
	if err != nil {
		return nil, err
	}
	return []Line{{Sectors: uint64(st.Size()) / lpmeta.SectorSize, Device: i.loops[name].Name()}}, nil
}

// find gives the loop device that another process has made for a file, if there is one.
func (i *FileImages) find(name string) (*os.File, error) {
	st, err := i.dir.Stat(name + imageSuffix)
	if err != nil {
		return nil, err
	}
	file, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, nil
	}
	used, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return nil, err
	}
	for _, sys := range used {
		f, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(sys)), os.O_RDWR, 0)
		if err != nil {
			continue // gone since, or read-only
		}
		info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
		if err == nil && info.Inode == file.Ino && info.Device == uint64(file.Dev) && info.Offset == 0 {
			return f, nil
		}
		_ = f.Close()
	}
	return nil, nil
}

// attach makes a loop device that goes with its last user. Others may take the one
// that was free a moment ago.
func (i *FileImages) attach(name string) (*os.File, error) {
	backing, err := i.dir.OpenFile(name+imageSuffix, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free one: %w", err)
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		c := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: blockSize}
		c.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
		copy(c.Info.File_name[:len(c.Info.File_name)-1], "cowbird:"+name)
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &c)
		if err == nil {
			return loop, nil
		}
		_ = loop.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("configure %s: %w", loop.Name(), err)
		}
	}
}

// Delete implements Images.
func (i *FileImages) Delete(name string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if f := i.loops[name]; f != nil {
		delete(i.loops, name)
		_ = f.Close()
	}
	err := i.dir.Remove(name + imageSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return i.sync()
}

// Disable implements Images. A file that no snapshot has is known for what it is.
func (i *FileImages) Disable(string) error { return nil }

// List implements Images.
func (i *FileImages) List() ([]string, error) {
	d, err := i.dir.Open(".")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	files, err := d.Readdirnames(-1)
	var names []string
	for _, f := range files {
		if name, ok := strings.CutSuffix(f, imageSuffix); ok {
			names = append(names, filepath.Base(name))
		}
	}
	slices.Sort(names)
	return names, err
}
