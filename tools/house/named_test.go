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

// A test that one of these documents names is there.
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
	for _, doc := range []string{"dm-user.md", "security.md"} {
		names := namedTest.FindAllString(readText(t, filepath.Join(root, "docs", doc)), -1)
		if len(names) < 20 {
			t.Errorf("%s: expected a test or more for each claim, found %d", doc, len(names))
		}
		for _, name := range names {
			if !defined[name] {
				t.Errorf("%s: no test is called %s", doc, name)
			}
		}
	}
}
