package boot

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"cowbird/ota/dbus"
	"cowbird/tools/fixture"
)

const busName = "org.cowbird.Update1"

// The files for the message bus and polkit are XML, and what their DTDs say.
func TestBusXML(t *testing.T) {
	xmllint := tool(t, "xmllint", "libxml2-utils")
	run(t, xmllint, "--nonet", "--noout", "dbus/"+busName+".conf")
	const dtd = "/usr/share/polkit-1/policyconfig-1.dtd"
	if _, err := os.Stat(dtd); err != nil {
		fixture.Missing(t, "%s is not there (Debian: polkitd)", dtd)
	}
	run(t, xmllint, "--nonet", "--noout", "--dtdvalid", dtd, "dbus/"+busName+".policy")
	b, err := os.ReadFile("dbus/" + busName + ".policy")
	if err != nil || !strings.Contains(string(b), `<action id="`+busName+`.change">`) {
		t.Errorf("expected the action that otactl dbus asks for, found %s, %v", b, err)
	}
}

// The bus starts what the unit starts.
func TestBusService(t *testing.T) {
	read := func(file string) map[string]string {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		keys := map[string]string{}
		for _, m := range regexp.MustCompile(`(?m)^([A-Za-z]+)=(.*)$`).FindAllStringSubmatch(string(b), -1) {
			keys[m[1]] = m[2]
		}
		return keys
	}
	service := read("dbus/" + busName + ".service")
	unit := read("systemd/" + service["SystemdService"])
	if service["Name"] != busName || service["User"] != "root" || unit["Type"] != "dbus" || unit["BusName"] != busName || unit["ExecStart"] != service["Exec"] {
		t.Errorf("expected the bus and systemd to start the same, found %v and %v", service, unit)
	}
}

// systemBus starts a message bus with the policy of the system's, to which only the
// socket and what is of this machine are different.
func systemBus(t *testing.T) (address string) {
	t.Helper()
	const system = "/usr/share/dbus-1/system.conf"
	b, err := os.ReadFile(system)
	if err != nil {
		fixture.Missing(t, "%s is not there (Debian: dbus-system-bus-common)", system)
	}
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	policy, err := filepath.Abs("dbus/" + busName + ".conf")
	if err != nil {
		t.Fatal(err)
	}
	conf := regexp.MustCompile(`(?s)<(user|pidfile|servicehelper|listen|includedir|include|type)\b[^>]*>[^<]*</[a-z]+>|<(fork|syslog|standard_system_servicedirs|keep_umask)/>`).ReplaceAllString(string(b), "")
	conf = strings.Replace(conf, "<busconfig>", "<busconfig><type>session</type><listen>unix:path="+dir+"/bus</listen>", 1)
	conf = strings.Replace(conf, "</busconfig>", "<include>"+policy+"</include></busconfig>", 1)
	file := filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(tool(t, "dbus-daemon", "dbus-daemon"), "--nofork", "--nopidfile", "--print-address", "--config-file="+file)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// Under the system bus's own rules root may be the service, everybody may call what it
// has, and nobody else may be it.
func TestBusPolicy(t *testing.T) {
	if os.Geteuid() != 0 {
		fixture.Missing(t, "needs root, to become somebody else")
	}
	address := systemBus(t)
	send := tool(t, "dbus-send", "dbus-bin")
	nobody := func(to, path, method string, args ...string) (string, error) {
		cmd := exec.Command(send, append([]string{"--bus=" + address, "--print-reply", "--reply-timeout=5000", "--dest=" + to, path, method}, args...)...)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := nobody(dbus.Bus, "/", dbus.Bus+".RequestName", "string:"+busName, "uint32:4"); err == nil || !strings.Contains(out, "AccessDenied") {
		t.Errorf("expected the name not to be given to nobody, found %s", out)
	}
	service, err := dbus.Dial(t.Context(), address)
	if err == nil {
		defer service.Close()
		err = service.Own(t.Context(), busName)
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for m := range service.Incoming() {
			_ = service.Reply(m, m.Interface)
		}
	}()
	for iface, allowed := range map[string]bool{
		busName: true, "org.freedesktop.DBus.Properties": true, "org.freedesktop.DBus.Introspectable": true, "org.freedesktop.DBus.Peer": true, "org.example.Other": false,
	} {
		out, err := nobody(busName, "/org/cowbird/Update1", iface+".X")
		if (err == nil) != allowed {
			t.Errorf("%s: expected it to be allowed: %v, found %s", iface, allowed, out)
		}
	}
}
