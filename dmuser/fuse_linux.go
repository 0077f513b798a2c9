package dmuser

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const fuseDevice = "/dev/fuse"

// fuseCarrier is the carrier "fuse".
type fuseCarrier struct {
	buffers *bufferPool
	classic bool // mount as kernels before 5.2 must; for tests
}

func (c *fuseCarrier) Name() string { return "fuse" }

func (c *fuseCarrier) Probe() error {
	for path, module := range map[string]string{fuseDevice: "fuse", loopControl: "loop"} {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return unavailable(path, module, err)
		}
		_ = unix.Close(fd)
	}
	return nil
}

func unavailable(path, module string, err error) error {
	advice := "run as root"
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		advice = "load the " + module + " module: modprobe " + module
	}
	return fmt.Errorf("%w: open %s: %w; %s", ErrUnsupported, path, err, advice)
}

func (c *fuseCarrier) Attach(ctx context.Context, name string, b Backend) (Device, error) {
	d, err := c.attach(ctx, name, b)
	if err != nil {
		return nil, fmt.Errorf("attach %s: %w", name, err)
	}
	return d, nil
}

func (c *fuseCarrier) attach(ctx context.Context, name string, b Backend) (*fuseDev, error) {
	blockSize, err := blockSizeOf(b.Size())
	if err != nil {
		return nil, err
	}
	ctl, err := unix.Open(loopControl, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, unavailable(loopControl, "loop", err)
	}
	d := &fuseDev{}
	if err := c.serve(d, b, ctl); err != nil {
		_ = unix.Close(ctl)
		return nil, err
	}
	if err := d.attachLoop(ctx, ctl, name, blockSize); err != nil {
		_ = unix.Close(ctl)
		d.stop()
		<-d.server.done
		return nil, err
	}
	return d, nil
}

// blockSizeOf gives the logical block size, in bytes, for a device of size
// bytes.
func blockSizeOf(size int64) (uint32, error) {
	switch {
	case size > 0 && size%4096 == 0:
		return 4096, nil
	case size > 0 && size%512 == 0:
		return 512, nil
	}
	return 0, fmt.Errorf("%w: expected a multiple of 512 bytes above 0, found %d", ErrBadSize, size)
}

// openAbove opens path with a descriptor number above low.
func openAbove(path string, low int) (int, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil || fd > low {
		return fd, err
	}
	defer unix.Close(fd)
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, low+1)
}

// serve mounts the file and begins to answer for it. The descriptor of
// /dev/fuse gets a number above loopNumber, which the loop device's will have:
// when a process dies, the kernel lets go of the highest number first. The
// other way round, the last close of the loop device could wait, for good, for
// read-ahead that only this process could have answered.
func (c *fuseCarrier) serve(d *fuseDev, b Backend, loopNumber int) error {
	fd, err := openAbove(fuseDevice, loopNumber)
	if err != nil {
		return unavailable(fuseDevice, "fuse", err)
	}
	d.root, err = mountFuse(fd, c.classic)
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	d.server, err = newFuseServer(fd, d.root, b, c.buffers)
	if err != nil {
		_ = unix.Close(fd)
		_ = unix.Close(d.root)
		return fmt.Errorf("serve %s: %w", fuseDevice, err)
	}
	go d.server.lead()
	return nil
}

// fuseDev is the Device of this carrier.
type fuseDev struct {
	server *fuseServer
	root   int // O_PATH descriptor of the served file
	loop   *loopDevice

	mu   sync.Mutex
	gone bool
}

// attachLoop makes the loop device. Its descriptor takes the number of ctl,
// which is closed thereby, unless there is an error.
func (d *fuseDev) attachLoop(ctx context.Context, ctl int, name string, blockSize uint32) error {
	file, err := d.openFile()
	if err != nil {
		return err
	}
	defer unix.Close(file)
	d.loop, err = attachLoop(ctx, ctl, file, label(name, self()), blockSize)
	if err != nil {
		return err
	}
	return d.loop.moveTo(ctl)
}

// openFile opens the served file and has the kernel learn its size, which the
// loop driver of older kernels takes for granted.
func (d *fuseDev) openFile() (int, error) {
	path := fmt.Sprintf("/proc/self/fd/%d", d.root)
	file, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open the served file by %s: %w", path, err)
	}
	var st unix.Stat_t
	err = unix.Fstat(file, &st)
	if err == nil && uint64(st.Size) != d.server.size {
		err = fmt.Errorf("expected %d bytes, found %d", d.server.size, st.Size)
	}
	if err != nil {
		_ = unix.Close(file)
		return -1, fmt.Errorf("size of the served file: %w", err)
	}
	return file, nil
}

func (d *fuseDev) Path() string          { return d.loop.path }
func (d *fuseDev) Done() <-chan struct{} { return d.server.done }

const (
	// Whatever watches for new disks opens each for a moment; that alone
	// should not make a device busy.
	closeTries   = 20
	closeBackoff = 5 * time.Millisecond
	// abortPatience is how long Abort tries to learn whether somebody holds
	// the device before it makes their reads fail.
	abortPatience = 100 * time.Millisecond
)

func (d *fuseDev) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone {
		return nil
	}
	if err := d.releaseLoop(); err != nil {
		return err
	}
	// The last close drops the device's cache and may have to wait for reads
	// that nobody wants any more, so the server must go on until then.
	_ = unix.Close(d.loop.fd)
	d.gone = true
	d.stop()
	<-d.server.done
	return nil
}

func (d *fuseDev) releaseLoop() error {
	for try := 0; ; try++ {
		sole, err := d.loop.release()
		if sole || err != nil {
			return err
		}
		if len(mountsOf(loopDev(d.loop.number))) > 0 || try == closeTries {
			return d.loop.busyError()
		}
		time.Sleep(closeBackoff)
	}
}

func (d *fuseDev) Abort() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone {
		return nil
	}
	d.gone = true
	answer := make(chan error, 1)
	go func() { answer <- d.releaseOnce() }()
	// Kernels before 6.10 may wait in there for reads in flight, which may
	// need the connection to end first.
	select {
	case err := <-answer:
		answer <- err
	case <-time.After(abortPatience):
	}
	d.stop()
	err := <-answer
	_ = unix.Close(d.loop.fd)
	return err
}

// Leave fails: without this process there is no file that a device could be of.
func (d *fuseDev) Leave() (serving bool, err error) {
	return true, fmt.Errorf("%w: leave %s: a device of carrier fuse ends with its server", ErrUnsupported, d.Path())
}

func (d *fuseDev) releaseOnce() error {
	sole, err := d.loop.release()
	if err == nil && !sole {
		err = d.loop.busyError()
	}
	return err
}

// stop ends the server and lets go of the served file.
func (d *fuseDev) stop() {
	d.server.stop(d.root)
	_ = unix.Close(d.root)
}
