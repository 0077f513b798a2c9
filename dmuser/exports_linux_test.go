package dmuser

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/dmuser/nbd"
	"cowbird/tools/fixture"
)

// shop is exports with a socket on which clients come in.
type shop struct {
	*Exports
	socket string
}

func openShop(t *testing.T, most int) *shop {
	t.Helper()
	s := &shop{NewExports(most), filepath.Join(t.TempDir(), "nbd")}
	l, err := net.Listen("unix", s.socket)
	must(t, err)
	accepting := make(chan struct{})
	t.Cleanup(func() {
		_ = l.Close()
		<-accepting
		s.Close()
		eventually(t, "all clients gone", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.clients) == 0 })
	})
	go func() {
		defer close(accepting)
		for n := 1; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = s.Handle(c.(*net.UnixConn), fmt.Sprintf("client %d", n))
		}
	}()
	return s
}

func (s *shop) offer(t *testing.T, name string, b Backend) *export {
	t.Helper()
	e, err := s.add(name, b)
	must(t, err)
	return e
}

// url is how NBD tools name an export.
func (s *shop) url(name string) string { return "nbd+unix:///" + name + "?socket=" + s.socket }

// tool runs a program of Debian's, and gives what it prints.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := runTool(t, name, args...)
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return out
}

func runTool(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		fixture.Missing(t, "%s is not installed", name)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return string(out), err
}

// imageOf writes the whole of b into a file.
func imageOf(t *testing.T, b Backend) string {
	t.Helper()
	content := make([]byte, b.Size())
	if _, err := b.ReadAt(content, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(path, content, 0o600))
	return path
}

func expectSame(t *testing.T, path string, b Backend) {
	t.Helper()
	got, err := os.ReadFile(path)
	must(t, err)
	want, err := os.ReadFile(imageOf(t, b))
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("%s: expected the content of the export, found %d bytes of something else", filepath.Base(path), len(got))
	}
}

// A size that is no multiple of anything but sectors.
const peerSize = 40<<20 + 512*3

func TestPeerNbdcopy(t *testing.T) {
	s := openShop(t, DefaultClients)
	b := pattern(peerSize)
	s.offer(t, "system_a", b)
	for name, flags := range map[string][]string{
		"Default": nil, "OneConnection": {"--connections=1", "--requests=1"}, "Many": {"--connections=8", "--requests=64"},
		"Small": {"--request-size=4096", "--sparse=0"}, "Large": {"--request-size=33554432"}, "Sync": {"--synchronous"},
	} {
		t.Run(name, func(t *testing.T) {
			to := filepath.Join(t.TempDir(), "copy")
			tool(t, "nbdcopy", append(flags, s.url("system_a"), to)...)
			expectSame(t, to, b)
		})
	}
	if out, err := runTool(t, "nbdcopy", imageOf(t, pattern(4096)), s.url("system_a")); err == nil {
		t.Errorf("expected a copy onto the export to fail, found %q", out)
	}
}

