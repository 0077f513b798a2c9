package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"cowbird/tools/fixture"
	"cowbird/tools/vmlab/job"
)

// A run is one call of the runner: the tests, compiled once, for one or more
// vehicles.
type run struct {
	*lab
	tag     string
	pattern *regexp.Regexp
	timeout time.Duration
	verbose bool
	out     io.Writer
	dir     string // for the binaries and the guests' folders

	mu      sync.Mutex // guards out and reports
	reports []*report
}

// prepare finds and compiles the tests, and process 1.
func (r *run) prepare(ctx context.Context) ([]guestTest, error) {
	tests, err := discover(r.root, r.tag, r.timeout)
	if err != nil {
		return nil, err
	}
	tests = slices.DeleteFunc(tests, func(t guestTest) bool { return !r.pattern.MatchString(t.name) })
	if len(tests) == 0 {
		return nil, fmt.Errorf("no test matches %s", r.pattern)
	}
	for _, pkg := range packagesOf(tests) {
		if err := r.compile(ctx, "test", "-c", "-tags="+r.tag, "-o", filepath.Join(r.dir, binaryName(pkg)), "./"+pkg); err != nil {
			return nil, err
		}
	}
	return tests, r.buildInit(ctx, r.dir)
}

func (l *lab) buildInit(ctx context.Context, dir string) error {
	return l.compile(ctx, "build", "-o", filepath.Join(dir, "guestinit"), "./tools/vmlab/guestinit")
}

// compile runs the go command for a static program.
func (l *lab) compile(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir, cmd.Env = l.root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

func packagesOf(tests []guestTest) (pkgs []string) {
	for _, t := range tests {
		if !slices.Contains(pkgs, t.pkg) {
			pkgs = append(pkgs, t.pkg)
		}
	}
	return pkgs
}

func binaryName(pkg string) string { return strings.ReplaceAll(pkg, "/", "-") + ".test" }

// on runs the tests on one vehicle.
func (r *run) on(ctx context.Context, v vehicle, tests []guestTest) error {
	kernel, err := v.kernel(r.lab, ctx, false)
	if err != nil {
		return err
	}
	modules, err := r.ourModules(ctx, v.name, kernel)
	if err != nil {
		return err
	}
	g := guest{kernel: kernel, memory: v.memory, cpus: v.cpus, init: filepath.Join(r.dir, "guestinit")}
	if v.name == "qemu" {
		g.initrd = filepath.Join(r.dir, "initrd")
		if err := initramfs(g.initrd, g.init, filepath.Join(kernel, "modules")); err != nil {
			return err
		}
	}
	queue := make(chan []guestTest, len(tests))
	for batch := range slices.Chunk(tests, batchSize(v, len(tests))) {
		queue <- batch
	}
	close(queue)
	errs := make(chan error)
	for range r.jobs {
		go func() {
			var err error
			for batch := range queue {
				for err == nil && len(batch) > 0 {
					batch, err = r.guest(ctx, v, g, batch, modules)
				}
			}
			errs <- err
		}()
	}
	for range r.jobs {
		if e := <-errs; e != nil {
			err = e
		}
	}
	return err
}

func batchSize(v vehicle, all int) int {
	if v.batch > 0 {
		return v.batch
	}
	return all
}

// guest runs tests in one guest, and returns those that it did not come to.
func (r *run) guest(ctx context.Context, v vehicle, g guest, tests []guestTest, modules []string) ([]guestTest, error) {
	var err error
	if g.folder, err = os.MkdirTemp(r.dir, "guest"); err != nil {
		return nil, err
	}
	defer os.RemoveAll(g.folder)
	j := newJob(r.lab, v.name, tests)
	if err := fillFolder(g.folder, r.dir, j, modules); err != nil {
		return nil, err
	}
	w := newWatch(j.Tests, time.Now())
	end, err := follow(v.command(ctx, g), w)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	reports := collect(g.folder, v.name, tests, w, end)
	if len(reports) == 0 {
		return nil, fmt.Errorf("%w: %s: %s\n%s", errNoGuest, v.name, end, strings.Join(w.tests[0].kernel, "\n"))
	}
	r.tell(reports)
	return tests[len(reports):], nil
}

func newJob(l *lab, vehicle string, tests []guestTest) *job.Job {
	fixtures := fixture.Path()
	j := &job.Job{Vehicle: vehicle, Keep: []string{l.root, fixtures}, Env: []string{"COWBIRD_FIXTURES=" + fixtures, "CI=" + os.Getenv("CI")}}
	for _, t := range tests {
		j.Tests = append(j.Tests, job.Test{
			Name: t.name, Binary: binaryName(t.pkg), Dir: filepath.Join(l.root, t.pkg), Timeout: t.timeout,
		})
	}
	return j
}

// fillFolder puts into a guest's folder what its job names.
func fillFolder(folder, binaries string, j *job.Job, modules []string) error {
	for _, m := range modules {
		j.Modules = append(j.Modules, filepath.Base(m))
		if err := linkInto(folder, m); err != nil {
			return err
		}
	}
	for _, t := range j.Tests {
		if err := linkInto(folder, filepath.Join(binaries, t.Binary)); err != nil {
			return err
		}
	}
	return j.Write(folder)
}

// linkInto gives a file a second name in dir, or a copy there if dir is on
// another file system.
func linkInto(dir, file string) error {
	to := filepath.Join(dir, filepath.Base(file))
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	if os.Link(file, to) == nil {
		return nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

// tell prints what has become known.
func (r *run) tell(reports []*report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rep := range reports {
		r.reports = append(r.reports, rep)
		fmt.Fprintln(r.out, rep.line())
		if rep.verdict == fail || r.verbose {
			fmt.Fprint(r.out, rep.logs(200))
		}
	}
}

// close prints the closing lines, and returns how many tests have failed.
func (r *run) close() int {
	type key struct{ pkg, vehicle string }
	var order []key
	byKey := map[key]*tally{}
	all := new(tally)
	for _, rep := range r.reports {
		k := key{rep.pkg, rep.vehicle}
		if byKey[k] == nil {
			byKey[k] = new(tally)
			order = append(order, k)
		}
		byKey[k].add(rep)
		all.add(rep)
	}
	for _, k := range order {
		fmt.Fprintln(r.out, byKey[k].packageLine(k.pkg, k.vehicle))
	}
	fmt.Fprintln(r.out, all.summary())
	return all.failed
}
