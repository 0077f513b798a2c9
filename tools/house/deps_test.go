package house

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write snapuserd.deps anew")

const (
	daemon   = module + "/cmd/snapuserd"
	depsFile = "snapuserd.deps"
	depsHead = `# What snapuserd is linked with on linux/arm64: every package outside the standard
# library, and the public ones inside it. Exact and sorted; kept by a test.
# A package more costs memory on every device, all the time: before you add a
# line, measure the daemon's idle memory (make bench) with and without it, and
# write the difference into the commit that adds it.
# go test ./tools/house -run Daemon -update   writes this file anew.
`
)

// heavy lists what the daemon must never be linked with; a package includes
// those below it. Each brings tables, caches or goroutines that a process
// which mostly sleeps would hold for ever.
var heavy = []string{
	"crypto/tls", "crypto/x509", "database/sql", "encoding/gob", "encoding/xml", "expvar",
	"go/ast", "go/parser", "html/template", "image", "mime", "net", "os/user",
	"regexp", "testing", "text/template",
	"github.com/alecthomas/kong", "github.com/spf13/cobra", "github.com/spf13/pflag",
	"github.com/schollz/progressbar", "google.golang.org/protobuf",
	module + "/ota/dbus", "github.com/godbus/dbus", // events are otactl's to tell
}

// heavyDirect lists what no package of ours may import on behalf of the
// daemon, although the standard library's own logger does.
var heavyDirect = []string{"encoding/json"}

func TestDaemonDependencies(t *testing.T) {
	found := daemonDeps(t)
	if *update {
		body := depsHead + strings.Join(found, "\n") + "\n"
		if err := os.WriteFile(depsFile, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	allowed := readDeps(t)
	if !slices.IsSorted(allowed) {
		t.Errorf("%s: expected sorted lines", depsFile)
	}
	for _, line := range diffDeps(allowed, found) {
		t.Error(line)
	}
	for _, dep := range found {
		if h := heavyMatch(dep); h != "" {
			t.Errorf("snapuserd is linked with %s: %s and what lies below it are too heavy for the daemon, listed or not", dep, h)
		}
	}
}

// TestDaemonDirectImports looks at what our own packages ask for, which tells
// more than what arrives through the standard library.
func TestDaemonDirectImports(t *testing.T) {
	linked := map[string]bool{}
	for _, dep := range daemonDeps(t) {
		linked[dep] = true
	}
	for _, f := range sources(t) {
		if f.test || !linked[module+"/"+f.dir()] {
			continue
		}
		for _, imp := range f.imports {
			if slices.Contains(heavyDirect, imp) && linked[imp] {
				t.Errorf("%s imports %s: too heavy for a package that snapuserd is linked with", f.path, imp)
			}
		}
	}
}

// diffDeps says, for each difference, which line of the file to change.
func diffDeps(allowed, found []string) (lines []string) {
	for _, dep := range found {
		if !slices.Contains(allowed, dep) {
			lines = append(lines, fmt.Sprintf("snapuserd is now linked with %s: do without it, or measure the idle memory (make bench) and add this line to tools/house/%s:\n\t%s", dep, depsFile, dep))
		}
	}
	for _, dep := range allowed {
		if !slices.Contains(found, dep) {
			lines = append(lines, fmt.Sprintf("snapuserd is no longer linked with %s: remove its line from tools/house/%s", dep, depsFile))
		}
	}
	return lines
}

func heavyMatch(dep string) string {
	for _, h := range heavy {
		if dep == h || strings.HasPrefix(dep, h+"/") && !lightBelow[dep] {
			return h
		}
	}
	return ""
}

// lightBelow lists packages below a heavy one that carry no weight of their own.
var lightBelow = map[string]bool{"net/netip": true}

// daemonDeps lists what snapuserd is linked with on linux/arm64: packages of
// modules (ours too) and the public ones of the standard library.
func daemonDeps(t *testing.T) []string {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-f", "{{.ImportPath}}", daemon)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=arm64", "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var deps []string
	for _, dep := range strings.Fields(string(out)) {
		if dep != daemon && !hiddenStd(dep) {
			deps = append(deps, dep)
		}
	}
	slices.Sort(deps)
	return deps
}

// hiddenStd reports whether dep is an internal part of the standard library:
// those change with every Go release and only come through public packages.
func hiddenStd(dep string) bool {
	first, _, _ := strings.Cut(dep, "/")
	std := first != module && !strings.Contains(first, ".")
	return std && (first == "internal" || first == "vendor" || strings.Contains(dep, "/internal/") || strings.HasSuffix(dep, "/internal"))
}

func readDeps(t *testing.T) (deps []string) {
	t.Helper()
	body, err := os.ReadFile(depsFile)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(body)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			deps = append(deps, line)
		}
	}
	return deps
}

func TestDiffDeps(t *testing.T) {
	got := diffDeps([]string{"a", "b"}, []string{"b", "c"})
	if len(got) != 2 || !strings.Contains(got[0], "add this line") || !strings.Contains(got[0], "\tc") || !strings.Contains(got[1], "remove its line") {
		t.Errorf("expected one line to add (c) and one to remove (a), found %q", got)
	}
	if got := diffDeps([]string{"a"}, []string{"a"}); len(got) != 0 {
		t.Errorf("expected no difference, found %q", got)
	}
}

func TestHeavyMatch(t *testing.T) {
	for dep, want := range map[string]string{
		"net": "net", "net/http": "net", "net/netip": "", "network": "", "regexp/syntax": "regexp",
		"google.golang.org/protobuf/proto": "google.golang.org/protobuf", "os": "",
	} {
		if got := heavyMatch(dep); got != want {
			t.Errorf("%s: expected %q, found %q", dep, want, got)
		}
	}
}

func TestHiddenStd(t *testing.T) {
	for dep, want := range map[string]bool{
		"internal/abi": true, "runtime/internal/sys": true, "vendor/golang.org/x/sys": true, "crypto/internal/fips140": true,
		"os": false, "cowbird/cow/internal/x": false, "github.com/klauspost/compress/internal/le": false,
	} {
		if got := hiddenStd(dep); got != want {
			t.Errorf("%s: expected %v, found %v", dep, want, got)
		}
	}
}
