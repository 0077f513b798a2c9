package snapd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/cow"
	"cowbird/ota/claim"
	"cowbird/ota/control"
)

// maxName bounds a snapshot's name in bytes.
const maxName = 127

type paths struct{ cow, source, base string }

// snap is one open snapshot.
type snap struct {
	name     string
	paths    paths
	files    files
	snapshot *cow.Snapshot
	backend  *backend

	op sync.Mutex // held by start and remove, for as long as they take

	// What follows belongs to Server.mu.
	device  Device // nil before start and after the device is gone
	closing bool   // device is being taken away by us
	removed bool
	paused  bool
	phase   phase
	rate    int64
	cancel  context.CancelFunc // of the running merge
	ended   chan struct{}      // closed when the running merge has ended
	lost    error              // why the device went away by itself
}

// files are a snapshot's open devices.
type files struct {
	cow, base, source *cow.FileDevice // source may be nil
	readOnly          error           // why cow or base cannot be written to
}

func (f files) close() error {
	var failures []error
	for _, d := range []*cow.FileDevice{f.cow, f.base, f.source} {
		if d != nil {
			failures = append(failures, d.Close())
		}
	}
	return errors.Join(failures...)
}

func openFiles(p paths) (f files, err error) {
	if f.cow, err = f.writable(p.cow, claim.Open); err == nil {
		f.base, err = f.writable(p.base, func(path string) (*cow.FileDevice, error) { return cow.OpenDevice(path, true) })
	}
	if err == nil && !sameFile(p.source, p.base) {
		f.source, err = cow.OpenDevice(p.source, false)
	}
	if err != nil {
		_ = f.close()
	}
	return f, err
}

// writable opens path with open, or read-only if it must be so.
func (f *files) writable(path string, open func(string) (*cow.FileDevice, error)) (*cow.FileDevice, error) {
	d, err := open(path)
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		f.readOnly = err
		return cow.OpenDevice(path, false)
	}
	return d, err
}

func sameFile(a, b string) bool {
	var x, y unix.Stat_t
	if a == b {
		return true
	}
	if unix.Stat(a, &x) != nil || unix.Stat(b, &y) != nil {
		return false
	}
	return x.Dev == y.Dev && x.Ino == y.Ino || x.Mode&unix.S_IFMT == unix.S_IFBLK && y.Mode&unix.S_IFMT == unix.S_IFBLK && x.Rdev == y.Rdev
}

// options lists the devices without making a nil pointer a non-nil Device.
func (f files) options() cow.Options {
	o := cow.Options{Cow: f.cow, Base: f.base}
	if f.source != nil {
		o.Source = f.source
	}
	return o
}

// init opens a snapshot. The reply carries its size in sectors of 512 bytes.
func (s *Server) init(name string, p paths) (reply string, err error) {
	if err := checkName(name); err != nil {
		return "", err
	}
	if _, err := s.find(name); err == nil {
		return "", fmt.Errorf("%w: %s", ErrExists, name)
	}
	n, err := s.open(name, p)
	if err != nil {
		return "", err
	}
	if err := s.insert(n); err != nil {
		_ = n.close()
		return "", err
	}
	s.log.Info("snapshot opened", "name", name, "cow", p.cow, "base", p.base, "bytes", n.snapshot.Size(), "ops", n.snapshot.Progress().TotalOps)
	return fmt.Sprintf("%s,%d", control.Success, n.snapshot.Size()/512), nil
}

// checkName allows what can stand in a log line, a list and a device's label.
func checkName(name string) error {
	odd := strings.IndexFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '/' })
	if odd >= 0 || name == "" || len(name) > maxName {
		return fmt.Errorf("%w: expected 1 to %d visible ASCII characters other than comma and slash, found %q", ErrName, maxName, name)
	}
	return nil
}

func (s *Server) open(name string, p paths) (*snap, error) {
	f, err := openFiles(p)
	if err != nil {
		return nil, fmt.Errorf("open snapshot %s: %w", name, err)
	}
	snapshot, err := cow.Open(f.options())
	if err != nil {
		_ = f.close()
		return nil, fmt.Errorf("open snapshot %s: %w", name, err)
	}
	b := &backend{snapshot: snapshot, quiet: s.quiet, log: s.log, name: name}
	return &snap{name: name, paths: p, files: f, snapshot: snapshot, backend: b}, nil
}

func (s *Server) insert(n *snap) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.leaving:
		return ErrLeaving
	case s.snaps[n.name] != nil:
		return fmt.Errorf("%w: %s", ErrExists, n.name)
	}
	s.snaps[n.name] = n
	if s.paused {
		n.paused = true
		n.snapshot.Pause()
	}
	return nil
}

// start makes a block device of the snapshot.
func (s *Server) start(n *snap) error {
	n.op.Lock()
	defer n.op.Unlock()
	if err := s.mayStart(n); err != nil {
		return err
	}
	d, err := s.cfg.Carrier.Attach(s.ctx, n.name, n.backend)
	if err != nil {
		return fmt.Errorf("start %s: %w", n.name, err)
	}
	s.mu.Lock()
	n.device, n.lost = d, nil
	s.mu.Unlock()
	go s.watch(n, d)
	s.log.Info("block device", "name", n.name, "device", d.Path(), "carrier", s.cfg.Carrier.Name())
	return nil
}