func TestPeerNbdinfo(t *testing.T) {
	s := openShop(t, DefaultClients)
	s.offer(t, "system_a", pattern(peerSize))
	if out := tool(t, "nbdinfo", s.url("")); !strings.Contains(out, fmt.Sprintf("export-size: %d", peerSize)) {
		t.Errorf("the default export: found %s", out)
	}
	s.offer(t, "vendor_a", pattern(8192))
	out := tool(t, "nbdinfo", s.url("system_a"))
	for _, want := range []string{
		"newstyle-fixed", "using structured packets", fmt.Sprintf("export-size: %d", peerSize), "base:allocation", "is_read_only: true",
		"can_multi_conn: true", "can_df: true", "can_flush: true", "can_trim: false", "can_cache: false", "can_zero: false",
		"block_size_minimum: 1", "block_size_preferred: 4096", "block_size_maximum: 33554432",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("expected %q, found %s", want, out)
		}
	}
	out = tool(t, "nbdinfo", "--list", s.url(""))
	if !strings.Contains(out, `export="system_a"`) || !strings.Contains(out, `export="vendor_a"`) || !strings.Contains(out, "export-size: 8192") {
		t.Errorf("expected both exports, found %s", out)
	}
	if out := tool(t, "nbdinfo", "--map", s.url("system_a")); !strings.Contains(out, fmt.Sprint(peerSize)) || !strings.Contains(out, "data") {
		t.Errorf("expected one extent of data, found %s", out)
	}
	if out := tool(t, "nbdinfo", "--size", s.url("vendor_a")); strings.TrimSpace(out) != "8192" {
		t.Errorf("expected 8192, found %s", out)
	}
	if out, err := runTool(t, "nbdinfo", s.url("nosuch")); err == nil || !strings.Contains(out, "nosuch") {
		t.Errorf("expected an error that names the export, found %v: %s", err, out)
	}
}

func TestPeerQemuImg(t *testing.T) {
	s := openShop(t, DefaultClients)
	b := pattern(peerSize)
	s.offer(t, "system_a", b)
	url, image := s.url("system_a"), imageOf(t, b)
	if out := tool(t, "qemu-img", "info", url); !strings.Contains(out, fmt.Sprintf("(%d bytes)", peerSize)) {
		t.Errorf("found %s", out)
	}
	if out := tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", url, image); !strings.Contains(out, "identical") {
		t.Errorf("found %s", out)
	}
	for name, flags := range map[string][]string{"Default": nil, "Parallel": {"-m", "16", "-W"}} {
		t.Run(name, func(t *testing.T) {
			to := filepath.Join(t.TempDir(), "copy")
			tool(t, "qemu-img", append(append([]string{"convert", "-f", "raw", "-O", "raw"}, flags...), url, to)...)
			expectSame(t, to, b)
		})
	}
	if out := tool(t, "qemu-img", "map", "-f", "raw", "--output=json", url); !strings.Contains(out, fmt.Sprintf(`"length": %d`, peerSize)) {
		t.Errorf("found %s", out)
	}
	if out, err := runTool(t, "qemu-io", "-f", "raw", "-c", "write 0 4096", url); err == nil && !strings.Contains(out, "read-only") {
		t.Errorf("expected a write to fail, found %s", out)
	}
}

// A client that uses simple replies only, and asks at all alignments.
func TestPeerNbdkitStyle(t *testing.T) {
	s := openShop(t, DefaultClients)
	b := pattern(peerSize)
	s.offer(t, "system_a", b)
	to := filepath.Join(t.TempDir(), "copy")
	out, err := runTool(t, "nbdkit", "-U", "-", "nbd", "uri="+s.url("system_a"), "--run", "nbdcopy $uri "+to)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	expectSame(t, to, b)
}

// Only what cannot be read is lost to a client.
func TestPeerReadError(t *testing.T) {
	s := openShop(t, DefaultClients)
	s.offer(t, "bad", hooked{pattern(1 << 20), func(off int64, n int) error {
		if off < 40960+4096 && off+int64(n) > 40960 {
			return unix.EIO
		}
		return nil
	}})
	out, err := runTool(t, "qemu-io", "-r", "-f", "raw", "-c", "read 0 40960", "-c", "read 36864 8192", "-c", "read 45056 4096", s.url("bad"))
	if err == nil || strings.Count(out, "bytes at offset") != 2 || strings.Count(out, "Input/output error") != 1 {
		t.Errorf("expected the second of three reads to fail, found %v: %s", err, out)
	}
}

// open connects to an export as a client that then says nothing.
func (s *shop) open(t *testing.T, name string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", s.socket)
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	hello := make([]byte, 18)
	_, err = io.ReadFull(c, hello)
	must(t, err)
	say := "\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x01\x00\x00\x00" + string(rune(len(name))) + name
	_, err = c.Write([]byte(say))
	must(t, err)
	info := make([]byte, 10)
	if _, err = io.ReadFull(c, info); err != nil {
		t.Fatalf("open %s: %v", name, err)
	}
	return c
}

