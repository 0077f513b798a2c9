package dmuser

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	loopControl = "/dev/loop-control"
	loopMajor   = 7
	// loopTries bounds the race with others for a free device.
	loopTries = 64
)

// loopDevice is a loop device and a descriptor of it. While the descriptor is
// open the device stays; it clears itself when the last one is closed, also by
// the death of this process.
type loopDevice struct {
	number int
	path   string
	fd     int
}

// attachLoop makes a read-only block device of file. blockSize is in bytes.
func attachLoop(ctx context.Context, ctl, file int, name string, blockSize uint32) (*loopDevice, error) {
	for range loopTries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		l, err := openFreeLoop(ctl)
		if err != nil {
			return nil, err
		}
		err = l.configure(file, name, blockSize)
		if err == nil {
			return l, nil
		}
		_ = unix.Close(l.fd)
		if !errors.Is(err, unix.EBUSY) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: others took all of %d free loop devices first", ErrBusy, loopTries)
}

func openFreeLoop(ctl int) (*loopDevice, error) {
	number, err := unix.IoctlRetInt(ctl, unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, fmt.Errorf("find a free loop device: %w", err)
	}
	return openLoop(number)
}

// openLoop opens loop device number, making its node where there is none.
func openLoop(number int) (*loopDevice, error) {
	path, err := findNode(loopName(number), loopDev(number))
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return &loopDevice{number: number, path: path, fd: fd}, nil
}

func loopName(number int) string { return "loop" + strconv.Itoa(number) }

func loopDev(number int) uint64 {
	return deviceNumber(loopName(number), unix.Mkdev(loopMajor, uint32(number)))
}

func (l *loopDevice) configure(file int, name string, blockSize uint32) error {
	info := unix.LoopInfo64{
		Flags: unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO,
	}
	copy(info.File_name[:unix.LO_NAME_SIZE-1], name)
	err := unix.IoctlLoopConfigure(l.fd, &unix.LoopConfig{
		Fd: uint32(file), Size: blockSize, Info: info,
	})
	if err == unix.EINVAL || err == unix.ENOTTY {
		return l.configureInSteps(file, &info, blockSize)
	}
	if err != nil {
		return fmt.Errorf("configure %s: %w", l.path, err)
	}
	return nil
}

// configureInSteps is for kernels before 5.8. The device is read-only because
// file is; direct I/O is lost where the kernel does not have it.
func (l *loopDevice) configureInSteps(file int, info *unix.LoopInfo64, blockSize uint32) error {
	if err := unix.IoctlSetInt(l.fd, unix.LOOP_SET_FD, file); err != nil {
		return fmt.Errorf("set file of %s: %w", l.path, err)
	}
	steps := *info
	steps.Flags = unix.LO_FLAGS_AUTOCLEAR
	err := unix.IoctlLoopSetStatus64(l.fd, &steps)
	if err == nil {
		err = unix.IoctlSetInt(l.fd, unix.LOOP_SET_BLOCK_SIZE, int(blockSize))
	}
	if err != nil {
		_ = unix.IoctlSetInt(l.fd, unix.LOOP_CLR_FD, 0)
		return fmt.Errorf("set up %s: %w", l.path, err)
	}
	_ = unix.IoctlSetInt(l.fd, unix.LOOP_SET_DIRECT_IO, 1)
	return nil
}

// release gives the device up if l.fd is the only descriptor of it, and
// reports whether it was. The kernel counts: told to clear a device that others
// have open, it only sets the autoclear flag, which is set already.
func (l *loopDevice) release() (bool, error) {
	if err := unix.IoctlSetInt(l.fd, unix.LOOP_CLR_FD, 0); err != nil && err != unix.ENXIO {
		return false, fmt.Errorf("clear %s: %w", l.path, err)
	}
	_, err := unix.IoctlLoopGetStatus64(l.fd)
	if err == unix.ENXIO {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("status of %s: %w", l.path, err)
	}
	return false, nil
}

func (l *loopDevice) busyError() error {
	return busyError(loopName(l.number), l.path, loopDev(l.number))
}

// moveTo gives the device's descriptor the number fd, closing what had it. On
// failure the device is released.
func (l *loopDevice) moveTo(fd int) error {
	err := unix.Dup3(l.fd, fd, unix.O_CLOEXEC)
	_ = unix.Close(l.fd)
	if err != nil {
		return fmt.Errorf("move the descriptor of %s to %d: %w", l.path, fd, err)
	}
	l.fd = fd
	return nil
}

// status gives the driver's name of the device's file, and the number of the
// file system that the file is in.
func (l *loopDevice) status() (file string, dev uint64, err error) {
	info, err := unix.IoctlLoopGetStatus64(l.fd)
	if err != nil {
		return "", 0, err
	}
	return unix.ByteSliceToString(info.File_name[:]), info.Device, nil
}
