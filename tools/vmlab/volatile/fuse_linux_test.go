package volatile

import (
	"bytes"
	"errors"
	"io"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// mounted shows a disk, or skips where that is not allowed.
func mounted(t *testing.T, d *Disk) *Server {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	s, err := Serve(t.TempDir(), d)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENODEV) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// A block that was written through a file but not synced is lost, one that was synced
// is kept, and nothing of the host's keeps either.
func TestFileForgets(t *testing.T) {
	// With one processor the runtime's poller, which is told of a file by a call that
	// keeps it, cannot wait for a server in the same process: see refusePoll.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	p := &Power{}
	d := p.AddDisk("a", sector, filled('0', 4096))
	p.On(0, 0, nil)
	s := mounted(t, d)
	if names, err := os.ReadDir(s.Dir()); err != nil || len(names) != 1 || names[0].Name() != "a" {
		t.Errorf("expected the disk in the folder, found %v, %v", names, err)
	}
	f, err := os.OpenFile(s.Path(d), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() != d.Size() {
		t.Fatalf("expected a file of %d bytes, found %v, %v", d.Size(), info, err)
	}
	synced, lost := filled('s', 3000), filled('l', 8)
	for _, step := range []func() error{
		func() error { _, err := f.WriteAt(synced, 8*sector); return err },
		f.Sync,
		func() error { _, err := f.WriteAt(lost, 0); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, len(lost))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, lost) {
		t.Errorf("expected to read what was written, found %q, %v", got[0], err)
	}
	p.Cut(nil, LoseAll)
	if _, err := f.ReadAt(got, 0); !errors.Is(err, unix.EIO) {
		t.Errorf("expected no read without power, found %v", err)
	}
	p.On(0, 0, nil)
	all, err := io.ReadAll(io.NewSectionReader(f, 0, d.Size()))
	if err != nil {
		t.Fatal(err)
	}
	if want := append(filled('0', 8), append(synced, filled('0', 4096-3008)...)...); !bytes.Equal(all, want) {
		t.Errorf("expected the synced block and no other, found %s", letters(all)[:10])
	}
}
