package snapd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/cow"
	"cowbird/formats/cowfile"
)

// fakeCarrier makes devices that exist only in memory.
type fakeCarrier struct {
	mu      sync.Mutex
	refuse  error // next Attach
	devices map[string]*fakeDevice
}

func (c *fakeCarrier) Name() string { return "fake" }

func (c *fakeCarrier) Attach(_ context.Context, name string, b Backend) (Device, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.refuse; err != nil {
		c.refuse = nil
		return nil, err
	}
	d := &fakeDevice{name: name, backend: b, done: make(chan struct{})}
	c.devices[name] = d
	return d, nil
}

func (c *fakeCarrier) device(name string) *fakeDevice {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.devices[name]
}

type fakeDevice struct {
	name    string
	backend Backend

	mu       sync.Mutex
	holder   string
	closed   bool
	aborted  bool
	left     bool
	stays    bool // cannot be left
	lasts    bool // is served until the process ends
	replaced bool
	done     chan struct{}
}

var errBusy = errors.New("device is in use")

func (d *fakeDevice) Path() string          { return "/dev/fake-" + d.name }
func (d *fakeDevice) Done() <-chan struct{} { return d.done }

func (d *fakeDevice) Replaced() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.replaced
}

func (d *fakeDevice) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.holder != "" && !d.closed {
		return fmt.Errorf("%w: by %s", errBusy, d.holder)
	}
	d.end()
	return nil
}

func (d *fakeDevice) Abort() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.aborted = true
	d.end()
	return nil
}

func (d *fakeDevice) Leave() (serving bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stays {
		return true, errors.ErrUnsupported
	}
	d.left = true
	if !d.lasts {
		d.end()
	}
	return d.lasts, nil
}

func (d *fakeDevice) end() {
	if !d.closed {
		d.closed = true
		close(d.done)
	}
}

func (d *fakeDevice) hold(by string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.holder = by
}

// lab is a server with its carrier.
type lab struct {
	t       *testing.T
	dir     string
	cfg     Config
	carrier *fakeCarrier
	server  *Server
	stop    context.CancelFunc
	ended   chan struct{}
}

func newLab(t *testing.T, tune func(*Config)) *lab {
	t.Helper()
	l := &lab{t: t, dir: t.TempDir(), carrier: &fakeCarrier{devices: map[string]*fakeDevice{}}}
	l.cfg = Config{Socket: filepath.Join(l.dir, "sock"), Group: NoGroup, Carrier: l.carrier, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil))}
	if tune != nil {
		tune(&l.cfg)
	}
	l.start()
	t.Cleanup(func() { l.end() })
	return l
}

// testWriter drops what is logged unless the test is verbose.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	if testing.Verbose() {
		os.Stderr.Write(p)
	}
	return len(p), nil
}

func (l *lab) start() {
	l.t.Helper()
	var err error
	if l.server, err = Listen(l.cfg); err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	l.stop, l.ended = cancel, ended
	go func() {
		defer close(ended)
		l.server.Serve(ctx)
	}()
}

// end stops the server as a signal does, and waits for it.
func (l *lab) end() {
	l.t.Helper()
	l.stop()
	l.waitEnd()
}

func (l *lab) waitEnd() {
	l.t.Helper()
	select {
	case <-l.ended:
	case <-time.After(10 * time.Second):
		l.t.Fatal("the server did not end")
	}
}

const testBlocks = 256

// images makes base, COW and target, in which every block is new.
func (l *lab) images(name string) (base, cowPath string, target []byte) {
	l.t.Helper()
	rng := rand.New(rand.NewPCG(1, uint64(len(name))))
	old := randomBlocks(rng, testBlocks)
	target = randomBlocks(rng, testBlocks)
	copy(target[:testBlocks/4*4096], old[4096:]) // copies, one block down
	const same = testBlocks / 2
	copy(target[same*4096:(same+testBlocks/16)*4096], old[same*4096:]) // as it was
	base, cowPath = filepath.Join(l.dir, name+".base"), filepath.Join(l.dir, name+".cow")
	if err := os.WriteFile(base, old, 0o600); err != nil {
		l.t.Fatal(err)
	}
	out, err := os.Create(cowPath)
	if err != nil {
		l.t.Fatal(err)
	}
	defer out.Close()
	_, err = cow.Build(l.t.Context(), out, cow.BuildOptions{
		Base: imageOf(old), Target: imageOf(target), Version: 3, Compression: cowfile.None, MaxUnit: 4096, Workers: 1,
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return base, cowPath, target
}

func randomBlocks(rng *rand.Rand, n int) []byte {
	b := make([]byte, n*4096)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

type byteImage []byte

func (b byteImage) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func imageOf(b []byte) cow.Image { return cow.Image{R: byteImage(b), Size: int64(len(b))} }

// wire is a raw connection, to see exactly what the server sends.
type wire struct {
	t    *testing.T
	conn *os.File
}

func (l *lab) dial() *wire {
	l.t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: l.cfg.Socket}); err != nil {
		l.t.Fatal(err)
	}
	w := &wire{l.t, os.NewFile(uintptr(fd), "client")}
	l.t.Cleanup(func() { _ = w.conn.Close() })
	return w
}

func (w *wire) send(message string) {
	w.t.Helper()
	if _, err := w.conn.WriteString(message); err != nil {
		w.t.Fatalf("%.40q: %v", message, err)
	}
}

// reply is the next piece that the server sends, or "EOF".
func (w *wire) reply() string {
	w.t.Helper()
	_ = w.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 64<<10)
	n, err := w.conn.Read(b)
	if err == io.EOF || errors.Is(err, unix.ECONNRESET) {
		return "EOF"
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b[:n])
}

func (w *wire) ask(message string) string {
	w.t.Helper()
	w.send(message)
	return w.reply()
}

func (w *wire) expect(message, reply string) {
	w.t.Helper()
	if got := w.ask(message); got != reply {
		w.t.Errorf("%.60q: expected %q, found %q", message, reply, got)
	}
}

// mapped opens and starts a snapshot.
func (l *lab) mapped(w *wire, name string) (base string, target []byte) {
	l.t.Helper()
	base, cowPath, target := l.images(name)
	w.expect(fmt.Sprintf("init,%s,%s,%s,%s", name, cowPath, base, base), fmt.Sprintf("success,%d", testBlocks*8))
	w.expect("start,"+name, "success")
	return base, target
}

// until repeats a request until the reply is the wanted one.
func (w *wire) until(message, reply string) {
	w.t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if w.ask(message) == reply {
			return
		}
	}
	w.t.Fatalf("%q: never got %q, last %q", message, reply, w.ask(message))
}
