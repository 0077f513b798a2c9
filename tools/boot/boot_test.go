package boot

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"cowbird/ota/update"
	"cowbird/tools/fixture"
)

// tool is the path of a program that this machine may lack.
func tool(t *testing.T, name, debian string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		fixture.Missing(t, "%s is not installed (Debian: %s)", name, debian)
	}
	return path
}

func glob(t *testing.T, patterns ...string) (files []string) {
	t.Helper()
	for _, p := range patterns {
		found, err := filepath.Glob(p)
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: expected files, found none (%v)", p, err)
		}
		files = append(files, found...)
	}
	return files
}

// scripts are the files of each shell.
func scripts(t *testing.T) map[string][]string {
	return map[string][]string{
		"sh":   append(glob(t, "*.sh", "boot.conf", "initramfs-tools/hooks/*", "initramfs-tools/scripts/*/*"), "dracut/90cowbird/parse-cowbird.sh", "dracut/90cowbird/cowbird-map.sh"),
		"bash": {"dracut/90cowbird/module-setup.sh"},
	}
}

func TestScripts(t *testing.T) {
	shellcheck := tool(t, "shellcheck", "shellcheck")
	for shell, files := range scripts(t) {
		for _, f := range files {
			run(t, shell, "-n", f)
			args := []string{"-x", "-P", "../..", "-s", shell}
			if f == "boot.conf" {
				args = append(args, "-e", "SC2034") // for boot.sh
			}
			run(t, shellcheck, append(args, f)...)
		}
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// stage is an initramfs with programs that only note how they are called.
type stage struct {
	t    *testing.T
	top  string
	path string
}

func newStage(t *testing.T, cmdline, conf string, partitions ...string) *stage {
	s := &stage{t: t, top: t.TempDir()}
	s.path = filepath.Join(s.top, "bin")
	s.write("proc/cmdline", cmdline+"\n", 0o644)
	s.write("dev/kmsg", "", 0o644)
	s.write("dev/super", "", 0o644)
	s.write("run/x", "", 0o644)
	s.write("etc/cowbird/boot.conf", conf, 0o644)
	s.write("partitions", strings.Join(partitions, " /dev/dm-1\n")+" /dev/dm-1\n", 0o644)
	for _, p := range []string{"modprobe", "mount", "umount", "udevadm"} {
		s.program(p, "")
	}
	s.program("otactl", "cat "+s.top+"/partitions")
	return s
}

func (s *stage) write(name, body string, mode os.FileMode) {
	s.t.Helper()
	path := filepath.Join(s.top, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(body), mode); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) program(name, body string) {
	s.write("bin/"+name, fmt.Sprintf("#!/bin/sh\necho %s \"$@\" >>%s/calls\n%s\n", name, s.top, body), 0o755)
}

func (s *stage) read(name string) string {
	b, _ := os.ReadFile(filepath.Join(s.top, name))
	return string(b)
}

// boot gives the root, and how cowbird_boot ended.
func (s *stage) boot(shell string) (root string, err error) {
	s.t.Helper()
	cmd := exec.Command(shell, "-euc", `. ./boot.sh; cowbird_boot; echo "root=$COWBIRD_ROOT"`)
	cmd.Env = append(os.Environ(), "PATH="+s.path+":"+os.Getenv("PATH"), "COWBIRD_TOP="+s.top)
	out, err := cmd.Output()
	_, root, _ = strings.Cut(strings.TrimSpace(string(out)), "root=")
	return root, err
}

const stageConf = "DEVICES=/dev/super\nWAIT=0\nMODULES=zram\nMOUNTS='\n/dev/meta /metadata ext4 rw\n/dev/esp /efi vfat ro\n'\n"

func TestBootScript(t *testing.T) {
	for _, shell := range []string{"dash", "bash"} {
		t.Run(shell, func(t *testing.T) {
			s := newStage(t, "quiet cowbird.root=nothing cowbird.root=system ro", stageConf, "vendor_b", "system_b", "system_ext_b")
			root, err := s.boot(shell)
			if err != nil || root != "/dev/mapper/system_b" {
				t.Fatalf("expected system_b as root, found %q, %v; %s", root, err, s.read("dev/kmsg"))
			}
			s.expectCalls("modprobe -q dm_mod", "modprobe -q zram", "mount -t ext4 -o rw /dev/meta "+s.top+"/metadata",
				"mount -t vfat -o ro /dev/esp "+s.top+"/efi", "otactl boot .*--daemon /sbin/snapuserd --daemon-root /run/initramfs/cowbird",
				"umount "+s.top+"/metadata", "umount "+s.top+"/efi", "udevadm control", "udevadm trigger")
			if link, err := os.Readlink(filepath.Join(s.top, "dev/cowbird/root")); err != nil || link != "../mapper/system_b" {
				t.Errorf("expected /dev/cowbird/root to be system_b, found %q, %v", link, err)
			}
			if rule := s.read("run/udev/rules.d/61-cowbird-root.rules"); !strings.Contains(rule, `ATTR{dm/name}=="system_b", SYMLINK+="cowbird/root"`) {
				t.Errorf("expected a rule for the root, found %q", rule)
			}
		})
	}
}

// expectCalls wants programs to have been called, in that order.
func (s *stage) expectCalls(patterns ...string) {
	s.t.Helper()
	calls := s.read("calls")
	for _, p := range patterns {
		at := regexp.MustCompile(`(?m)^` + p).FindStringIndex(calls)
		if at == nil {
			s.t.Fatalf("expected %q to be called next, found only\n%s", p, calls)
		}
		calls = calls[at[1]:]
	}
}

// Without cowbird.root the partitions are mapped, and root= is left alone.
func TestBootScriptWithoutRoot(t *testing.T) {
	s := newStage(t, "root=/dev/mapper/system_a", stageConf, "system_a")
	if root, err := s.boot("sh"); err != nil || root != "" {
		t.Errorf("expected no root and no error, found %q, %v", root, err)
	}
	s.expectCalls("otactl boot")
}

func TestBootScriptFails(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*stage)
		says  string
	}{
		"no device":        {func(s *stage) { _ = os.Remove(filepath.Join(s.top, "dev/super")) }, "/dev/super is not there"},
		"no mount":         {func(s *stage) { s.program("mount", "exit 32") }, "cannot mount /dev/meta on /metadata"},
		"otactl":           {func(s *stage) { s.program("otactl", "echo otactl: super: no metadata >&2; exit 1") }, "otactl: super: no metadata"},
		"no such root":     {func(s *stage) { s.write("partitions", "vendor_a /dev/dm-1\n", 0o644) }, "expected one partition called system"},
		"two of that name": {func(s *stage) { s.write("partitions", "system_a x\nsystem_b x\n", 0o644) }, "system_a /dev/mapper/system_b"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, "cowbird.root=system", stageConf, "system_a")
			c.spoil(s)
			if root, err := s.boot("dash"); err == nil {
				t.Errorf("expected an error, found the root %q", root)
			}
			if said := s.read("dev/kmsg"); !strings.Contains(said, c.says) {
				t.Errorf("expected %q to be said, found %q", c.says, said)
			}
			if calls := s.read("calls"); strings.Contains(calls, "otactl") && !strings.Contains(calls, "umount") {
				t.Error("expected what was mounted not to stay mounted")
			}
		})
	}
}

