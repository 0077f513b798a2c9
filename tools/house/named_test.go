package house

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

var (
	namedTest   = regexp.MustCompile(`\b(Test|Fuzz)[A-Z]\w+`)
	definedTest = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
)

// A test that this document names is there.
func TestNamedTests(t *testing.T) {
	defined := map[string]bool{}
	for _, f := range sources(t) {
		if !f.test {
			continue
		}
		body, err := os.ReadFile(filepath.Join(root, f.path))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range definedTest.FindAllSubmatch(body, -1) {
			defined[string(m[1])] = true
		}
	}
	body, err := os.ReadFile(filepath.Join(root, "docs", "dm-user.md"))
	if err != nil {
		t.Fatal(err)
	}
	names := namedTest.FindAllString(string(body), -1)
	if len(names) < 20 {
		t.Errorf("expected a test or more for each requirement, found %d", len(names))
	}
	for _, name := range names {
		if !defined[name] {
			t.Errorf("no test is called %s", name)
		}
	}
}