// expectHungUp waits until the server has closed the connection.
func expectHungUp(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("expected the server to hang up, found that it did not")
	}
}

func TestExportInUse(t *testing.T) {
	s := openShop(t, DefaultClients)
	e := s.offer(t, "a", pattern(8192))
	if _, err := s.add("a", pattern(8192)); !errors.Is(err, ErrBusy) {
		t.Errorf("a second export of that name: expected ErrBusy, found %v", err)
	}
	c := s.open(t, "a")
	if err := e.withdraw(); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "client 1") {
		t.Errorf("expected ErrBusy with the client's name, found %v", err)
	}
	must(t, c.Close())
	eventually(t, "withdrawn", func() bool { return e.withdraw() == nil })
	within(t, "the end", func() { <-e.unused() })
	e.offerAgain()
	c = s.open(t, "a")
	if err := e.abort(); !errors.Is(err, ErrBusy) {
		t.Errorf("expected ErrBusy, found %v", err)
	}
	expectHungUp(t, c)
	within(t, "the end", func() { <-e.unused() })
	if names := (choice{x: s.Exports}).Names(); len(names) != 0 {
		t.Errorf("expected no export left, found %v", names)
	}
}

func TestTooManyClients(t *testing.T) {
	s := openShop(t, 2)
	s.offer(t, "a", pattern(8192))
	first, second := s.open(t, "a"), s.open(t, "a")
	third, err := net.Dial("unix", s.socket)
	must(t, err)
	expectHungUp(t, third)
	must(t, third.Close())
	must(t, first.Close())
	eventually(t, "room for another", func() bool {
		c, err := net.Dial("unix", s.socket)
		must(t, err)
		defer c.Close()
		n, _ := io.ReadFull(c, make([]byte, 18))
		return n == 18
	})
	s.Close()
	expectHungUp(t, second)
	if err := s.Handle(nopConn{}, "late"); !errors.Is(err, ErrTooManyClients) {
		t.Errorf("expected a client after the end to be turned away, found %v", err)
	}
}

type nopConn struct{ nbd.Conn }

func (nopConn) Close() error { return nil }

// fakeCarrier makes devices that are nothing but a state.
type fakeCarrier struct{ *fakeDevice }

type fakeDevice struct {
	busy error
	once sync.Once
	done chan struct{}
}

func newFakeCarrier() fakeCarrier { return fakeCarrier{&fakeDevice{done: make(chan struct{})}} }

func (c fakeCarrier) Name() string             { return "fake" }
func (c fakeCarrier) Probe() error             { return nil }
func (c fakeCarrier) Sweep() ([]string, error) { return nil, nil }
func (c fakeCarrier) Attach(context.Context, string, Backend) (Device, error) {
	return c.fakeDevice, nil
}
func (d *fakeDevice) Path() string          { return "/dev/fake" }
func (d *fakeDevice) Done() <-chan struct{} { return d.done }
func (d *fakeDevice) end()                  { d.once.Do(func() { close(d.done) }) }
func (d *fakeDevice) Leave() (bool, error)  { return false, d.Close() }
func (d *fakeDevice) Abort() error          { d.end(); return d.busy }
func (d *fakeDevice) Close() error {
	if d.busy == nil {
		d.end()
	}
	return d.busy
}

