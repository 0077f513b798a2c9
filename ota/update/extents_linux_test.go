package update

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cowbird/formats/lpmeta"
	"cowbird/tools/fixture"
)

// extentSite is an ext4 file system on a loop device over another one, which stands for
// the device below.
type extentSite struct {
	*ExtentImages
	dir, device, upper string
	record             *Dir
}

func newExtentSite(t *testing.T) *extentSite {
	t.Helper()
	if os.Geteuid() != 0 {
		fixture.Missing(t, "loop devices and mounts need root")
	}
	s := &extentSite{dir: t.TempDir()}
	file := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.Truncate(file, 64<<20))
	s.device = losetup(t, file)
	run(t, "mke2fs", "-q", "-t", "ext4", "-b", "4096", s.device)
	s.upper = losetup(t, s.device)
	mount(t, s.upper, s.dir)
	var err error
	s.record, err = OpenDir(filepath.Join(t.TempDir(), "gsi", "ota"))
	must(t, err)
	t.Cleanup(func() { _ = s.record.Close() })
	s.ExtentImages = OpenExtentImages(filepath.Join(s.dir, "cowbird"), 0, s.device, s.record)
	t.Cleanup(func() { _ = s.ExtentImages.Close() }) // before the umount
	return s
}

func run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func losetup(t *testing.T, file string) string {
	t.Helper()
	device := run(t, "losetup", "--find", "--show", file)
	t.Cleanup(func() { run(t, "losetup", "--detach", device) })
	return device
}

func mount(t *testing.T, device, dir string) {
	t.Helper()
	must(t, unix.Mount(device, dir, "ext4", 0, ""))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil && err != unix.EINVAL {
			t.Errorf("umount %s: %v", dir, err)
		}
	})
}

// What is written to the blocks that the record names is in the file, which nothing else
// changes; the file system stays sound.
func TestExtentImages(t *testing.T) {
	s := newExtentSite(t)
	if _, err := s.Table("system_b-cow"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("expected no file, found %v", err)
	}
	const size = 5<<20 + 8192
	must(t, s.Create("system_b-cow", size))
	must(t, s.Create("vendor_b-cow", 1<<20))
	table, err := s.Table("system_b-cow")
	must(t, err)
	if length(table) != size/512 || table[0].Device != s.device {
		t.Fatalf("expected %d sectors of %s, found %+v", size/512, s.device, table)
	}
	path := filepath.Join(s.dir, "cowbird", "system_b-cow-img.img")
	if err := os.WriteFile(path, nil, 0o600); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("expected the file to be immutable, found %v", err)
	}
	if names, err := s.List(); err != nil || !slices.Equal(names, []string{"system_b-cow", "vendor_b-cow"}) {
		t.Errorf("expected both, found %q, %v", names, err)
	}
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(rand.IntN(256))
	}
	writeLines(t, table, content)
	must(t, s.Delete("vendor_b-cow"))
	must(t, s.Delete("vendor_b-cow"))
	if _, err := os.Stat(filepath.Join(s.dir, "cowbird", "vendor_b-cow-img.img")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("expected the file to be gone, found %v", err)
	}
	if left := probes(t, s.dir); len(left) > 0 {
		t.Errorf("expected no file that was made to look, found %q", left)
	}

	// Without the file system: the boot, and a recovery system.
	must(t, s.ExtentImages.Close())
	must(t, unix.Unmount(s.dir, 0))
	unmounted := OpenExtentImages(filepath.Join(s.dir, "cowbird"), 0, s.device, s.record)
	again, err := unmounted.Table("system_b-cow")
	must(t, err)
	if !slices.Equal(again, table) || !bytes.Equal(readLines(t, again), content) {
		t.Error("expected the same blocks with the same contents, found others")
	}
	must(t, unmounted.Disable("system_b-cow"))
	if _, err := unmounted.Table("system_b-cow"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("expected no file that may be used, found %v", err)
	}
	run(t, "e2fsck", "-f", "-n", s.device)
	mount(t, s.upper, s.dir)
	s.ExtentImages = OpenExtentImages(filepath.Join(s.dir, "cowbird"), 0, s.device, s.record)
	t.Cleanup(func() { must(t, s.ExtentImages.Close()) })
	if names, err := s.List(); err != nil || !slices.Equal(names, []string{"system_b-cow"}) {
		t.Errorf("expected the file that is to be removed, found %q, %v", names, err)
	}
	must(t, s.Delete("system_b-cow"))
	if names, err := s.List(); err != nil || len(names) > 0 {
		t.Errorf("expected nothing, found %q, %v", names, err)
	}
	if left, err := s.record.List("."); err != nil || len(left) > 0 {
		t.Errorf("expected no record, found %q, %v", left, err)
	}
}

func probes(t *testing.T, dir string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "cowbird", "probe-*"))
	must(t, err)
	return all
}

func writeLines(t *testing.T, table []Line, content []byte) {
	t.Helper()
	for _, l := range table {
		f, err := os.OpenFile(l.Device, os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteAt(content[l.Start*lpmeta.SectorSize:][:l.Sectors*lpmeta.SectorSize], int64(l.From)*lpmeta.SectorSize)
		must(t, err)
		must(t, f.Sync())
		must(t, f.Close())
	}
}

func readLines(t *testing.T, table []Line) (b []byte) {
	t.Helper()
	for _, l := range table {
		f, err := os.Open(l.Device)
		must(t, err)
		part := make([]byte, l.Sectors*lpmeta.SectorSize)
		_, err = f.ReadAt(part, int64(l.From)*lpmeta.SectorSize)
		must(t, err)
		must(t, f.Close())
		b = append(b, part...)
	}
	return b
}

// A device that the file system does not lie on, or is mounted from, is refused before
// anything is made; so is another file system.
func TestExtentImagesRefuse(t *testing.T) {
	s := newExtentSite(t)
	other := filepath.Join(t.TempDir(), "other")
	must(t, os.WriteFile(other, nil, 0o600))
	must(t, os.Truncate(other, 64<<20))
	memory := t.TempDir()
	must(t, unix.Mount("tmpfs", memory, "tmpfs", 0, "size=1M"))
	t.Cleanup(func() { must(t, unix.Unmount(memory, 0)) })
	for name, c := range map[string]struct{ dir, device, says string }{
		"another device": {s.dir, losetup(t, other), "its blocks are not there"},
		"the device":     {s.dir, s.upper, "mounted from /dev/mapper/userdata"},
		"tmpfs":          {memory, s.device, "expected ext4"},
	} {
		e := OpenExtentImages(filepath.Join(c.dir, "cowbird"), 0, c.device, s.record)
		err := e.Create("system_b-cow", 1<<20)
		if !errors.Is(err, ErrPinned) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: expected %q, found %v", name, c.says, err)
		}
		must(t, e.Close())
	}
	must(t, s.open())
	if names, err := s.List(); err != nil || len(names) > 0 {
		t.Errorf("expected nothing, found %q, %v", names, err)
	}
	if err := s.Create("system_b-cow", 1<<30); !errors.Is(err, ErrNoSpace) {
		t.Errorf("expected too little space, found %v", err)
	}
}

// A damaged record is an error, and not taken for none.
func TestExtentImagesDamaged(t *testing.T) {
	record, err := OpenDir(t.TempDir())
	must(t, err)
	must(t, put(record, recordFile, []byte("no metadata")))
	e := OpenExtentImages(t.TempDir(), 0, "/dev/null", record)
	if _, err := e.Table("system_b-cow"); err == nil || !strings.Contains(err.Error(), recordFile) {
		t.Errorf("expected an error that names the file, found %v", err)
	}
}
