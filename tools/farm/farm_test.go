package farm

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tool looks for a program that the test suite installs.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return path
}

// The rule for Make gives the bytes of one command, and makes again what is damaged, and
// nothing else.
func TestMake(t *testing.T) {
	dir := t.TempDir()
	cowtool := filepath.Join(dir, "cowtool")
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "MAKEFLAGS=", "MAKELEVEL=")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	root, err := filepath.Abs("../..")
	must(t, err)
	run("go", "build", "-C", root, "-o", cowtool, "./cmd/cowtool")
	r := rand.New(rand.NewPCG(1, 2))
	old := make([]byte, 3<<20)
	for i := range old {
		old[i] = byte(r.Uint32() & 0x3f)
	}
	newer := bytes.Clone(old)
	for i := 5000; i < len(newer); i += 300_001 {
		newer[i] ^= 0x55
	}
	for name, b := range map[string][]byte{"v1/system.img": old, "v2/system.img": newer} {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700))
		must(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
	rule, err := filepath.Abs("payload.mk")
	must(t, err)
	args := []string{"-f", rule, "-j2", "COWTOOL=" + cowtool, "OLD=v1", "NEW=v2", "PLANFLAGS=--effort fast", "OUT=farm.bin"}
	run(tool(t, "make"), args...)
	run(cowtool, "payload", "create", "-q", "--effort", "fast", "--old", "v1", "-o", "one.bin", "v2")
	one, err := os.ReadFile(filepath.Join(dir, "one.bin"))
	must(t, err)
	check := func() {
		t.Helper()
		farm, err := os.ReadFile(filepath.Join(dir, "farm.bin"))
		must(t, err)
		if !bytes.Equal(one, farm) {
			t.Error("expected the payload of one command, found another")
		}
	}
	check()
	items := strings.Fields(run("cat", "items"))
	if len(items) < 5 {
		t.Fatalf("expected some items, found %d", len(items))
	}
	must(t, os.Remove(filepath.Join(dir, "results", items[2])))
	must(t, os.Remove(filepath.Join(dir, "farm.bin")))
	if n := strings.Count(run("make", args...), "payload run"); n != 1 {
		t.Errorf("expected one item to be made again, found %d", n)
	}
	check()
}

// The Job has as many parts as it tells cowtool.
func TestJob(t *testing.T) {
	b, err := os.ReadFile("payload-job.yaml")
	must(t, err)
	var job struct {
		Kind string
		Spec struct {
			CompletionMode string `yaml:"completionMode"`
			Completions    int
			Template       struct {
				Spec struct {
					Containers []struct{ Command []string }
				}
			}
		}
	}
	must(t, yaml.Unmarshal(b, &job))
	s := job.Spec
	if job.Kind != "Job" || s.CompletionMode != "Indexed" || s.Completions != 8 || len(s.Template.Spec.Containers) != 1 {
		t.Fatalf("expected an indexed Job of 8 parts, found %+v", job)
	}
	line := strings.Join(s.Template.Spec.Containers[0].Command, " ")
	if !strings.Contains(line, "--part=$(JOB_COMPLETION_INDEX)") || !strings.Contains(line, "--of=8") {
		t.Errorf("expected a part of 8, found %s", line)
	}
}

// The rule for Bazel is in its language, of which Python's parser knows all that is used.
func TestBazel(t *testing.T) {
	out, err := exec.Command(tool(t, "python3"), "-c", "import ast,sys; ast.parse(open(sys.argv[1]).read())", "payload.bzl").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
