package dmuser

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/dmuser/internal/nbdctl"
	"cowbird/dmuser/nbd"
)

const (
	nbdMajor = 43
	// nbdPartitions is how many numbers a device takes unless the driver was
	// told otherwise.
	nbdPartitions = 32

	// nbdTimeout is the seconds after which the driver gives up a connection
	// that has not answered a request, so that a new one can be asked. This
	// is also how long a request waits that a dead server has left behind.
	nbdTimeout = 10
	// nbdDeadTimeout is the seconds that requests wait for a new server.
	nbdDeadTimeout = 30

	// nbdSessions bounds how many connections of a device may still have
	// requests in the backend. A backend that hangs makes one more with each
	// nbdTimeout.
	nbdSessions = 4
)

// nbdCarrier is the carrier "nbd": the kernel's nbd driver, over a socket pair.
type nbdCarrier struct {
	buffers *bufferPool
}

func (c *nbdCarrier) Name() string { return "nbd" }

func (c *nbdCarrier) Probe() error {
	ctl, err := openNbdControl()
	if err != nil {
		return err
	}
	ctl.close()
	return needAdmin()
}

// needAdmin looks for the right that the driver asks for.
func needAdmin() error {
	if !isAdmin() {
		return fmt.Errorf("%w: the nbd driver: %w; run as root", ErrUnsupported, unix.EPERM)
	}
	return nil
}

func (c *nbdCarrier) Attach(ctx context.Context, name string, b Backend) (Device, error) {
	d, err := c.attach(ctx, name, b)
	if err != nil {
		return nil, fmt.Errorf("attach %s: %w", name, err)
	}
	return d, nil
}

func (c *nbdCarrier) attach(ctx context.Context, name string, b Backend) (*nbdDev, error) {
	blockSize, err := blockSizeOf(b.Size())
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ctl, err := openNbdControl()
	if err != nil {
		return nil, err
	}
	defer ctl.close()
	spare, err := newReserve(maxRead)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes in reserve: %w", maxRead, err)
	}
	d := &nbdDev{
		backend: b, identifier: nbdIdentifier(name), spare: spare,
		buffers: newReplyBuffers(c.buffers, spare), done: make(chan struct{}),
	}
	err = d.adopt(ctl)
	if errors.Is(err, errNothingToAdopt) {
		err = d.connect(ctl, blockSize)
	}
	if err != nil {
		spare.free()
		return nil, err
	}
	if err := d.settle(ctx); err != nil {
		_ = d.Abort()
		<-d.done
		return nil, err
	}
	return d, nil
}

// nbdPrefix begins the identifiers of our devices.
const nbdPrefix = "cowbird:"

// nbdIdentifier is how the driver knows a device, and how a later process finds
// the one to go on with.
func nbdIdentifier(name string) string {
	const most = 200 // bytes of the name
	clean := strings.Map(printable, name)
	return nbdPrefix + clean[:min(len(clean), most)]
}

// nbdDev is the Device of this carrier.
type nbdDev struct {
	backend    Backend
	identifier string
	index      int
	path       string
	flags      uint64 // client flags that the device has for life
	spare      *reserve
	buffers    *replyBuffers
	done       chan struct{}

	op   sync.Mutex // held by Close and Abort
	gone bool       // guarded by op

	plugging sync.Mutex // held to give the driver a connection, or to take all

	mu           sync.Mutex
	session      *nbd.Session // the latest
	running      int          // sessions whose last request has not returned, and attempts to reconnect
	waiting      bool         // to reconnect, until fewer are running
	over         bool         // no session will follow
	disconnected bool         // the driver said that the device is not ours any more
}

func nbdName(index int) string { return "nbd" + strconv.Itoa(index) }

func nbdNumber(index int) uint64 {
	return deviceNumber(nbdName(index), unix.Mkdev(nbdMajor, uint32(index*nbdPartitions)))
}

