package house

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// arrows lists, for each room, the rooms it may import. A room may always
// import itself, except formats: each format stands alone, but for helpers.
var arrows = map[string][]string{
	"cmd":     {"ota", "cow", "dmuser", "formats"},
	"ota":     {"cow", "formats"},
	"cow":     {"formats"},
	"dmuser":  {},
	"formats": {},
	"tools":   {"ota", "cow", "dmuser", "formats"},
}

// helpers lists the arrows within formats. compress is no format but a choice
// of encoders, of which one is ours; a puffin patch has a bsdiff patch inside;
// what an lz4diff patch gives is compressed again.
var helpers = map[string][]string{
	"formats/compress": {"formats/lz4"},
	"formats/lz4diff":  {"formats/lz4"},
	"formats/puffin":   {"formats/bsdiff"},
}

func TestArrows(t *testing.T) {
	for _, f := range sources(t) {
		for _, imp := range f.imports {
			if err := checkArrow(f.dir(), imp, f.test); err != nil {
				t.Errorf("%s: %v", f.path, err)
			}
		}
	}
}

// checkArrow judges one import. dir is the importing package's folder; test
// tells that the importing file is a _test.go, which may also use helpers
// from tools and from its own room (a decoder's test needs an encoder).
func checkArrow(dir, imported string, test bool) error {
	to, ours := strings.CutPrefix(imported, module+"/")
	if !ours {
		return nil
	}
	from := room(dir)
	allowed, known := arrows[from]
	if !known {
		return fmt.Errorf("expected a package in one of cmd, ota, cow, dmuser, formats, tools; found %q", dir)
	}
	if _, known := arrows[room(to)]; !known {
		return fmt.Errorf("imports %s, which is in no known room", imported)
	}
	if home(dir) == home(to) || test && (room(to) == "tools" || room(to) == from) {
		return nil
	}
	if slices.Contains(allowed, room(to)) || slices.Contains(helpers[home(dir)], home(to)) {
		return nil
	}
	return fmt.Errorf("imports %s against the arrows: %s may import %s", imported, from, orNothing(allowed))
}

func room(dir string) string {
	r, _, _ := strings.Cut(dir, "/")
	return r
}

// home is the part of the tree within which imports are nobody's business:
// the room, or for formats the single format.
func home(dir string) string {
	if parts := strings.SplitN(dir, "/", 3); parts[0] == "formats" && len(parts) > 1 {
		return parts[0] + "/" + parts[1]
	}
	return room(dir)
}

func orNothing(rooms []string) string {
	if len(rooms) == 0 {
		return "nothing of ours"
	}
	return "only " + strings.Join(rooms, ", ")
}

func TestCheckArrow(t *testing.T) {
	for _, c := range []struct {
		dir, imported string
		test, ok      bool
	}{
		{"cmd/snapuserd", "cowbird/dmuser", false, true},
		{"cmd/snapuserd", "cowbird/cow", false, true},
		{"cmd/snapuserd", "golang.org/x/sys/unix", false, true},
		{"cmd/cowtool", "cowbird/formats/cowfile", false, true},
		{"cmd/cowtool", "cowbird/tools/bench", false, false},
		{"ota", "cowbird/cow", false, true},
		{"ota", "cowbird/dmuser", false, false},
		{"cow", "cowbird/formats/cowfile", false, true},
		{"cow", "cowbird/cow/internal/crash", false, true},
		{"cow", "cowbird/dmuser", false, false},
		{"cow", "cowbird/dmuser", true, false},
		{"cow", "cowbird/ota", false, false},
		{"cow", "cowbird/tools/house", true, true},
		{"cow", "cowbird/tools/house", false, false},
		{"dmuser", "cowbird/cow", false, false},
		{"dmuser", "cowbird/formats/cowfile", false, false},
		{"dmuser", "cowbird/dmuser/fuse", false, true},
		{"formats/cowfile", "cowbird/formats/payload", false, false},
		{"formats/cowfile", "cowbird/formats/payload", true, true},
		{"formats/cowfile", "cowbird/cow", true, false},
		{"formats/compress", "cowbird/formats/lz4", false, true},
		{"formats/compress", "cowbird/formats/cowfile", false, false},
		{"formats/lz4", "cowbird/formats/compress", false, false},
		{"formats/cowfile", "cowbird/formats/lz4", false, false},
		{"formats/cowfile", "cowbird/formats/cowfile/internal/x", false, true},
		{"formats/cowfile", "cowbird/cow", false, false},
		{"formats/cowfile", "github.com/klauspost/compress/zstd", false, true},
		{"tools/bench", "cowbird/cow", false, true},
		{"tools/bench", "cowbird/cmd/cowtool", false, false},
		{"attic", "cowbird/cow", false, false},
		{"cow", "cowbird/attic", false, false},
	} {
		err := checkArrow(c.dir, c.imported, c.test)
		if (err == nil) != c.ok {
			t.Errorf("%s imports %s (test file: %v): expected ok %v, found %v", c.dir, c.imported, c.test, c.ok, err)
		}
	}
}
