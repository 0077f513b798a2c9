package dmuser

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/dmuser/userstream"
)

// waitingPatience bounds how long Close waits for a table that its owner is taking
// away.
const waitingPatience = 5 * time.Second

// Waiting wraps a carrier. When something is to be attached for which a client has
// loaded a table of device-mapper's with a target "user" already, so that there is a
// node of its name, that is served; otherwise the wrapped carrier is asked. Android's
// init and update_engine make their tables themselves.
type Waiting struct {
	Carrier        // may be nil: nothing but what waits is served
	dir     string // of the nodes

	mu     sync.Mutex
	opened map[string]userChannel
}

// NewWaiting makes one; dir is where the nodes are, "" means /dev/dm-user.
func NewWaiting(c Carrier, dir string) *Waiting {
	if dir == "" {
		dir = channelDir
	}
	return &Waiting{Carrier: c, dir: dir, opened: map[string]userChannel{}}
}

// Name is the wrapped carrier's.
func (w *Waiting) Name() string {
	if w.Carrier == nil {
		return "dm-user"
	}
	return w.Carrier.Name()
}

// Sweep leaves alone what belongs to others.
func (w *Waiting) Sweep() ([]string, error) {
	if w.Carrier == nil {
		return nil, nil
	}
	return w.Carrier.Sweep()
}

// Open opens the node of that name for a later Attach. A target that nobody opens
// fails what it is asked after some seconds, so that this comes first where a
// backend takes long to get ready.
func (w *Waiting) Open(name string) error {
	c, err := w.channel(name)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if old, ok := w.opened[name]; ok {
		_ = old.Close()
	}
	w.opened[name] = c
	return nil
}

// channel opens the node of that name.
func (w *Waiting) channel(name string) (userChannel, error) {
	path := filepath.Join(w.dir, name)
	if filepath.Dir(path) != filepath.Clean(w.dir) {
		return -1, fmt.Errorf("node of %q: %w", name, os.ErrNotExist)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return -1, fmt.Errorf("open node %s: %w", path, err)
	}
	return userChannel(fd), nil
}

// take gives what Open has opened, or opens it.
func (w *Waiting) take(name string) (userChannel, error) {
	w.mu.Lock()
	c, ok := w.opened[name]
	delete(w.opened, name)
	w.mu.Unlock()
	if ok {
		return c, nil
	}
	return w.channel(name)
}

// Attach serves the table that waits, or asks the wrapped carrier.
func (w *Waiting) Attach(ctx context.Context, name string, b Backend) (Device, error) {
	c, err := w.take(name)
	if errors.Is(err, os.ErrNotExist) && w.Carrier != nil {
		return w.Carrier.Attach(ctx, name, b)
	}
	if err == nil {
		var d *waitingDev
		if d, err = serveWaiting(c, filepath.Join(w.dir, name), b); err == nil {
			return d, nil
		}
	}
	return nil, fmt.Errorf("attach %s: %w", name, err)
}

// waitingDev serves one channel of a table that is not ours.
type waitingDev struct {
	path    string
	spare   *reserve
	session *userstream.Session
	done    chan struct{}
	failed  error // why the session ended; set before done is closed
}

func serveWaiting(c userChannel, path string, b Backend) (*waitingDev, error) {
	_, err := blockSizeOf(b.Size())
	var spare *reserve
	if err == nil {
		spare, err = newReserve(maxRead)
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	d := &waitingDev{path: path, spare: spare, done: make(chan struct{})}
	d.session = userstream.Start(c, b, newReplyBuffers(buffers, spare), userstream.Options{Ended: d.ended})
	return d, nil
}

func (d *waitingDev) ended(err error) {
	d.failed = err
	d.spare.free()
	close(d.done)
}

// Path is the node's: which block devices the table belongs to, only its owner knows.
func (d *waitingDev) Path() string { return d.path }

func (d *waitingDev) Done() <-chan struct{} { return d.done }

// Close succeeds once the owner has removed the table, or replaced it.
func (d *waitingDev) Close() error {
	select {
	case <-d.done:
		return nil
	case <-time.After(waitingPatience):
		return fmt.Errorf("%w: the table of %s is there still: remove or replace it first", ErrBusy, d.path)
	}
}

// Replaced reports, once Done is closed, whether the table has gone, as its owner
// wants it, and nothing has failed.
func (d *waitingDev) Replaced() bool { return d.failed == nil }

// Abort fails what is asked from now on. The node is kept open until the table goes:
// the kernel knows no other way.
func (d *waitingDev) Abort() error {
	select {
	case <-d.done:
		return nil
	default:
		d.session.Fail()
		return fmt.Errorf("%w: the table of %s is there still", ErrBusy, d.path)
	}
}

// Leave goes on serving: the next process is given a table of its own, and opening
// this node once more would take requests away from it.
func (d *waitingDev) Leave() (serving bool, err error) { return true, nil }
