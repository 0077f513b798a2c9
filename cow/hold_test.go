package cow

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fileSample opens a sample whose base is a file.
func fileSample(t *testing.T, c sample) *Snapshot {
	t.Helper()
	path := filepath.Join(t.TempDir(), "base")
	if err := os.WriteFile(path, c.base, 0o600); err != nil {
		t.Fatal(err)
	}
	base, err := OpenDevice(path, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = base.Close() })
	s, err := Open(Options{Base: base, Cow: &memDevice{data: bytes.Clone(c.cow)}, Size: int64(len(c.target))})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// What is held can be read in the file, before a merge, and after it; and as much is held
// as has no op.
func TestHoldFile(t *testing.T) {
	for seed := range uint64(few(20, 5)) {
		c := generate(t, 700+seed, 40, seed%2 == 0)
		s := fileSample(t, c)
		for _, merged := range []bool{false, true} {
			if merged {
				if _, err := s.Merge(t.Context(), MergeOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			for off := int64(0); off < s.Size(); off += 1536 {
				for _, n := range []int{1, 512, blockSize, 3*blockSize + 100} {
					checkHold(t, s, c, off, n, merged)
				}
			}
		}
		for _, bad := range [][2]int64{{-1, 1}, {0, 0}, {0, -1}, {s.Size(), 1}, {1 << 62, 1 << 40}} {
			if _, _, ok := s.HoldFile(bad[0], int(bad[1])); ok {
				t.Errorf("%s: expected %d bytes at %d to lie nowhere", c.name, bad[1], bad[0])
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, _, ok := s.HoldFile(0, 1); ok {
			t.Error("expected nothing of a closed snapshot to be held")
		}
	}
}

func checkHold(t *testing.T, s *Snapshot, c sample, off int64, n int, merged bool) {
	t.Helper()
	end := off + int64(n)
	want := end <= min(s.Size(), s.base.Size())
	for b := off / blockSize; b <= (end-1)/blockSize && want && !merged; b++ {
		hint := 0
		op, _ := s.file.Lookup(&hint, uint32(b))
		want = op < 0
	}
	fd, at, ok := s.HoldFile(off, n)
	if ok != want {
		t.Fatalf("%s: %d bytes at %d, merged %v: expected %v, found %v", c.name, n, off, merged, want, ok)
	}
	if !ok {
		return
	}
	defer s.ReleaseFile()
	got := make([]byte, n)
	if k, err := unix.Pread(fd, got, at); k != n || err != nil || !bytes.Equal(got, c.target[off:end]) {
		t.Fatalf("%s: %d bytes at %d, merged %v: the file has others, %v", c.name, n, off, merged, err)
	}
}

// A hold keeps the snapshot open.
func TestHoldKeepsOpen(t *testing.T) {
	c := generate(t, 1, 40, false)
	s := fileSample(t, c)
	if _, err := s.Merge(t.Context(), MergeOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := s.HoldFile(0, blockSize); !ok {
		t.Fatal("expected a block to be held")
	}
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	select {
	case <-closed:
		t.Error("expected the hold to keep the snapshot open")
	case <-time.After(50 * time.Millisecond):
	}
	s.ReleaseFile()
	if err := <-closed; err != nil {
		t.Error(err)
	}
}
