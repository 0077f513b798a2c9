package uring

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"cowbird/tools/fixture"
)

func newRing(t *testing.T, entries int, o Options) *Ring {
	t.Helper()
	r, err := New(entries, o)
	if errors.Is(err, ErrUnavailable) {
		fixture.Missing(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// complete waits for one completion, through the runtime's signals.
func complete(t *testing.T, r *Ring) Completion {
	t.Helper()
	for {
		if c, ok := r.Done(); ok {
			return c
		}
		if err := r.Enter(1); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReads(t *testing.T) {
	for _, o := range []Options{{}, {Large: true}, {Exclusive: true}} {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		r := newRing(t, 4, o)
		content := bytes.Repeat([]byte("0123456789"), 100)
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64)
		for i := range uint64(40) { // around the ring several times
			e := r.Next()
			*e = Entry{Op: OpRead, FD: int32(f.Fd()), Off: i, Addr: uint64(uintptr(unsafe.Pointer(&buf[0]))), Len: 64, UserData: 1000 + i}
			if c := complete(t, r); c.Res != 64 || c.UserData != 1000+i || !bytes.Equal(buf, content[i:i+64]) {
				t.Fatalf("%+v: read %d: expected 64 bytes, found %+v, %q", o, i, c, buf)
			}
		}
		runtime.KeepAlive(buf)
		f.Close()
	}
}

// A ring that is full says so, and loses nothing.
func TestFull(t *testing.T) {
	r := newRing(t, 4, Options{Large: true})
	filled := uint64(0)
	for e := r.Next(); e != nil; e = r.Next() {
		e.UserData = filled // operation 0 does nothing
		filled++
	}
	if filled < 4 || r.Next() != nil {
		t.Errorf("expected at least 4 entries and an end, found %d", filled)
	}
	for i := range filled {
		if c := complete(t, r); c.UserData != i || c.Res != 0 {
			t.Errorf("expected completion %d, found %+v", i, c)
		}
	}
	if _, ok := r.Done(); ok || r.Next() == nil {
		t.Error("expected no completion, and room")
	}
}

func TestSparseBuffers(t *testing.T) {
	r := newRing(t, 4, Options{})
	if err := r.SparseBuffers(8); err != nil {
		t.Fatal(err)
	}
	if err := r.SparseBuffers(8); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a second table: expected EBUSY, found %v", err)
	}
	if err := r.DropBuffers(); err != nil {
		t.Fatal(err)
	}
	if err := r.SparseBuffers(8); err != nil {
		t.Errorf("expected room for another table, found %v", err)
	}
}

func TestCommandToNoDriver(t *testing.T) {
	r := newRing(t, 4, Options{Large: true})
	null, err := unix.Open("/dev/zero", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(null)
	r.Next().SetCommand(null, 0x80207513)
	if c := complete(t, r); c.Res >= 0 {
		t.Errorf("expected an error, found %+v", c)
	}
}