// The hook copies all that boot.sh needs, and says what is missing.
func TestInitramfsHook(t *testing.T) {
	system := &stage{t: t, top: t.TempDir()}
	calls := filepath.Join(t.TempDir(), "calls")
	system.write("functions", fmt.Sprintf("note() { echo \"$@\" >>%s; }\ncopy_exec() { note exec \"$@\"; }\ncopy_file() { note \"$@\"; return 1; }\nmanual_add_modules() { note modules \"$@\"; }\n", calls), 0o644)
	for _, f := range []string{"usr/lib/cowbird/boot.sh", "usr/lib/udev/rules.d/59-cowbird.rules", "etc/cowbird/update.json"} {
		system.write(f, "", 0o644)
	}
	system.write("etc/cowbird/boot.conf", "MODULES='mmc_block sdhci'\n", 0o644)
	hook := func() ([]byte, error) {
		cmd := exec.Command("initramfs-tools/hooks/cowbird")
		cmd.Env = append(os.Environ(), "COWBIRD_SYSTEM="+system.top, "COWBIRD_HOOK_FUNCTIONS="+filepath.Join(system.top, "functions"))
		return cmd.CombinedOutput()
	}
	if out, err := hook(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b, _ := os.ReadFile(calls)
	for _, want := range []string{"otactl /sbin/otactl", "snapuserd /sbin/snapuserd", " /usr/lib/cowbird/boot.sh\n", "/59-cowbird.rules\n", " /etc/cowbird/update.json\n", " /etc/cowbird/boot.conf\n", "ublk_drv", "modules mmc_block sdhci\n"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("expected %q, found\n%s", want, b)
		}
	}
	if err := os.Remove(filepath.Join(system.top, "etc/cowbird/update.json")); err != nil {
		t.Fatal(err)
	}
	if out, err := hook(); err == nil || !strings.Contains(string(out), "update.json is missing") {
		t.Errorf("expected the hook to miss the configuration, found %v: %s", err, out)
	}
}

