package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	metadataDir = "/run/metadata"
	dataDir     = "/run/data"
	staticDir   = "/run/static"
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
		mountLab,
		staticPartitions,
		func() error { return mount("/dev/ubdb", metadataDir, "ext4", 0, "") },
		func() error { return mount("/dev/ubdd", dataDir, "ext4", 0, "") },
	)
	if err != nil {
		return err
	}
	say("boots slot %s", p.slot)
	if err := mapPartitions(); err != nil {
		return err
	}
	if p.do["wipe"] {
		return wipe()
	}
	return first(loopback, startHTTP, enterSystem)
}

func mountLab() error {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	for w := range strings.FieldsSeq(string(line)) {
		if folder, ok := strings.CutPrefix(w, "lab.folder="); ok {
			return mount("none", labDir, "hostfs", unix.MS_RDONLY, folder)
		}
	}
	return errors.New("expected lab.folder= on the command line, found none")
}

// staticPartitions gives those their names.
func staticPartitions() error {
	return errors.Join(os.Mkdir(staticDir, 0o755), os.Symlink("/dev/ubde", staticDir+"/vbmeta_a"), os.Symlink("/dev/ubdf", staticDir+"/vbmeta_b"))
}

func otactlOf(dir string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(dir, "otactl"), args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp"}
	return cmd
}

func mapPartitions() error {
	cmd := otactlOf(labDir, "boot", "--config", labDir+"/update.json", "--timeout", "30s", "--daemon", labDir+"/snapuserd", "--daemon-root", "/run/initramfs/cowbird")
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
func wipe() error {
	out, err := otactlOf(labDir, "before-wipe", "--config", labDir+"/update.json", "--timeout", "30s").CombinedOutput()
	if err != nil {
		return fmt.Errorf("otactl before-wipe: %w: %s", err, out)
	}
	if err := unix.Unmount(dataDir, 0); err != nil {
		return fmt.Errorf("umount %s: %w", dataDir, err)
	}
	if out, err := exec.Command("/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "/dev/ubdd").CombinedOutput(); err != nil {
		return fmt.Errorf("mke2fs: %w: %s", err, out)
	}
	say("wiped")
	say("well")
	return nil
}

// loopback brings 127.0.0.1 up.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
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
