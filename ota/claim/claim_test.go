package claim

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestOneClaimAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.cow")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	first, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, ErrClaimed) {
		t.Errorf("second claim: expected ErrClaimed, found %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(path)
	if err != nil {
		t.Fatalf("claim after the first has ended: %v", err)
	}
	again.Close()
}

func TestNoFile(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("expected ErrNotExist, found %v", err)
	}
	if _, err := Open(t.TempDir()); err == nil {
		t.Error("a folder: expected an error, found none")
	}
	if _, err := Open("/dev/null"); err == nil {
		t.Error("a character device: expected an error, found none")
	}
}
