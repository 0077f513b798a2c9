package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// shared are the folders that a daemon with a root of its own has in common with
// everybody: its devices, who uses them, its socket.
var shared = []string{"/dev", "/proc", "/sys", "/run"}

// detach lets a command outlive this process. With a root it is moved there, into a
// small file system that has the program and nothing else: an initramfs is emptied
// once the root is mounted, and what was mounted in it is moved away.
func detach(cmd *exec.Cmd, root string) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if root == "" {
		return nil
	}
	program := "/" + filepath.Base(cmd.Path)
	if err := makeRoot(root, cmd.Path, program); err != nil {
		return err
	}
	cmd.Path, cmd.Dir, cmd.SysProcAttr.Chroot = program, "/", root
	return nil
}

// makeRoot mounts a root in a folder; what is mounted there goes on top of it.
func makeRoot(root, from, to string) error {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("cowbird", root, "tmpfs", unix.MS_NOSUID, "mode=0700,size=64m"); err != nil {
		return fmt.Errorf("mount %s: %w", root, err)
	}
	for _, dir := range shared {
		if err := share(dir, filepath.Join(root, dir)); err != nil {
			return err
		}
	}
	if err := copyProgram(from, filepath.Join(root, to)); err != nil {
		return err
	}
	return unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID, "mode=0700,size=64m")
}

func share(dir, at string) error {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(dir, at, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", dir, at, err)
	}
	return nil
}

func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o700)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