// connect makes a device of a number that is free.
func (d *nbdDev) connect(ctl *nbdControl, blockSize uint32) error {
	before := nbdDisks()
	ours, err := plug(func(theirs int) (err error) {
		d.index, err = ctl.connect(nbdctl.Device{
			Size: uint64(d.backend.Size()), BlockSize: uint64(blockSize),
			Timeout: nbdTimeout, DeadTimeout: nbdDeadTimeout,
			ServerFlags: nbd.FlagHasFlags | nbd.FlagReadOnly | nbd.FlagCanMultiConn,
			Identifier:  d.identifier, Socket: theirs,
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("connect an nbd device: %w", err)
	}
	d.serve(ours)
	if before != nil && !before[nbdName(d.index)] {
		// Nobody knows this device yet, so it need not stay.
		if ctl.setFlags(d.index, d.identifier, nbdctl.DestroyOnDisconnect) == nil {
			d.flags = nbdctl.DestroyOnDisconnect
		}
	}
	return nil
}

// nbdDisks lists the driver's disks, connected or not; nil if that cannot be
// found out.
func nbdDisks() map[string]bool {
	all, err := os.ReadDir("/sys/block")
	if err != nil {
		return nil
	}
	disks := map[string]bool{}
	for _, disk := range all {
		if strings.HasPrefix(disk.Name(), "nbd") {
			disks[disk.Name()] = true
		}
	}
	return disks
}

// errDropped: the driver has no dead connection that a new one could replace.
var errDropped = errors.New("the device has a server")

// plug makes a socket pair, hands the driver one end, by means of give, and
// returns the other.
func plug(give func(theirs int) error) (ours int, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket pair: %w", err)
	}
	err = give(pair[1])
	_ = unix.Close(pair[1])
	if err == nil && hungUp(pair[0]) {
		err = errDropped
	}
	if err != nil {
		_ = unix.Close(pair[0])
		return -1, err
	}
	return pair[0], nil
}

func hungUp(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	for {
		_, err := unix.Poll(p, 0)
		if err != unix.EINTR {
			return p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
		}
	}
}

// driverConn is our end of a connection. Reads block and so keep a thread, for
// waiting in the runtime's poller takes two calls more for each request.
type driverConn struct {
	*os.File
	fd   int
	once sync.Once
}

func newDriverConn(fd int) *driverConn {
	return &driverConn{File: os.NewFile(uintptr(fd), "nbd connection"), fd: fd}
}

// Close ends reads and writes that are under way.
func (c *driverConn) Close() (err error) {
	c.once.Do(func() {
		_ = unix.Shutdown(c.fd, unix.SHUT_RDWR)
		err = c.File.Close()
	})
	return err
}

// serve answers the driver on fd, which says by its name to other processes that
// the device is served.
func (d *nbdDev) serve(fd int) {
	_ = unix.Bind(fd, &unix.SockaddrUnix{Name: nbdMark(d.index)})
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running++
	d.session = nbd.Start(newDriverConn(fd), d.backend, d.buffers, nbd.Options{
		Trusted: true, Over: d.sessionOver, Ended: d.sessionEnded,
	})
}

// settle finds the device's node and opens it once, for the first to do so has
// the kernel read the partition table.
func (d *nbdDev) settle(ctx context.Context) (err error) {
	if d.path, err = findNode(nbdName(d.index), nbdNumber(d.index)); err != nil {
		return err
	}
	// Larger requests than a buffer can be served, but one at a time.
	limit := []byte(strconv.Itoa(maxRead >> 10))
	_ = os.WriteFile("/sys/block/"+nbdName(d.index)+"/queue/max_sectors_kb", limit, 0)
	opened := make(chan error, 1)
	go func() { opened <- touchNode(d.path) }()
	select {
	case err = <-opened:
	case <-ctx.Done():
		err = ctx.Err() // the open ends when the device is disconnected
	}
	return err
}

// touchNode opens path and closes it again.
func touchNode(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	return unix.Close(fd)
}

// sessionOver runs when the driver has ended a connection. If it did not say so
// before, it has given up a connection on which a request took too long, and
// waits for a new one.
func (d *nbdDev) sessionOver(why nbd.Ending) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case why == nbd.Disconnected:
		d.over, d.disconnected = true, true
	case d.over:
	case d.running >= nbdSessions:
		d.waiting = true
	default:
		d.reconnect()
	}
}

func (d *nbdDev) sessionEnded() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running--
	if d.waiting && !d.over {
		d.waiting = false
		d.reconnect()
	}
	d.finishIfOver()
}

// finishIfOver is called with mu held.
func (d *nbdDev) finishIfOver() {
	if !d.over || d.running > 0 {
		return
	}
	select {
	case <-d.done:
	default:
		d.spare.free()
		close(d.done)
	}
}

// reconnect is called with mu held.
func (d *nbdDev) reconnect() {
	d.running++
	go func() {
		err := d.replug()
		d.mu.Lock()
		defer d.mu.Unlock()
		d.running--
		d.over = d.over || err != nil
		d.finishIfOver()
	}()
}

func (d *nbdDev) replug() error {
	d.plugging.Lock()
	defer d.plugging.Unlock()
	if d.isOver() {
		return nil
	}
	ctl, err := openNbdControl()
	if err != nil {
		return err
	}
	defer ctl.close()
	fd, err := takeNbd(ctl, d.index, d.identifier)
	if err != nil {
		return err
	}
	d.serve(fd)
	return nil
}

