package dm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Each of these fails to compile when our layout is not the kernel's.
var (
	_ [headerSize]byte  = [unix.SizeofDmIoctl]byte{}
	_ [headerSize]byte  = [unsafe.Sizeof(unix.DmIoctl{})]byte{}
	_ [specSize]byte    = [unsafe.Sizeof(unix.DmTargetSpec{})]byte{}
	_ [offDataSize]byte = [unsafe.Offsetof(unix.DmIoctl{}.Data_size)]byte{}
	_ [offStart]byte    = [unsafe.Offsetof(unix.DmIoctl{}.Data_start)]byte{}
	_ [offTargets]byte  = [unsafe.Offsetof(unix.DmIoctl{}.Target_count)]byte{}
	_ [offOpen]byte     = [unsafe.Offsetof(unix.DmIoctl{}.Open_count)]byte{}
	_ [offFlags]byte    = [unsafe.Offsetof(unix.DmIoctl{}.Flags)]byte{}
	_ [offEvent]byte    = [unsafe.Offsetof(unix.DmIoctl{}.Event_nr)]byte{}
	_ [offDev]byte      = [unsafe.Offsetof(unix.DmIoctl{}.Dev)]byte{}
	_ [offName]byte     = [unsafe.Offsetof(unix.DmIoctl{}.Name)]byte{}
	_ [offUUID]byte     = [unsafe.Offsetof(unix.DmIoctl{}.Uuid)]byte{}
)

const (
	firstRoom = 16 << 10 // for a reply, in bytes
	mostRoom  = 16 << 20
)

// androidNode is where Android has the control file.
const androidNode = "/dev/device-mapper"

// A Control is device-mapper's control file. Close it.
type Control struct{ file *os.File }

// Open opens the control file. It fails with ErrUnavailable.
func Open() (*Control, error) {
	fd, err := unix.Open("/dev/"+unix.DM_DIR+"/"+unix.DM_CONTROL_NODE, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		fd, err = unix.Open(androidNode, unix.O_RDWR|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		var errno syscall.Errno
		errors.As(err, &errno)
		return nil, &Error{Op: opOpen, Errno: errno}
	}
	return &Control{os.NewFile(uintptr(fd), "device-mapper")}, nil
}

// Close closes the control file. Devices stay.
func (c *Control) Close() error { return c.file.Close() }

// ioctl asks once more, with more room, while the reply does not fit, and when
// a signal has interrupted it, of which the runtime sends many.
func (c *Control) ioctl(op string, number uintptr, r request) (reply, error) {
	for room := firstRoom; ; {
		b, err := r.marshal(room)
		if err != nil {
			return nil, fmt.Errorf("device-mapper %s: %w", op, err)
		}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, c.file.Fd(), number, uintptr(unsafe.Pointer(unsafe.SliceData(b))))
		runtime.KeepAlive(c)
		switch {
		case errno == unix.EINTR:
		case errno != 0:
			return nil, &Error{Op: op, Name: r.name, Errno: errno}
		case reply(b).flags()&flagBufferFull == 0:
			return reply(b), nil
		case room >= mostRoom:
			return nil, fmt.Errorf("device-mapper %s: %w: more than %d bytes", op, ErrReply, room)
		default:
			room *= 4
		}
	}
}

func (c *Control) info(op string, number uintptr, r request) (Info, error) {
	got, err := c.ioctl(op, number, r)
	if err != nil {
		return Info{}, err
	}
	return got.info(), nil
}

// Version is the kernel's version of the interface.
func (c *Control) Version() (Version, error) {
	r, err := c.ioctl(opVersion, unix.DM_VERSION, request{})
	if err != nil {
		return Version{}, err
	}
	return r.version(), nil
}

// TargetTypes lists the kinds of targets whose modules are loaded.
func (c *Control) TargetTypes() ([]TargetType, error) {
	r, err := c.ioctl(opTargets, unix.DM_LIST_VERSIONS, request{})
	if err != nil {
		return nil, err
	}
	return r.targetTypes()
}

