package dmuser

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/dmuser/dm"
	"cowbird/dmuser/userstream"
)

// userTarget is how device-mapper calls the target.
const userTarget = "user"

// userCarrier is the carrier "dm-user": a device of device-mapper's with one
// target, whose requests come over channels.
type userCarrier struct {
	buffers  *bufferPool
	channels int // of a device
}

func (c *userCarrier) Name() string { return "dm-user" }

func (c *userCarrier) Probe() error {
	ctl, err := openMapper()
	if err != nil {
		return err
	}
	defer ctl.Close()
	_, err = ctl.TargetType(userTarget)
	if errors.Is(err, dm.ErrNoTarget) {
		return fmt.Errorf("%w: device-mapper has no target %q; load its module: modprobe dm-user, which comes with Android's kernels, and for others with Cowbird", ErrUnsupported, userTarget)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return nil
}

func openMapper() (*dm.Control, error) {
	ctl, err := dm.Open()
	if err == nil {
		return ctl, nil
	}
	advice := "run as root"
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		advice = "load its module: modprobe dm-mod"
	}
	return nil, fmt.Errorf("%w: %w; %s", ErrUnsupported, err, advice)
}

func (c *userCarrier) Attach(ctx context.Context, name string, b Backend) (Device, error) {
	d, err := c.attach(ctx, name, b)
	if err != nil {
		return nil, fmt.Errorf("attach %s: %w", name, err)
	}
	return d, nil
}

func (c *userCarrier) attach(ctx context.Context, name string, b Backend) (*userDev, error) {
	if _, err := blockSizeOf(b.Size()); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ctl, err := openMapper()
	if err != nil {
		return nil, err
	}
	spare, err := newReserve(maxRead)
	if err != nil {
		_ = ctl.Close()
		return nil, fmt.Errorf("map %d bytes in reserve: %w", maxRead, err)
	}
	d := &userDev{
		backend: b, name: userName(name), misc: miscName(name), mark: -1, spare: spare,
		buffers: newReplyBuffers(c.buffers, spare), done: make(chan struct{}),
	}
	if err := d.start(ctx, ctl, c.channels); err != nil {
		return nil, err
	}
	return d, nil
}

// userDev is the Device of this carrier. It is one table of a device of
// device-mapper's: the device itself may be older, and outlive it.
type userDev struct {
	backend Backend
	name    string // of the device, for device-mapper
	misc    string // of the target's node, which no other has had
	info    dm.Info
	path    string
	spare   *reserve
	buffers *replyBuffers
	done    chan struct{}

	op   sync.Mutex // held by Close, Abort and Leave
	gone bool       // guarded by op

	mark     int  // a socket whose name tells that the device is served
	madeNode bool // the target's node is not the kernel's

	mu       sync.Mutex
	sessions []*userstream.Session
	running  int // sessions that have not ended
}

// start attaches, but does not wait any longer than ctx wants: the device's
// earlier server may not answer what it has been asked. Then the device stays
// with that one.
func (d *userDev) start(ctx context.Context, ctl *dm.Control, channels int) error {
	var decided atomic.Bool // between the two who may end this
	result := make(chan error, 1)
	go func() {
		defer ctl.Close()
		result <- d.bind(ctx, ctl, channels, func() bool { return decided.CompareAndSwap(false, true) })
	}()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		if decided.CompareAndSwap(false, true) {
			return ctx.Err()
		}
		return <-result
	}
}

// bind gives the device a table of this process's. What that replaces goes on
// until all it has been asked is answered; commit says whether to go further
// then. Channels are opened before the table becomes the active one, so that no
// request finds nobody.
func (d *userDev) bind(ctx context.Context, ctl *dm.Control, channels int, commit func() bool) error {
	unlock, err := lockUser(ctx, d.name)
	if err != nil {
		d.discard()
		return err
	}
	defer unlock()
	created, err := d.find(ctl)
	if err != nil {
		d.discard()
		return err
	}
	d.path, err = findNode(mappedDisk(d.info), mappedNumber(d.info))
	if err == nil {
		err = d.load(ctl, channels)
	}
	if err == nil {
		err = d.activate(ctl, commit)
	}
	if err != nil {
		d.undo(ctl, created)
	}
	return err
}

