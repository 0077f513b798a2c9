package dmuser

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Sweep finds little as a rule: a device of ours clears itself once its server
// is dead and nobody has it open. What is left is what somebody still holds.
func (c *fuseCarrier) Sweep() ([]string, error) {
	removed, failures := sweepLoops()
	for _, dir := range mountPointDirs() {
		swept, errs := sweepMountPoints(dir)
		removed = append(removed, swept...)
		failures = append(failures, errs...)
	}
	return removed, errors.Join(failures...)
}

func sweepLoops() (removed []string, failures []error) {
	bound, _ := filepath.Glob("/sys/block/loop*/loop")
	for _, path := range bound {
		number, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(filepath.Dir(path)), "loop"))
		if err != nil || !mayBeOurs(path) {
			continue
		}
		name, err := sweepLoop(number)
		if err != nil {
			failures = append(failures, err)
		} else if name != "" {
			removed = append(removed, name)
		}
	}
	return removed, failures
}

// mayBeOurs looks at a loop device without opening it, for opening one whose
// backing file hangs can take for ever. Ours have the root of a file system of
// their own behind them, whose path is that of no other file.
func mayBeOurs(sysfs string) bool {
	b, err := os.ReadFile(filepath.Join(sysfs, "backing_file"))
	if err != nil {
		return false
	}
	file := strings.TrimSuffix(strings.TrimSpace(string(b)), " (deleted)")
	return file == "" || file == "/" || strings.HasPrefix(filepath.Base(file), mountPointPrefix)
}

// sweepLoop gives the name of the device that it removed, if it did.
func sweepLoop(number int) (string, error) {
	l, err := openLoop(number)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOENT) {
		return "", nil // gone since it was listed
	}
	if err != nil {
		return "", err
	}
	defer unix.Close(l.fd)
	file, dev, err := l.status()
	if err != nil {
		return "", nil // cleared since
	}
	name, o, ours := parseLabel(file)
	if !ours || o.alive() {
		return "", nil
	}
	abortConnection(dev)
	sole, err := l.release()
	if err != nil {
		return "", err
	}
	if !sole {
		return "", fmt.Errorf("sweep %s: %w", name, l.busyError())
	}
	return name, nil
}

// abortConnection ends the FUSE connection of file system dev, best effort. The
// kernel has done so long ago unless the server died while a thread of it was
// waiting for its own device: then the kernel waits for the thread before it
// closes the connection, and the thread for the connection to answer.
func abortConnection(dev uint64) {
	dir, err := openFusectl()
	if err != nil {
		return
	}
	defer unix.Close(dir)
	fd, err := unix.Openat(dir, fmt.Sprintf("%d/abort", unix.Minor(dev)), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	_, _ = unix.Write(fd, []byte("1"))
}

// openFusectl opens the directory of FUSE connections, mounted or not.
func openFusectl() (int, error) {
	fs, err := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return unix.Open("/sys/fs/fuse/connections", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
}

// sweepMountPoints removes what a process left in dir that died between making
// a mount point and removing it again.
func sweepMountPoints(dir string) (removed []string, failures []error) {
	paths, _ := filepath.Glob(filepath.Join(dir, mountPointPrefix+"*-*"))
	for _, path := range paths {
		name := strings.TrimPrefix(filepath.Base(path), mountPointPrefix)
		who, _, _ := strings.Cut(name, "-")
		o, ok := parseOwner(who)
		if !ok || o.alive() {
			continue
		}
		if err := sweepMountPoint(path); err != nil {
			failures = append(failures, fmt.Errorf("sweep %s: %w", path, err))
			continue
		}
		removed = append(removed, path)
	}
	return removed, failures
}

func sweepMountPoint(path string) error {
	target := filepath.Join(path, mountPointFile)
	err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return err
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Remove(path)
}
