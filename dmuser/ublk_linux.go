package dmuser

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/dmuser/internal/ublkctl"
	"cowbird/dmuser/internal/uring"
)

const (
	// ublkDepth is how many requests a queue of a device has room for. The
	// kernel takes about a kilobyte for each.
	ublkDepth = 32

	// ublkWanted is what a device must have that outlives this process.
	ublkWanted = ublkctl.IoctlCodes | ublkctl.Recovery | ublkctl.Reissue
	// ublkWelcome is asked for and done without.
	ublkWelcome = ublkctl.Quiesce | ublkctl.SafeStop | ublkctl.NoPartitions

	// quiesceWait is how long, in milliseconds, the driver may wait for a
	// request to end before a device is left to another server.
	quiesceWait = 2000
)

// ublkMode is how data gets into a request.
type ublkMode uint8

const (
	// ublkUserCopy: a worker writes it to the character device.
	ublkUserCopy ublkMode = iota
	// ublkCopy: the driver copies it from memory that each tag has for life.
	ublkCopy
	// ublkZeroCopy: the kernel reads it from the backend's file, if it lies
	// in one; else as with ublkUserCopy.
	ublkZeroCopy
)

func (m ublkMode) flags() ublkctl.Flags {
	switch m {
	case ublkCopy:
		return 0
	case ublkZeroCopy:
		return ublkctl.UserCopy | ublkctl.ZeroCopy | ublkctl.AutoRegister
	}
	return ublkctl.UserCopy
}

// modeOf tells the mode from the flags that a device has.
func modeOf(f ublkctl.Flags) ublkMode {
	switch zero := ublkZeroCopy.flags(); {
	case f&zero == zero:
		return ublkZeroCopy
	case f&ublkctl.UserCopy != 0:
		return ublkUserCopy
	}
	return ublkCopy
}

// ublkCarrier is the carrier "ublk": the kernel's ublk driver. Who is no administrator
// but may open the driver's control file has devices of his own, whose nodes somebody
// else, as a rule udev, must give him. They do not outlive their server: the driver
// recovers no others than root's.
type ublkCarrier struct {
	buffers *bufferPool

	// What follows is for tests and measurements.
	mode   ublkMode
	queues int // 0 means one; the driver makes no more than processors
}

func (c *ublkCarrier) Name() string { return "ublk" }

func (c *ublkCarrier) Probe() error {
	ctl, err := c.open()
	if err != nil {
		return err
	}
	defer ctl.Close()
	return c.check(ctl)
}

