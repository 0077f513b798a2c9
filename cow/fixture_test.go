package cow

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"cowbird/tools/fixture"
)

func readAtBytes(b, p []byte, off int64) (int, error) {
	if off >= int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func shaHex(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// mergeable are the fixtures that a daemon can serve.
func mergeable(t *testing.T) []fixture.Cow {
	var all []fixture.Cow
	for _, c := range fixture.Cows(t, false) {
		if c.Base != "" && c.MergedSize > 0 && (c.ParseNoLabel == "ok" || c.ParseNoLabel == "") {
			all = append(all, c)
		}
	}
	return all
}

// underRace leaves the large fixtures to the run without the race detector.
func underRace(all []fixture.Cow) []fixture.Cow {
	if !raceDetector {
		return all
	}
	return slices.DeleteFunc(all, func(c fixture.Cow) bool { return c.BaseSize > 8<<20 })
}

func baseOf(t *testing.T, c fixture.Cow) []byte {
	if c.PartialBase == nil {
		return c.Bytes(t, c.Base)
	}
	base := c.PartlyMerged(t)
	if got := shaHex(base); got != c.PartialBase.SHA256 {
		t.Fatalf("partly merged base: expected %s, found %s", c.PartialBase.SHA256, got)
	}
	return base
}

// wanted is the checksum of the outcome; a cut-off file makes only a part of
// its target.
func wanted(c fixture.Cow) string {
	if c.Handler != "" {
		return c.Handler
	}
	return c.TargetSHA256
}

func readWhole(t *testing.T, s *Snapshot, n int64) []byte {
	t.Helper()
	b := make([]byte, n)
	if err := readFull(s, b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// SRD-001…007, SNU-001…004, SNU-007, SNU-011, SNU-017…025, SNU-031: each file
// reads as its target before, during and after the merge, in pieces of any
// shape; the base is the target at the end, and a second merge does nothing.
func TestFixtures(t *testing.T) {
	for _, c := range underRace(mergeable(t)) {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			cow, base := newMem(c.ReadAll(t)), newMem(baseOf(t, c))
			s, err := Open(Options{Cow: cow, Base: base})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			target := readWhole(t, s, c.MergedSize)
			if got := shaHex(target); got != wanted(c) {
				t.Fatalf("read through the snapshot: expected %s, found %s", wanted(c), got)
			}
			readPieces(t, s, target)
			duringMerge(t, s, target)
			if got := readWhole(t, s, c.MergedSize); !bytes.Equal(got, target) {
				t.Error("snapshot after the merge differs from the target")
			}
			if got := base.data[:c.MergedSize]; !bytes.Equal(got, target) {
				t.Error("base after the merge differs from the target")
			}
			again(t, cow, base, target)
		})
	}
}

// SRD-006, SRD-007, SNU-018…023.
func readPieces(t *testing.T, s *Snapshot, target []byte) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		n := 1 + r.IntN(1<<[]int{1, 9, 13, 17, 19}[r.IntN(5)])
		off := r.IntN(len(target))
		n = min(n, len(target)-off)
		b := make([]byte, n)
		if err := readFull(s, b, int64(off)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, target[off:off+n]) {
			t.Fatalf("%d bytes at %d differ from the target", n, off)
		}
	}
}

// SNU-005: reads during the merge are right at every moment.
func duringMerge(t *testing.T, s *Snapshot, target []byte) {
	t.Helper()
	_, err := s.Merge(context.Background(), MergeOptions{OnProgress: func(Progress) { readPiecesN(t, s, target, 5) }})
	if err != nil {
		t.Fatal(err)
	}
	p := s.Progress()
	if p.Status != StatusComplete || p.MergedOps != p.TotalOps || p.BytesWritten != p.BytesTotal {
		t.Errorf("progress after the merge: %+v", p)
	}
}

func readPiecesN(t *testing.T, s *Snapshot, target []byte, n int) {
	r := rand.New(rand.NewPCG(uint64(n), 7))
	for range n {
		off := r.IntN(len(target))
		b := make([]byte, min(1+r.IntN(64<<10), len(target)-off))
		if err := readFull(s, b, int64(off)); err != nil || !bytes.Equal(b, target[off:off+len(b)]) {
			t.Errorf("%d bytes at %d differ from the target (%v)", len(b), off, err)
		}
	}
}

// A merged COW opens as complete, and merging it again writes nothing.
func again(t *testing.T, cow, base *memDevice, target []byte) {
	t.Helper()
	s, err := Open(Options{Cow: cow, Base: base})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	stats, err := s.Merge(context.Background(), MergeOptions{})
	if err != nil || stats != (MergeStats{}) {
		t.Errorf("second merge: expected nothing done, found %+v, %v", stats, err)
	}
	if got := readWhole(t, s, int64(len(target))); !bytes.Equal(got, target) {
		t.Error("snapshot after reopening differs from the target")
	}
}

// The damaged files are refused at the latest by Check.
func TestFixturesRejected(t *testing.T) {
	for _, c := range fixture.Cows(t, true) {
		t.Run(c.Name, func(t *testing.T) {
			dir := t.TempDir()
			cow, base := fileDevice(t, dir, "cow", c.ReadAll(t)), fileDevice(t, dir, "base", c.Bytes(t, c.Base))
			r, err := Check(context.Background(), CheckOptions{Cow: cow, Base: base})
			good := c.Name == "v2_good" || c.Name == "v3_good"
			if good != (err == nil) {
				t.Fatalf("good: %v, error: %v", good, err)
			}
			if good && r.SHA256 != "e06cc7499a4f14450c637ac7131872a69243af808475d8751b61f4c56fb3e801" {
				t.Errorf("SHA-256: %s", r.SHA256)
			}
			t.Log(err)
		})
	}
}

func fileDevice(t testing.TB, dir, name string, data []byte) *FileDevice {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := OpenDevice(path, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// Files and mapped op tables, as the daemon and the tools use them.
func TestFixturesCheck(t *testing.T) {
	for _, c := range underRace(mergeable(t)) {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			cow, base := fileDevice(t, dir, "cow", c.ReadAll(t)), fileDevice(t, dir, "base", baseOf(t, c))
			sum, err := hex.DecodeString(wanted(c))
			if err != nil {
				t.Fatal(err)
			}
			if c.MergedSize < base.Size() && c.PartialBase == nil {
				// The size of a target that shrinks is not in the COW.
				if _, err := Check(context.Background(), CheckOptions{Cow: cow, Base: base, SHA256: sum}); err == nil {
					t.Error("expected the base's size to give another checksum")
				}
			}
			o := CheckOptions{Cow: cow, Base: base, Size: c.MergedSize, SHA256: sum}
			if _, err := Check(context.Background(), o); err != nil {
				t.Fatal(err)
			}
			o.SHA256[0] ^= 1
			if _, err := Check(context.Background(), o); fmt.Sprint(err) == "<nil>" {
				t.Error("a wrong checksum was accepted")
			}
		})
	}
}
