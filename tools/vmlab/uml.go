package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"cowbird/tools/vmlab/job"
)

// The User-mode Linux vehicle: a kernel that is a program, built once from
// Debian's kernel source.

const (
	umlSuite  = "trixie-backports"
	umlSource = "linux-source-7.3"
)

//go:embed uml.config
var umlConfig string

// configLines are the settings of a kernel configuration.
func configLines(config string) (lines []string) {
	for line := range strings.Lines(config) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "CONFIG_") || strings.HasPrefix(line, "# CONFIG_") && strings.HasSuffix(line, " is not set") {
			lines = append(lines, line)
		}
	}
	return lines
}

// dropped lists the settings that a kernel's final configuration lacks. One
// that is not set may also be missing altogether.
func dropped(wanted, final string) (lost []string) {
	lines := configLines(final)
	for _, line := range configLines(wanted) {
		name, off := strings.CutPrefix(line, "# ")
		name, _, _ = strings.Cut(strings.TrimSuffix(name, " is not set"), "=")
		set := slices.ContainsFunc(lines, func(s string) bool { return strings.HasPrefix(s, name+"=") })
		if off && set || !off && !slices.Contains(lines, line) {
			lost = append(lost, line)
		}
	}
	return lost
}

// uml is the folder of a finished UML kernel; one is built if there is none or
// if fresh asks for the mirror's newest.
func (l *lab) uml(ctx context.Context, fresh bool) (string, error) {
	key := hash([]byte(umlConfig))
	if dir := l.newest("uml-*-" + key); dir != "" && !fresh {
		return dir, nil
	}
	a, err := privateApt(ctx, filepath.Join(l.cache, "apt", umlSuite), umlSuite, l.log)
	if err != nil {
		return "", err
	}
	version, err := a.candidate(ctx, umlSource)
	if err != nil {
		return "", err
	}
	return l.fill("uml-"+fileName(version)+"-"+key, func(dir string) error { return l.buildUML(ctx, a, dir, version) })
}

// fileName makes a version fit for a path in a Makefile.
func fileName(version string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(":~+", r) {
			return '_'
		}
		return r
	}, version)
}

func (l *lab) buildUML(ctx context.Context, a *apt, dir, version string) error {
	deb, err := a.download(ctx, dir, umlSource+"="+version)
	if err != nil {
		return err
	}
	src, out, logFile := filepath.Join(dir, "src"), filepath.Join(dir, "build"), filepath.Join(dir, "build.log")
	if err := errors.Join(os.Mkdir(src, 0o755), os.Mkdir(out, 0o755)); err != nil {
		return err
	}
	if err := l.unpackSource(ctx, logFile, deb[0], "./usr/src/"+umlSource+".tar.xz", src); err != nil {
		return err
	}
	mk := func(args ...string) error {
		return l.run(ctx, logFile, src, "make", append([]string{"ARCH=um", "O=" + out, "-j" + strconv.Itoa(l.jobs)}, args...)...)
	}
	if err := mk("allnoconfig"); err != nil {
		return err
	}
	if err := configure(filepath.Join(out, ".config"), umlConfig, func() error { return mk("olddefconfig") }); err != nil {
		return err
	}
	l.log.printf("compiling %s %s: some ten minutes; see %s", umlSource, version, logFile)
	if err := mk("linux", "modules"); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(out, "linux"), filepath.Join(dir, "linux")); err != nil {
		return err
	}
	return errors.Join(os.Remove(deb[0]), prune(src, keepSource), prune(out, keepBuild))
}

// configure adds settings to a configuration, has the kernel complete it and
// checks that nothing was dropped.
func configure(file, settings string, complete func() error) error {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strings.Join(configLines(settings), "\n") + "\n")
	if err := errors.Join(err, f.Close(), complete()); err != nil {
		return err
	}
	final, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if lost := dropped(settings, string(final)); len(lost) > 0 {
		return fmt.Errorf("the kernel dropped settings: %s", strings.Join(lost, ", "))
	}
	return nil
}

// What building a module against the kernel needs of its 2 GB.
var (
	keepSource = []string{"Makefile", "Kbuild", "scripts", "include", "arch/um", "arch/x86"}
	keepBuild  = []string{"Makefile", ".config", "Module.symvers", "scripts", "include", "arch/um/include", "arch/x86/include", "arch/um/Makefile"}
)

// prune removes all files below dir but those on the list and below it.
func prune(dir string, keep []string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		below := keepBelow(keep, e.Name())
		switch {
		case slices.Contains(keep, e.Name()):
		case len(below) > 0:
			errs = append(errs, prune(path, below))
		default:
			errs = append(errs, os.RemoveAll(path))
		}
	}
	return errors.Join(errs...)
}

// keepBelow is the part of the list that lies in one folder.
func keepBelow(keep []string, folder string) (below []string) {
	for _, k := range keep {
		if rest, found := strings.CutPrefix(k, folder+"/"); found {
			below = append(below, rest)
		}
	}
	return below
}

// umlGuest is the command that boots a UML guest.
func umlGuest(ctx context.Context, g guest) *exec.Cmd {
	console := "con0=null,fd:2"
	if g.shell {
		console = "con0=fd:0,fd:1"
	}
	// The leak checker is in the kernel, but its scan reads a hole in the
	// statically linked image, and it makes the boot several times as long.
	cmd := exec.CommandContext(ctx, filepath.Join(g.kernel, "linux"), "kmemleak=off",
		"mem="+g.memory, "ncpus="+strconv.Itoa(g.cpus), "seccomp=on", "panic=-1", "printk.devkmsg=on", "con=null", console,
		"root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "init="+g.init, job.FolderKey+g.folder)
	if g.shell {
		cmd.Args = append(cmd.Args, "quiet")
	}
	// The kernel keeps its control socket in HOME.
	cmd.Env = append(os.Environ(), "HOME="+g.folder)
	return cmd
}
