package dmuser

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"cowbird/dmuser/dm"
)

// userChannel is an open file of a target's node.
type userChannel int

// Read blocks, and so keeps a thread; closing the file in another one would not
// wake it. The target's end is that of the stream.
func (c userChannel) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(int(c), b)
		switch {
		case err == unix.EINTR:
		case err == unix.ENOTBLK || n == 0 && err == nil:
			return 0, io.EOF
		default:
			return max(n, 0), err
		}
	}
}

func (c userChannel) Write(b []byte) (int, error) {
	for {
		n, err := unix.Write(int(c), b)
		switch {
		case err == unix.EINTR:
		case err == unix.ENOTBLK:
			return 0, io.EOF
		default:
			return max(n, 0), err
		}
	}
}

// Waiting is always true with Android's module.
func (c userChannel) Waiting() bool {
	var zero unix.Timespec
	p := unix.PollFd{Fd: int32(c), Events: unix.POLLIN}
	n, _, _ := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1,
		uintptr(unsafe.Pointer(&zero)), 0, 0, 0)
	return n == 1
}

func (c userChannel) Close() error { return unix.Close(int(c)) }

const (
	// userPrefix begins the names and the UUIDs of our devices.
	userPrefix = "cowbird-"
	// userNameLen is the most that a name of device-mapper's holds, in bytes.
	userNameLen = 127

	channelDir   = "/dev/dm-user/"
	channelClass = "/sys/class/misc/dm-user!"
)

// userName is how device-mapper calls the device of that name, and is its UUID,
// too: others may have a device of the name, but not of the UUID.
func userName(name string) string { return userPrefix + fit(name, userNameLen-len(userPrefix)) }

// fit has a checksum stand for what cannot be in a name or is too much.
func fit(name string, most int) string {
	clean := strings.Map(plain, name)
	if clean == name && len(name) <= most && name != "" {
		return name
	}
	sum := fmt.Sprintf("-%08x", crc32.ChecksumIEEE([]byte(name)))
	return clean[:min(len(clean), most-len(sum))] + sum
}

// plain keeps what udev, tables and paths take as it is.
func plain(r rune) rune {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune("_-.+@:=", r):
		return r
	}
	return '_'
}

// targetsMade counts, so that each target of this process has a name of its own.
var targetsMade atomic.Uint64

// miscName is the name of a target's node. A table that replaces another cannot
// have the same.
func miscName(name string) string {
	const most = 100
	return fmt.Sprintf("%s%s-%v-%d", userPrefix, fit(name, most), self(), targetsMade.Add(1))
}

func channelExists(misc string) bool {
	_, err := os.Lstat(channelClass + misc)
	return err == nil
}

// channelNode gives the node of a target. The kernel makes it (devtmpfs); where
// user space is to do that, nobody need wait for it.
func channelNode(misc string) (path string, made bool, err error) {
	path = channelDir + misc
	number, err := channelNumber(misc)
	if err != nil {
		return "", false, fmt.Errorf("number of channel %s: %w", misc, err)
	}
	if isChannel(path, number) {
		return path, false, nil
	}
	if err := os.Mkdir(channelDir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", false, fmt.Errorf("make folder of channels: %w", err)
	}
	err = unix.Mknod(path, unix.S_IFCHR|0o600, int(number))
	if err == unix.EEXIST && isChannel(path, number) {
		return path, false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("make node %s: %w", path, err)
	}
	return path, true, nil
}

func channelNumber(misc string) (uint64, error) {
	path := channelClass + misc + "/dev"
	if _, err := os.Stat(path); err != nil {
		return 0, err
	}
	number := numberIn(path, 0)
	if number == 0 {
		return 0, fmt.Errorf("%s: expected MAJOR:MINOR, found something else", path)
	}
	return number, nil
}

func isChannel(path string, dev uint64) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && uint64(st.Rdev) == dev
}

func mappedDisk(info dm.Info) string { return filepath.Base(info.Node()) }

func mappedNumber(info dm.Info) uint64 {
	major, minor := info.Numbers()
	return unix.Mkdev(major, minor)
}
