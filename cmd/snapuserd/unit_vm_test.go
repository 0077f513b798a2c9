//go:build vmtest

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"cowbird/ota/control"
	"cowbird/tools/vmlab/vmtest"
)

const unitDir = "/run/units"

// unit has a systemd that knows nothing else run the daemon's unit, changed only in
// what it runs and where its files are. The modules are there already.
func (r *rig) unit() (stop func()) {
	b, err := os.ReadFile("../../tools/boot/systemd/snapuserd.service")
	r.must(err)
	self, err := os.ReadFile("/proc/self/exe")
	r.must(err)
	r.must(os.WriteFile("/run/snapuserd", self, 0o755))
	r.must(os.MkdirAll(unitDir, 0o755))
	unit := regexp.MustCompile(`(?m)^(Wants|After|ConditionPathExists)=.*\n`).ReplaceAllString(string(b), "")
	unit = strings.Replace(unit, "[Service]\n", "[Service]\nEnvironment="+daemonEnv+"=1\nStandardError=append:/run/unit.log\n", 1)
	unit = strings.Replace(unit, "/usr/sbin/snapuserd", "/run/snapuserd --socket "+r.socket+" --carrier "+r.carrier, 1)
	r.must(os.WriteFile(filepath.Join(unitDir, "snapuserd.service"), []byte(unit), 0o644))
	for _, stub := range []string{"sysinit.target", "basic.target", "shutdown.target"} {
		r.must(os.WriteFile(filepath.Join(unitDir, stub), []byte("[Unit]\nDescription="+stub+"\n"), 0o644))
	}
	cmd := exec.Command("unshare", "--pid", "--fork", "--mount", "--mount-proc", "--kill-child",
		"/lib/systemd/systemd", "--system", "--unit=snapuserd.service", "--log-target=console", "--show-status=no")
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+unitDir, "container=lab")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	r.must(cmd.Start())
	return func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
}

// TestUnit has the daemon make devices, merge and take them away in the sandbox of its
// unit.
//
//vmtest:timeout 5m
func TestUnit(t *testing.T) {
	if vmtest.Vehicle() != "qemu" {
		t.Skip("access to devices is limited by BPF, which the other kernel does not have")
	}
	for _, carrier := range []string{"ublk", "fuse", "nbd"} {
		t.Run(carrier, func(t *testing.T) {
			r := newRig(t, carrier, "8M", oneFile)
			stop := r.unit()
			defer stop()
			t.Cleanup(func() {
				if said, _ := os.ReadFile("/run/unit.log"); t.Failed() {
					t.Logf("the unit said %s", said)
				}
			})
			node := r.mapSnapshot()
			reads, rounds := r.reading(node)
			r.merge()
			rounds.Store(0)
			vmtest.Eventually(t, "reads", func() bool { return rounds.Load() > 20 })
			r.must(reads())
			r.must(r.client.Do(t.Context(), control.Delete, "system"))
			r.checkBase()
		})
	}
}
