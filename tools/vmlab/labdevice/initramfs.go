package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/tools/vmlab/job"
)

const (
	metadataDir = "/run/metadata"
	dataDir     = "/run/data"
	disksDir    = "/run/disks" // the host's files
	blockDir    = "/run/block" // links to block devices of the same names
	newRoot     = "/mnt"
	mappedList  = "/run/mapped" // what otactl boot has said
)

func mount(source, target, kind string, flags uintptr, options string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, kind, flags, options); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount %s on %s: %w", source, target, err)
	}
	return nil
}

// first is the first error of some steps, each of which is done if those before it went well.
func first(steps ...func() error) error {
	for _, s := range steps {
		if err := s(); err != nil {
			return err
		}
	}
	return nil
}

func initramfs() error {
	var p *plan
	err := first(
		func() error { return mount("proc", "/proc", "proc", 0, "") },
		func() error { return mount("sysfs", "/sys", "sysfs", 0, "") },
		func() error { return mount("devtmpfs", "/dev", "devtmpfs", 0, "") },
		func() error { return mount("run", "/run", "tmpfs", 0, "mode=755") },
		func() error { return mount("tmp", "/tmp", "tmpfs", 0, "mode=1777") },
		func() (err error) { p, err = readPlan(); return err },
		func() error { return mount("none", labDir, "hostfs", unix.MS_RDONLY, p.folder) },
		func() error { return mount("none", disksDir, "hostfs", 0, p.disks) },
		writeEarly,
		attachDisks,
	)
	if err != nil {
		return err
	}
	if p.do["proof"] {
		return proof()
	}
	err = first(
		func() error { return mount(blockDir+"/metadata", metadataDir, "ext4", 0, "") },
		func() error {
			if p.do["extents"] { // is mounted by the system
				return nil
			}
			err := mount(blockDir+"/data", dataDir, "ext4", 0, "")
			if err != nil && p.do["wipe"] { // an earlier attempt has erased it
				say("no data: %v", err)
				return nil
			}
			return err
		},
	)
	if err != nil {
		return err
	}
	say("boots slot %s at %s s", p.slot, uptime())
	if p.do["damage-state"] {
		if err := os.WriteFile(metadataDir+"/ota/state", []byte("\xff\xff garbage"), 0o600); err != nil {
			return err
		}
	}
	if p.do["wipe"] {
		return wipe(p)
	}
	if p.do["recover"] {
		return recoverMerge(p)
	}
	return first(func() error { return mapPartitions(p) }, job.Loopback, startHTTP, enterSystem)
}

// writeEarly has the kernel hand to the disks, within moments, what programs have written:
// a disk's cache is to be full of what nobody has asked it to keep.
func writeEarly() error {
	return errors.Join(
		os.WriteFile("/proc/sys/vm/dirty_expire_centisecs", []byte("1"), 0),
		os.WriteFile("/proc/sys/vm/dirty_writeback_centisecs", []byte("2"), 0),
	)
}

// attachDisks makes a block device of each of the host's files.
func attachDisks() error {
	files, err := os.ReadDir(disksDir)
	if err != nil {
		return err
	}
	if err := os.Mkdir(blockDir, 0o755); err != nil {
		return err
	}
	for i, f := range files {
		device := fmt.Sprintf("/dev/loop%d", i)
		if err := addLoop(i); err != nil {
			return fmt.Errorf("make %s: %w", device, err)
		}
		if err := attach(device, filepath.Join(disksDir, f.Name())); err != nil {
			return fmt.Errorf("%s on %s: %w", device, f.Name(), err)
		}
		if err := os.Symlink(device, filepath.Join(blockDir, f.Name())); err != nil {
			return err
		}
	}
	return nil
}

// addLoop makes a loop device unless it is there: the kernel begins with eight.
func addLoop(i int) error {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer control.Close()
	if err := unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_ADD, i); err != nil && err != unix.EEXIST {
		return err
	}
	return nil
}

func attach(device, file string) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	loop, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer loop.Close()
	return unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{Fd: uint32(f.Fd()), Size: 512})
}

