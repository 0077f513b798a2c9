//go:build vmtest

package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cowbird/tools/vmlab/vmtest"
)

// The kernel's dm-verity believes what verity build makes and takes the table that
// verity info prints: what is right is read, what is wrong is an error, or with error
// correction is repaired, as verity repair would.
func TestVerityKernel(t *testing.T) {
	t.Setenv("DM_DISABLE_UDEV", "1")
	vmtest.Allow(t, `device-mapper: verity`)
	vmtest.Allow(t, `I/O error.* dev dm-`)
	t.Run("Tree", func(t *testing.T) { verityKernel(t, false) })
	t.Run("FEC", func(t *testing.T) {
		if vmtest.Vehicle() == "uml" {
			t.Skip("this kernel is built without error correction of dm-verity")
		}
		verityKernel(t, true)
	})
}

func verityKernel(t *testing.T, fec bool) {
	b := newVerityBox(t)
	roots := "0"
	if fec {
		roots = "2"
	}
	b.run("verity build --key @rsa2048.pem --salt 0102 --partition-size 8M --fec-roots " + roots + " @system.img")
	good := b.read("system.img")
	b.spoil("system.img", 3, 700)
	device := strings.TrimSpace(command(t, "losetup", "--find", "--show", b.path("system.img")))
	defer command(t, "losetup", "--detach", device)
	table := strings.TrimSpace(b.run("verity info --table " + device + " @system.img"))
	command(t, "dmsetup", "create", "verified", "--readonly", "--table", table)
	defer command(t, "dmsetup", "remove", "--retry", "verified")
	f, err := os.Open("/dev/mapper/verified")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 4096)
	for block := range int64(1500) {
		_, err := f.ReadAt(buf, block*4096)
		if spoilt := block == 3 || block == 700; spoilt && !fec {
			if !errors.Is(err, unix.EIO) {
				t.Errorf("block %d: expected EIO, found %v", block, err)
			}
		} else if err != nil || !bytes.Equal(buf, good[block*4096:][:4096]) {
			t.Errorf("block %d: expected its contents, found %v, equal %v", block, err, bytes.Equal(buf, good[block*4096:][:4096]))
		}
	}
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}
