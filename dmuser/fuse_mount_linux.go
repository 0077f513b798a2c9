package dmuser

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	fuseSource = "cowbird"
	mountFlags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	mountAttrs = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID |
		unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
)

// mountFuse makes a file system of the FUSE connection fd and gives an O_PATH
// descriptor of its root, which is the served file itself. The file system is
// nowhere in the mount tree and lives as long as that descriptor, or a file
// opened through it. Nobody need answer on fd yet.
func mountFuse(fd int, classic bool) (root int, err error) {
	if !classic {
		root, err = mountDetached(fd)
		if !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) {
			return root, err
		}
	}
	return mountClassic(fd)
}

// mountDetached uses the mount API of Linux 5.2.
func mountDetached(fd int) (int, error) {
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen fuse: %w", err)
	}
	defer unix.Close(fs)
	for _, option := range [][2]string{
		{"source", fuseSource},
		{"subtype", fuseSource},
		{"fd", strconv.Itoa(fd)},
		{"rootmode", strconv.FormatUint(fileMode, 8)},
		{"user_id", strconv.Itoa(os.Geteuid())},
		{"group_id", strconv.Itoa(os.Getegid())},
	} {
		if err := unix.FsconfigSetString(fs, option[0], option[1]); err != nil {
			return -1, fmt.Errorf("fsconfig fuse %s=%s: %w", option[0], option[1], err)
		}
	}
	if err := unix.FsconfigSetFlag(fs, "allow_other"); err != nil {
		return -1, fmt.Errorf("fsconfig fuse allow_other: %w", err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("fsconfig fuse create: %w", err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, mountAttrs)
	if err != nil {
		return -1, fmt.Errorf("fsmount fuse: %w", err)
	}
	return root, nil
}

// mountClassic mounts over a private file for a moment, for kernels without the
// mount API.
func mountClassic(fd int) (int, error) {
	target, err := makeMountPoint()
	if err != nil {
		return -1, err
	}
	defer removeMountPoint(target)
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,allow_other",
		fd, fileMode, os.Geteuid(), os.Getegid())
	if err := unix.Mount(fuseSource, target, "fuse."+fuseSource, mountFlags, options); err != nil {
		return -1, fmt.Errorf("mount fuse on %s: %w", target, err)
	}
	defer func() { _ = unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) }()
	root, err := unix.Open(target, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", target, err)
	}
	return root, nil
}

// mountPointPrefix and the owner begin its name the owner, so that Sweep can tell a mount point that
// was left behind from one in use.
const (
	mountPointPrefix = "cowbird-fuse-"
	mountPointFile   = "file"
)

// mountPointDirs are where a mount point may be made, the first that can be
// written. Before the root is mounted that is often only /dev.
func mountPointDirs() []string { return []string{os.TempDir(), "/run", "/dev"} }

func makeMountPoint() (string, error) {
	var failures []error
	for _, parent := range mountPointDirs() {
		dir, err := os.MkdirTemp(parent, mountPointPrefix+self().String()+"-")
		if err != nil {
			failures = append(failures, err)
			continue
		}
		target := filepath.Join(dir, mountPointFile)
		if err := os.WriteFile(target, nil, 0o400); err != nil {
			_ = os.Remove(dir)
			failures = append(failures, err)
			continue
		}
		return target, nil
	}
	return "", fmt.Errorf("no place for a mount point: %w", errors.Join(failures...))
}

func removeMountPoint(target string) {
	_ = os.Remove(target)
	_ = os.Remove(filepath.Dir(target))
}
