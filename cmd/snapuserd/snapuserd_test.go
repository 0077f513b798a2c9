package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/dmuser"
	"cowbird/ota/control"
)

type fakeCarrier struct {
	probe error
	swept []string
	left  error
	hang  chan struct{} // Sweep waits for it, unless nil
}

func (c *fakeCarrier) Name() string { return "fake" }
func (c *fakeCarrier) Probe() error { return c.probe }
func (c *fakeCarrier) Attach(context.Context, string, dmuser.Backend) (dmuser.Device, error) {
	return nil, dmuser.ErrUnsupported
}
func (c *fakeCarrier) Sweep() ([]string, error) {
	if c.hang != nil {
		<-c.hang
	}
	return c.swept, c.left
}

func with(c *fakeCarrier) daemon {
	return daemon{carrier: func(name string) (dmuser.Carrier, error) {
		switch name {
		case "auto", "fuse":
			return c, nil
		case "ublk", "nbd", "dm-user":
			return nil, fmt.Errorf("%w: not in this build", dmuser.ErrUnsupported)
		}
		return nil, fmt.Errorf("%w: %s", dmuser.ErrUnknownCarrier, name)
	}}
}

// log collects what the daemon writes, from any goroutine.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{"--bogus"}, {"extra"}, {"probe", "more"}, {"give-node"}, {"--gid", "wheel"}, {"--log-level", "loud"}, {"--carrier", "pigeon"}, {"--socket"}, {"--merge-nice", "20"}} {
		var l log
		if code := with(&fakeCarrier{}).run(t.Context(), args, &l, &l); code != exitUsage || strings.Count(l.String(), "\n") != 1 {
			t.Errorf("%q: expected exit code 2 and one line, found %d, %q", args, code, l.String())
		}
	}
	var l log
	if code := with(&fakeCarrier{}).run(t.Context(), []string{"--help"}, &l, &l); code != exitOK || !strings.Contains(l.String(), "Examples:") || !strings.Contains(l.String(), "-socket") {
		t.Errorf("--help: found %d, %q", code, l.String())
	}
}

func TestCannotRun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	for _, c := range []struct {
		carrier *fakeCarrier
		args    []string
	}{
		{&fakeCarrier{probe: dmuser.ErrUnsupported}, []string{"--socket", path}},
		{&fakeCarrier{}, []string{"--carrier", "ublk", "--socket", path}},
		{&fakeCarrier{}, []string{"--socket", "/nosuch/folder/sock"}},
	} {
		var l log
		if code := with(c.carrier).run(t.Context(), c.args, &l, &l); code != exitFailed || !strings.Contains(l.String(), "level=ERROR") {
			t.Errorf("%q: expected exit code 1, found %d, %q", c.args, code, l.String())
		}
	}
}

func TestGiveNode(t *testing.T) {
	for _, name := range []string{"ublkc", "ublkc-1", "ublkd0", "../ublkc0", "ublkb0p1", "loop0"} {
		var l log
		if code := with(&fakeCarrier{}).run(t.Context(), []string{"give-node", name}, &l, &l); code != exitFailed || !strings.Contains(l.String(), "expected a node called ublkc or ublkb") {
			t.Errorf("%s: expected to be refused, found %d, %q", name, code, l.String())
		}
	}
}

func TestProbe(t *testing.T) {
	var l log
	if code := with(&fakeCarrier{}).run(t.Context(), []string{"probe"}, &l, &l); code != exitOK || !strings.Contains(l.String(), "fuse     yes") ||
		!strings.Contains(l.String(), "ublk     no: ") || !strings.Contains(l.String(), "auto     fake, ") {
		t.Errorf("found %d, %q", code, l.String())
	}
	var none log
	nothing := with(&fakeCarrier{probe: errors.New("no fuse")})
	usual := nothing.carrier
	nothing.carrier = func(name string) (dmuser.Carrier, error) {
		if name == dmuser.Auto {
			return nil, dmuser.ErrUnsupported
		}
		return usual(name)
	}
	if code := nothing.run(t.Context(), []string{"probe"}, &none, &none); code != exitFailed || !strings.Contains(none.String(), "no fuse") || !strings.Contains(none.String(), "auto     none") {
		t.Errorf("found %d, %q", code, none.String())
	}
}

