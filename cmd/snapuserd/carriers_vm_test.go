//go:build vmtest

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/ota/control"
	"cowbird/tools/vmlab/vmtest"
)

// The daemon is killed while its device is mounted, read and merged. The next one
// goes on with the same device, and nobody who has it open sees an error.
//
//vmtest:timeout 5m
func TestDaemonRestartNbd(t *testing.T) { restartUnderLoad(t, "nbd", (*rig).kill) }

//vmtest:timeout 5m
func TestDaemonRestartUblk(t *testing.T) { restartUnderLoad(t, "ublk", (*rig).kill) }

// The daemon is told to end and to leave its device to the next one.
//
//vmtest:timeout 5m
func TestDaemonLeaveNbd(t *testing.T) {
	restartUnderLoad(t, "nbd", (*rig).terminate, "--leave-devices")
}

//vmtest:timeout 5m
func TestDaemonLeaveUblk(t *testing.T) {
	restartUnderLoad(t, "ublk", (*rig).terminate, "--leave-devices")
}

//vmtest:timeout 5m
func TestDaemonLeaveDmUser(t *testing.T) {
	restartUnderLoad(t, "dm-user", (*rig).terminate, "--leave-devices")
}

func restartUnderLoad(t *testing.T, carrier string, end func(*rig), flags ...string) {
	r := newRig(t, carrier, "16M", oneFile)
	r.flags = flags
	node := r.start()
	point := t.TempDir()
	r.must(unix.Mount(node, point, "ext4", unix.MS_RDONLY, "noload"))
	stop, rounds := r.reading(node)
	for _, merging := range []bool{false, true, true} {
		if merging {
			r.must(r.client.Merge(t.Context(), "system", 1<<20)) // slowly, so that it is under way
		}
		rounds.Store(0)
		vmtest.Eventually(t, "reads", func() bool { return rounds.Load() > 20 })
		end(r)
		if again := r.start(); again != node {
			t.Fatalf("expected %s again, found %s", node, again)
		}
	}
	rounds.Store(0)
	vmtest.Eventually(t, "reads after the last restart", func() bool { return rounds.Load() > 20 })
	r.must(stop())
	if err := r.client.Do(t.Context(), control.Delete, "system"); err == nil || !strings.Contains(err.Error(), point) {
		t.Errorf("expected the mount on %s to keep the snapshot, found %v", point, err)
	}
	r.checkMount(point)
	r.merge()
	r.end()
}

// merge merges all that is left.
func (r *rig) merge() {
	r.t.Helper()
	r.must(r.client.Merge(r.t.Context(), "system", 0))
	vmtest.Eventually(r.t, "merged", func() bool {
		s, err := r.client.Status(r.t.Context(), "system")
		return err == nil && s.State == control.StateComplete
	})
}

