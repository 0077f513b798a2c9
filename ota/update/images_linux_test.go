package update

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func openImages(t *testing.T, dir string) *FileImages {
	if os.Geteuid() != 0 {
		t.Skip("loop devices need root")
	}
	i, err := OpenImages(dir, 0)
	must(t, err)
	t.Cleanup(func() { _ = i.Close() })
	return i
}

// attached tells whether a loop device has a file.
func attached(path string) bool {
	_, err := os.Stat("/sys/block/" + filepath.Base(path) + "/loop/backing_file")
	return err == nil
}

func TestFileImages(t *testing.T) {
	dir := t.TempDir()
	i := openImages(t, dir)
	must(t, os.WriteFile(filepath.Join(dir, "other"), nil, 0o600))
	before, err := i.Room()
	must(t, err)
	must(t, i.Create("system_b-cow", 1<<20))
	if after, err := i.Room(); err != nil || after < before-4<<20 {
		t.Errorf("expected the room of what may be replaced to count, found %d of %d, %v", after, before, err)
	}
	table, err := i.Table("system_b-cow")
	must(t, err)
	again, err := i.Table("system_b-cow")
	must(t, err)
	if len(table) != 1 || table[0].Sectors != 2048 || !slices.Equal(table, again) {
		t.Fatalf("expected the same device of 2048 sectors, found %v and %v", table, again)
	}
	another := openImages(t, dir) // as another process
	if found, err := another.Table("system_b-cow"); err != nil || !slices.Equal(found, table) {
		t.Errorf("expected the same device, found %v, %v", found, err)
	}
	must(t, another.Close())
	content := bytes.Repeat([]byte("cow "), 1024)
	loop, err := os.OpenFile(table[0].Device, os.O_RDWR, 0)
	must(t, err)
	_, err = loop.WriteAt(content, 8192)
	must(t, err)
	must(t, loop.Sync())
	must(t, loop.Close())
	if b, err := os.ReadFile(filepath.Join(dir, "system_b-cow.img")); err != nil || !bytes.Equal(b[8192:][:len(content)], content) {
		t.Errorf("expected what was written in the file, found %v", err)
	}
	if names, err := i.List(); err != nil || !slices.Equal(names, []string{"system_b-cow"}) {
		t.Errorf("expected one image, found %q, %v", names, err)
	}

	must(t, i.Delete("system_b-cow"))
	must(t, i.Delete("system_b-cow"))
	for end := time.Now().Add(10 * time.Second); attached(table[0].Device) && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if attached(table[0].Device) {
		b, _ := os.ReadFile("/sys/block/" + filepath.Base(table[0].Device) + "/loop/backing_file")
		if strings.HasPrefix(string(b), dir) {
			t.Errorf("expected %s to be free again", table[0].Device)
		}
	}
}

func TestFileImagesNoSpace(t *testing.T) {
	dir := t.TempDir()
	i := openImages(t, dir)
	// More than a file may have: the file system, had it been asked, would say so.
	if err := i.Create("x", 1<<62); !errors.Is(err, ErrNoSpace) {
		t.Errorf("expected ErrNoSpace, found %v", err)
	}
	if names, err := i.List(); err != nil || len(names) > 0 {
		t.Errorf("expected nothing to be left, found %q, %v", names, err)
	}
	all, err := OpenImages(dir, 1<<60)
	must(t, err)
	defer all.Close()
	if room, err := all.Room(); room != 0 || err != nil {
		t.Errorf("expected no room, found %d, %v", room, err)
	}
}
