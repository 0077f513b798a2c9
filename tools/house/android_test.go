package house

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"cowbird/tools/fixture"
)

const androidBp = root + "/Android.bp"

// TestAndroidBpFormat lets blueprint's own parser read the file.
func TestAndroidBpFormat(t *testing.T) {
	bpfmt, err := exec.LookPath("bpfmt")
	if err != nil {
		fixture.Missing(t, "bpfmt is not installed (Debian: blueprint-tools)")
	}
	if out, err := runBpfmt(bpfmt, androidBp); err != nil || out != "" {
		t.Errorf("bpfmt: %v\n%s", err, out)
	}
	bad := filepath.Join(t.TempDir(), "Android.bp")
	if err := os.WriteFile(bad, []byte("license { name: \"x\" "), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := runBpfmt(bpfmt, bad); err == nil {
		t.Error("expected bpfmt to refuse an open brace, found no error")
	}
}

// runBpfmt returns the difference between the file and its canonical form.
func runBpfmt(bpfmt, path string) (string, error) {
	out, err := exec.Command(bpfmt, "-d", path).CombinedOutput()
	return string(out), err
}

// TestAndroidBpFiles checks that every file that Android.bp names exists.
// What `make cross` makes (bin/OS-ARCH/COMMAND) need not be there yet in a
// clean checkout; then the platform and the command must be ones that it
// builds. After `make cross` those must exist as well.
func TestAndroidBpFiles(t *testing.T) {
	body, err := os.ReadFile(androidBp)
	if err != nil {
		t.Fatal(err)
	}
	files, err := namedFiles(string(body))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 3 {
		t.Errorf("expected the tool, the daemon and its init script to be named, found only %q", files)
	}
	built := os.Getenv("HOUSE_CROSS_BUILT") != ""
	for _, f := range files {
		if err := checkNamed(f, built, makefilePlatforms(t)); err != nil {
			t.Errorf("Android.bp: %v", err)
		}
	}
}

func checkNamed(file string, built bool, platforms []string) error {
	_, err := os.Stat(filepath.Join(root, file))
	rest, product := strings.CutPrefix(file, "bin/")
	if err == nil || !product || built {
		return err
	}
	platform, command, _ := strings.Cut(rest, "/")
	if !slices.Contains(platforms, strings.Replace(platform, "-", "/", 1)) {
		return fmt.Errorf("%s: expected a platform that make cross builds, found %s", file, platform)
	}
	_, err = os.Stat(filepath.Join(root, "cmd", command))
	return err
}

// makefilePlatforms reads the PLATFORMS line of the Makefile.
func makefilePlatforms(t *testing.T) []string {
	t.Helper()
	body, err := os.ReadFile(root + "/Makefile")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^PLATFORMS\s*:=(.*)$`).FindStringSubmatch(string(body))
	if line == nil {
		t.Fatal("Makefile: expected a PLATFORMS line, found none")
	}
	return strings.Fields(line[1])
}

var (
	bpComment  = regexp.MustCompile(`//.*|(?s:/\*.*?\*/)`)
	bpProperty = regexp.MustCompile(`(\w+):\s*("[^"]*"|\[[^\]]*\])`)
	bpString   = regexp.MustCompile(`"([^"]*)"`)
)

// Every string property that Android.bp uses, and whether its values are
// files. One that is not listed fails the test, so that none goes unchecked.
var bpProperties = map[string]bool{
	"srcs": true, "src": true, "init_rc": true, "license_text": true,
	"name": false, "stem": false, "overrides": false, "license_kinds": false, "visibility": false,
	"default_applicable_licenses": false, "compile_multilib": false, "default_visibility": false,
	"sub_dir": false, "required": false,
}

// namedFiles returns the files that a Blueprint file names, in order.
func namedFiles(body string) (files []string, err error) {
	for _, p := range bpProperty.FindAllStringSubmatch(bpComment.ReplaceAllString(body, ""), -1) {
		isFile, known := bpProperties[p[1]]
		if !known {
			return nil, fmt.Errorf("property %q: expected one that bpProperties lists", p[1])
		}
		for _, s := range bpString.FindAllStringSubmatch(p[2], -1) {
			if isFile {
				files = append(files, s[1])
			}
		}
	}
	return files, nil
}

func TestNamedFiles(t *testing.T) {
	got, err := namedFiles("// srcs: [\"no\"]\ncc { name: \"a\", srcs: [\n \"b\", \"c/d\" ], init_rc: [\"e\"], license_text: [\"L\"] }")
	if want := []string{"b", "c/d", "e", "L"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("expected %q, found %q, %v", want, got, err)
	}
	if _, err := namedFiles(`cc { novel: "x" }`); err == nil {
		t.Error("expected an unlisted property to be refused, found no error")
	}
}

func TestCheckNamed(t *testing.T) {
	platforms := []string{"linux/arm64"}
	for file, ok := range map[string]bool{
		"LICENSE":                  true,
		"NOT-THERE":                false,
		"bin/linux-mips/snapuserd": false,
		"bin/linux-arm64/nothing":  false,
	} {
		if err := checkNamed(file, false, platforms); (err == nil) != ok {
			t.Errorf("%s: expected ok %v, found %v", file, ok, err)
		}
	}
	if err := checkNamed("bin/never-built/snapuserd", true, platforms); err == nil {
		t.Error("expected a missing product to be refused after make cross, found no error")
	}
}

// bpModule is a module that installs a program.
type bpModule struct {
	kind, name, stem string
	flags            []string // properties that are true
	srcs             []string
}

var (
	bpBlock = regexp.MustCompile(`(?ms)^(\w+) \{\n(.*?)^\}`)
	bpTrue  = regexp.MustCompile(`(\w+):\s*true\b`)
)

// bpModules reads the modules of a Blueprint file in its canonical form.
func bpModules(body string) (all []bpModule) {
	for _, block := range bpBlock.FindAllStringSubmatch(bpComment.ReplaceAllString(body, ""), -1) {
		m := bpModule{kind: block[1]}
		for _, p := range bpProperty.FindAllStringSubmatch(block[2], -1) {
			for _, s := range bpString.FindAllStringSubmatch(p[2], -1) {
				switch p[1] {
				case "name":
					m.name = s[1]
				case "stem":
					m.stem = s[1]
				case "srcs":
					m.srcs = append(m.srcs, s[1])
				}
			}
		}
		for _, f := range bpTrue.FindAllStringSubmatch(block[2], -1) {
			m.flags = append(m.flags, f[1])
		}
		if m.stem == "" {
			m.stem = m.name
		}
		all = append(all, m)
	}
	return all
}

// A ramdisk has no dynamic loader, so that only static programs run there; the
// daemon is to be had for each place that it is started from (snapuserd.md 2).
func TestAndroidBpRamdisks(t *testing.T) {
	body, err := os.ReadFile(androidBp)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]string{}
	for _, m := range bpModules(string(body)) {
		if m.kind != "cc_prebuilt_binary" {
			continue
		}
		for _, place := range []string{"ramdisk", "vendor_ramdisk", "recovery_available"} {
			if slices.Contains(m.flags, place) {
				found[place] = append(found[place], m.stem)
			}
			if strings.HasSuffix(place, "ramdisk") && slices.Contains(m.flags, place) && !slices.Equal(m.srcs, []string{"bin/linux-arm64/snapuserd"}) {
				t.Errorf("%s: expected the static daemon, found %q", m.name, m.srcs)
			}
		}
	}
	for place, want := range map[string][]string{"ramdisk": {"snapuserd_ramdisk"}, "vendor_ramdisk": {"snapuserd"}, "recovery_available": {"snapuserd", "otactl"}} {
		if !slices.Equal(found[place], want) {
			t.Errorf("%s: expected %q, found %q", place, want, found[place])
		}
	}
}

// What Android's init scripts start, a module installs.
func TestAndroidBpPrograms(t *testing.T) {
	body, err := os.ReadFile(androidBp)
	if err != nil {
		t.Fatal(err)
	}
	installed := map[string]bool{}
	for _, m := range bpModules(string(body)) {
		if m.kind == "cc_prebuilt_binary" {
			installed[m.stem] = true
		}
	}
	scripts, err := filepath.Glob(root + "/tools/boot/android/*.rc")
	if err != nil || len(scripts) < 2 {
		t.Fatalf("expected init scripts, found %q, %v", scripts, err)
	}
	started := regexp.MustCompile(`(?m)^service \w+ /system/bin/(\S+)`)
	for _, f := range scripts {
		rc, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(body), strings.TrimPrefix(f, root+"/")) {
			t.Errorf("%s: expected a module that installs it, found none", f)
		}
		for _, m := range started.FindAllStringSubmatch(string(rc), -1) {
			if !installed[m[1]] {
				t.Errorf("%s: expected a module that installs %s, found none", f, m[1])
			}
		}
	}
}
