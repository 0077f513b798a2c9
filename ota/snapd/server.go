package snapd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/cow"
	"cowbird/ota/gate"
)

var (
	// ErrRunning: another daemon answers on the control socket.
	ErrRunning = errors.New("snapuserd is running already")
	// ErrUnknown: no snapshot has that name.
	ErrUnknown = errors.New("unknown snapshot")
	// ErrExists: a snapshot of that name is there already.
	ErrExists = errors.New("snapshot exists already")
	// ErrNotStarted: the snapshot has no block device.
	ErrNotStarted = errors.New("snapshot is not started")
	// ErrStarted: the snapshot has a block device already.
	ErrStarted = errors.New("snapshot is started already")
	// ErrLeaving: the daemon is about to leave and begins nothing new.
	ErrLeaving = errors.New("snapuserd is about to leave")
	// ErrName: not a name for a snapshot.
	ErrName = errors.New("bad snapshot name")
	// ErrNotHere: a command of Android's daemon that this one does not have.
	ErrNotHere = errors.New("not supported by this daemon")
)

// NoGroup is the Config.Group that lets no group in.
const NoGroup = gate.NoGroup

// Defaults of Config.
const (
	DefaultClients = 32
	DefaultMerges  = 2
	DefaultQuiet   = 2 * time.Second
)

// leaveWait bounds how long the daemon waits, on its way out, for requests of a
// device that was in use.
const leaveWait = 5 * time.Second

// Backend is what a carrier serves. Size is in bytes.
type Backend interface {
	io.ReaderAt
	Size() int64
}

// Device is one served block device.
type Device interface {
	// Path is the block device's node.
	Path() string
	// Close takes the device away, or changes nothing and says who holds it.
	Close() error
	// Abort takes it away from whoever holds it.
	Abort() error
	// Leave stops serving, and keeps the device for the next daemon, or fails
	// and changes nothing. With serving it is kept when this process ends, and
	// served until then.
	Leave() (serving bool, err error)
	// Done is closed when the last call of the backend has returned.
	Done() <-chan struct{}
}

// Attacher makes block devices: a carrier.
type Attacher interface {
	Name() string
	Attach(ctx context.Context, name string, b Backend) (Device, error)
}

// Config says how to serve. Zero values of numbers mean the defaults, except
// for Group.
type Config struct {
	Socket string
	// Listener is used instead of a socket made at Socket; may be nil.
	Listener *gate.Listener
	// Later brings the control socket when Serve has begun, however late; it ends
	// with ctx, and then only without one. Socket and Listener are not used with it.
	Later    func(ctx context.Context) *gate.Listener
	Group    int // group that may use the socket, or NoGroup
	Carrier  Attacher
	Log      *slog.Logger
	Clients  int           // at a time
	Merges   int           // at a time; the others wait their turn
	Priority cow.Priority  // of merges
	Quiet    time.Duration // without requests until memory is given back
	Leaving  func()        // called when Serve begins to end; may be nil
	Keep     bool          // at the end devices in use are left to the next daemon, if they can be
	// Processors is how many the runtime may use while there is work for
	// them; it is held to two while requests come one by one, and to one at rest.
	// 0 leaves the runtime alone. It should be two at least, also on a machine
	// with one.
	Processors int
	restHook   func() // for tests
}

// Server is the daemon behind its control socket. Its methods are safe for
// concurrent use.
type Server struct {
	cfg      Config
	log      *slog.Logger
	listener *gate.Listener
	quiet    *quiet
	procs    processors
	ctx      context.Context // of everything that the server does
	cancel   context.CancelFunc
	work     sync.WaitGroup // merges
	talks    sync.WaitGroup // clients
	drained  chan struct{}  // closed when detached and no device is left

	mu      sync.Mutex
	snaps   map[string]*snap
	clients []*client // the longest silent first
	queue   []*snap   // merges that wait
	merging int
	paused  bool // snapshots to come are paused
	leaving bool
	empty   bool // drained is closed
}

// Listen makes the control socket, if it is not there and does not come later. Serve
// must follow.
func Listen(cfg Config) (*Server, error) {
	if cfg.Clients == 0 {
		cfg.Clients = DefaultClients
	}
	if cfg.Merges == 0 {
		cfg.Merges = DefaultMerges
	}
	if cfg.Quiet == 0 {
		cfg.Quiet = DefaultQuiet
	}
	l, err := cfg.listen()
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, log: cfg.Log, listener: l, snaps: map[string]*snap{}, drained: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.procs.most = cfg.Processors
	s.quiet = newQuiet(cfg.Quiet, s.rest, wakeHeap, s.procs.spare, s.procs.widen)
	s.quiet.touch()
	return s, nil
}