// find makes the device, unless an earlier process has left it or has it still.
func (d *userDev) find(ctl *dm.Control) (created bool, err error) {
	d.info, err = ctl.Info(d.name)
	if err == nil {
		err = d.mayReplace(ctl)
	}
	if err == nil && d.info.Leaving { // what Abort has left
		err = ctl.Keep(d.name)
	}
	if !errors.Is(err, dm.ErrNotFound) {
		return false, err
	}
	d.info, err = ctl.Create(d.name, d.name)
	return true, err
}

// mayReplace fails with ErrNotFound when the device was of another size, and has
// been removed.
func (d *userDev) mayReplace(ctl *dm.Control) error {
	if d.info.UUID != d.name {
		return fmt.Errorf("%w: the name %s belongs to a device that is not ours: expected UUID %q, found %q",
			ErrBusy, d.name, d.name, d.info.UUID)
	}
	size, err := mappedSize(ctl, d.name)
	if err != nil || size == 0 || size == d.backend.Size() {
		return err
	}
	if isServedUser(ctl, d.info) {
		err = fmt.Errorf("%w: %s has a server", ErrBusy, d.name)
	} else {
		err = removeMapped(ctl, d.info)
	}
	if err != nil {
		return fmt.Errorf("%s is there with another size: expected %d bytes, found %d: %w", d.name, d.backend.Size(), size, err)
	}
	return dm.ErrNotFound
}

// mappedSize is that of the active table in bytes, 0 if there is none.
func mappedSize(ctl *dm.Control, name string) (int64, error) {
	table, err := ctl.Table(name)
	if err != nil || len(table) == 0 {
		return 0, err
	}
	last := table[len(table)-1]
	return int64(last.Start+last.Sectors) * 512, nil
}

// load makes the target, as a table that is not active yet, and serves it.
func (d *userDev) load(ctl *dm.Control, channels int) error {
	sectors := uint64(d.backend.Size() / 512)
	table := []dm.Target{{Sectors: sectors, Type: userTarget, Args: fmt.Sprintf("0 %d %s", sectors, d.misc)}}
	if _, err := ctl.Load(d.name, table, dm.ReadOnly); err != nil {
		return err
	}
	path, made, err := channelNode(d.misc)
	d.madeNode = made
	if err != nil {
		return err
	}
	d.mark, err = openMark(userMark(d.info, d.misc))
	if err != nil {
		return fmt.Errorf("mark the device as served: %w", err)
	}
	return d.openChannels(path, channels)
}

func (d *userDev) openChannels(path string, n int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for range n {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open channel %s: %w", path, err)
		}
		d.running++
		d.sessions = append(d.sessions, userstream.Start(userChannel(fd), d.backend, d.buffers,
			userstream.Options{Ended: d.sessionEnded}))
	}
	return nil
}

// errGivenUp: the caller of Attach did not wait.
var errGivenUp = errors.New("given up")

// activate makes the table the active one. Requests that come meanwhile wait.
func (d *userDev) activate(ctl *dm.Control, commit func() bool) error {
	if d.info.Active {
		if _, err := ctl.Suspend(d.name, dm.SkipLockFS); err != nil {
			return err
		}
	}
	if !commit() {
		return errGivenUp
	}
	_, err := ctl.Resume(d.name)
	return err
}

// undo leaves the device as it was, or the table that it had.
func (d *userDev) undo(ctl *dm.Control, created bool) {
	served := len(d.all()) > 0
	switch {
	case created:
		_ = removeMapped(ctl, d.info)
	case d.isOurs():
		_, _ = ctl.Clear(d.name)
		_, _ = ctl.Resume(d.name)
	}
	if !served {
		d.discard()
	}
}

// discard is the end of a device; sessions have ended, if there were any.
func (d *userDev) discard() {
	if d.mark >= 0 {
		_ = unix.Close(d.mark)
	}
	if d.madeNode {
		_ = unix.Unlink(channelDir + d.misc)
	}
	d.spare.free()
	close(d.done)
}