// check fails if the driver lacks something, which some of them cannot tell.
func (c *ublkCarrier) check(ctl *ublkctl.Control) error {
	features, err := ctl.Features()
	if err == nil {
		err = ublkctl.Need(features, ublkWanted|c.mode.flags())
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return nil
}

// open opens the driver's control file.
func (c *ublkCarrier) open() (*ublkctl.Control, error) {
	var nodes func(uint32) string
	if !isAdmin() {
		nodes = ublkCharPath
	}
	ctl, err := ublkctl.Open(ublkctl.Path, nodes)
	if errors.Is(err, uring.ErrUnavailable) {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	if err != nil {
		return nil, unavailable(ublkctl.Path, "ublk_drv", err)
	}
	return ctl, nil
}

func (c *ublkCarrier) Attach(ctx context.Context, name string, b Backend) (Device, error) {
	d, err := c.attach(ctx, name, b)
	if err != nil {
		return nil, fmt.Errorf("attach %s: %w", name, err)
	}
	return d, nil
}

func (c *ublkCarrier) attach(ctx context.Context, name string, b Backend) (*ublkDev, error) {
	blockSize, err := blockSizeOf(b.Size())
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ctl, err := c.open()
	if err != nil {
		return nil, err
	}
	defer ctl.Close()
	if err := c.check(ctl); err != nil {
		return nil, err
	}
	d, err := c.newDevice(name, b)
	if err != nil {
		return nil, err
	}
	start, err := d.obtain(ctl, blockSize)
	if err != nil {
		d.free()
		return nil, err
	}
	if err := d.begin(ctx, start); err != nil {
		_ = d.Abort()
		<-d.done
		return nil, err
	}
	return d, nil
}

// ublkDev is the Device of this carrier.
type ublkDev struct {
	carrier *ublkCarrier
	backend Backend
	file    FileBackend // the backend, if it is one
	name    string
	size    int64

	info   ublkctl.Info
	mode   ublkMode
	path   string
	number uint64
	char   int // the character device; once over, a copy of dead
	dead   int
	spare  *reserve
	done   chan struct{}

	op   sync.Mutex // held by Close, Abort and Leave
	gone bool       // guarded by op

	aborting atomic.Bool // every request fails
	keeping  atomic.Bool // the device stays when the queues end
	leaving  atomic.Bool // the queues are to end, and another server to go on
	quitting atomic.Bool // the driver does not do as it is told
	queues   []*ublkQueue
	work     ublkWork
}

func (c *ublkCarrier) newDevice(name string, b Backend) (*ublkDev, error) {
	d := &ublkDev{carrier: c, backend: b, name: name, size: b.Size(), mode: c.mode, char: -1, dead: -1, done: make(chan struct{})}
	d.file, _ = b.(FileBackend)
	var err error
	if d.spare, err = newReserve(maxRead); err != nil {
		return nil, fmt.Errorf("map %d bytes in reserve: %w", maxRead, err)
	}
	if d.dead, err = openDead(); err != nil {
		d.spare.free()
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	return d, nil
}

// free gives back what newDevice and openChar took.
func (d *ublkDev) free() {
	for _, fd := range []int{d.char, d.dead} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	d.spare.free()
}

func ublkName(id uint32) string     { return fmt.Sprintf("ublkb%d", id) }
func ublkCharName(id uint32) string { return fmt.Sprintf("ublkc%d", id) }
func ublkCharPath(id uint32) string { return "/dev/" + ublkCharName(id) }

// obtain goes on with a device that an earlier process has left, or makes one. It
// gives the command that has the kernel begin to ask.
//
// The lock is held until the character file is open, which tells others that the
// device has a server; before that they could take it for one that is left over.
func (d *ublkDev) obtain(ctl *ublkctl.Control, blockSize uint32) (start func(*ublkctl.Control, uint32) error, err error) {
	if err := ctl.Lock(); err != nil {
		return nil, fmt.Errorf("lock %s: %w", ublkctl.Path, err)
	}
	defer ctl.Unlock()
	if d.adopt(ctl, blockSize) {
		return (*ublkctl.Control).EndRecovery, nil
	}
	if err := d.make(ctl, blockSize); err != nil {
		return nil, err
	}
	return (*ublkctl.Control).Start, nil
}

// make makes a new device.
func (d *ublkDev) make(ctl *ublkctl.Control, blockSize uint32) error {
	flags := ublkWanted | ublkWelcome
	if !isAdmin() {
		d.mode = ublkCopy
		flags = flags&^(ublkctl.Recovery|ublkctl.Reissue|ublkctl.Quiesce) | ublkctl.Unprivileged
	}
	d.info = ublkctl.Info{
		Queues: uint16(max(1, d.carrier.queues)), Depth: ublkDepth, MaxIO: maxRead, ID: ublkctl.AnyID,
		Flags: flags | d.mode.flags(), Private: ublkIdentity(d.name),
	}
	if err := ctl.Add(&d.info); err != nil {
		return err
	}
	err := d.setUp(ctl, blockSize)
	if err != nil {
		if d.char >= 0 {
			_ = unix.Close(d.char)
			d.char = -1
		}
		if ctl.Delete(d.info.ID) != nil {
			err = fmt.Errorf("%w; %s stays until root's snapuserd starts", err, ublkCharName(d.info.ID))
		}
	}
	return err
}

func (d *ublkDev) setUp(ctl *ublkctl.Control, blockSize uint32) error {
	if err := ublkctl.Need(d.info.Flags, d.mode.flags()); err != nil {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	if err := d.openChar(ctl); err != nil {
		return err
	}
	return ctl.SetParams(d.info.ID, ublkParams(d.name, d.size, blockSize))
}

func ublkParams(name string, size int64, blockSize uint32) ublkctl.Params {
	shift := uint8(9)
	if blockSize == 4096 {
		shift = 12
	}
	p := ublkctl.Params{Types: ublkctl.TypeBasic, Basic: ublkctl.Basic{
		Attrs: ublkctl.ReadOnly, LogicalShift: shift, PhysicalShift: 12, OptimalShift: 12, MinShift: 12,
		MaxSectors: maxRead / 512, Sectors: uint64(size) / 512,
	}}
	putUblkName(&p, name)
	return p
}

// openChar opens the character device, which one process at a time can.
func (d *ublkDev) openChar(ctl *ublkctl.Control) error {
	var p ublkctl.Params
	err := d.patiently(ublkCharName(d.info.ID), func() (err error) { p, err = ctl.Params(d.info.ID); return err })
	if err != nil {
		return err
	}
	path, err := findCharNode(ublkCharName(d.info.ID), unix.Mkdev(p.Devices[0], p.Devices[1]))
	if err != nil {
		return err
	}
	err = d.patiently(ublkCharName(d.info.ID), func() (err error) { d.char, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0); return err })
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	return nil
}

// ownerWait is how long whatever gives new nodes their owners may take.
const ownerWait = 3 * time.Second

// patiently does what the owner of a node may do. Who is an administrator need not wait
// to become one.
func (d *ublkDev) patiently(node string, f func() error) error {
	for end := time.Now().Add(ownerWait); ; time.Sleep(closeBackoff) {
		err := f()
		switch {
		case errors.Is(err, unix.EINTR):
		case !d.isUnprivileged() || !errors.Is(err, unix.EACCES):
			return err
		case time.Now().After(end):
			return fmt.Errorf("%w: nobody has given /dev/%s to user %d within %v: install the rule of udev for that, 70-cowbird-ublk.rules", err, node, os.Geteuid(), ownerWait)
		}
	}
}

// begin serves the device. It returns when the device can be opened, or ctx ends.
func (d *ublkDev) begin(ctx context.Context, start func(*ublkctl.Control, uint32) error) error {
	d.mode = modeOf(d.info.Flags)
	if err := d.startQueues(); err != nil {
		return err
	}
	ctl, err := d.carrier.open()
	if err != nil {
		return err
	}
	started := make(chan error, 1)
	go func() { defer ctl.Close(); started <- start(ctl, d.info.ID) }()
	select {
	case err = <-started:
	case <-ctx.Done():
		_ = d.Abort()
		<-started
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	return d.findNodes()
}

// findNodes finds the block device.
func (d *ublkDev) findNodes() error {
	ctl, err := d.carrier.open()
	if err != nil {
		return err
	}
	defer ctl.Close()
	p, err := ctl.Params(d.info.ID)
	if err != nil {
		return err
	}
	d.number = unix.Mkdev(p.Devices[2], p.Devices[3])
	if d.path, err = findNode(ublkName(d.info.ID), d.number); err != nil || !d.isUnprivileged() {
		return err
	}
	return d.patiently(ublkName(d.info.ID), func() error { return touchNode(d.path) })
}

func (d *ublkDev) Path() string          { return d.path }
func (d *ublkDev) Done() <-chan struct{} { return d.done }

func (d *ublkDev) Close() error {
	d.op.Lock()
	defer d.op.Unlock()
	if d.gone {
		return nil
	}
	if err := d.release(); err != nil {
		return err
	}
	d.gone = true
	<-d.done
	return nil
}

// release stops the device if nobody has it open.
func (d *ublkDev) release() error {
	if d.isOver() {
		return nil
	}
	ctl, err := d.carrier.open()
	if err != nil {
		return err
	}
	defer ctl.Close()
	for try := 0; ; try++ {
		stopped, err := d.stopUnused(ctl)
		if stopped || err != nil {
			return err
		}
		if try == closeTries || len(mountsOf(d.number)) > 0 {
			return busyError(ublkName(d.info.ID), d.path, d.number)
		}
		time.Sleep(closeBackoff)
	}
}

// stopUnused reports whether it has stopped the device. Drivers before Linux 7.0
// do not tell whether somebody has it open, so that it has to be looked for: what
// cannot be seen from here gets I/O errors then.
func (d *ublkDev) stopUnused(ctl *ublkctl.Control) (bool, error) {
	var err error
	switch {
	case d.info.Flags&ublkctl.SafeStop != 0:
		err = ctl.TryStop(d.info.ID)
	case d.inUse():
		err = unix.EBUSY
	default:
		err = ctl.Stop(d.info.ID)
	}
	switch {
	case errors.Is(err, unix.EBUSY):
		return false, nil
	case errors.Is(err, unix.ENODEV), err == nil:
		return true, nil // in the former case somebody else has stopped it
	}
	return false, err
}

func (d *ublkDev) inUse() bool {
	return hasOpen("/proc/self", d.number) || len(holdersOf(ublkName(d.info.ID), d.number)) > 0 || claimed(d.path)
}

// claimed tells whether the kernel itself has the device: a swap area, a part of
// another device.
func claimed(path string) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err == unix.EBUSY
}

func (d *ublkDev) Abort() error {
	d.op.Lock()
	defer d.op.Unlock()
	if d.gone {
		return nil
	}
	d.gone = true
	if d.isOver() {
		return nil
	}
	d.tell(&d.aborting)
	d.work.drop()
	held, err := d.stop()
	if err != nil {
		d.tell(&d.quitting)
		return err
	}
	return held
}

// tell has the queues look at a flag.
func (d *ublkDev) tell(flag *atomic.Bool) {
	flag.Store(true)
	for _, q := range d.queues {
		q.kick()
	}
	if len(d.queues) == 0 && flag != &d.aborting {
		d.queuesEnded()
	}
}

// stop has the driver fail whatever it is asked. held is an ErrBusy if somebody has
// the device open. The queues answer what is under way, without the backend.
func (d *ublkDev) stop() (held, err error) {
	ctl, err := d.carrier.open()
	if err != nil {
		return nil, err
	}
	defer ctl.Close()
	if d.number != 0 {
		if stopped, err := d.stopUnused(ctl); err == nil && !stopped {
			held = busyError(ublkName(d.info.ID), d.path, d.number)
		}
	}
	if err := ctl.Stop(d.info.ID); err != nil && !errors.Is(err, unix.ENODEV) {
		return nil, err
	}
	if len(d.queues) == 0 {
		d.queuesEnded()
	}
	return held, nil
}

// Leave implements Device. Drivers before Linux 6.16 (no quiesce) know servers that live
// and servers that are dead, and wait for the answers of those that live; the next one
// is asked what was not answered.
func (d *ublkDev) Leave() (serving bool, err error) {
	d.op.Lock()
	defer d.op.Unlock()
	if d.gone {
		return false, nil
	}
	if needed := ublkctl.Recovery | ublkctl.Reissue; d.info.Flags&needed != needed {
		return true, fmt.Errorf("%w: leave %s: expected a device that waits for its next server (recovery with reissue), found %v", ErrUnsupported, d.path, d.info.Flags)
	}
	// The queues may end as soon as the driver is told, and must not take the
	// device with them.
	d.keeping.Store(true)
	if !d.quiesce() && !d.isOver() {
		d.keeping.Store(false)
		return true, nil
	}
	d.gone = true
	d.tell(&d.leaving)
	<-d.done
	d.awaitLeft()
	return false, nil
}

// leavePatience is how long the driver gets to notice that a server has left: on a
// machine under load it has been seen to take several seconds.
const leavePatience = 30 * time.Second

// awaitLeft waits until the driver knows that the device has no server, which is
// when the last file of it is closed, by the kernel and in the background.
func (d *ublkDev) awaitLeft() {
	ctl, err := d.carrier.open()
	if err != nil {
		return
	}
	defer ctl.Close()
	for end := time.Now().Add(leavePatience); time.Now().Before(end); time.Sleep(closeBackoff) {
		if info, err := ctl.Info(d.info.ID); err != nil || info.State != ublkctl.Live {
			return
		}
	}
}

// quiesce has the driver hold requests back, and reports whether it does.
func (d *ublkDev) quiesce() bool {
	if d.info.Flags&ublkctl.Quiesce == 0 {
		return false
	}
	ctl, err := d.carrier.open()
	if err != nil {
		return false
	}
	defer ctl.Close()
	return ctl.Quiesce(d.info.ID, quiesceWait) == nil
}

func (d *ublkDev) isOver() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

// queuesEnded follows the end of the last queue. The device is deleted while its
// character file is open, so that its number cannot be another's by now; that of an
// unprivileged device is its own until it is deleted, which is later.
func (d *ublkDev) queuesEnded() {
	if !d.isUnprivileged() {
		d.delete()
	}
	d.work.drop()
	d.disconnect()
	d.work.finish(d.finish)
}

func (d *ublkDev) isUnprivileged() bool { return d.info.Flags&ublkctl.Unprivileged != 0 }

func (d *ublkDev) delete() {
	if d.keeping.Load() {
		return
	}
	if ctl, err := d.carrier.open(); err == nil {
		_ = ctl.Delete(d.info.ID)
		ctl.Close()
	}
}

// disconnect lets go of the device. A dead descriptor takes its number, so that a
// worker that is late writes to nothing.
func (d *ublkDev) disconnect() {
	for unix.Dup3(d.dead, d.char, unix.O_CLOEXEC) == unix.EBUSY {
		time.Sleep(time.Millisecond)
	}
}

// finish follows the last call of the backend.
func (d *ublkDev) finish() {
	for _, q := range d.queues {
		q.free()
	}
	d.free()
	if d.isUnprivileged() {
		d.delete()
	}
	close(d.done)
}
