package apply

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// mapFile gives n bytes of zeros that lie in a file.
func mapFile(folder string, n int64) (b []byte, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("a file for %d bytes of an operation: %w", n, err)
		}
	}()
	f, err := os.CreateTemp(folder, "operation.*")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := errors.Join(os.Remove(f.Name()), reserve(f, n)); err != nil {
		return nil, err
	}
	return unix.Mmap(int(f.Fd()), 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

func unmapFile(b []byte) { _ = unix.Munmap(b) }

// reserve makes a file n bytes long, and has the file system say now whether it has
// room: a mapping that has none ends the process. Far too much is not tried, since the
// file system would be full for everybody until it failed.
func reserve(f *os.File, n int64) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return err
	}
	if room := int64(st.Bavail) * int64(st.Bsize); n > room {
		return fmt.Errorf("%w: expected %d bytes, found %d", unix.ENOSPC, n, room)
	}
	err := unix.Fallocate(int(f.Fd()), 0, 0, n)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = f.Truncate(n)
	}
	return err
}
