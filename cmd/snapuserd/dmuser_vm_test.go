//go:build vmtest

package main

import (
	"errors"
	"os"
	"os/exec"
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
	info, err := os.Stat(r.cow)
	r.must(err)
	r.must(os.Truncate(r.cow, (info.Size()+4095)&^4095))
	out, err := exec.Command("losetup", "-f", "--show", r.cow).Output()
	r.must(err)
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
	r := newRig(t, "dm-user", "16M", oneFile)
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
		r.must(r.client.Tell(t.Context(), control.Detach))
		next := r.successor()
		if again := next.start(); again != node {
			t.Fatalf("expected %s again, found %s", node, again)
		}
		r.must(r.process.Wait())
		r = next
		rounds.Store(0)
	}
	r.merge()
	vmtest.Eventually(t, "reads after the last change", func() bool { return rounds.Load() > 20 })
	r.must(stop())
	r.checkMount(point)
	r.end()
}

// The daemon is killed while its device is mounted, read and merged. Reads fail
// until the next one is there, which goes on with the device; a mount that was
// not read meanwhile does not notice.
//
//vmtest:timeout 5m
func TestDmUserCarrierDaemonKill(t *testing.T) {
	r := newRig(t, "dm-user", "16M", oneFile)
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
	r.merge()
	vmtest.Eventually(t, "reads", func() bool { return rounds.Load() > 20 })
	r.must(stop())
	r.checkMount(point)
	r.end()
}
