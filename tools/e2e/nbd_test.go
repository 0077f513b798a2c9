package e2e

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"cowbird/tools/fixture"
)

// peer runs an NBD client of Debian's.
func (d *device) peer(name string, args ...string) string {
	d.t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		fixture.Missing(d.t, "%s is not installed", name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		d.t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

// connectNbd is a client that has opened an export and says nothing more.
func (d *device) connectNbd(socket, export string) net.Conn {
	d.t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = c.Close() })
	_, err = io.ReadFull(c, make([]byte, 18))
	if err == nil {
		_, err = io.WriteString(c, "\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x01\x00\x00\x00"+string(rune(len(export)))+export)
	}
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 10))
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return c
}

// What is mapped is exported: any NBD client reads the target, before the merge,
// during it and afterwards.
func TestNbdSocket(t *testing.T) {
	d := newDevice(t, 16384)
	socket := d.path("nbd")
	d.start("--nbd-socket", socket)
	d.mapIt("system")
	if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("expected mode 0660, found %v, %v", st.Mode(), err)
	}
	url := "nbd+unix:///system?socket=" + socket
	if out := d.peer("nbdinfo", "--list", "nbd+unix://?socket="+socket); !strings.Contains(out, `export="system"`) {
		t.Errorf("expected the export system, found %s", out)
	}
	d.peer("qemu-img", "compare", "-f", "raw", "-F", "raw", url, d.path("target.img"))

	d.must("otactl", "merge", "system")
	for merging := true; merging; {
		merging = d.status("system").State != "snapshot-merge-complete"
		d.peer("nbdcopy", url, d.path("copy.img"))
		if got, err := os.ReadFile(d.path("copy.img")); err != nil || !bytes.Equal(got, d.target) {
			t.Fatalf("expected the target, found something else, %v", err)
		}
	}

	c := d.connectNbd(socket, "system")
	d.isIdle(collected) // by the merge
	if out, err := d.command("otactl", "unmap", "system"); err == nil || !strings.Contains(err.Error(), "NBD export system") {
		t.Errorf("expected a client that reads to keep the snapshot mapped, found %s, %v", out, err)
	}
	if err := d.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("expected the client to be hung up on, found %v", err)
	}
	if _, err := os.Lstat(socket); err == nil {
		t.Error("expected the socket to be removed")
	}
}

func TestNbdSocketTaken(t *testing.T) {
	d := newDevice(t, 64)
	d.start("--nbd-socket", d.path("nbd"))
	d.must("otactl", "status")
	_, err := d.command("snapuserd", "--socket", d.path("other"), "--nbd-socket", d.path("nbd"))
	if err == nil || !strings.Contains(err.Error(), "another process answers") {
		t.Errorf("expected a second daemon to be refused, found %v", err)
	}
	if err := d.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
}