func TestExportingCarrier(t *testing.T) {
	s := openShop(t, DefaultClients)
	c := newFakeCarrier()
	d, err := s.Carrier(c).Attach(t.Context(), "a", pattern(8192))
	must(t, err)
	if d.Path() != "/dev/fake" {
		t.Errorf("expected the device's own path, found %s", d.Path())
	}
	client := s.open(t, "a")
	if err := d.Close(); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "client 1") {
		t.Errorf("with a client: expected ErrBusy, found %v", err)
	}
	must(t, client.Close())
	c.busy = ErrBusy
	eventually(t, "the device's own ErrBusy", func() bool {
		err := d.Close()
		return errors.Is(err, ErrBusy) && !strings.Contains(err.Error(), "client")
	})
	client = s.open(t, "a") // it is on offer again
	must(t, client.Close())
	c.busy = nil
	eventually(t, "closed", func() bool { return d.Close() == nil })
	within(t, "Done", func() { <-d.Done() })
	must(t, d.Close())
}

// The export ends when the device does, by itself or by force.
func TestExportedDeviceEnds(t *testing.T) {
	for name, end := range map[string]func(*fakeDevice, Device){
		"Lost":  func(f *fakeDevice, _ Device) { f.end() },
		"Leave": func(_ *fakeDevice, d Device) { mustLeave(t, d) },
		"Abort": func(_ *fakeDevice, d Device) {
			if err := d.Abort(); !errors.Is(err, ErrBusy) {
				t.Errorf("expected ErrBusy, found %v", err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := openShop(t, DefaultClients)
			c := newFakeCarrier()
			d, err := s.Carrier(c).Attach(t.Context(), "a", pattern(8192))
			must(t, err)
			client := s.open(t, "a")
			end(c.fakeDevice, d)
			expectHungUp(t, client)
			within(t, "Done", func() { <-d.Done() })
			must(t, d.Close())
		})
	}
}

// Clients that are gone leave nothing, and those that say nothing cost little.
func TestExportsIdle(t *testing.T) {
	s := openShop(t, DefaultClients)
	s.offer(t, "a", pattern(testSize))
	before := runtime.NumGoroutine()
	var clients []net.Conn
	for range DefaultClients {
		clients = append(clients, s.open(t, "a"))
	}
	if n := runtime.NumGoroutine() - before; n > DefaultClients+1 {
		t.Errorf("expected a goroutine a client, found %d for %d", n, DefaultClients)
	}
	for _, c := range clients {
		must(t, c.Close())
	}
	eventually(t, "all goroutines gone", func() bool { return runtime.NumGoroutine() <= before })
}

func TestNbdBuffers(t *testing.T) {
	spare, err := newReserve(maxRead)
	must(t, err)
	defer spare.free()
	pool := newBufferPool(maxRead)
	p := newReplyBuffers(pool, spare)
	small, err := p.Get(maxRead)
	must(t, err)
	large, err := p.Get(maxRead + 1)
	must(t, err)
	if got := len(large.Frame(16, maxRead+1)); got != maxRead+17 {
		t.Errorf("expected %d bytes, found %d", maxRead+17, got)
	}
	second := make(chan nbd.Buffer)
	go func() { b, _ := p.Get(nbd.MaxRequest); second <- b }()
	select {
	case <-second:
		t.Error("expected one large buffer at a time, found two")
	case <-time.After(20 * time.Millisecond):
	}
	p.Put(large)
	within(t, "the second large one", func() { p.Put(<-second) })
	p.Put(small)
	if pool.free == nil {
		t.Error("expected the small one back in the pool")
	}
	pool.mmap = func(int) (*buffer, error) { return nil, unix.ENOMEM }
	if _, err := p.Get(maxRead + 1); err == nil {
		t.Error("expected no large buffer without memory")
	}
	_, _ = p.Get(1) // the one in the pool
	b, err := p.Get(1)
	must(t, err)
	if b.(*buffer).spare != spare {
		t.Error("expected the reserve, found another buffer")
	}
	p.Put(b)
}

// mustLeave leaves a device that can be.
func mustLeave(t *testing.T, d Device) {
	t.Helper()
	if serving, err := d.Leave(); serving || err != nil {
		t.Fatalf("expected the device to be left, found serving %v, %v", serving, err)
	}
}
