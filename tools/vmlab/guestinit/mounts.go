package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"cowbird/tools/vmlab/job"
)

// A mount is one file system of the guest. An optional one may be missing in
// the kernel, or be there already.
type mount struct {
	source, target, fstype, options string
	flags                           uintptr
	optional                        bool
}

func (m mount) do() error {
	err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.options)
	if err == nil || m.optional || errors.Is(err, unix.EBUSY) {
		return nil
	}
	return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
}

func mountAll(mounts []mount) error {
	for _, m := range mounts {
		if err := m.do(); err != nil {
			return err
		}
	}
	return nil
}

const p9options = "trans=virtio,version=9p2000.L,msize=524288"

// enterRoot goes from an initramfs, if that is where the guest began, to the
// host's root, and mounts what every Linux has.
func enterRoot() error {
	if modules, err := os.ReadDir(job.ModuleDir); err == nil {
		if err := leaveInitramfs(modules); err != nil {
			return err
		}
	}
	return mountAll([]mount{
		{"proc", "/proc", "proc", "", 0, false},
		{"sysfs", "/sys", "sysfs", "", 0, false},
		{"devtmpfs", "/dev", "devtmpfs", "", 0, false},
		{"debugfs", "/sys/kernel/debug", "debugfs", "", 0, true},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", "", 0, true},
		{"run", "/run", "tmpfs", "mode=755", 0, false},
	})
}

func leaveInitramfs(modules []os.DirEntry) error {
	for _, m := range modules {
		if err := load(filepath.Join(job.ModuleDir, m.Name())); err != nil {
			return err
		}
	}
	if err := os.MkdirAll("/root", 0o755); err != nil {
		return err
	}
	// Nobody on the host writes to its system while a guest runs.
	root := mount{job.RootTag, "/root", "9p", p9options + ",cache=loose", unix.MS_RDONLY, false}
	if err := root.do(); err != nil {
		return err
	}
	if err := unix.Chdir("/root"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// mountJob mounts the job's folder: a folder of the host in a UML guest, a 9p
// share in another.
func mountJob(folder string) error {
	if err := os.MkdirAll(job.Dir, 0o755); err != nil {
		return err
	}
	if folder != "" {
		return mount{"none", job.Dir, "hostfs", folder, 0, false}.do()
	}
	return mount{job.JobTag, job.Dir, "9p", p9options + ",cache=none", 0, false}.do()
}

// Where the guest may write, besides /run and /dev.
var writable = []string{"/tmp", "/var/tmp", "/mnt"}

// prepare gives the guest its writable folders, its modules and its loopback
// interface.
func prepare(j *job.Job) error {
	restore, err := keep(j.Keep)
	if err != nil {
		return err
	}
	for _, dir := range writable {
		if err := (mount{"tmp", dir, "tmpfs", "mode=1777", 0, false}).do(); err != nil {
			return err
		}
	}
	if err := restore(); err != nil {
		return err
	}
	if err := deviceFolders(); err != nil {
		return err
	}
	for _, m := range j.Modules {
		if err := load(filepath.Join(job.Dir, m)); err != nil {
			return err
		}
	}
	return job.Loopback()
}

func deviceFolders() error {
	for _, dir := range []string{"/dev/pts", "/dev/shm"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return mountAll([]mount{
		{"devpts", "/dev/pts", "devpts", "ptmxmode=0666", 0, true},
		{"shm", "/dev/shm", "tmpfs", "mode=1777", 0, false},
	})
}

// keep holds on to folders while something is mounted above them; the function
// that it returns puts back those that have vanished.
func keep(dirs []string) (restore func() error, err error) {
	held := map[string]string{}
	for i, dir := range dirs {
		if _, err := os.Stat(dir); err != nil || !covered(dir) {
			continue
		}
		held[dir] = fmt.Sprintf("/run/keep.%d", i)
		if err := bind(dir, held[dir]); err != nil {
			return nil, err
		}
	}
	return func() error {
		for dir, from := range held {
			if err := bind(from, dir); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

func covered(dir string) bool {
	for _, w := range writable {
		if strings.HasPrefix(dir, w+"/") {
			return true
		}
	}
	return false
}

func bind(from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	return mount{from, to, "", "", unix.MS_BIND, false}.do()
}

// load inserts a kernel module; one that is there already will do.
func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("loading %s: %w", filepath.Base(path), err)
	}
	return nil
}
