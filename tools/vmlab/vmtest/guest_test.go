//go:build vmtest

package vmtest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMachine checks what every guest is promised.
func TestMachine(t *testing.T) {
	if os.Getuid() != 0 || os.Getppid() != 1 {
		t.Errorf("expected to be root and process 1's child, found user %d and parent %d", os.Getuid(), os.Getppid())
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	wantRelease := map[string]string{"uml": "7.3.", "qemu": "6.12."}[Vehicle()]
	if wantRelease == "" || !strings.HasPrefix(release, wantRelease) {
		t.Errorf("vehicle %q: expected a kernel %s*, found %s", Vehicle(), wantRelease, release)
	}
	if Vehicle() == "qemu" && runtime.NumCPU() != 2 {
		t.Errorf("expected 2 processors, found %d", runtime.NumCPU())
	}
}

func TestFolders(t *testing.T) {
	for _, dir := range []string{"/tmp", "/var/tmp", "/run", "/mnt", "/dev/shm", t.TempDir()} {
		if err := os.WriteFile(filepath.Join(dir, "probe"), []byte("x"), 0o600); err != nil {
			t.Error(err)
		}
	}
	for _, dir := range []string{"/", "/etc", "/usr"} {
		if err := os.WriteFile(filepath.Join(dir, "vmlab-probe"), nil, 0o600); err == nil {
			os.Remove(filepath.Join(dir, "vmlab-probe"))
			t.Errorf("%s: expected the host's root to be read-only, but could write", dir)
		}
	}
	if _, err := os.Stat("guest_test.go"); err != nil {
		t.Errorf("expected to be in the package's folder: %v", err)
	}
}

func TestHostPrograms(t *testing.T) {
	for _, argv := range [][]string{{"dmsetup", "version"}, {"fio", "--version"}, {"mkfs.ext4", "-V"}, {"losetup", "--version"}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", strings.Join(argv, " "), err, out)
		}
	}
}

func TestDeviceMapperTargets(t *testing.T) {
	out, err := exec.Command("dmsetup", "targets").CombinedOutput()
	if err != nil {
		t.Fatalf("dmsetup targets: %v\n%s", err, out)
	}
	for _, name := range []string{
		"linear", "error", "striped", "zero", "snapshot", "snapshot-origin", "snapshot-merge",
		"thin", "thin-pool", "verity", "flakey", "log-writes", "delay", "crypt",
	} {
		if !bytes.Contains(append([]byte("\n"), out...), []byte("\n"+name+" ")) {
			t.Errorf("expected the target %s, found none", name)
		}
	}
}

// TestControlFiles opens what each driver is spoken to through.
func TestControlFiles(t *testing.T) {
	for _, path := range []string{
		"/dev/mapper/control", "/dev/ublk-control", "/dev/loop-control", "/dev/fuse", "/dev/cuse", "/dev/nbd0", "/dev/loop0",
	} {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		unix.Close(fd)
	}
}

func TestFileSystems(t *testing.T) {
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ext4", "erofs", "squashfs", "overlay", "fuse", "tmpfs"} {
		if !bytes.Contains(b, []byte("\t"+name+"\n")) {
			t.Errorf("expected the file system %s, found none", name)
		}
	}
}

// TestExt4OnLoop has a file system made by a program of the host, on a device
// of the guest.
func TestExt4OnLoop(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	script := `set -e
mkfs.ext4 -q "$1"
dev=$(losetup -f --show "$1")
mount $dev /mnt
echo hello >/mnt/file
umount /mnt
mount -o ro $dev /mnt
cat /mnt/file
umount /mnt
losetup -d $dev`
	out, err := exec.Command("bash", "-c", script, "-", image).CombinedOutput()
	if err != nil || string(out) != "hello\n" {
		t.Errorf("expected hello, found %q, %v", out, err)
	}
}

// TestKernelLog checks that a test can read what the kernel says meanwhile.
func TestKernelLog(t *testing.T) {
	log := KernelLog(t)
	if lines := log.Lines(t); len(lines) != 0 {
		t.Errorf("expected nothing yet, found %q", lines)
	}
	say(t, "a word from a test")
	if lines := log.Lines(t); len(lines) != 1 || lines[0] != "vmlab: a word from a test" {
		t.Errorf("expected the word, found %q", lines)
	}
}

// TestLoopback checks that 127.0.0.1 is up: tests of servers need it.
func TestLoopback(t *testing.T) {
	b, err := os.ReadFile("/sys/class/net/lo/flags")
	if err != nil {
		t.Fatal(err)
	}
	if strings.TrimSpace(string(b)) != "0x9" {
		t.Errorf("expected lo to be up, found flags %s", b)
	}
}