// checkMount reads the file of the mounted file system from its device, and
// unmounts it.
func (r *rig) checkMount(point string) {
	r.t.Helper()
	r.must(os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
	got, err := os.ReadFile(filepath.Join(point, "file"))
	r.must(err)
	if !bytes.Equal(got, fileContent) {
		r.t.Error("the mounted file differs")
	}
	r.must(unix.Unmount(point, 0))
}

// end unmaps what is merged, and ends the daemon.
func (r *rig) end() {
	r.t.Helper()
	r.must(r.client.Do(r.t.Context(), control.Delete, "system"))
	r.must(r.process.Process.Signal(unix.SIGTERM))
	r.must(r.process.Wait())
	r.checkBase()
}

func (r *rig) checkBase() {
	r.t.Helper()
	merged, err := os.ReadFile(r.base)
	r.must(err)
	if !bytes.Equal(merged, r.target) {
		r.t.Error("expected the base to be the target")
	}
}

// A daemon whose device cannot outlive it is killed while that is read and merged:
// the reader learns of it, and the next daemon goes on with the merge.
//
//vmtest:timeout 5m
func TestDaemonKilledFuse(t *testing.T) { endedUnderLoad(t, "fuse", (*rig).kill) }

// The daemon is told to end while its device is read and merged, and takes it away.
//
//vmtest:timeout 5m
func TestDaemonStop(t *testing.T) {
	for _, carrier := range []string{"fuse", "nbd", "ublk", "dm-user"} {
		t.Run(carrier, func(t *testing.T) { endedUnderLoad(t, carrier, (*rig).terminate) })
	}
}

func endedUnderLoad(t *testing.T, carrier string, end func(*rig)) {
	r := newRig(t, carrier, "16M", oneFile)
	for range 3 {
		stop, rounds := r.reading(r.start())
		r.must(r.client.Merge(t.Context(), "system", 1<<20))
		vmtest.Eventually(t, "reads", func() bool { return rounds.Load() > 20 })
		end(r)
		ended := make(chan error, 1)
		go func() { ended <- stop() }()
		select {
		case err := <-ended:
			if !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ENXIO) && !errors.Is(err, unix.ENODEV) {
				t.Errorf("expected EIO, found %v", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("a reader of a device whose daemon has ended hangs")
		}
	}
	stop, rounds := r.reading(r.start())
	r.merge()
	rounds.Store(0)
	vmtest.Eventually(t, "reads after the merge", func() bool { return rounds.Load() > 20 })
	r.must(stop())
	r.end()
}

// A user who is not root serves a snapshot of his own, reads it, merges it, and leaves
// nothing. He needs no more than the rule of udev that is for him.
//
//vmtest:timeout 2m
func TestDaemonUnprivileged(t *testing.T) {
	const user = 65534
	nobody := &syscall.Credential{Uid: user, Gid: user}
	r := newRig(t, "ublk", "16M", oneFile)
	r.must(os.Chmod(filepath.Dir(r.dir), 0o711))
	for _, path := range []string{r.dir, r.base, r.cow} {
		r.must(os.Chown(path, user, user))
	}
	r.startUdev("nogroup")

	cmd := exec.Command("/proc/self/exe", "--socket", r.socket, "--carrier", "ublk")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: nobody}
	r.launch(cmd)
	node := r.mapSnapshot()
	read := exec.Command("cat", node)
	read.SysProcAttr = cmd.SysProcAttr
	if got, err := read.Output(); err != nil || !bytes.Equal(got, r.target) {
		t.Errorf("expected the user to read the target, found %d bytes, %v", len(got), err)
	}
	stop, rounds := r.reading(node)
	vmtest.Eventually(t, "reads", func() bool { return rounds.Load() > 20 })
	r.merge()
	rounds.Store(0)
	vmtest.Eventually(t, "reads after the merge", func() bool { return rounds.Load() > 20 })
	r.must(stop())
	r.end()
	if left, err := filepath.Glob("/dev/ublk[bc][0-9]*"); len(left) > 0 || err != nil {
		t.Errorf("expected no device to be left, found %q, %v", left, err)
	}
}

// startUdev runs udev with the rule for members of a group, and this program where the
// rule has snapuserd.
func (r *rig) startUdev(group string) {
	r.t.Helper()
	rule, err := os.ReadFile("../../tools/boot/udev/70-cowbird-ublk.rules")
	r.must(err)
	program, err := os.Executable()
	r.must(err)
	script := filepath.Join(r.dir, "snapuserd")
	r.must(os.WriteFile(script, fmt.Appendf(nil, "#!/bin/sh\n%s=1 exec %s \"$@\"\n", daemonEnv, program), 0o755))
	text := strings.NewReplacer("/usr/sbin/snapuserd", script, `GROUP="ublk"`, fmt.Sprintf("GROUP=%q", group)).Replace(string(rule))
	r.must(os.MkdirAll("/run/udev/rules.d", 0o755))
	r.must(os.WriteFile("/run/udev/rules.d/70-cowbird-ublk.rules", []byte(text), 0o644))
	udev := exec.Command("/lib/systemd/systemd-udevd")
	udev.Stderr = os.Stderr
	r.must(udev.Start())
	r.t.Cleanup(func() { _ = udev.Process.Kill(); _ = udev.Wait() })
	vmtest.Eventually(r.t, "udev", func() bool {
		_ = exec.Command("udevadm", "trigger", "--name-match=/dev/ublk-control").Run() // in vain until udev listens
		info, err := os.Stat("/dev/ublk-control")
		return err == nil && info.Mode().Perm() == 0o660
	})
}
