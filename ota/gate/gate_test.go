package gate

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func TestStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err := errors.Join(err, unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
	lis, err := Listen(path, NoGroup)
	if err != nil {
		t.Fatalf("a socket on which nobody answers: %v", err)
	}
	lis.Close()

	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file, NoGroup); err == nil || !exists(file) {
		t.Errorf("a regular file: expected an error and the file untouched, found %v", err)
	}
	if _, err := Listen("/nosuch/folder/sock", NoGroup); err == nil || !strings.Contains(err.Error(), "/nosuch/folder") {
		t.Errorf("expected an error that names the folder, found %v", err)
	}
	if _, err := Listen("/tmp/"+strings.Repeat("x", 120), NoGroup); err == nil {
		t.Error("a path too long for a socket: expected an error, found none")
	}
}

// A socket that another daemon has put in ours' place is not removed.
func TestSocketOfAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	first, err := Listen(path, NoGroup)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second, err := Listen(path, NoGroup)
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	if !exists(path) {
		t.Error("expected the second socket to stay")
	}
	second.Close()
}

// A socket on which somebody answers is left alone, and tells who connects.
func TestTaken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	l, err := Listen(path, NoGroup)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("expected mode 0660, found %v, %v", st.Mode(), err)
	}
	if _, err := Listen(path, NoGroup); !errors.Is(err, ErrTaken) {
		t.Errorf("expected ErrTaken, found %v", err)
	}
	fd, err := l.Accept() // the second Listen's attempt to connect
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if pid, err := Admit(fd, NoGroup); pid != os.Getpid() || err != nil {
		t.Errorf("expected process %d, found %d, %v", os.Getpid(), pid, err)
	}
}

func TestCloseEndsAccept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	l, err := Listen(path, NoGroup)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { _, err := l.Accept(); ended <- err }()
	l.Close()
	if err := <-ended; !errors.Is(err, os.ErrClosed) || exists(path) {
		t.Errorf("expected os.ErrClosed and no socket, found %v, %v", err, exists(path))
	}
}

func TestAllows(t *testing.T) {
	self, other := uint32(os.Geteuid()), uint32(os.Geteuid()+1)
	for _, c := range []struct {
		uid    uint32
		groups []uint32
		group  int
		want   bool
	}{
		{0, nil, NoGroup, true}, {self, nil, NoGroup, true}, {other, []uint32{0}, NoGroup, false}, {other, nil, 7, false},
		{other, []uint32{6, 8}, 7, false}, {other, []uint32{6, 7}, 7, true}, {other, []uint32{1<<32 - 1}, NoGroup, false}, {1<<32 - 1, nil, 7, false},
	} {
		if got := Allows(c.uid, c.groups, c.group); got != c.want {
			t.Errorf("user %d of %d with the group %d: expected %v, found %v", c.uid, c.groups, c.group, c.want, got)
		}
	}
}
