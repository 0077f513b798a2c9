package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"cowbird/tools/vmlab/job"
)

// The QEMU vehicle: Debian's own kernel and modules, as they come out of their
// package, on an emulated machine with two processors.

// qemuModules are loaded before the guest leaves its initramfs.
var qemuModules = []string{
	"virtio_pci", "virtio_blk", "9p", "9pnet_virtio", "crc32c_generic", "ext4", "erofs", "squashfs", "overlay",
	"dm_mod", "dm_snapshot", "dm_thin_pool", "dm_verity", "dm_flakey", "dm_log_writes", "dm_delay", "dm_zero", "dm_crypt",
	"ublk_drv", "nbd", "loop", "null_blk", "fuse", "cuse",
}

const (
	imagePattern   = `^linux-image-6\.12\.(\d+)\+deb(\d+)-amd64$`
	headersPattern = `^linux-headers-6\.1\.0-(\d+)()-amd64$`
)

// highest picks the package with the largest numbers in its name.
func highest(names []string, pattern string) string {
	re := regexp.MustCompile(pattern)
	best, first, second := "", -1, -1
	for _, name := range names {
		m := re.FindStringSubmatch(strings.TrimSpace(name))
		if m == nil {
			continue
		}
		a, _ := strconv.Atoi(m[1])
		b, _ := strconv.Atoi(m[2])
		if a > first || a == first && b > second {
			best, first, second = m[0], a, b
		}
	}
	return best
}

// find looks for a package in the machine's own suites and then in others of
// the same mirror.
func (l *lab) find(ctx context.Context, prefix, pattern string, suites ...string) (*apt, string, error) {
	machine := &apt{log: l.log}
	tries := []func() (*apt, error){
		func() (*apt, error) { return machine, nil },
		func() (*apt, error) { return machine, machine.update(ctx) },
	}
	for _, s := range suites {
		tries = append(tries, func() (*apt, error) { return privateApt(ctx, filepath.Join(l.cache, "apt", s), s, l.log) })
	}
	for _, try := range tries {
		a, err := try()
		if err != nil {
			return nil, "", err
		}
		names, err := a.output(ctx, "", "apt-cache", "pkgnames", prefix)
		if err != nil {
			return nil, "", err
		}
		if name := highest(strings.Split(names, "\n"), pattern); name != "" {
			return a, name, nil
		}
	}
	return nil, "", fmt.Errorf("no package matches %s: run apt-get update", pattern)
}

// qemu is the folder of Debian's kernel, unpacked.
func (l *lab) qemu(ctx context.Context, fresh bool) (string, error) {
	key := hash([]byte(strings.Join(qemuModules, " ")))
	if dir := l.newest("qemu-*-" + key); dir != "" && !fresh {
		return dir, nil
	}
	a, image, err := l.find(ctx, "linux-image-6.12.", imagePattern, "trixie")
	if err != nil {
		return "", err
	}
	version, err := a.candidate(ctx, image)
	if err != nil {
		return "", err
	}
	return l.fill("qemu-"+fileName(version)+"-"+key, func(dir string) error { return l.unpackKernel(ctx, a, dir, image) })
}

func (l *lab) unpackKernel(ctx context.Context, a *apt, dir, image string) error {
	debs, err := a.download(ctx, dir, image)
	if err != nil {
		return err
	}
	tree, logFile := filepath.Join(dir, "tree"), filepath.Join(dir, "build.log")
	if err := l.run(ctx, logFile, "", "dpkg", "-x", debs[0], tree); err != nil {
		return err
	}
	release := strings.TrimPrefix(image, "linux-image-")
	if err := os.Rename(filepath.Join(tree, "boot/vmlinuz-"+release), filepath.Join(dir, "vmlinuz")); err != nil {
		return err
	}
	if err := l.pickModules(ctx, tree, filepath.Join(dir, "modules")); err != nil {
		return err
	}
	if err := errors.Join(os.Remove(debs[0]), os.RemoveAll(tree)); err != nil {
		return err
	}
	return l.unpackHeaders(ctx, a, dir, "linux-headers-"+release)
}

// pickModules writes the modules of qemuModules and those that they need to
// dir, named so that sorting gives the order of loading.
func (l *lab) pickModules(ctx context.Context, tree, dir string) error {
	files, err := moduleFiles(tree)
	if err != nil {
		return err
	}
	bodies := map[string][]byte{}
	order, err := loadOrder(qemuModules, func(name string) ([]string, bool, error) {
		file, known := files[name]
		if !known {
			return nil, false, nil
		}
		body, err := decompress(ctx, file)
		if err != nil {
			return nil, false, err
		}
		bodies[name] = body
		needs, err := modinfoDepends(body)
		return needs, true, err
	})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for i, name := range order {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%03d-%s.ko", i, name)), bodies[name], 0o644); err != nil {
			return err
		}
	}
	return nil
}