// TargetType finds one kind of target, after the kernel has tried to load its
// module. It fails with ErrNoTarget.
func (c *Control) TargetType(name string) (TargetType, error) {
	r, err := c.ioctl(opTarget, unix.DM_GET_TARGET_VERSION, request{name: name})
	if errors.Is(err, unix.ENOTTY) { // before Linux 4.20, which loads it with a table
		return TargetType{Name: name}, nil
	}
	if err != nil {
		return TargetType{}, err
	}
	types, err := r.targetTypes()
	if err == nil && len(types) != 1 {
		err = fmt.Errorf("%w: target %s: expected one version, found %v", ErrReply, name, types)
	}
	if err != nil {
		return TargetType{}, err
	}
	return types[0], nil
}

// List lists the devices.
func (c *Control) List() ([]Entry, error) {
	r, err := c.ioctl(opList, unix.DM_LIST_DEVICES, request{})
	if err != nil {
		return nil, err
	}
	return r.devices()
}

// Create makes a device without a table. The UUID may be empty. It fails with
// ErrExists.
func (c *Control) Create(name, uuid string) (Info, error) {
	return c.info(opCreate, unix.DM_DEV_CREATE, request{name: name, uuid: uuid})
}

// Load gives a device an inactive table, instead of the one that it may have. It
// fails with ErrTable.
func (c *Control) Load(name string, table []Target, flags LoadFlag) (Info, error) {
	return c.info(opLoad, unix.DM_TABLE_LOAD, request{name: name, flags: uint32(flags), targets: table})
}

// Clear drops the inactive table.
func (c *Control) Clear(name string) (Info, error) {
	return c.info(opClear, unix.DM_TABLE_CLEAR, request{name: name})
}

// Suspend waits until no request is in flight, and holds back those that come.
func (c *Control) Suspend(name string, flags SuspendFlag) (Info, error) {
	return c.info(opSuspend, unix.DM_DEV_SUSPEND, request{name: name, flags: flagSuspend | uint32(flags)})
}

// Resume makes the inactive table the active one, if there is one, and lets
// requests go on. A device in use should be suspended before: to do both at once
// fails in some kernels when a signal comes, and the new table is lost.
func (c *Control) Resume(name string) (Info, error) {
	return c.info(opResume, unix.DM_DEV_SUSPEND, request{name: name})
}

// Remove removes a device. It fails with ErrBusy while the device is open.
func (c *Control) Remove(name string) error {
	_, err := c.ioctl(opRemove, unix.DM_DEV_REMOVE, request{name: name})
	return err
}

// RemoveLater removes a device as soon as nobody has it open.
func (c *Control) RemoveLater(name string) error {
	_, err := c.ioctl(opRemove, unix.DM_DEV_REMOVE, request{name: name, flags: flagDeferred})
	return err
}

// Keep takes RemoveLater back. It fails with ErrBusy when that has begun.
func (c *Control) Keep(name string) error {
	_, err := c.ioctl(opKeep, unix.DM_TARGET_MSG, request{name: name, message: "@cancel_deferred_remove"})
	return err
}

// Info tells a device's state.
func (c *Control) Info(name string) (Info, error) {
	return c.info(opInfo, unix.DM_DEV_STATUS, request{name: name})
}

// Status is what the targets of the active table say of themselves.
func (c *Control) Status(name string) ([]Target, error) { return c.lines(opStatus, name, 0) }

// Table is the active table.
func (c *Control) Table(name string) ([]Target, error) {
	return c.lines(opTable, name, flagStatusTable)
}

// InactiveTable is the inactive table.
func (c *Control) InactiveTable(name string) ([]Target, error) {
	return c.lines(opTable, name, flagStatusTable|flagQueryOther)
}

func (c *Control) lines(op, name string, flags uint32) ([]Target, error) {
	r, err := c.ioctl(op, unix.DM_TABLE_STATUS, request{name: name, flags: flags})
	if err != nil {
		return nil, err
	}
	return r.table()
}

// WaitNode waits until path is a device node, as it becomes when the kernel or
// udev has made it, or until ctx ends.
func WaitNode(ctx context.Context, path string) error {
	const device = os.ModeDevice
	for {
		st, err := os.Stat(path)
		if err == nil && st.Mode()&device != 0 {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("expected a device, found mode %v", st.Mode())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for node %s: %w (%w)", path, ctx.Err(), err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
