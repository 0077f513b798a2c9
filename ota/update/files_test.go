package update

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func openDir(t *testing.T) (*Dir, string) {
	dir := t.TempDir()
	d, err := OpenDir(dir)
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	return d, dir
}

func TestDir(t *testing.T) {
	d, dir := openDir(t)
	if b, err := get(d, stateFile); b != nil || err != nil {
		t.Errorf("expected nothing, found %q, %v", b, err)
	}
	must(t, d.MakeDir(snapshotsDir))
	must(t, d.MakeDir(snapshotsDir))
	for _, text := range []string{"one", "two"} {
		must(t, put(d, statusFile("x_a"), []byte(text)))
		if b, err := d.Read(statusFile("x_a")); string(b) != text || err != nil {
			t.Errorf("expected %q, found %q, %v", text, b, err)
		}
	}
	must(t, os.WriteFile(filepath.Join(dir, snapshotsDir, "y_a"+temporary), nil, 0o600))
	names, err := list(d, snapshotsDir)
	if err != nil || len(names) != 1 || names[0] != "x_a" {
		t.Errorf("expected x_a alone, found %q, %v", names, err)
	}
	must(t, drop(d, statusFile("x_a"), "nothing"))
	if _, err := d.Read(statusFile("x_a")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("expected it to be gone, found %v", err)
	}
	if names, err := list(d, "nowhere"); names != nil || err != nil {
		t.Errorf("expected nothing, found %q, %v", names, err)
	}
}

// Links, pipes and monsters in the folder's place of a file.
func TestDirHostile(t *testing.T) {
	d, dir := openDir(t)
	outside := filepath.Join(t.TempDir(), "outside")
	must(t, os.WriteFile(outside, []byte("secret"), 0o600))
	state := filepath.Join(dir, stateFile)

	must(t, os.Symlink(outside, state))
	must(t, os.Symlink(outside, state+temporary))
	if b, err := d.Read(stateFile); err == nil {
		t.Errorf("expected a link to be refused, found %q", b)
	}
	must(t, put(d, stateFile, []byte("new")))
	if b, err := os.ReadFile(outside); string(b) != "secret" || err != nil {
		t.Errorf("expected what a link points to to stay, found %q, %v", b, err)
	}
	if b, err := d.Read(stateFile); string(b) != "new" || err != nil {
		t.Errorf("expected the file in the link's place, found %q, %v", b, err)
	}

	must(t, os.Symlink(filepath.Dir(outside), filepath.Join(dir, snapshotsDir)))
	if err := put(d, statusFile("x_a"), nil); err == nil {
		t.Error("expected a folder outside to be refused")
	}
	if _, err := list(d, snapshotsDir); err == nil {
		t.Error("expected a folder outside not to be listed")
	}

	must(t, os.Remove(state))
	must(t, unix.Mkfifo(state, 0o600))
	if _, err := d.Read(stateFile); err == nil {
		t.Error("expected a pipe to be refused")
	}
	must(t, os.Remove(state))
	must(t, os.Truncate(mustCreate(t, state), maxFile+1))
	if _, err := d.Read(stateFile); err == nil {
		t.Error("expected a monster to be refused")
	}
}

func mustCreate(t *testing.T, path string) string {
	must(t, os.WriteFile(path, nil, 0o600))
	return path
}

// SNM-012: two shared locks go together, an exclusive one with nothing.
func TestLock(t *testing.T) {
	d, dir := openDir(t)
	other, err := OpenDir(dir) // as another program
	must(t, err)
	defer other.Close()
	first, err := d.Lock(false)
	must(t, err)
	second, err := other.Lock(false)
	must(t, err)
	got := make(chan error)
	go func() {
		unlock, err := other.Lock(true)
		if err == nil {
			unlock()
		}
		got <- err
	}()
	select {
	case err := <-got:
		t.Errorf("expected the exclusive lock to wait, found %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	first()
	second()
	must(t, <-got)
}
