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
	p.program()
	wants := ""
	for _, f := range files {
		if filepath.Base(f) != busUnit { // the bus starts that one
			p.unit(f, "")
			wants += filepath.Base(f) + " "
		}
	}
	p.target(wants)
}

const busUnit = "cowbird-dbus.service"

// program puts otactl where units find it.
func (p *phone) program() {
	self, err := os.ReadFile("/proc/self/exe")
	p.check(err)
	p.check(os.WriteFile("/run/otactl", self, 0o755))
	p.check(os.MkdirAll(unitDir, 0o755))
}

// unit puts one where a systemd finds it, with more flags for what it runs.
func (p *phone) unit(file, flags string) {
	b, err := os.ReadFile(file)
	p.check(err)
	command := regexp.MustCompile(`ExecStart=/usr/sbin/otactl(.*)`).FindStringSubmatch(string(b))[1]
	unit := regexp.MustCompile(`(?m)^(ConditionPathExists|ExecStart|ReadWritePaths)=.*\n`).ReplaceAllString(string(b), "")
	unit = strings.Replace(unit, "[Service]\n", "[Service]\nExecStart=/run/otactl"+command+flags+" --config "+p.path("update.json")+" --socket "+p.socket()+
		"\nEnvironment="+mainEnv+"=1\nReadWritePaths=/run\nStandardOutput=append:"+unitLog+"\nStandardError=append:"+unitLog+"\n", 1)
	p.check(os.WriteFile(filepath.Join(unitDir, filepath.Base(file)), []byte(unit), 0o644))
}

// target has a systemd start units, which need nothing else.
func (p *phone) target(wants string) {
	for _, s := range stubs {
		p.check(os.WriteFile(filepath.Join(unitDir, s), []byte("[Unit]\nDescription="+s+"\n"), 0o644))
	}
	target := "[Unit]\nRequires=multi-user.target\nWants=" + wants + "\n"
	p.check(os.WriteFile(filepath.Join(unitDir, "lab.target"), []byte(target), 0o644))
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

// unitsPhone is a device for units.
func unitsPhone(t *testing.T) (p *phone, side phoneSidecar, fixtures string) {
	t.Helper()
	if vmtest.Vehicle() != "qemu" {
		t.Skip("access to devices is limited by BPF, which the other kernel does not have")
	}
	t.Setenv("TMPDIR", "/run") // since the units see no other /tmp than their own
	fixtures = filepath.Join(fixture.Dir(t), "payload")
	b, err := os.ReadFile(filepath.Join(fixtures, phonePayload+".json"))
	if err == nil {
		err = json.Unmarshal(b, &side)
	}
	if err != nil {
		t.Fatal(err)
	}
	return newPhone(t, side, fixtures), side, fixtures
}

// TestUnitsMerge has systemd run the units, as sandboxed as they are, over an update
// that is being tried: it is marked as good and merged.
//
//vmtest:timeout 5m
func TestUnitsMerge(t *testing.T) {
	p, side, fixtures := unitsPhone(t)
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

// bus has a systemd run a message bus that starts the service.
func (p *phone) bus() {
	const dir = "/run/bus"
	p.check(os.MkdirAll(dir, 0o755))
	p.program()
	service, err := os.ReadFile("../../tools/boot/dbus/" + busName + ".service")
	p.check(err)
	for name, text := range map[string]string{
		dir + "/" + busName + ".service": string(service),
		dir + "/bus.conf": "<busconfig><listen>systemd:</listen><servicedir>" + dir + `</servicedir><auth>EXTERNAL</auth><policy context="default"><allow user="*"/><allow own="*"/>` +
			`<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/></policy></busconfig>`,
		unitDir + "/dbus.socket":  "[Socket]\nListenStream=/run/dbus/system_bus_socket\n",
		unitDir + "/dbus.service": "[Unit]\nRequires=dbus.socket\n[Service]\nType=notify\nExecStart=/usr/bin/dbus-daemon --config-file=" + dir + "/bus.conf --nofork --nopidfile --systemd-activation\n",
	} {
		p.check(os.WriteFile(name, []byte(text), 0o644))
	}
	p.unit("../../tools/boot/systemd/"+busUnit, " --idle 3s")
	p.target("dbus.socket dbus.service")
}

// busctl calls the service.
func (p *phone) busctl(words ...string) (string, error) {
	args := append([]string{"--timeout=60", words[0], busName, busObject, busName}, words[1:]...)
	out, err := exec.Command("busctl", args...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (p *phone) busCall(words ...string) {
	p.t.Helper()
	if out, err := p.busctl(append([]string{"call"}, words...)...); err != nil {
		said, _ := os.ReadFile(unitLog)
		p.t.Fatalf("%q: %v, %s; the service said %s", words, err, out, said)
	}
}

// busWait waits until properties have values.
func (p *phone) busWait(want string, properties ...string) {
	p.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		out, err := p.busctl(append([]string{"get-property"}, properties...)...)
		if err == nil && strings.ReplaceAll(out, "\n", " ") == want {
			return
		}
		if time.Now().After(deadline) {
			said, _ := os.ReadFile(unitLog)
			p.t.Fatalf("expected %q to be %q, found %v, %s; the service said %s", properties, want, err, out, said)
		}
	}
}

// TestUnitsBus is the update of a device by a user interface: a real bus and systemd
// start the service, as sandboxed as it is, and end it when nobody calls.
//
//vmtest:timeout 5m
func TestUnitsBus(t *testing.T) {
	p, side, from := unitsPhone(t)
	fixtures := p.path("fixtures") // where the service sees them
	for _, name := range []string{phonePayload + ".payload.bin", side.PublicKey} {
		b, err := os.ReadFile(filepath.Join(from, name))
		p.check(err)
		p.check(os.MkdirAll(filepath.Dir(filepath.Join(fixtures, name)), 0o755))
		p.check(os.WriteFile(filepath.Join(fixtures, name), b, 0o644))
	}
	p.configure(filepath.Join(fixtures, side.PublicKey))
	p.otactl("boot")
	p.bus()
	defer p.systemd()()
	vmtest.Eventually(t, "a message bus", func() bool { return exec.Command("busctl", "--timeout=5", "list").Run() == nil })
	p.busWait(`s "None" s "_a"`, "State", "Slot")
	p.busCall("MarkSuccessful")
	p.busCall("Install", "sa{sv}", filepath.Join(fixtures, phonePayload+".payload.bin"), "0")
	p.busWait(`s "idle" s "Unverified" s "_b" b true s ""`, "Operation", "State", "NextSlot", "RebootNeeded", "LastError")

	p.reboot(fixtures, side.PublicKey)
	p.startDaemon()
	paths := pathsOf(p.otactl("boot", "--timeout", "30s"))
	p.busWait(`s "Unverified" s "_b" b false`, "State", "Slot", "Successful")
	p.busCall("MarkSuccessful")
	p.busCall("Merge")
	p.busWait(`s "idle" s "None" b true s ""`, "Operation", "State", "Successful", "LastError")
	p.checkNew(side, paths)
	vmtest.Eventually(t, "the service to end", func() bool {
		out, err := exec.Command("busctl", "--timeout=5", "--acquired", "--no-legend", "list").Output()
		return err == nil && !strings.Contains(string(out), busName)
	})
	p.busWait(`s "None"`, "State") // it is started again
	p.reboot(fixtures, side.PublicKey)
}
