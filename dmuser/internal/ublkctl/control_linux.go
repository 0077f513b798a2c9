package ublkctl

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"cowbird/dmuser/internal/uring"
)

// Path is the driver's control file.
const Path = "/dev/ublk-control"

// Control sends commands, one after the other. It is not safe for concurrent use.
type Control struct {
	fd   int
	ring *uring.Ring
	mem  []byte // what commands point to
	// path gives the node of a device's character file, which commands of a
	// process without privileges carry; nil for one that has them.
	path func(id uint32) string
}

// Open opens the control file at path, which is Path unless somebody has made
// another node. nodes is nil, or gives the nodes of unprivileged devices.
func Open(path string, nodes func(id uint32) string) (*Control, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	c := &Control{fd: fd, path: nodes}
	if c.mem, err = unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("map a page: %w", err)
	}
	if c.ring, err = uring.New(1, uring.Options{Large: true}); err != nil {
		_ = unix.Munmap(c.mem)
		_ = unix.Close(fd)
		return nil, err
	}
	return c, nil
}

// Close closes the control file, and with it the lock.
func (c *Control) Close() {
	c.ring.Close()
	_ = unix.Munmap(c.mem)
	_ = unix.Close(c.fd)
}

// Lock waits until no other Control on this machine has it, until Close or Unlock.
func (c *Control) Lock() error {
	for {
		err := unix.Flock(c.fd, unix.LOCK_EX)
		if err != unix.EINTR {
			return err
		}
	}
}

// Unlock ends what Lock began.
func (c *Control) Unlock() { _ = unix.Flock(c.fd, unix.LOCK_UN) }

// do sends a command with buf, which is what it gives or gets.
func (c *Control) do(op string, code, id uint32, data uint64, buf []byte) error {
	cmd := command{id: id, queue: 1<<16 - 1, data: data}
	at := c.putPath(&cmd, code)
	copy(c.mem[at:], buf)
	if at > 0 || len(buf) > 0 {
		cmd.addr, cmd.len = uint64(uintptr(unsafe.Pointer(&c.mem[0]))), uint16(at+len(buf))
	}
	res, err := c.send(code, &cmd)
	if err == nil && res < 0 {
		err = &Error{Op: op, ID: id, Errno: syscall.Errno(-res)}
	}
	copy(buf, c.mem[at:])
	return err
}

// putPath puts the path in front of a command's buffer, where it is needed, and
// gives its length. Two commands are not about a device that exists.
func (c *Control) putPath(cmd *command, code uint32) int {
	if c.path == nil || code == codeAdd || code == codeFeatures {
		return 0
	}
	n := copy(c.mem, c.path(cmd.id)) + 1
	c.mem[n-1] = 0
	cmd.pathLen = uint16(n)
	return n
}

func (c *Control) send(code uint32, cmd *command) (int32, error) {
	e := c.ring.Next()
	if e == nil {
		return 0, errors.New("ublk control: the ring is full")
	}
	e.SetCommand(c.fd, code)
	*(*command)(e.Area()) = *cmd
	for {
		if err := c.ring.Enter(1); err != nil {
			return 0, err
		}
		if done, ok := c.ring.Done(); ok {
			return done.Res, nil
		}
	}
}

func bytesOf[T any](p *T, n uintptr) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(p)), n) }

// Features are the flags that the driver knows. Drivers before Linux 6.5 do not
// tell.
func (c *Control) Features() (f Flags, err error) {
	err = c.do("get features", codeFeatures, AnyID, 0, bytesOf(&f, unsafe.Sizeof(f)))
	return f, err
}

// Add makes a device and changes info to what came of it. If the ID is AnyID, the
// driver chooses one.
func (c *Control) Add(info *Info) error {
	return c.do("add", codeAdd, info.ID, 0, bytesOf(info, unsafe.Sizeof(*info)))
}

// Info tells of a device.
func (c *Control) Info(id uint32) (info Info, err error) {
	code := uint32(codeInfo)
	if c.path != nil {
		code = codeInfoByPath
	}
	err = c.do("get info", code, id, 0, bytesOf(&info, unsafe.Sizeof(info)))
	return info, err
}

// SetParams sets the limits of a device that has not been started.
func (c *Control) SetParams(id uint32, p Params) error {
	p.Len = ParamsSize
	return c.do("set parameters", codeSetParams, id, 0, bytesOf(&p, ParamsSize))
}

// Params gives a device's limits.
func (c *Control) Params(id uint32) (p Params, err error) {
	p.Len = ParamsSize
	err = c.do("get parameters", codeParams, id, 0, bytesOf(&p, ParamsSize))
	return p, err
}

// Start makes the block device, served by this process. It waits until every tag
// has been fetched, and for the kernel's search for partitions.
func (c *Control) Start(id uint32) error {
	return c.do("start", codeStart, id, uint64(os.Getpid()), nil)
}

// Stop takes the block device away, also from whoever has it open, when no request
// is under way any more.
func (c *Control) Stop(id uint32) error { return c.do("stop", codeStop, id, 0, nil) }

// TryStop is Stop, or EBUSY if somebody has the device open. It needs SafeStop.
func (c *Control) TryStop(id uint32) error {
	return c.do("stop if unused", codeTryStop, id, 0, nil)
}

// Delete stops the device if need be, and removes it as soon as its character file
// is closed. Without privileges it waits for that: the driver allows nothing else.
func (c *Control) Delete(id uint32) error {
	code := uint32(codeDeleteAsync)
	if c.path != nil {
		code = codeDelete
	}
	return c.do("delete", code, id, 0, nil)
}

// StartRecovery begins to take over a quiesced device; EBUSY while it has a server.
func (c *Control) StartRecovery(id uint32) error {
	return c.do("start recovery", codeStartRecovery, id, 0, nil)
}

// EndRecovery waits until every tag has been fetched, and has requests go on.
func (c *Control) EndRecovery(id uint32) error {
	return c.do("end recovery", codeEndRecovery, id, uint64(os.Getpid()), nil)
}

// Quiesce has requests wait for another server. It needs the flag of that name.
func (c *Control) Quiesce(id uint32, milliseconds int) error {
	return c.do("quiesce", codeQuiesce, id, uint64(milliseconds), nil)
}