// start runs the daemon and waits until it answers. The channel gives the exit
// code.
func start(t *testing.T, ctx context.Context, c *fakeCarrier, l *log) (socket string, ended chan int) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "sock")
	ended = make(chan int, 1)
	go func() { ended <- with(c).run(ctx, []string{"--socket", socket, "--log-level", "debug"}, l, l) }()
	dialing, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	client, err := control.Dial(dialing, socket)
	if err != nil {
		t.Fatalf("%v: %s", err, l.String())
	}
	_ = client.Close()
	return socket, ended
}

func waitCode(t *testing.T, ended chan int) int {
	t.Helper()
	select {
	case code := <-ended:
		return code
	case <-time.After(10 * time.Second):
		t.Fatal("the daemon did not end")
		return 0
	}
}

func TestSignalEnds(t *testing.T) {
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGINT} {
		var l log
		socket, ended := start(t, context.Background(), &fakeCarrier{swept: []string{"old"}, left: errors.New("loop9 is in use")}, &l)
		waitFor(t, func() bool { return strings.Contains(l.String(), "msg=ready") })
		if err := unix.Kill(os.Getpid(), signal); err != nil {
			t.Fatal(err)
		}
		if code := waitCode(t, ended); code != exitOK {
			t.Errorf("%v: expected exit code 0, found %d", signal, code)
		}
		if _, err := os.Lstat(socket); err == nil {
			t.Error("expected the socket to be removed")
		}
		for _, want := range []string{"name=old", "loop9 is in use", "msg=left"} {
			if !strings.Contains(l.String(), want) {
				t.Errorf("expected %q in the log, found %q", want, l.String())
			}
		}
	}
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited too long")
		}
	}
}

// A sweep that hangs does not keep the daemon from serving.
func TestSweepHangs(t *testing.T) {
	var l log
	ctx, cancel := context.WithCancel(t.Context())
	hang := make(chan struct{})
	defer close(hang)
	_, ended := start(t, ctx, &fakeCarrier{hang: hang}, &l)
	cancel()
	if code := waitCode(t, ended); code != exitOK || !strings.Contains(l.String(), "serving meanwhile") {
		t.Errorf("found %d, %q", code, l.String())
	}
}

func TestNotify(t *testing.T) {
	for name, path := range map[string]string{"file": filepath.Join(t.TempDir(), "notify"), "abstract": fmt.Sprintf("@cowbird-test-%d", os.Getpid())} {
		t.Run(name, func(t *testing.T) {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err := errors.Join(err, unix.Bind(fd, &unix.SockaddrUnix{Name: path})); err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			t.Setenv("NOTIFY_SOCKET", path)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var l log
			_, ended := start(t, ctx, &fakeCarrier{}, &l)
			if got := receive(t, fd); got != "READY=1" {
				t.Errorf("expected READY=1, found %q", got)
			}
			cancel()
			waitCode(t, ended)
			if got := receive(t, fd); got != "STOPPING=1" {
				t.Errorf("expected STOPPING=1, found %q", got)
			}
		})
	}
}

func receive(t *testing.T, fd int) string {
	t.Helper()
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64)
	n, err := unix.Read(fd, b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// A service manager that is gone is no reason not to run.
func TestNotifyFails(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/nosuch/notify")
	var l log
	notify(slog.New(slog.NewTextHandler(&l, nil)), "READY=1")
	if !strings.Contains(l.String(), "level=WARN") {
		t.Errorf("found %q", l.String())
	}
}

func TestLogTimesAreUTC(t *testing.T) {
	var l log
	newLog(&l, slog.LevelInfo).Info("hello")
	if first, _, _ := strings.Cut(l.String(), " "); !strings.HasSuffix(first, "Z") {
		t.Errorf("expected a time in UTC, found %q", l.String())
	}
}
