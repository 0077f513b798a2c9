// Command vmlab runs tests on kernels of their own. See docs/vmlab.md.
//
//	vmlab build [uml] [qemu] [old]        make what is missing, take what is newer; with
//	                                      old, build our module for the oldest kernel, too
//	vmlab run [-vehicle uml|qemu|both] [-run REGEXP] [-timeout D] [-j N] [-v] [-tag TAG]
//	vmlab shell [-vehicle uml|qemu]       an interactive shell in a guest
//
// A guest is made of a kernel, the host's root, read-only, and a program that
// runs the tests:
//
//	   host                                   guest
//	vmlab ── job folder: binaries, job.json ──► guestinit (process 1)
//	  ▲  ▲                                       │  runs each test,
//	  │  └─── job folder: output.N, exit.N ──────┤  says so in
//	  └────── console: the kernel's log ◄────────┘  the kernel log
//
// There are two vehicles. "uml" is a kernel built as an ordinary program
// (User-mode Linux): newest features, lock checkers, one fresh guest a
// test. "qemu" is Debian's own kernel with its modules on an emulated machine
// with two processors: no checkers, but what people run, and races; all tests
// share a guest, and a new one is booted when one has died.
//
// What a test needs to know of its guest is in package vmtest.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/tools/vmlab/job"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	code := command(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

const usage = "usage: vmlab build [uml] [qemu] [old] | run [flags] | shell [flags]"

var errUsage = errors.New(usage)

// command runs one command and returns the exit code: 0 done, 1 failed, 2 not
// understood.
func command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := errUsage
	if len(args) > 0 {
		switch args[0] {
		case "build":
			err = buildCommand(ctx, args[1:], stderr)
		case "run":
			err = runCommand(ctx, args[1:], stdout, stderr)
		case "shell":
			err = shellCommand(ctx, args[1:], stderr)
		}
	}
	switch {
	case err == nil:
		return 0
	case errors.Is(err, flag.ErrHelp):
		return 2
	case errors.Is(err, errUsage):
		fmt.Fprintln(stderr, err)
		return 2
	}
	fmt.Fprintf(stderr, "vmlab: %v\n", err)
	return 1
}

// pickVehicles reads the value of -vehicle.
func pickVehicles(name string) ([]vehicle, error) {
	if name == "both" {
		return vehicles, nil
	}
	for _, v := range vehicles {
		if v.name == name {
			return []vehicle{v}, nil
		}
	}
	return nil, fmt.Errorf("%w\nvehicle: expected uml, qemu or both, found %q", errUsage, name)
}

func buildCommand(ctx context.Context, args []string, stderr io.Writer) error {
	if len(args) == 0 {
		args = []string{"uml", "qemu"}
	}
	l, err := newLab(ctx, runtime.NumCPU(), stderr)
	if err != nil {
		return err
	}
	for _, name := range args {
		if name == "old" {
			if err := l.compileOld(ctx, true); err != nil {
				return err
			}
			continue
		}
		picked, err := pickVehicles(name)
		if err != nil {
			return err
		}
		for _, v := range picked {
			kernel, err := v.kernel(l, ctx, true)
			if err != nil {
				return err
			}
			if _, err := l.ourModules(ctx, v.name, kernel); err != nil {
				return err
			}
		}
	}
	return nil
}

func runCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("vmlab run", flag.ContinueOnError)
	f.SetOutput(stderr)
	name := f.String("vehicle", "both", "uml, qemu or both")
	pattern := f.String("run", "", "run the tests whose name matches this")
	timeout := f.Duration("timeout", time.Minute, "how long a test may take, unless it says that it takes longer")
	jobs := f.Int("j", runtime.NumCPU(), "how many guests at a time (uml)")
	verbose := f.Bool("v", false, "print the logs of tests that pass, too")
	tag := f.String("tag", vmTag, "run the tests in files with this build tag")
	if err := f.Parse(args); err != nil {
		return flag.ErrHelp
	}
	picked, err := pickVehicles(*name)
	if err != nil {
		return err
	}
	re, err := regexp.Compile(*pattern)
	if err != nil || f.NArg() > 0 || *jobs < 1 {
		return fmt.Errorf("%w\n%v %q", errUsage, err, f.Args())
	}
	l, err := newLab(ctx, *jobs, stderr)
	if err != nil {
		return err
	}
	r := &run{lab: l, tag: *tag, pattern: re, timeout: *timeout, verbose: *verbose, out: stdout}
	failed, err := r.all(ctx, picked)
	if err == nil && failed > 0 {
		err = fmt.Errorf("%d of %d tests failed", failed, len(r.reports))
	}
	return err
}

// all runs the tests on some vehicles, and returns how many failed.
func (r *run) all(ctx context.Context, picked []vehicle) (failed int, err error) {
	if r.dir, err = os.MkdirTemp("", "vmlab"); err != nil {
		return 0, err
	}
	defer os.RemoveAll(r.dir)
	tests, err := r.prepare(ctx)
	if err != nil {
		return 0, err
	}
	for _, v := range picked {
		if err := r.on(ctx, v, tests); err != nil {
			return 0, err
		}
	}
	return r.close(), nil
}

func shellCommand(ctx context.Context, args []string, stderr io.Writer) error {
	f := flag.NewFlagSet("vmlab shell", flag.ContinueOnError)
	f.SetOutput(stderr)
	name := f.String("vehicle", "uml", "uml or qemu")
	if err := f.Parse(args); err != nil {
		return flag.ErrHelp
	}
	picked, err := pickVehicles(*name)
	if err != nil || len(picked) != 1 || f.NArg() > 0 {
		return errUsage
	}
	l, err := newLab(ctx, runtime.NumCPU(), stderr)
	if err != nil {
		return err
	}
	return l.shell(ctx, picked[0])
}

// shell boots a guest that has this process's terminal.
func (l *lab) shell(ctx context.Context, v vehicle) error {
	dir, err := os.MkdirTemp("", "vmlab")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	kernel, err := v.kernel(l, ctx, false)
	if err != nil {
		return err
	}
	modules, err := l.ourModules(ctx, v.name, kernel)
	if err != nil {
		return err
	}
	if err := l.buildInit(ctx, dir); err != nil {
		return err
	}
	g := guest{kernel: kernel, folder: dir, memory: v.memory, cpus: v.cpus, init: filepath.Join(dir, "guestinit"), shell: true}
	if v.name == "qemu" {
		g.initrd = filepath.Join(dir, "initrd")
		if err := initramfs(g.initrd, g.init, filepath.Join(kernel, "modules")); err != nil {
			return err
		}
	}
	j := newJob(l, v.name, nil)
	j.Shell = &job.Shell{Dir: l.root, Console: v.console}
	if err := fillFolder(dir, dir, j, modules); err != nil {
		return err
	}
	l.log.printf("exit or ctrl-D ends the guest; what is on its disks goes with it")
	cmd := v.command(ctx, g)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}
