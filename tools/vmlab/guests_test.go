//go:build vmhost

package main

import (
	"bytes"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// How each test of package faults must end, in a guest of either vehicle.
var faultEnds = map[string]struct{ verdict, why string }{
	"TestPasses":        {pass, ""},
	"TestSkips":         {skip, "on purpose"},
	"TestFails":         {fail, "exit status 1"},
	"TestPanics":        {fail, "exit status 2"},
	"TestExits":         {fail, "exit status 2"}, // go test's own guard
	"TestHangs":         {fail, "exit status 2"},
	"TestHangsDeaf":     {fail, "killed after"},
	"TestLeavesProcess": {pass, ""},
	"TestWarns":         {fail, "kernel: WARNING"},
	"TestWarnsAllowed":  {pass, ""},
	"TestLocksGuestUp":  {fail, "the guest hangs: waited in vain for the end of TestLocksGuestUp"},
	"TestPowersOff":     {fail, "the guest ended too early"},
	"TestPanicsKernel":  {fail, "the kernel panicked"},
	"TestAfterPanic":    {pass, ""},
}

// needsCrashes are skipped by a kernel that has no test of its own crashes.
var needsCrashes = []string{"TestWarns", "TestWarnsAllowed", "TestLocksGuestUp"}

// TestFaults checks that the lab notices every fault and tells it as it is.
func TestFaults(t *testing.T) {
	for _, v := range vehicles {
		t.Run(v.name, func(t *testing.T) { testFaults(t, v) })
	}
}

func testFaults(t *testing.T, v vehicle) {
	l, err := newLab(t.Context(), 2, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	r := &run{lab: l, tag: "vmfault", pattern: regexp.MustCompile(""), timeout: 4 * time.Second, out: &out}
	failed, err := r.all(t.Context(), []vehicle{v})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, rep := range r.reports {
		want, known := faultEnds[rep.name]
		if v.name == "qemu" && slices.Contains(needsCrashes, rep.name) {
			want.verdict, want.why = skip, "does not crash on demand"
		}
		if !known || seen[rep.name] || rep.verdict != want.verdict || !strings.Contains(strings.Join(rep.why, "\n"), want.why) {
			t.Errorf("%s: expected %s (%s), found %s %q\n%s", rep.name, want.verdict, want.why, rep.verdict, rep.why, rep.logs(50))
		}
		seen[rep.name] = true
		if rep.verdict == fail {
			failed--
		}
	}
	if len(seen) != len(faultEnds) || failed != 0 {
		t.Errorf("expected %d tests to be told of, found %d; failures not told: %d", len(faultEnds), len(seen), failed)
	}
	t.Logf("\n%s", out.String())
}
