package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"cowbird/tools/vmlab/job"
)

func TestDiscover(t *testing.T) {
	root := t.TempDir()
	for name, body := range map[string]string{
		"a/a_test.go":          "//go:build vmtest\n\npackage a\n\nimport \"testing\"\n\nfunc TestTwo(t *testing.T) {}\n\n//vmtest:timeout 3m\nfunc TestOne(t *testing.T) {}\n\nfunc Testify(t *testing.T) {}\nfunc TestMain(m *testing.M) {}\nfunc (x X) TestNot(t *testing.T) {}\n",
		"a/plain_test.go":      "package a\n\nimport \"testing\"\n\nfunc TestPlain(t *testing.T) {}\n",
		"a/either_test.go":     "//go:build vmtest || linux\n\npackage a\n\nimport \"testing\"\n\nfunc TestEither(t *testing.T) {}\n",
		"b/c/c_test.go":        "// A comment.\n\n//go:build linux && vmtest && !race\n\npackage c\n\nimport \"testing\"\n\nfunc TestC(t *testing.T) {}\n",
		"b/other_test.go":      "//go:build vmother\n\npackage b\n\nimport \"testing\"\n\nfunc TestOther(t *testing.T) {}\n",
		"b/testdata/x_test.go": "//go:build vmtest\n\npackage x\n\nimport \"testing\"\n\nfunc TestX(t *testing.T) {}\n",
	} {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(body), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := discover(root, vmTag, time.Minute)
	want := []guestTest{{"a", "TestTwo", time.Minute}, {"a", "TestOne", 3 * time.Minute}, {"b/c", "TestC", time.Minute}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("expected %v, found %v, %v", want, got, err)
	}
	if pkgs := packagesOf(got); !slices.Equal(pkgs, []string{"a", "b/c"}) {
		t.Errorf("found packages %q", pkgs)
	}
}

var start0 = time.Unix(1000, 0)

// watching feeds a watch lines that come a second apart.
func watching(tests []job.Test, lines ...string) *watch {
	w := newWatch(tests, start0)
	for i, l := range lines {
		w.line(l, start0.Add(time.Duration(i+1)*time.Second))
	}
	return w
}

var twoTests = []job.Test{{Name: "TestA", Timeout: time.Minute}, {Name: "TestB", Timeout: time.Hour}}

func TestWatchGoodGuest(t *testing.T) {
	w := watching(twoTests, "boot", "[ 0.1] vmlab: ready", "[ 0.2] vmlab: begin 0 TestA", "a\r", "[ 0.3] vmlab: end 0", "late",
		"[ 0.4] vmlab: begin 1 TestB", "b", "[ 0.5] vmlab: end 1", "[ 0.6] vmlab: done")
	if end := w.end(false, "exit status 0"); end != "" {
		t.Errorf("expected a good end, found %q", end)
	}
	if got := w.tests[0].kernel; got[0] != "boot" || !slices.Contains(got, "a") || !slices.Contains(got, "late") || slices.Contains(got, "b") {
		t.Errorf("the log of the first test: found %q", got)
	}
	if got := w.tests[1].kernel; !slices.Contains(got, "b") || slices.Contains(got, "late") {
		t.Errorf("the log of the second test: found %q", got)
	}
	if d := w.tests[0].ended.Sub(w.tests[0].begun); d != 2*time.Second {
		t.Errorf("expected 2s, found %v", d)
	}
}

func TestWatchDeadlines(t *testing.T) {
	for _, c := range []struct {
		lines  []string
		within time.Duration // after the last line
		end    string        // if killed then
	}{
		{nil, bootPatience, "for the guest to boot"},
		{[]string{"vmlab: ready"}, markPatience, "for the first test to begin"},
		{[]string{"vmlab: ready", "vmlab: begin 1 TestB", "noise"}, time.Hour + job.Grace - time.Second, "for the end of TestB"},
		{[]string{"vmlab: ready", "vmlab: begin 0 TestA", "vmlab: end 0"}, markPatience, "for the next test to begin"},
		{[]string{"vmlab: ready", "vmlab: done"}, markPatience, "to turn itself off"},
		{[]string{"vmlab: ready", "vmlab: begin 0 TestA", "[ 1.0] Kernel panic - not syncing: x"}, markPatience, "the kernel panicked"},
	} {
		w := watching(twoTests, c.lines...)
		last := start0.Add(time.Duration(len(c.lines)) * time.Second)
		if got := w.deadline.Sub(last); got != c.within {
			t.Errorf("%q: expected a deadline after %v, found %v", c.lines, c.within, got)
		}
		if end := w.end(true, "signal: killed"); !strings.HasSuffix(end, c.end) {
			t.Errorf("%q: expected %q, found %q", c.lines, c.end, end)
		}
	}
}

func TestWatchEarlyEnds(t *testing.T) {
	for want, lines := range map[string][]string{
		"before it was ready":             {"boot"},
		"too early":                       {"vmlab: ready", "vmlab: begin 0 TestA"},
		"failed: mount proc: no":          {"vmlab: failed: mount proc: no", "vmlab: done"},
		"began a test \"7 TestZ\" that":   {"vmlab: ready", "vmlab: begin 7 TestZ"},
		"began a test \"x\" that it was ": {"vmlab: ready", "vmlab: begin x"},
	} {
		if end := watching(twoTests, lines...).end(false, "exit status 1"); !strings.Contains(end, want) {
			t.Errorf("%q: expected %q, found %q", lines, want, end)
		}
	}
}

func TestSplats(t *testing.T) {
	for line, want := range map[string]bool{
		"[ 1.0] WARNING: CPU: 0 PID: 1 at fs/x.c:1 f+0x1/0x2":        true,
		"[ 1.0] WARNING: possible circular locking dependency":       true,
		"[ 1.0] BUG: sleeping function called from invalid context":  true,
		"[ 1.0] INFO: task dd:12 blocked for more than 120 seconds.": true,
		"[ 1.0] rcu: INFO: rcu_sched self-detected stall on CPU":     true,
		"[ 1.0] Oops: 0000 [#1] PREEMPT SMP":                         true,
		"[ 1.0] general protection fault, probably for non-canonic":  true,
		"[ 1.0] kmemleak: 3 new suspected memory leaks":              true,
		"[ 1.0] refcount_t: underflow; use-after-free.":              true,
		"[ 1.0] Warning: unable to open an initial console":          false,
		"[ 1.0] device-mapper: uevent: version 1.0.3":                false,
		"[ 1.0] vmlab: begin 1 TestWARNING: ":                        false,
		"[ 1.0] EXT4-fs (loop0): mounted, DEBUG_something":           false,
	} {
		if got := len(splats([]string{line})) > 0; got != want {
			t.Errorf("%q: expected %v, found %v", line, want, got)
		}
	}
	log := []string{"WARNING: one", "vmlab: allow WARNING: (one|two)", "WARNING: two", "WARNING: three"}
	if got, want := splats(log), []string{"WARNING: one", "WARNING: three"}; !slices.Equal(got, want) {
		t.Errorf("expected %q (an allowance does not reach back), found %q", want, got)
	}
}

func TestJudge(t *testing.T) {
	ended := start0.Add(time.Second)
	for _, c := range []struct {
		what                string
		ended               time.Time
		exit, output, guest string
		kernel              []string
		verdict, why        string
	}{
		{"pass", ended, job.ExitOK, "--- PASS: TestA (0.0s)\nPASS\n", "", nil, pass, ""},
		{"skip", ended, job.ExitOK, "=== RUN\n    a.go:1: no ublk\n--- SKIP: TestA (0.0s)\nPASS\n", "", nil, skip, "a.go:1: no ublk"},
		{"fail", ended, "exit status 1", "--- FAIL: TestA (0.0s)\n", "", nil, fail, "exit status 1"},
		{"not run", ended, job.ExitOK, "testing: warning: no tests to run\nPASS\n", "", nil, fail, "did not run"},
		{"another's pass", ended, job.ExitOK, "--- PASS: TestAB (0.0s)\nPASS\n", "", nil, fail, "did not run"},
		{"no exit file", ended, "", "--- PASS: TestA (0.0s)\n", "", nil, fail, ""},
		{"guest died", time.Time{}, "", "", "the kernel panicked", nil, fail, "panicked"},
		{"no end", time.Time{}, job.ExitOK, "--- PASS: TestA (0.0s)\n", "", nil, fail, "did not end"},
		{"splat", ended, job.ExitOK, "--- PASS: TestA (0.0s)\n", "", []string{"BUG: x"}, fail, "kernel: BUG: x"},
	} {
		w := &watched{Test: twoTests[0], ended: c.ended, kernel: c.kernel}
		verdict, why := judge(w, c.exit, c.output, c.guest)
		if verdict != c.verdict || !strings.Contains(strings.Join(why, "\n"), c.why) {
			t.Errorf("%s: expected %s (%s), found %s %q", c.what, c.verdict, c.why, verdict, why)
		}
	}
}

// TestCollectBlamesLastTest: what breaks a guest after a test's end is that
// test's doing.
func TestCollectBlamesLastTest(t *testing.T) {
	dir := t.TempDir()
	for i, name := range []string{"TestA", "TestB"} {
		err := errors.Join(
			os.WriteFile(filepath.Join(dir, job.OutputFile(i)), []byte("--- PASS: "+name+" (0.0s)\n"), 0o600),
			os.WriteFile(filepath.Join(dir, job.ExitFile(i)), []byte(job.ExitOK), 0o600))
		if err != nil {
			t.Fatal(err)
		}
	}
	tests := []guestTest{{"a", "TestA", 0}, {"a", "TestB", 0}}
	w := watching(twoTests, "vmlab: ready", "vmlab: begin 0 TestA", "vmlab: end 0", "Kernel panic - x")
	reports := collect(dir, "uml", tests, w, w.end(false, "signal: aborted"))
	if len(reports) != 1 || reports[0].verdict != fail || !slices.Contains(reports[0].why, "the kernel panicked") {
		t.Fatalf("expected one failed report, found %+v", reports)
	}
	w = watching(twoTests, "vmlab: ready", "vmlab: begin 0 TestA", "vmlab: end 0", "vmlab: begin 1 TestB", "vmlab: end 1", "vmlab: done")
	for _, r := range collect(dir, "uml", tests, w, "") {
		if r.verdict != pass {
			t.Errorf("expected both to pass, found %+v", r)
		}
	}
}

func TestClosingLines(t *testing.T) {
	var out strings.Builder
	r := &run{out: &out}
	for _, rep := range []*report{
		{guestTest: guestTest{pkg: "a", name: "TestA"}, vehicle: "uml", verdict: pass, seconds: 1},
		{guestTest: guestTest{pkg: "b", name: "TestB"}, vehicle: "uml", verdict: fail, seconds: 2, why: []string{"because"}},
		{guestTest: guestTest{pkg: "a", name: "TestC"}, vehicle: "uml", verdict: skip, seconds: 0.5, why: []string{"no need"}},
	} {
		r.tell([]*report{rep})
	}
	if failed := r.close(); failed != 1 {
		t.Errorf("expected 1 failed, found %d", failed)
	}
	for _, want := range []string{
		"--- PASS: TestA (1.00s) [uml]\n", "--- FAIL: TestB (2.00s) [uml]\n    because\n", "--- SKIP: TestC (0.50s) [uml]\n    no need\n",
		"\nok  \tcowbird/a\t1.500s [uml]\nFAIL\tcowbird/b\t2.000s [uml]\n1 passed, 1 failed, 1 skipped\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("expected %q in\n%s", want, out.String())
		}
	}
}

