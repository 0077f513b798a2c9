package dmuser

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// deviceNumber asks sysfs for the number of the disk called base, such as
// loop3, which depends on how many partitions its driver allows, and assumes
// fallback where sysfs is missing.
func deviceNumber(base string, fallback uint64) uint64 {
	return numberIn("/sys/block/"+base+"/dev", fallback)
}

// numberIn reads MAJOR:MINOR from a file of sysfs.
func numberIn(path string, fallback uint64) uint64 {
	text, _ := os.ReadFile(path)
	major, minor, _ := strings.Cut(strings.TrimSpace(string(text)), ":")
	a, errA := strconv.ParseUint(major, 10, 32)
	b, errB := strconv.ParseUint(minor, 10, 32)
	if errA != nil || errB != nil {
		return fallback
	}
	return unix.Mkdev(uint32(a), uint32(b))
}

// findNode gives a node of dev. The kernel (devtmpfs) makes it before it tells
// of the device; where user space is to do that, nobody need wait for it.
func findNode(base string, dev uint64) (string, error) {
	return findNodeOf(unix.S_IFBLK, base, dev)
}

// findCharNode gives a node of a character device.
func findCharNode(base string, dev uint64) (string, error) {
	return findNodeOf(unix.S_IFCHR, base, dev)
}

func findNodeOf(kind uint32, base string, dev uint64) (string, error) {
	paths := []string{"/dev/" + base, "/dev/block/" + base} // the latter on Android
	for _, path := range paths {
		if isNodeOf(kind, path, dev) {
			return path, nil
		}
	}
	var failures []error
	for _, path := range paths {
		err := unix.Mknod(path, kind|0o600, int(dev))
		if err == nil || err == unix.EEXIST && isNodeOf(kind, path, dev) {
			return path, nil
		}
		failures = append(failures, fmt.Errorf("make node %s: %w", path, err))
	}
	return "", errors.Join(failures...)
}

func isNode(path string, dev uint64) bool { return isNodeOf(unix.S_IFBLK, path, dev) }

// isNodeOf asks nobody but the kernel: the path may lead to a file of somebody else's
// file system, whose server hangs.
func isNodeOf(kind uint32, path string, dev uint64) bool {
	var st unix.Statx_t
	return unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st) == nil &&
		uint32(st.Mode)&unix.S_IFMT == kind && unix.Mkdev(st.Rdev_major, st.Rdev_minor) == dev
}