// listen gives nil for a socket that comes later.
func (c *Config) listen() (*gate.Listener, error) {
	if c.Listener != nil || c.Later != nil {
		return c.Listener, nil
	}
	l, err := gate.Listen(c.Socket, c.Group)
	if errors.Is(err, gate.ErrTaken) {
		return nil, fmt.Errorf("%w: %w: stop it first, or give another --socket", ErrRunning, err)
	}
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return l, nil
}

// Serve obeys clients until ctx ends or a client says stop or detach. Before
// it returns, merges have committed what they were at, and all devices are
// closed, those in use as well, or left to the next daemon.
func (s *Server) Serve(ctx context.Context) {
	defer context.AfterFunc(ctx, s.cancel)()
	defer s.cancel()
	if s.cfg.Later != nil && s.ctx.Err() == nil {
		s.listener = s.cfg.Later(s.ctx)
	}
	if s.listener != nil {
		stop := context.AfterFunc(s.ctx, s.listener.Close)
		defer stop()
		s.acceptAll()
	}
	select {
	case <-s.ctx.Done():
	case <-s.drained:
	}
	s.shutdown()
}

// Snapshot is one for Map, in the words of the control socket.
type Snapshot struct{ Name, Cow, Source, Base string }

// Map opens and starts snapshots, all at a time, as clients would; it is called
// between Listen and Serve. An error means that not all of them are served.
func (s *Server) Map(all []Snapshot) error {
	failures := make([]error, len(all))
	named := map[string]bool{}
	var mapped sync.WaitGroup
	for i, p := range all {
		if named[p.Name] { // which would find the other's files in use
			failures[i] = fmt.Errorf("%s: %w", p.Name, ErrExists)
			continue
		}
		named[p.Name] = true
		mapped.Go(func() { failures[i] = s.mapOne(p) })
	}
	mapped.Wait()
	return errors.Join(failures...)
}

func (s *Server) mapOne(p Snapshot) error {
	if _, err := s.init(p.Name, paths{cow: p.Cow, source: p.Source, base: p.Base}); err != nil {
		return err
	}
	n, err := s.find(p.Name)
	if err != nil {
		return err
	}
	return s.start(n)
}

// acceptAll returns when the listener is closed.
func (s *Server) acceptAll() {
	for {
		fd, err := s.listener.Accept()
		switch {
		case err == nil:
			s.welcome(fd)
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED):
		case s.isLeaving():
			return
		default:
			// Out of descriptors or memory, which passes.
			s.log.Error("accept a client", "err", err)
			time.Sleep(100 * time.Millisecond)
		}
	}
}

func (s *Server) isLeaving() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leaving || s.ctx.Err() != nil
}

// detach stops taking clients and merging, and lets the devices be until they
// go.
func (s *Server) detach() {
	s.log.Info("detached: leaving when the last block device is gone")
	s.mu.Lock()
	s.leaving = true
	for _, n := range s.snaps {
		s.dequeue(n)
	}
	s.checkDrained()
	s.mu.Unlock()
	s.listener.Close()
}

// checkDrained is called with mu held when a device may have been the last.
func (s *Server) checkDrained() {
	for _, n := range s.snaps {
		if n.device != nil {
			return
		}
	}
	if s.leaving && !s.empty {
		s.empty = true
		close(s.drained)
	}
}

// shutdown ends clients, then merges, then devices.
func (s *Server) shutdown() {
	if s.cfg.Leaving != nil {
		s.cfg.Leaving()
	}
	s.mu.Lock()
	s.leaving = true
	for _, n := range s.snaps {
		s.dequeue(n)
	}
	for _, c := range s.clients {
		c.dismiss()
	}
	s.mu.Unlock()
	s.cancel()
	if s.listener != nil {
		s.listener.Close()
	}
	s.talks.Wait()
	s.work.Wait()
	for _, n := range s.all() {
		s.leave(n)
	}
	s.quiet.stop()
}

// all lists the snapshots, sorted by name.
func (s *Server) all() []*snap {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.snaps), func(a, b *snap) int { return strings.Compare(a.name, b.name) })
}

// rest gives back all memory that nobody owns.
func (s *Server) rest() {
	for _, n := range s.all() {
		n.snapshot.Trim()
	}
	restHeap()
	s.procs.narrow()
	dropThreads(len(s.all()))
	s.log.Debug("quiet: memory given back")
	if s.cfg.restHook != nil {
		s.cfg.restHook()
	}
}
