package house

import (
	"bytes"
	"go/format"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestFormatted(t *testing.T) {
	for _, f := range sources(t) {
		body, err := os.ReadFile(filepath.Join(root, f.path))
		if err != nil {
			t.Fatal(err)
		}
		formatted, err := format.Source(body)
		if err != nil {
			t.Errorf("%s: %v", f.path, err)
		} else if !bytes.Equal(body, formatted) {
			t.Errorf("%s: gofmt would change it", f.path)
		}
	}
}

// packages groups the non-test files by folder; a folder with only tests
// counts too, with no files.
func packages(t *testing.T) map[string][]goFile {
	t.Helper()
	dirs := map[string][]goFile{}
	for _, f := range sources(t) {
		if dirs[f.dir()] = dirs[f.dir()]; !f.test {
			dirs[f.dir()] = append(dirs[f.dir()], f)
		}
	}
	return dirs
}

func TestPackageDocs(t *testing.T) {
	for dir, files := range packages(t) {
		if err := checkDoc(files); err != "" {
			t.Errorf("%s: %s", dir, err)
		}
	}
}

func checkDoc(files []goFile) string {
	var docs []goFile
	for _, f := range files {
		if f.doc != "" {
			docs = append(docs, f)
		}
	}
	switch {
	case len(files) == 0:
		return ""
	case len(docs) != 1:
		return "expected a package comment in one file, found " + names(docs)
	case docs[0].pkg == "main" && !strings.HasPrefix(docs[0].doc, "Command "):
		return "expected a package comment that starts with \"Command\""
	case docs[0].pkg != "main" && !strings.HasPrefix(docs[0].doc, "Package "+docs[0].pkg+" "):
		return "expected a package comment that starts with \"Package " + docs[0].pkg + "\""
	}
	return ""
}

func names(files []goFile) string {
	if len(files) == 0 {
		return "none"
	}
	var n []string
	for _, f := range files {
		n = append(n, f.path)
	}
	return strings.Join(n, ", ")
}

func TestCheckDoc(t *testing.T) {
	lib := func(doc string) goFile { return goFile{path: "x/x.go", pkg: "x", doc: doc} }
	for _, c := range []struct {
		files []goFile
		ok    bool
	}{
		{nil, true},
		{[]goFile{lib("Package x does."), lib("")}, true},
		{[]goFile{lib("")}, false},
		{[]goFile{lib("Package x does."), lib("Package x does.")}, false},
		{[]goFile{lib("Does.")}, false},
		{[]goFile{lib("Package xy does.")}, false},
		{[]goFile{{pkg: "main", doc: "Command x does."}}, true},
		{[]goFile{{pkg: "main", doc: "Package main does."}}, false},
	} {
		if got := checkDoc(c.files); (got == "") != c.ok {
			t.Errorf("%+v: expected ok %v, found %q", c.files, c.ok, got)
		}
	}
}

// TestMap fails when a package is not named in docs/architecture.md.
func TestMap(t *testing.T) {
	body, err := os.ReadFile(filepath.Join(root, "docs/architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	var dirs []string
	for dir := range packages(t) {
		dirs = append(dirs, dir)
	}
	for _, dir := range unnamed(string(body), dirs) {
		t.Errorf("docs/architecture.md: expected the package %s to be named, found no mention", dir)
	}
}

// unnamed returns the folders that text does not name as a whole path.
func unnamed(text string, dirs []string) (missing []string) {
	words := strings.FieldsFunc(text, func(r rune) bool {
		return !strings.ContainsRune("/_-", r) && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
	for _, dir := range dirs {
		if !slices.Contains(words, dir) {
			missing = append(missing, dir)
		}
	}
	slices.Sort(missing)
	return missing
}

func TestUnnamed(t *testing.T) {
	got := unnamed("`cow` builds; formats/cowfile, cmd/snapuserd.", []string{"cow", "formats/cowfile", "cmd/snapuserd", "formats/cow", "cmd"})
	if want := []string{"cmd", "formats/cow"}; !slices.Equal(got, want) {
		t.Errorf("expected %q, found %q", want, got)
	}
}
