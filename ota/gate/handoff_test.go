package gate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// bound is a socket of that type that has a path, and nothing more: as init makes
// them.
func bound(t *testing.T, path string, kind int) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err := errors.Join(err, unix.Bind(fd, &unix.SockaddrUnix{Name: path})); err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestInherit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	l, err := Inherit(bound(t, path, unix.SOCK_STREAM))
	if err != nil {
		t.Fatal(err)
	}
	if l.Path() != path || !answers(path) {
		t.Errorf("expected somebody to answer on %s, found %s", path, l.Path())
	}
	l.Close()
	if !exists(path) || answers(path) {
		t.Error("expected the path to stay, and nobody to answer")
	}
	packet := bound(t, path+"+", unix.SOCK_SEQPACKET)
	defer unix.Close(packet)
	if _, err := Inherit(packet); !errors.Is(err, ErrHandOff) {
		t.Errorf("a seqpacket socket: expected ErrHandOff, found %v", err)
	}
	if _, err := Inherit(1 << 20); err == nil {
		t.Error("expected an error of a descriptor that is none")
	}
}

func TestInitSocket(t *testing.T) {
	env := map[string]string{"ANDROID_SOCKET_snapuserd_proxy": "7", "ANDROID_SOCKET_a_b": "x", "ANDROID_SOCKET_big": "99999999999999999999", "ANDROID_SOCKET_none": ""}
	for name, want := range map[string]int{"snapuserd_proxy": 7, "snapuserd-proxy": 7, "a.b": -1, "big": -1, "none": -1, "other": -1} {
		fd, ok := InitSocket(name, func(k string) string { return env[k] })
		if ok != (want >= 0) || ok && fd != want {
			t.Errorf("%s: expected %d, found %d, %v", name, want, fd, ok)
		}
	}
}

// The folder of the sockets is made after the daemon began to wait, and the proxy
// listens even later.
func TestHandOver(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dev", "socket")
	proxy, control := filepath.Join(dir, "proxy"), filepath.Join(dir, "control")
	type outcome struct {
		l   *Listener
		err error
	}
	received := make(chan outcome, 1)
	go func() {
		l, err := Receive(t.Context(), proxy)
		received <- outcome{l, err}
	}()
	time.Sleep(20 * time.Millisecond)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	server, packets := bound(t, control, unix.SOCK_STREAM), bound(t, proxy, unix.SOCK_SEQPACKET)
	time.Sleep(20 * time.Millisecond)
	ready := false
	if err := HandOver(t.Context(), packets, server, func() { ready = true }); err != nil || !ready {
		t.Fatal(err, ready)
	}
	_ = unix.Close(server)
	_ = unix.Close(packets)
	got := <-received
	if got.err != nil {
		t.Fatal(got.err)
	}
	defer got.l.Close()
	if got.l.Path() != control || !answers(control) {
		t.Errorf("expected somebody to answer on %s, found %s", control, got.l.Path())
	}
}

// Waiting ends with its context, whatever is waited for.
func TestWaitEnds(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	for _, path := range []string{filepath.Join(dir, "a", "b", "sock"), filepath.Join(dir, "sock")} {
		if _, err := Receive(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: expected the deadline, found %v", path, err)
		}
	}
	silent := bound(t, filepath.Join(dir, "silent"), unix.SOCK_SEQPACKET)
	defer unix.Close(silent)
	if _, err := Receive(ctx, filepath.Join(dir, "silent")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nobody listens: expected the deadline, found %v", err)
	}
	server := bound(t, filepath.Join(dir, "server"), unix.SOCK_STREAM)
	defer unix.Close(server)
	if err := HandOver(ctx, silent, server, func() {}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nobody comes: expected the deadline, found %v", err)
	}
	if err := HandOver(ctx, server, silent, func() {}); !errors.Is(err, ErrHandOff) {
		t.Errorf("sockets the wrong way round: expected ErrHandOff, found %v", err)
	}
}

// What is not one byte 'a' and one socket is refused, and no descriptor is kept.
func TestBadHandOver(t *testing.T) {
	server := bound(t, filepath.Join(t.TempDir(), "server"), unix.SOCK_STREAM)
	defer unix.Close(server)
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(null)
	for name, c := range map[string]struct {
		body string
		fds  []int
	}{
		"other code": {"b", []int{server}}, "two bytes": {"aa", []int{server}}, "no descriptor": {"a", nil},
		"two descriptors": {"a", []int{server, null}}, "no socket": {"a", []int{null}}, "hangs up": {},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "proxy")
			l := bound(t, path, unix.SOCK_SEQPACKET)
			defer unix.Close(l)
			if err := unix.Listen(l, 1); err != nil {
				t.Fatal(err)
			}
			before, gone := openFiles(t), make(chan struct{})
			go func() {
				defer close(gone)
				conn, _, err := unix.Accept(l)
				if err == nil && c.body != "" {
					_ = unix.Sendmsg(conn, []byte(c.body), unix.UnixRights(c.fds...), nil, 0)
				}
				_ = unix.Close(conn)
			}()
			if _, err := Receive(t.Context(), path); !errors.Is(err, ErrHandOff) {
				t.Errorf("expected ErrHandOff, found %v", err)
			}
			<-gone
			if after := openFiles(t); after > before {
				t.Errorf("expected %d open files as before, found %d", before, after)
			}
		})
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// A process that takes the socket and goes without a word may not have it.
func TestNoAck(t *testing.T) {
	dir := t.TempDir()
	server, proxy := bound(t, filepath.Join(dir, "server"), unix.SOCK_STREAM), bound(t, filepath.Join(dir, "proxy"), unix.SOCK_SEQPACKET)
	defer unix.Close(server)
	defer unix.Close(proxy)
	go func() {
		conn, err := reach(t.Context(), filepath.Join(dir, "proxy"))
		if err == nil {
			_ = conn.Close()
		}
	}()
	if err := HandOver(t.Context(), proxy, server, func() {}); err == nil {
		t.Error("expected an error, found none")
	}
}
