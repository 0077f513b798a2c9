//go:build vmtest

package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cowbird/ota/control"
	"cowbird/tools/vmlab/vmtest"
)

// onLoop puts the COW on a block device, as it is on phones: two daemons may have
// it open for a while.
func (r *rig) onLoop() {
	r.t.Helper()
	out, err := exec.Command("losetup", "-f", "--show", r.cow).CombinedOutput()
	if err != nil {
		r.t.Fatalf("losetup: %v: %s", err, out)
	}
	r.cow = strings.TrimSpace(string(out))
	r.t.Cleanup(func() { _ = exec.Command("losetup", "-d", r.cow).Run() })
}

// successor is another daemon for the same snapshot.
func (r *rig) successor() *rig {
	next := *r
	next.socket += "+"
	return &next
}

// One daemon after another takes over the device of a snapshot that is mounted and
// read. Nobody notices, and each leaves when its device has.
//
//vmtest:timeout 5m
func TestDmUserCarrierDaemonHandOver(t *testing.T) {
	r := newRig(t, "dm-user")
	r.onLoop()
	node := r.start()
	if !strings.HasPrefix(node, "/dev/dm-") {
		t.Fatalf("expected a device of device-mapper's, found %s", node)
	}
	point := t.TempDir()
	r.must(unix.Mount(node, point, "ext4", unix.MS_RDONLY, "noload"))
	stop, rounds := r.reading(node)
	for range 4 {
		vmtest.Eventually(t, "reads", func() bool { return rounds.Load() > 20 })
		r.must(r.client.Do(t.Context(), control.Detach))
		next := r.successor()
		if again := next.start(); again != node {
			t.Fatalf("expected %s again, found %s", node, again)
		}
		r.must(r.process.Wait())
		r = next
		rounds.Store(0)
	}
	r.must(r.client.Merge(t.Context(), "system", 0))
	vmtest.Eventually(t, "merged", func() bool {
		s, err := r.client.Status(t.Context(), "system")
		return err == nil && s.State == control.StateComplete
	})
	vmtest.Eventually(t, "reads after the last change", func() bool { return rounds.Load() > 20 })
	r.must(stop())
	r.checkMount(point)
	r.finish()
}

// checkMount reads the file of the mounted file system from its device.
func (r *rig) checkMount(point string) {
	r.t.Helper()
	r.must(os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
	got, err := os.ReadFile(filepath.Join(point, "file"))
	r.must(err)
	if !bytes.Equal(got, bytes.Repeat([]byte("content of the file\n"), 100000)) {
		r.t.Error("the mounted file differs")
	}
	r.must(unix.Unmount(point, 0))
}

// finish ends a daemon that has merged its snapshot.
func (r *rig) finish() {
	r.t.Helper()
	r.must(r.client.Do(r.t.Context(), control.Delete, "system"))
	r.must(r.process.Process.Signal(unix.SIGTERM))
	r.must(r.process.Wait())
	merged, err := os.ReadFile(r.base)
	r.must(err)
	if !bytes.Equal(merged, r.target) {
		r.t.Error("expected the base to be the target")
	}
}

// The daemon is killed while its device is mounted, read and merged. Reads fail
// until the next one is there, which goes on with the device; a mount that was
// not read meanwhile does not notice.
//
//vmtest:timeout 5m
func TestDmUserCarrierDaemonKill(t *testing.T) {
	r := newRig(t, "dm-user")
	node := r.start()
	point := t.TempDir()
	r.must(unix.Mount(node, point, "ext4", unix.MS_RDONLY, "noload"))
	for _, merging := range []bool{false, true, true} {
		stop, rounds := r.reading(node)
		if merging {
			r.must(r.client.Merge(t.Context(), "system", 1<<20)) // slowly, so that it is under way
		}
		vmtest.Eventually(t, "reads", func() bool { return rounds.Load() > 20 })
		r.kill()
		if err := stop(); !errors.Is(err, unix.EIO) {
			t.Errorf("expected EIO, found %v", err)
		}
		if again := r.start(); again != node {
			t.Fatalf("expected %s again, found %s", node, again)
		}
	}
	stop, rounds := r.reading(node)
	r.must(r.client.Merge(t.Context(), "system", 0))
	vmtest.Eventually(t, "merged", func() bool {
		s, err := r.client.Status(t.Context(), "system")
		return err == nil && s.State == control.StateComplete && rounds.Load() > 20
	})
	r.must(stop())
	r.checkMount(point)
	r.finish()
}