func (s *Server) mayStart(n *snap) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.leaving:
		return ErrLeaving
	case n.removed:
		return fmt.Errorf("%w: %q", ErrUnknown, n.name)
	case n.device != nil:
		return fmt.Errorf("%w: %s is %s", ErrStarted, n.name, n.device.Path())
	}
	return nil
}

// watch notices a device that goes away without our doing.
func (s *Server) watch(n *snap, d Device) {
	<-d.Done()
	replaced := isReplaced(d)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n.closing || n.device != d {
		return
	}
	n.device = nil
	if replaced {
		n.lost = fmt.Errorf("block device %s is served by another daemon now", d.Path())
		s.log.Info("block device handed over", "name", n.name, "device", d.Path())
	} else {
		n.lost = fmt.Errorf("block device %s went away by itself: start the snapshot again", d.Path())
		s.log.Error("block device lost", "name", n.name, "err", n.lost)
	}
	_ = d.Close()
	s.checkDrained()
}

// isReplaced asks a device that has ended, if it can tell, whether another server
// has it now.
func isReplaced(d Device) bool {
	r, ok := d.(interface{ Replaced() bool })
	return ok && r.Replaced()
}

// remove closes the device and forgets the snapshot. While something uses the
// device it changes nothing. A running merge commits what it is at.
func (s *Server) remove(n *snap) error {
	n.op.Lock()
	defer n.op.Unlock()
	if err := s.closeDevice(n); err != nil {
		return err
	}
	<-s.endMerge(n)
	s.mu.Lock()
	again := n.removed
	n.removed = true
	delete(s.snaps, n.name)
	s.checkDrained()
	s.mu.Unlock()
	if again {
		return nil
	}
	s.log.Info("snapshot closed", "name", n.name)
	return n.close()
}

func (s *Server) closeDevice(n *snap) error {
	s.mu.Lock()
	d := n.device
	n.closing = d != nil
	s.mu.Unlock()
	if d == nil {
		return nil
	}
	err := d.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	n.closing = false
	if err != nil {
		return fmt.Errorf("close %s: %w", n.name, err)
	}
	n.device = nil
	return nil
}

// close releases what a snapshot without a device holds.
func (n *snap) close() error {
	return errors.Join(n.snapshot.Close(), n.files.close())
}

// leave closes the snapshot although its device may be in use, on the way out.
func (s *Server) leave(n *snap) {
	s.mu.Lock()
	d := n.device
	n.closing = true // its end is no loss
	s.mu.Unlock()
	if d != nil && !s.takeDevice(n, d) {
		return // its requests go on, so the memory must stay
	}
	if err := n.close(); err != nil {
		s.log.Error("close snapshot", "name", n.name, "err", err)
	}
}

// takeDevice reports whether the device's last request has ended.
func (s *Server) takeDevice(n *snap, d Device) bool {
	busy := d.Close()
	if busy == nil {
		return true
	}
	ended := make(chan bool, 1)
	go func() { ended <- s.letGo(n, d, busy) }()
	select {
	case done := <-ended:
		return done
	case <-time.After(leaveWait):
		s.log.Error("requests of a block device did not end", "name", n.name, "waited", leaveWait)
		return false
	}
}

// letGo ends the service of a device that is in use, and reports whether it has
// ended: some are served until this process ends.
func (s *Server) letGo(n *snap, d Device, busy error) bool {
	if s.cfg.Keep {
		s.log.Info("leaving a block device that is in use to the next daemon: whoever uses it waits for that one", "name", n.name, "use", busy)
		serving, err := d.Leave() // the log may be a file on that device: not a word after this
		if err == nil {
			return !serving
		}
		s.log.Error("cannot leave a block device to the next daemon", "name", n.name, "err", err)
	}
	s.log.Error("leaving although a block device is in use: whoever uses it gets I/O errors from now on", "name", n.name, "err", busy)
	_ = d.Abort()
	<-d.Done()
	return true
}

// backend is the snapshot as a carrier sees it.
type backend struct {
	snapshot *cow.Snapshot
	quiet    *quiet
	log      *slog.Logger
	name     string
	failed   atomic.Int64 // reads
}

// Size is in bytes.
func (b *backend) Size() int64 { return b.snapshot.Size() }

// ReadAt reads the target's contents. A failure concerns this request only.
func (b *backend) ReadAt(p []byte, off int64) (int, error) {
	b.quiet.begin()
	defer b.quiet.end()
	read, err := b.snapshot.ReadAt(p, off)
	if err != nil {
		b.complain(err, off, len(p))
	}
	return read, err
}

// HoldFile tells a carrier where the base has what is read, so that the carrier may look
// whether the page cache has it, instead of asking for a read that could wait.
func (b *backend) HoldFile(off int64, n int) (fd int, at int64, ok bool) {
	if fd, at, ok = b.snapshot.HoldFile(off, n); ok {
		b.quiet.begin()
	}
	return fd, at, ok
}

// ReleaseFile ends a HoldFile.
func (b *backend) ReleaseFile() {
	b.snapshot.ReleaseFile()
	b.quiet.end()
}

// complain logs the 1st, 2nd, 4th, 8th, … failure: a bad disk must not fill the
// log, and there is no timer to hold lines back.
func (b *backend) complain(err error, off int64, length int) {
	if k := b.failed.Add(1); k&(k-1) == 0 {
		b.log.Error("read failed", "name", b.name, "offset", off, "length", length, "failures", k, "err", err)
	}
}