// TestFollow has a shell script play the guest.
func TestFollow(t *testing.T) {
	play := func(script string, within time.Duration) (string, *watch) {
		t.Helper()
		w := newWatch(twoTests[:1], time.Now())
		w.deadline = time.Now().Add(within)
		cmd := exec.CommandContext(t.Context(), "bash", "-c", script)
		end, err := follow(cmd, w)
		if err != nil {
			t.Fatal(err)
		}
		return end, w
	}
	end, w := play("echo vmlab: ready; echo vmlab: begin 0 TestA >&2; printf 'vmlab: end 0\nvmlab: done'", time.Minute)
	if end != "" || w.tests[0].ended.IsZero() {
		t.Errorf("expected a good end, found %q, %+v", end, w.tests[0])
	}
	// The child holds the console open: it has to be killed, too.
	begin := time.Now()
	if end, _ := play("sleep 1000 & echo hello; wait", 100*time.Millisecond); !strings.Contains(end, "hangs") {
		t.Errorf("expected it to hang, found %q", end)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("expected the guest to be killed at once, took %v", took)
	}
}

func TestFillFolder(t *testing.T) {
	binaries, folder := t.TempDir(), t.TempDir()
	for _, f := range []string{"a.test", "m.ko"} {
		if err := os.WriteFile(filepath.Join(binaries, f), []byte(f), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	j := &job.Job{Tests: []job.Test{{Name: "TestA", Binary: "a.test"}, {Name: "TestB", Binary: "a.test"}}}
	if err := fillFolder(folder, binaries, j, []string{filepath.Join(binaries, "m.ko")}); err != nil {
		t.Fatal(err)
	}
	got, err := job.Read(folder)
	if err != nil || !reflect.DeepEqual(got, j) || !slices.Equal(got.Modules, []string{"m.ko"}) {
		t.Errorf("expected %+v, found %+v, %v", j, got, err)
	}
	for _, f := range []string{"a.test", "m.ko"} {
		if _, err := os.Stat(filepath.Join(folder, f)); err != nil {
			t.Error(err)
		}
	}
}

func TestVehicles(t *testing.T) {
	for name, want := range map[string]int{"uml": 1, "qemu": 1, "both": 2, "": 0, "kvm": 0} {
		got, err := pickVehicles(name)
		if len(got) != want || (err == nil) != (want > 0) {
			t.Errorf("%q: expected %d, found %d, %v", name, want, len(got), err)
		}
	}
	if got := batchSize(vehicles[0], 7); got != 1 {
		t.Errorf("uml: expected a guest a test, found %d", got)
	}
	if got := batchSize(vehicles[1], 7); got != 7 {
		t.Errorf("qemu: expected one guest, found %d", got)
	}
}

func TestGuestCommands(t *testing.T) {
	g := guest{kernel: "/k", folder: "/f", init: "/i", initrd: "/r", memory: "9M", cpus: 2}
	uml := umlGuest(t.Context(), g)
	for _, want := range []string{"/k/linux", "mem=9M", "ncpus=2", "init=/i", "vmlab_job=/f", "con0=null,fd:2", "ro"} {
		if !slices.Contains(uml.Args, want) {
			t.Errorf("uml: expected %s among %q", want, uml.Args)
		}
	}
	if !slices.Contains(uml.Env, "HOME=/f") {
		t.Error("uml: expected HOME to be the guest's folder")
	}
	qemu := strings.Join(qemuGuest(t.Context(), g).Args, " ")
	for _, want := range []string{"-smp 2", "-m 9M", "-kernel /k/vmlinuz", "-initrd /r", "path=/f,", "path=/,", "readonly=on", "mount_tag=job"} {
		if !strings.Contains(qemu, want) {
			t.Errorf("qemu: expected %s in %s", want, qemu)
		}
	}
}

func TestCommandLine(t *testing.T) {
	for _, args := range [][]string{nil, {"fly"}, {"run", "-vehicle", "kvm"}, {"run", "-run", "("}, {"run", "extra"}, {"run", "-j", "0"}, {"shell", "-vehicle", "both"}} {
		if code := command(t.Context(), args, t.Output(), t.Output()); code != 2 {
			t.Errorf("%q: expected exit code 2, found %d", args, code)
		}
	}
}