func (d *userDev) sessionEnded(error) {
	d.mu.Lock()
	d.running--
	last := d.running == 0
	d.mu.Unlock()
	if last {
		d.discard()
	}
}

func (d *userDev) Path() string          { return d.path }
func (d *userDev) Done() <-chan struct{} { return d.done }

// isOurs reports whether our table is still there. The kernel takes its node
// away with it.
func (d *userDev) isOurs() bool { return channelExists(d.misc) }

func (d *userDev) Close() error {
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

// Replaced reports, once Done is closed, whether the device is there still, with
// a table that is not ours: another server has taken it over.
func (d *userDev) Replaced() bool {
	d.op.Lock()
	gone := d.gone
	d.op.Unlock()
	if gone || d.isOurs() {
		return false
	}
	ctl, err := openMapper()
	if err != nil {
		return false
	}
	defer ctl.Close()
	info, err := ctl.Info(d.name)
	return err == nil && info.UUID == d.name && info.Active
}

// release removes the device, unless another table serves it by now.
func (d *userDev) release() error {
	return d.locked(func(ctl *dm.Control) error { return removeMapped(ctl, d.info) })
}

// locked calls f while the device cannot change hands, if it is ours.
func (d *userDev) locked(f func(ctl *dm.Control) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), lockPatience)
	defer cancel()
	unlock, err := lockUser(ctx, d.name)
	if err != nil {
		return err
	}
	defer unlock()
	if !d.isOurs() {
		return nil
	}
	ctl, err := openMapper()
	if err != nil {
		return err
	}
	defer ctl.Close()
	return f(ctl)
}

// removeMapped removes a device that nobody has open.
func removeMapped(ctl *dm.Control, info dm.Info) error {
	for try := 0; ; try++ {
		err := ctl.Remove(info.Name)
		if err == nil || errors.Is(err, dm.ErrNotFound) {
			return nil
		}
		if !errors.Is(err, dm.ErrBusy) {
			return err
		}
		if number := mappedNumber(info); try == closeTries || len(mountsOf(number)) > 0 {
			return busyError(mappedDisk(info), info.Node(), number)
		}
		time.Sleep(closeBackoff)
	}
}

func (d *userDev) Abort() error {
	d.op.Lock()
	defer d.op.Unlock()
	if d.gone {
		return nil
	}
	d.gone = true
	for _, s := range d.all() {
		s.Fail()
	}
	return d.locked(d.end)
}

// Leave suspends the device: what was asked is answered, and device-mapper keeps
// what is asked from then on until the next server's table is there. Sessions end
// only with the target; should somebody else wake the device they fail everything.
func (d *userDev) Leave() (serving bool, err error) {
	d.op.Lock()
	defer d.op.Unlock()
	if d.gone {
		return false, nil
	}
	err = d.locked(func(ctl *dm.Control) error {
		_, err := ctl.Suspend(d.name, dm.SkipLockFS)
		return err
	})
	if err != nil {
		return true, fmt.Errorf("leave %s: %w", d.path, err)
	}
	d.gone = true
	for _, s := range d.all() {
		s.Fail()
	}
	return false, nil
}

func (d *userDev) all() []*userstream.Session {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sessions
}

// end removes the device, or has it fail whatever it is asked until nobody has it
// open any more: the target goes in both cases, and the sessions end.
func (d *userDev) end(ctl *dm.Control) error {
	err := ctl.Remove(d.name)
	if !errors.Is(err, dm.ErrBusy) {
		return err
	}
	busy := busyError(mappedDisk(d.info), d.path, mappedNumber(d.info))
	sectors := uint64(d.backend.Size() / 512)
	_, err = ctl.Load(d.name, []dm.Target{{Sectors: sectors, Type: "error"}}, dm.ReadOnly)
	if err == nil {
		_, err = ctl.Suspend(d.name, dm.SkipLockFS|dm.NoFlush)
	}
	if err == nil {
		_, err = ctl.Resume(d.name)
	}
	if err != nil {
		return fmt.Errorf("have %s fail: %w", d.path, err)
	}
	_ = ctl.RemoveLater(d.name)
	return busy
}