// moduleFiles finds a package's modules by name. Their folder is below /lib in some
// of Debian's packages, and below /usr/lib in others.
func moduleFiles(tree string) (map[string]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(tree, func(path string, e os.DirEntry, err error) error {
		if err == nil && strings.Contains(e.Name(), ".ko") {
			files[moduleName(path)] = path
		}
		return err
	})
	return files, err
}

func decompress(ctx context.Context, file string) ([]byte, error) {
	if !strings.HasSuffix(file, ".xz") {
		return os.ReadFile(file)
	}
	out, err := exec.CommandContext(ctx, "xz", "-dc", file).Output()
	if err != nil {
		return nil, fmt.Errorf("xz -dc %s: %w", file, err)
	}
	return out, nil
}

// unpackHeaders unpacks what a module is built against into dir/headers, and
// makes it fit to be used from there.
func (l *lab) unpackHeaders(ctx context.Context, a *apt, dir, name string) error {
	debs, err := a.download(ctx, dir, name)
	if err != nil {
		return err
	}
	depends, err := a.depends(ctx, debs[0])
	if err != nil {
		return err
	}
	depends = slices.DeleteFunc(depends, func(d string) bool {
		return !strings.HasPrefix(d, "linux-headers-") && !strings.HasPrefix(d, "linux-kbuild-")
	})
	more, err := a.download(ctx, dir, depends...)
	if err != nil {
		return err
	}
	tree := filepath.Join(dir, "headers")
	for _, deb := range append(debs, more...) {
		if err := l.run(ctx, filepath.Join(dir, "build.log"), "", "dpkg", "-x", deb, tree); err != nil {
			return err
		}
		if err := os.Remove(deb); err != nil {
			return err
		}
	}
	makefile := filepath.Join(tree, "usr/src", name, "Makefile")
	b, err := os.ReadFile(makefile)
	if err != nil {
		return err
	}
	b = bytes.ReplaceAll(b, []byte(" /usr/src/"), []byte(" "+tree+"/usr/src/"))
	// With the kernel's own type information there, the build wants a program
	// of its own (pahole) to make that of the module, which nobody needs.
	return errors.Join(os.WriteFile(makefile, b, 0o644), os.RemoveAll(filepath.Join(filepath.Dir(makefile), "vmlinux")),
		os.Symlink("usr/src/"+name, filepath.Join(tree, "build")))
}

// oldHeaders is the folder of the headers of the oldest kernel that our module
// is to build for.
func (l *lab) oldHeaders(ctx context.Context, fresh bool) (string, error) {
	if dir := l.newest("headers-*"); dir != "" && !fresh {
		return dir, nil
	}
	a, name, err := l.find(ctx, "linux-headers-6.1.", headersPattern, "bookworm")
	if err != nil {
		return "", err
	}
	version, err := a.candidate(ctx, name)
	if err != nil {
		return "", err
	}
	return l.fill("headers-"+fileName(version), func(dir string) error { return l.unpackHeaders(ctx, a, dir, name) })
}

// initramfs has process 1 and the modules that it needs to reach its root.
func initramfs(file, initProgram, modules string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	c := &cpio{w: f}
	body, err := os.ReadFile(initProgram)
	if err != nil {
		return err
	}
	c.add("init", cpioFile, body)
	for _, d := range []string{"dev", "proc", strings.Trim(job.ModuleDir, "/")} {
		c.add(d, cpioDir, nil)
	}
	entries, err := os.ReadDir(modules)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if body, err = os.ReadFile(filepath.Join(modules, e.Name())); err != nil {
			return err
		}
		c.add(strings.Trim(job.ModuleDir, "/")+"/"+e.Name(), cpioFile, body)
	}
	return c.close()
}

// qemuGuest is the command that boots a QEMU guest.
func qemuGuest(ctx context.Context, g guest) *exec.Cmd {
	serial, quiet := "stdio", ""
	if g.shell {
		serial, quiet = "mon:stdio", " quiet"
	}
	share := func(id, path, more string) string {
		return "local,id=" + id + ",path=" + path + ",security_model=none,multidevs=remap" + more
	}
	return exec.CommandContext(ctx, "qemu-system-x86_64",
		"-accel", "tcg,thread=multi,tb-size=512", "-cpu", "qemu64", "-smp", strconv.Itoa(g.cpus), "-m", g.memory,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", serial,
		"-kernel", filepath.Join(g.kernel, "vmlinuz"), "-initrd", g.initrd,
		"-append", "console=ttyS0 panic=-1 mitigations=off nokaslr tsc=reliable printk.devkmsg=on sysrq_always_enabled"+quiet,
		"-fsdev", share("root", "/", ",readonly=on"), "-device", "virtio-9p-pci,fsdev=root,mount_tag="+job.RootTag,
		"-fsdev", share("job", g.folder, ""), "-device", "virtio-9p-pci,fsdev=job,mount_tag="+job.JobTag)
}
