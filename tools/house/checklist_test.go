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

// The behaviours of the COW format that the checklist lists; used where the
// checklist itself is not at hand.
var cowBehaviours = [][2]int{{1, 50}, {101, 133}}

// notApplicable heads the table of docs/cow-format.md that says which of them
// have no test, and why.
const (
	cowDoc        = root + "/docs/cow-format.md"
	notApplicable = "## Checklist: what does not apply"
)

// TestCowChecklist checks that each behaviour is cited by a test, or is in the
// table; and that neither names one that does not exist.
func TestCowChecklist(t *testing.T) {
	known := knownBehaviours(t)
	cited := map[int]string{}
	for _, f := range sources(t) {
		if !f.test || f.dir() == "tools/house" {
			continue
		}
		for _, id := range citedIn(t, readText(t, filepath.Join(root, f.path))) {
			cited[id] = f.path
		}
	}
	_, table, found := strings.Cut(readText(t, cowDoc), notApplicable)
	if !found {
		t.Fatalf("%s: expected the heading %q", cowDoc, notApplicable)
	}
	table, _, _ = strings.Cut(table, "\n## ")
	for _, id := range citedIn(t, table) {
		if cited[id] == "" {
			cited[id] = cowDoc
		}
	}
	for id := range known {
		if cited[id] == "" {
			t.Errorf("COW-%03d: expected a test that cites it, or a line under %q", id, notApplicable)
		}
	}
	for id, where := range cited {
		if !known[id] {
			t.Errorf("%s: COW-%03d is not in the checklist", where, id)
		}
	}
}

func knownBehaviours(t *testing.T) map[int]bool {
	t.Helper()
	known := map[int]bool{}
	for _, r := range cowBehaviours {
		for id := r[0]; id <= r[1]; id++ {
			known[id] = true
		}
	}
	spec := checklistFile()
	if spec == "" {
		return known
	}
	listed := map[int]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\| COW-(\d+)`).FindAllStringSubmatch(readText(t, spec), -1) {
		id, _ := strconv.Atoi(m[1])
		listed[id] = true
	}
	if !maps.Equal(known, listed) {
		t.Errorf("%s: lists %d behaviours, cowBehaviours %d", spec, len(listed), len(known))
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
var citation = regexp.MustCompile(`COW-(\d{3})(?:[\s/]+(?:to|…)[\s/]+COW-(\d{3}))?`)

func citedIn(t *testing.T, text string) (ids []int) {
	t.Helper()
	for _, m := range citation.FindAllStringSubmatch(text, -1) {
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
		if got := citedIn(t, text); !slices.Equal(got, want) {
			t.Errorf("%q: expected %v, found %s", text, want, fmt.Sprint(got))
		}
	}
}