const (
	// takeTries and takeBackoff bound the wait for the driver to notice that
	// a connection is dead.
	takeTries   = 20
	takeBackoff = 25 * time.Millisecond

	// readerPause is what the driver's reader of a connection that is dead
	// gets to leave it. The driver drops the old socket for the new one
	// without waiting for that reader, which then reads from freed memory:
	// Linux 7.3 crashed so when it got the new one at once.
	readerPause = 500 * time.Millisecond
)

// takeNbd becomes the server of device index, if it has none.
func takeNbd(ctl *nbdControl, index int, identifier string) (fd int, err error) {
	time.Sleep(readerPause)
	for range takeTries {
		fd, err = plug(func(theirs int) error { return ctl.reconnect(index, identifier, theirs) })
		if !errors.Is(err, errDropped) {
			break
		}
		time.Sleep(takeBackoff)
	}
	return fd, err
}

func (d *nbdDev) Path() string          { return d.path }
func (d *nbdDev) Done() <-chan struct{} { return d.done }

func (d *nbdDev) Close() error {
	d.op.Lock()
	defer d.op.Unlock()
	if d.gone {
		return nil
	}
	if err := d.release(); err != nil {
		return err
	}
	d.gone = true
	d.end()
	<-d.done
	return nil
}

func (d *nbdDev) release() error {
	if !d.isOurs() {
		return nil
	}
	ctl, err := openNbdControl()
	if err != nil {
		return err
	}
	defer ctl.close()
	return releaseNbd(ctl, d.index, d.path, d.identifier, d.flags)
}

// isOurs reports whether the device is still the one that was made here. Its
// number may be that of another one by now.
func (d *nbdDev) isOurs() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	identifier, known := readIdentifier(d.index)
	return !d.disconnected && (!known || identifier == d.identifier)
}

// releaseNbd disconnects a device if nobody has it open. The driver does that
// when the last opener leaves, once it has been told to; so the device is
// opened and closed, and whether it is still connected says whether there were
// others.
func releaseNbd(ctl *nbdControl, index int, path, identifier string, flags uint64) error {
	err := ctl.setFlags(index, identifier, flags|nbdctl.DisconnectOnClose)
	if errors.Is(err, unix.EINVAL) {
		return nil // somebody has disconnected it
	}
	if err != nil {
		return fmt.Errorf("release %s: %w", path, err)
	}
	err = touchNode(path)
	for try := 0; err == nil; try++ {
		var connected bool
		if connected, err = ctl.connected(index); err != nil || !connected {
			break
		}
		if try == closeTries || len(mountsOf(nbdNumber(index))) > 0 {
			err = busyError(nbdName(index), path, nbdNumber(index))
			break
		}
		time.Sleep(closeBackoff)
	}
	if err != nil && errors.Is(ctl.setFlags(index, identifier, flags), unix.EINVAL) {
		return nil // its last opener has left just now
	}
	return err
}

func (d *nbdDev) Abort() error {
	d.op.Lock()
	defer d.op.Unlock()
	if d.gone {
		return nil
	}
	d.gone = true
	d.plugging.Lock()
	defer d.plugging.Unlock()
	err := d.disconnect()
	d.end()
	return err
}

// Leave closes the connection without saying so to the driver, which waits for
// another one then. Requests under way are asked again when their time is up.
func (d *nbdDev) Leave() (serving bool, err error) {
	d.op.Lock()
	defer d.op.Unlock()
	if d.gone {
		return false, nil
	}
	d.gone = true
	d.plugging.Lock()
	defer d.plugging.Unlock()
	d.end()
	<-d.done
	return false, nil
}

// disconnect has the driver fail whatever it has been asked, and reports an
// ErrBusy if somebody has the device open.
func (d *nbdDev) disconnect() error {
	if !d.isOurs() {
		return nil
	}
	ctl, err := openNbdControl()
	if err != nil {
		return err
	}
	defer ctl.close()
	if err := ctl.disconnect(d.index); err != nil {
		return fmt.Errorf("disconnect %s: %w", d.path, err)
	}
	for end := time.Now().Add(abortPatience); ; time.Sleep(closeBackoff) {
		connected, err := ctl.connected(d.index)
		if err != nil || !connected {
			return err
		}
		if time.Now().After(end) {
			return busyError(nbdName(d.index), d.path, nbdNumber(d.index))
		}
	}
}

func (d *nbdDev) isOver() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.over
}

// end has no session follow.
func (d *nbdDev) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
	d.session.Close()
	d.finishIfOver()
}