// exposure is the most that systemd may find of what a unit is exposed to, of 10.
var exposure = map[string]float64{
	"cowbird-process.service": 1.5, "cowbird-mark-successful.service": 1.5, "cowbird-merge.service": 1.5,
	"snapuserd.service":    4.5, // it makes block devices
	"cowbird-dbus.service": 2.5, // it fetches updates, and reads them in anybody's folders
}

func TestUnits(t *testing.T) {
	analyze := tool(t, "systemd-analyze", "systemd")
	root := &stage{t: t, top: t.TempDir()}
	for _, p := range []string{"otactl", "snapuserd"} {
		root.write("usr/sbin/"+p, "#!/bin/true\n", 0o755)
	}
	targets, _ := filepath.Glob("/usr/lib/systemd/system/*.target")
	for _, f := range append(glob(t, "systemd/*.service"), targets...) {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		root.write("etc/systemd/system/"+filepath.Base(f), string(b), 0o644)
	}
	root.write("etc/systemd/system/dbus.service", "[Service]\nExecStart=/usr/sbin/otactl\n", 0o644) // what Type=dbus waits for
	root.write("etc/systemd/system/dbus.socket", "[Socket]\nListenStream=/run/dbus/system_bus_socket\n", 0o644)
	for _, f := range glob(t, "systemd/*.service") {
		name := filepath.Base(f)
		if out := run(t, analyze, "verify", "--man=no", "--root="+root.top, name); strings.Contains(out, name) {
			t.Errorf("%s: %s", name, out)
		}
		out := run(t, analyze, "security", "--offline=true", "--no-pager", "--root="+root.top, name)
		m := regexp.MustCompile(`exposure level for \S+: ([0-9.]+)`).FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("%s: expected a level, found %s", name, out)
		}
		if level, err := strconv.ParseFloat(m[1], 64); err != nil || level > exposure[name] {
			t.Errorf("%s: expected an exposure of at most %v, found %v", name, exposure[name], m[1])
		}
	}
	root.write("etc/systemd/system/cowbird-bad.service", "[Service]\nExecStart=/usr/sbin/nothing\nProtectSystm=yes\n", 0o644)
	if out, _ := exec.Command(analyze, "verify", "--man=no", "--root="+root.top, "cowbird-bad.service").CombinedOutput(); !strings.Contains(string(out), "ProtectSystm") {
		t.Errorf("expected systemd to see a misspelt setting, found %s", out)
	}
}

