//go:build vmtest

package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"cowbird/tools/fixture"
	"cowbird/tools/vmlab/vmtest"
)

// mainEnv makes this program otactl.
const mainEnv = "OTACTL_VMTEST_MAIN"

func init() {
	if os.Getenv(mainEnv) != "" {
		main()
	}
}

const (
	unitDir = "/run/units"
	unitLog = "/run/units.log"
)

// stubs are what the units refer to, with nothing in it.
var stubs = []string{"sysinit.target", "basic.target", "multi-user.target", "boot-complete.target", "local-fs.target", "shutdown.target", "umount.target"}

// units puts the units where a systemd finds nothing else, changed only in what they
// run, in their conditions and in where the device's files are.
func (p *phone) units() {
	files, err := filepath.Glob("../../tools/boot/systemd/cowbird-*.service")
	p.check(err)
	self, err := os.ReadFile("/proc/self/exe")
	p.check(err)
	p.check(os.WriteFile("/run/otactl", self, 0o755))
	p.check(os.MkdirAll(unitDir, 0o755))
	wants := "[Unit]\nRequires=multi-user.target\nWants="
	for _, f := range files {
		b, err := os.ReadFile(f)
		p.check(err)
		if strings.Contains(string(b), "Type=dbus") {
			continue // the bus starts it, and there is none here
		}
		command := regexp.MustCompile(`ExecStart=/usr/sbin/otactl(.*)`).FindStringSubmatch(string(b))[1]
		unit := regexp.MustCompile(`(?m)^(ConditionPathExists|ExecStart|ReadWritePaths)=.*\n`).ReplaceAllString(string(b), "")
		unit = strings.Replace(unit, "[Service]\n", "[Service]\nExecStart=/run/otactl"+command+" --config "+p.path("update.json")+" --socket "+p.socket()+
			"\nEnvironment="+mainEnv+"=1\nReadWritePaths=/run\nStandardOutput=append:"+unitLog+"\nStandardError=append:"+unitLog+"\n", 1)
		p.check(os.WriteFile(filepath.Join(unitDir, filepath.Base(f)), []byte(unit), 0o644))
		wants += filepath.Base(f) + " "
	}
	for _, s := range stubs {
		p.check(os.WriteFile(filepath.Join(unitDir, s), []byte("[Unit]\nDescription="+s+"\n"), 0o644))
	}
	p.check(os.WriteFile(filepath.Join(unitDir, "lab.target"), []byte(wants+"\n"), 0o644))
}

// systemd runs one as the first process of its own.
func (p *phone) systemd() (stop func()) {
	cmd := exec.Command("unshare", "--pid", "--fork", "--mount", "--mount-proc", "--kill-child",
		"/lib/systemd/systemd", "--system", "--unit=lab.target", "--log-target=console", "--log-level=info", "--show-status=no")
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+unitDir, "container=lab")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	p.check(cmd.Start())
	return func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
}

// TestUnitsMerge has systemd run the units, as sandboxed as they are, over an update
// that is being tried: it is marked as good and merged.
//
//vmtest:timeout 5m
func TestUnitsMerge(t *testing.T) {
	if vmtest.Vehicle() != "qemu" {
		t.Skip("access to devices is limited by BPF, which the other kernel does not have")
	}
	t.Setenv("TMPDIR", "/run") // since the units see no other /tmp than their own
	fixtures := filepath.Join(fixture.Dir(t), "payload")
	b, err := os.ReadFile(filepath.Join(fixtures, phonePayload+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var side phoneSidecar
	if err := json.Unmarshal(b, &side); err != nil {
		t.Fatal(err)
	}
	p := newPhone(t, side, fixtures)
	p.otactl("mark-successful")
	p.otactl("boot")
	p.otactl("install", "--quiet", filepath.Join(fixtures, phonePayload+".payload.bin"))
	p.reboot(fixtures, side.PublicKey)
	p.startDaemon()
	paths := pathsOf(p.otactl("boot", "--timeout", "30s"))

	p.units()
	defer p.systemd()()
	done := func() bool {
		out := p.otactl("update", "--json")
		return strings.Contains(out, `"state":"None"`) && strings.Contains(out, `"successful":true`)
	}
	for deadline := time.Now().Add(2 * time.Minute); !done(); time.Sleep(time.Second) {
		if time.Now().After(deadline) {
			said, _ := os.ReadFile(unitLog)
			t.Fatalf("expected the update to be merged and its slot to be successful, found %s; the units said %s", p.otactl("update"), said)
		}
	}
	p.checkNew(side, paths)
	p.reboot(fixtures, side.PublicKey)
}
