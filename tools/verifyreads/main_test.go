package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestVerify(t *testing.T) {
	dir := t.TempDir()
	image := make([]byte, 3<<20)
	for i := range image {
		image[i] = byte(i * 7 >> 3)
	}
	write := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	target := write("target", image)
	same := write("same", image)
	image[2<<20] ^= 1
	other := write("other", image)
	short := write("short", image[:1<<20])

	for path, want := range map[string]int{same: 0, other: 1, short: 3, filepath.Join(dir, "none"): 3} {
		if got := run(path, target, 1, 300*time.Millisecond); got != want {
			t.Errorf("%s: expected exit code %d, found %d", filepath.Base(path), want, got)
		}
	}
}