// What a unit or script runs is a command and a flag that otactl or snapuserd has.
func TestCommandLines(t *testing.T) {
	line := regexp.MustCompile(`(?m)(?:/usr/sbin/|/system/bin/|^\s*)(otactl|snapuserd)\s((?:[a-z-]+|-)[^\\\n]*)`)
	known := flagsIn(t, "../../cmd/otactl/*.go", "../../cmd/snapuserd/*.go")
	files := glob(t, "systemd/*.service", "dbus/*.service", "android/*.rc", "boot.sh", "udev/*.rules")
	count := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range line.FindAllStringSubmatch(string(b), -1) {
			count++
			for _, word := range strings.Fields(m[2]) {
				if name, ok := strings.CutPrefix(word, "-"); ok && !slices.Contains(known, strings.TrimPrefix(name, "-")) {
					t.Errorf("%s: %s %s: no flag --%s", f, m[1], m[2], name)
				}
			}
		}
	}
	if count < 10 {
		t.Errorf("expected each file to run something, found %d command lines", count)
	}
}

// flagsIn are the names of flags that sources define.
func flagsIn(t *testing.T, patterns ...string) (names []string) {
	t.Helper()
	defined := regexp.MustCompile(`(?:Var|VarP|Flags\(\)\.\w+)\(&[\w.]+, "([a-z-]+)"`)
	for _, f := range glob(t, patterns...) {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range defined.FindAllStringSubmatch(string(b), -1) {
			names = append(names, m[1])
		}
	}
	return names
}

// What docs/boot.md gives as examples can be read.
func TestExamples(t *testing.T) {
	b, err := os.ReadFile("../../docs/boot.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(string(b), "    # boot.conf\n")
	conf, config, ok := strings.Cut(example, "    # update.json\n")
	config, _, more := strings.Cut(config, "\n\n")
	if !ok || !more {
		t.Fatal("expected a boot.conf and an update.json")
	}
	if _, err := update.ParseConfig([]byte(config), "/etc/cowbird"); err != nil {
		t.Error(err)
	}
	s := newStage(t, "cowbird.root=system", strings.ReplaceAll(conf, "    ", "")+"WAIT=0\n", "system_b")
	s.write("dev/mmcblk0p5", "", 0o644)
	s.write("dev/mmcblk0p6", "", 0o644)
	if root, err := s.boot("sh"); err != nil || root != "/dev/mapper/system_b" {
		t.Errorf("expected a root, found %q, %v: %s", root, err, s.read("dev/kmsg"))
	}
	s.expectCalls("mount -t ext4 -o rw,nosuid,nodev,noexec /dev/mmcblk0p6 ")
}

// rcOptions are what services of Android's init may say, of those that we use.
var rcOptions = []string{"user", "group", "task_profiles", "seclabel", "disabled", "oneshot", "shutdown", "socket"}

// Android's init reads these files by lines; what is started is a service there.
func TestInitScripts(t *testing.T) {
	services, started := map[string]bool{}, map[string]string{}
	for _, f := range glob(t, "android/*.rc") {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		section := ""
		for line := range strings.Lines(string(b)) {
			words := strings.Fields(line)
			switch {
			case len(words) == 0 || words[0][0] == '#':
			case line[0] != ' ':
				section = words[0]
				if section == "service" {
					services[words[1]] = true
				} else if section != "on" {
					t.Errorf("%s: expected a service or an action, found %q", f, line)
				}
			case section == "service" && !slices.Contains(rcOptions, words[0]):
				t.Errorf("%s: expected an option of a service, found %q", f, line)
			case section == "on" && words[0] == "setprop" && len(words) == 3:
			case section == "on" && (words[0] != "start" && words[0] != "exec_start" || len(words) != 2):
				t.Errorf("%s: expected a service to be started, found %q", f, line)
			case section == "on":
				started[words[1]] = f
			}
		}
	}
	for name, f := range started {
		if !services[name] {
			t.Errorf("%s: expected a service called %s, found none", f, name)
		}
	}
	if len(services) < 4 || len(started) < 3 {
		t.Errorf("expected services that are started, found %v, %v", services, started)
	}
}
