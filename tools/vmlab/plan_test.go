package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestCacheDir(t *testing.T) {
	for _, c := range []struct{ xdg, home, want string }{
		{"/x", "/h", "/x/cowbird/vmlab"},
		{"", "/h", "/h/.cache/cowbird/vmlab"},
		{"relative", "/h", "/h/.cache/cowbird/vmlab"}, // XDG: to be ignored
		{"", "", ""},
	} {
		env := map[string]string{"XDG_CACHE_HOME": c.xdg, "HOME": c.home}
		got, err := cacheDir(func(k string) string { return env[k] })
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%+v: found %q, %v", c, got, err)
		}
	}
}

func TestHashTellsPartsApart(t *testing.T) {
	if hash([]byte("ab"), []byte("c")) == hash([]byte("a"), []byte("bc")) {
		t.Error("expected different hashes")
	}
}

func TestDebianMirror(t *testing.T) {
	out := "Debian-Security|bookworm-security|http://a/debian-security/|main\n" +
		"Debian|bookworm|http://a/debian/|contrib\nDebian|bookworm|http://a/debian/|main\nnonsense\n"
	got, err := debianMirror(parseTargets(out))
	if err != nil || got != "http://a/debian/" {
		t.Errorf("expected Debian's own archive, found %q, %v", got, err)
	}
	if _, err := debianMirror(parseTargets("Other|x|http://b/|main\n")); err == nil {
		t.Error("expected an error without Debian, found none")
	}
}

func TestPrivateApt(t *testing.T) {
	if got := privateSources("http://a/debian/", "trixie"); !strings.HasSuffix(got, "] http://a/debian/ trixie main\n") {
		t.Errorf("found %q", got)
	}
	conf := privateConf("/c")
	for _, want := range []string{`sourcelist "/c/sources.list";`, `sourceparts "/c/parts";`, `lists "/c/lists";`, `Cache "/c/cache";`} {
		if !strings.Contains(conf, want) {
			t.Errorf("expected %s in\n%s", want, conf)
		}
	}
}

func TestParseCandidate(t *testing.T) {
	got, err := parseCandidate("p", "p:\n  Installed: (none)\n  Candidate: 7.3.4-1~bpo13+1\n")
	if err != nil || got != "7.3.4-1~bpo13+1" {
		t.Errorf("found %q, %v", got, err)
	}
	for _, policy := range []string{"", "p:\n  Candidate: (none)\n"} {
		if _, err := parseCandidate("p", policy); err == nil {
			t.Errorf("%q: expected an error, found none", policy)
		}
	}
}

func TestParseDependsField(t *testing.T) {
	got := parseDependsField("a (= 1), b | c, d-e\n")
	if want := []string{"a", "b", "d-e"}; !slices.Equal(got, want) {
		t.Errorf("expected %q, found %q", want, got)
	}
}

func TestHighest(t *testing.T) {
	names := []string{
		"linux-image-6.12.9+deb12-amd64", "linux-image-6.12.117+deb12-amd64", "linux-image-6.12.117+deb13-amd64",
		"linux-image-6.12.200+deb12-cloud-amd64", "linux-image-6.12.300+deb12-amd64-dbg", "",
	}
	if got := highest(names, imagePattern); got != "linux-image-6.12.117+deb13-amd64" {
		t.Errorf("found %q", got)
	}
	if got := highest([]string{"linux-headers-6.1.0-9-amd64", "linux-headers-6.1.0-56-amd64", "linux-headers-6.1.0-57-rt-amd64"}, headersPattern); got != "linux-headers-6.1.0-56-amd64" {
		t.Errorf("found %q", got)
	}
	if got := highest(nil, imagePattern); got != "" {
		t.Errorf("expected none, found %q", got)
	}
}

func TestDropped(t *testing.T) {
	wanted := "# a comment\nCONFIG_A=y\nCONFIG_B=2\n# CONFIG_C is not set\n# CONFIG_D is not set\nCONFIG_AB=y\n"
	final := "CONFIG_A=y\nCONFIG_B=1\n# CONFIG_C is not set\nCONFIG_D=y\n"
	if got, want := dropped(wanted, final), []string{"CONFIG_B=2", "# CONFIG_D is not set", "CONFIG_AB=y"}; !slices.Equal(got, want) {
		t.Errorf("expected %q, found %q", want, got)
	}
}

// TestConfigHasEachSettingOnce: of two, the second would win unseen.
func TestConfigHasEachSettingOnce(t *testing.T) {
	seen := map[string]bool{}
	for _, line := range configLines(umlConfig) {
		name, _, _ := strings.Cut(strings.TrimPrefix(line, "# "), "=")
		if seen[name] {
			t.Errorf("uml.config: %s is there twice", name)
		}
		seen[name] = true
	}
	if len(seen) < 100 {
		t.Errorf("uml.config: expected more than %d settings", len(seen))
	}
}

func TestConfigure(t *testing.T) {
	file := filepath.Join(t.TempDir(), ".config")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("# CONFIG_A is not set\n")
	if err := configure(file, "CONFIG_A=y\n", func() error { return nil }); err != nil {
		t.Error(err)
	}
	err := configure(file, "CONFIG_A=y\nCONFIG_B=y\n", func() error { write("CONFIG_A=y\n"); return nil })
	if err == nil || !strings.Contains(err.Error(), "CONFIG_B=y") || strings.Contains(err.Error(), "CONFIG_A") {
		t.Errorf("expected CONFIG_B to be missed, found %v", err)
	}
}

