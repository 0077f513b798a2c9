package house

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"cowbird/tools/fixture"
)

// checklists are the parts of the checklist that have tests here. Known are used where
// the checklist itself is not at hand; doc has the table of those without a test, and
// the reasons.
var checklists = []struct {
	prefix string
	known  [][2]int
	doc    string
}{
	{"COW", [][2]int{{1, 50}, {101, 133}}, "cow-format.md"},
	{"SNM", [][2]int{{1, 52}}, "update.md"},
	{"LPB", [][2]int{{1, 35}}, "super.md"},
	{"LPI", [][2]int{{1, 27}}, "super.md"},
}

// notApplicable heads those tables.
const notApplicable = "## Checklist: what does not apply"

// TestChecklist checks that each behaviour is cited by a test, or is in the table; and
// that neither names one that does not exist.
func TestChecklist(t *testing.T) {
	tests := map[string]string{}
	for _, f := range sources(t) {
		if f.test && f.dir() != "tools/house" {
			tests[f.path] = readText(t, filepath.Join(root, f.path))
		}
	}
	for _, c := range checklists {
		t.Run(c.prefix, func(t *testing.T) {
			known := knownBehaviours(t, c.prefix, c.known)
			cited := map[int]string{}
			for path, text := range tests {
				for _, id := range citedIn(t, c.prefix, text) {
					cited[id] = path
				}
			}
			_, table, _ := strings.Cut(readText(t, root+"/docs/"+c.doc), notApplicable)
			table, _, _ = strings.Cut(table, "\n## ")
			for _, id := range citedIn(t, c.prefix, table) {
				if cited[id] == "" {
					cited[id] = c.doc
				}
			}
			for id := range known {
				if cited[id] == "" {
					t.Errorf("%s-%03d: expected a test that cites it, or a line under %q of %s", c.prefix, id, notApplicable, c.doc)
				}
			}
			for id, where := range cited {
				if !known[id] {
					t.Errorf("%s: %s-%03d is not in the checklist", where, c.prefix, id)
				}
			}
		})
	}
}

func knownBehaviours(t *testing.T, prefix string, ranges [][2]int) map[int]bool {
	t.Helper()
	known := map[int]bool{}
	for _, r := range ranges {
		for id := r[0]; id <= r[1]; id++ {
			known[id] = true
		}
	}
	spec := checklistFile()
	if spec == "" {
		return known
	}
	listed := map[int]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\| `+prefix+`-(\d+)`).FindAllStringSubmatch(readText(t, spec), -1) {
		id, _ := strconv.Atoi(m[1])
		listed[id] = true
	}
	if !maps.Equal(known, listed) {
		t.Errorf("%s: lists %d behaviours %s, this test %d", spec, len(listed), prefix, len(known))
	}
	return listed
}

// checklistFile is the checklist beside the fixtures, if it is there.
func checklistFile() string {
	file := filepath.Join(fixture.Path(), "../specs/behaviour-checklist.md")
	if _, err := os.Stat(file); err != nil {
		return ""
	}
	return file
}

func readText(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A citation is one id, or the first and last of several; it may go on in the
// next line of a comment.
func citation(prefix string) *regexp.Regexp {
	return regexp.MustCompile(prefix + `-(\d{3})(?:[\s/]+(?:to|…)[\s/]+` + prefix + `-(\d{3}))?`)
}

func citedIn(t *testing.T, prefix, text string) (ids []int) {
	t.Helper()
	for _, m := range citation(prefix).FindAllStringSubmatch(text, -1) {
		first, _ := strconv.Atoi(m[1])
		last := first
		if m[2] != "" {
			last, _ = strconv.Atoi(m[2])
		}
		if last < first {
			t.Errorf("%s: expected rising ids", m[0])
		}
		for id := first; id <= last; id++ {
			ids = append(ids, id)
		}
	}
	return ids
}

func TestCitedIn(t *testing.T) {
	for text, want := range map[string][]int{
		"COW-001, COW-003: a":             {1, 3},
		"COW-002 to COW-004, COW-009":     {2, 3, 4, 9},
		"// COW-128 … COW-130":            {128, 129, 130},
		"COW-128 to\n// COW-129: x":       {128, 129},
		"nothing, COW-1, SNU-001, COW-xx": nil,
	} {
		if got := citedIn(t, "COW", text); !slices.Equal(got, want) {
			t.Errorf("%q: expected %v, found %s", text, want, fmt.Sprint(got))
		}
	}
}
