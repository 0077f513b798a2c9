package dmuser

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/dmuser/userstream"
)

// fakeNode is a node of a target that a client has loaded, of that name in a folder:
// a terminal, which is a character device with somebody at the other end.
func fakeNode(t *testing.T, dir, name string) (kernel *os.File) {
	t.Helper()
	kernel, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no terminals here: ", err)
	}
	t.Cleanup(func() { _ = kernel.Close() })
	number, err := unix.IoctlGetInt(int(kernel.Fd()), unix.TIOCGPTN)
	must(t, err)
	must(t, unix.IoctlSetPointerInt(int(kernel.Fd()), unix.TIOCSPTLCK, 0))
	mode, err := unix.IoctlGetTermios(int(kernel.Fd()), unix.TCGETS)
	must(t, err)
	mode.Iflag, mode.Oflag, mode.Lflag = 0, 0, 0
	mode.Cflag = unix.CS8 | unix.CREAD
	mode.Cc[unix.VMIN], mode.Cc[unix.VTIME] = 1, 0
	must(t, unix.IoctlSetTermios(int(kernel.Fd()), unix.TCSETS, mode))
	must(t, os.Symlink(fmt.Sprintf("/dev/pts/%d", number), filepath.Join(dir, name)))
	return kernel
}

// askNode reads n bytes at off, as the kernel would.
func askNode(t *testing.T, kernel *os.File, off, n int) []byte {
	t.Helper()
	request := make([]byte, userstream.HeaderSize)
	for i, v := range []uint64{77, 0, 0, uint64(off / 512), uint64(n)} {
		binary.NativeEndian.PutUint64(request[8*i:], v)
	}
	_, err := kernel.Write(request)
	must(t, err)
	reply := make([]byte, userstream.HeaderSize+n)
	_, err = io.ReadFull(kernel, reply)
	must(t, err)
	if seq, result := binary.NativeEndian.Uint64(reply), binary.NativeEndian.Uint64(reply[8:]); seq != 77 || result != 0 {
		t.Fatalf("expected a success of request 77, found %d of %d", result, seq)
	}
	return reply[userstream.HeaderSize:]
}

// A table that a client has loaded is served on its node until the client takes it
// away.
func TestWaiting(t *testing.T) {
	dir := t.TempDir()
	kernel := fakeNode(t, dir, "system_a")
	b := pattern(1 << 20)
	w := NewWaiting(nil, dir)
	must(t, w.Open("system_a"))
	must(t, w.Open("system_a")) // another time
	d, err := w.Attach(t.Context(), "system_a", b)
	must(t, err)
	if d.Path() != filepath.Join(dir, "system_a") || w.Name() != "dm-user" {
		t.Errorf("expected the node of system_a, found %s of %s", d.Path(), w.Name())
	}
	for _, c := range [][2]int{{0, 512}, {4096, 65536}, {1<<20 - 512, 512}} {
		want := make([]byte, c[1])
		_, err := b.ReadAt(want, int64(c[0]))
		must(t, err)
		if !bytes.Equal(askNode(t, kernel, c[0], c[1]), want) {
			t.Errorf("%d bytes at %d differ", c[1], c[0])
		}
	}
	if serving, err := d.Leave(); !serving || err != nil {
		t.Errorf("expected the node to be served until the process ends, found %v, %v", serving, err)
	}
	closed := make(chan error, 1)
	go func() { closed <- d.Close() }()
	time.Sleep(20 * time.Millisecond)
	must(t, kernel.Close())
	if err := <-closed; err != nil {
		t.Errorf("expected Close to wait for the table, found %v", err)
	}
	<-d.Done()
	if err := d.Abort(); err != nil {
		t.Error(err)
	}
}

// Without a node of the name, the wrapped carrier is asked; a name is no path.
func TestWaitingPassesOn(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "nodes"), 0o755))
	fakeNode(t, dir, "outside")
	none := NewWaiting(nil, filepath.Join(dir, "nodes"))
	for _, name := range []string{"system_a", "../outside", "..", ""} {
		if _, err := none.Attach(t.Context(), name, pattern(4096)); err == nil {
			t.Errorf("%q: expected an error, found none", name)
		}
		if err := none.Open(name); err == nil {
			t.Errorf("open %q: expected an error, found none", name)
		}
	}
	if removed, err := none.Sweep(); removed != nil || err != nil {
		t.Errorf("expected nothing to be swept, found %v, %v", removed, err)
	}
	inner := &refusing{}
	if _, err := NewWaiting(inner, dir).Attach(t.Context(), "system_a", pattern(4096)); !errors.Is(err, ErrUnsupported) {
		t.Errorf("expected the wrapped carrier to be asked, found %v", err)
	}
	if _, err := NewWaiting(inner, dir).Attach(t.Context(), "outside", pattern(100)); !errors.Is(err, ErrBadSize) {
		t.Errorf("expected ErrBadSize, found %v", err)
	}
}

type refusing struct{ Carrier }

func (*refusing) Attach(context.Context, string, Backend) (Device, error) {
	return nil, ErrUnsupported
}