// proof writes two blocks, of which it syncs one, and waits for the power to go.
func proof() error {
	f, err := os.OpenFile(blockDir+"/vbmeta_b", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	write := func(text string, off int64) func() error {
		return func() error {
			block := make([]byte, 4096)
			copy(block, text)
			_, err := f.WriteAt(block, off)
			return err
		}
	}
	if err := first(write("synced", 0), f.Sync, write("not synced", 8192)); err != nil {
		return err
	}
	time.Sleep(time.Second)
	say("written")
	time.Sleep(time.Minute)
	return nil
}

func otactlOf(dir string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(dir, "otactl"), args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp"}
	return cmd
}

// early is the configuration that the initramfs has.
func (p *plan) early() string {
	if p.config != "" {
		return filepath.Join(labDir, p.config)
	}
	return filepath.Join(labDir, "update.json")
}

func mapPartitions(p *plan) error {
	cmd := otactlOf(labDir, "boot", "--config", p.early(), "--timeout", "30s", "--daemon", labDir+"/snapuserd", "--daemon-root", "/run/initramfs/cowbird")
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("otactl boot: %w: %s", err, errs.String())
	}
	say("mapped at %s s", uptime())
	return os.WriteFile(mappedList, out, 0o600)
}

// wipe is what a recovery system does when the user's data are to go.
func wipe(p *plan) error {
	out, err := otactlOf(labDir, "before-wipe", "--config", p.early(), "--timeout", "30s", "--daemon", labDir+"/snapuserd").CombinedOutput()
	if err != nil {
		return fmt.Errorf("otactl before-wipe: %w: %s", err, out)
	}
	if err := unix.Unmount(dataDir, 0); err != nil && err != unix.EINVAL {
		return fmt.Errorf("umount %s: %w", dataDir, err)
	}
	if out, err := exec.Command("/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", blockDir+"/data").CombinedOutput(); err != nil {
		return fmt.Errorf("mke2fs: %w: %s", err, out)
	}
	say("wiped")
	say("well")
	return nil
}

// recoverMerge is what a recovery system does that people start when the system does
// not stay up.
func recoverMerge(p *plan) error {
	out, err := otactlOf(labDir, "merge", "--recovery", "--config", p.early(), "--timeout", "30s", "--daemon", labDir+"/snapuserd").CombinedOutput()
	if err != nil {
		return fmt.Errorf("otactl merge --recovery: %w: %s", err, out)
	}
	var update struct {
		State string `json:"state"`
	}
	if out, err = otactlOf(labDir, "update", "--json", "--config", p.early()).Output(); err == nil {
		err = json.Unmarshal(out, &update)
	}
	if err != nil {
		return fmt.Errorf("otactl update: %w: %s", err, out)
	}
	say("recovered %s", update.State)
	say("well")
	return nil
}

// startHTTP leaves a server behind, which stands for one elsewhere.
func startHTTP() error {
	cmd := exec.Command(labDir+"/labdevice", "http")
	cmd.Args[0] = "@http"
	cmd.Dir = labDir + "/payloads" // which is elsewhere once the root has been switched
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd.Start()
}

// enterSystem mounts the root and goes on there.
func enterSystem() error {
	list, err := os.ReadFile(mappedList)
	if err != nil {
		return err
	}
	device := ""
	for line := range strings.Lines(string(list)) {
		name, path, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.HasPrefix(name, rootName+"_") {
			device = path
		}
	}
	if err := mount(device, newRoot, "erofs", unix.MS_RDONLY, ""); err != nil {
		return err
	}
	for _, dir := range []string{"/dev", "/proc", "/sys", "/tmp", "/run"} {
		if err := unix.Mount(dir, newRoot+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", dir, err)
		}
	}
	err = first(
		func() error { return unix.Chdir(newRoot) },
		func() error { return unix.Mount(".", "/", "", unix.MS_MOVE, "") },
		func() error { return unix.Chroot(".") },
		func() error { return unix.Chdir("/") },
	)
	if err != nil {
		return fmt.Errorf("switch the root: %w", err)
	}
	return fmt.Errorf("/sbin/init: %w", unix.Exec("/sbin/init", []string{"/sbin/init", "system"}, []string{"PATH=/usr/sbin"}))
}