func TestPrune(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"Makefile", "include/a.h", "arch/um/b.h", "arch/arm/c.h", "drivers/d.c"} {
		path := filepath.Join(dir, f)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := prune(dir, []string{"Makefile", "include", "arch/um"}); err != nil {
		t.Fatal(err)
	}
	for f, want := range map[string]bool{"Makefile": true, "include/a.h": true, "arch/um/b.h": true, "arch/arm": false, "drivers": false} {
		if _, err := os.Stat(filepath.Join(dir, f)); (err == nil) != want {
			t.Errorf("%s: expected to be there: %v", f, want)
		}
	}
}

func TestLoadOrder(t *testing.T) {
	needs := map[string][]string{"dm_mod": {"dax"}, "dax": nil, "dm_snapshot": {"dm-bufio", "dm-mod"}, "dm_bufio": {"dm_mod"}, "odd": {"gone"}}
	depends := func(name string) ([]string, bool, error) {
		n, known := needs[name]
		return n, known, nil
	}
	got, err := loadOrder([]string{"dm-snapshot", "built_in", "dm_mod"}, depends)
	if want := []string{"dax", "dm_mod", "dm_bufio", "dm_snapshot"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("expected %q, found %q, %v", want, got, err)
	}
	if _, err := loadOrder([]string{"odd"}, depends); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("expected what is missing to be named, found %v", err)
	}
}

func TestModuleName(t *testing.T) {
	for in, want := range map[string]string{"/l/dm-mod.ko.xz": "dm_mod", "9p": "9p", "crc32c-intel.ko": "crc32c_intel"} {
		if got := moduleName(in); got != want {
			t.Errorf("%s: expected %s, found %s", in, want, got)
		}
	}
}

func TestParseDepends(t *testing.T) {
	if got := parseDepends([]byte("license=GPL\x00depends=a,b-c\x00name=x\x00")); !slices.Equal(got, []string{"a", "b-c"}) {
		t.Errorf("found %q", got)
	}
	if got := parseDepends([]byte("depends=\x00")); got != nil {
		t.Errorf("expected nothing, found %q", got)
	}
}

// TestCpio has cpio(1) read what the writer writes, where there is one.
func TestCpio(t *testing.T) {
	var b bytes.Buffer
	c := &cpio{w: &b}
	c.add("d", cpioDir, nil)
	c.add("d/f", cpioFile, []byte("12345"))
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	if b.Len()%4 != 0 || !bytes.HasPrefix(b.Bytes(), []byte("070701")) || binary.Size(b.Bytes()) != int(c.n) {
		t.Errorf("expected an archive of whole words, found %d bytes", b.Len())
	}
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("no cpio here")
	}
	dir := t.TempDir()
	cmd := exec.Command("cpio", "-i", "--quiet", "-m")
	cmd.Dir, cmd.Stdin = dir, &b
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v\n%s", err, out)
	}
	got, err := os.ReadFile(filepath.Join(dir, "d/f"))
	if err != nil || string(got) != "12345" {
		t.Errorf("expected 12345, found %q, %v", got, err)
	}
}

func TestFillKeepsWhatIsComplete(t *testing.T) {
	l := &lab{cache: t.TempDir(), log: logger{t.Output()}}
	made := 0
	build := func(err error) func(string) error {
		return func(dir string) error {
			made++
			if _, e := os.Stat(filepath.Join(dir, "half")); e == nil {
				return fmt.Errorf("expected what a failed build left to be gone")
			}
			return errors.Join(os.WriteFile(filepath.Join(dir, "half"), nil, 0o600), err)
		}
	}
	if _, err := l.fill("a-1", build(errors.New("broken"))); err == nil {
		t.Error("expected the failure of a build, found none")
	}
	if got := l.newest("a-*"); got != "" {
		t.Errorf("expected nothing complete, found %s", got)
	}
	for range 2 {
		if _, err := l.fill("a-1", build(nil)); err != nil {
			t.Error(err)
		}
	}
	if made != 2 || l.newest("a-*") != filepath.Join(l.cache, "a-1") {
		t.Errorf("expected one failed and one good build, found %d; newest %q", made, l.newest("a-*"))
	}
}

func TestSourceHash(t *testing.T) {
	dir := t.TempDir()
	write := func(name, body string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := sourceHash(dir); err == nil {
		t.Error("expected an empty folder to be refused, found no error")
	}
	write("a.c", "1")
	write("Kbuild", "2")
	first, files, err := sourceHash(dir)
	if err != nil || !slices.Equal(files, []string{"Kbuild", "a.c"}) {
		t.Errorf("found %q, %v", files, err)
	}
	write("README.md", "words")
	if again, _, _ := sourceHash(dir); again != first {
		t.Error("expected a README not to count")
	}
	write("a.c", "3")
	if again, _, _ := sourceHash(dir); again == first {
		t.Error("expected a change to count")
	}
}
