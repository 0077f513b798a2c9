package main

import (
	"fmt"
	"go/ast"
	"go/build/constraint"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// vmTag is the build tag of a file with tests for a guest.
const vmTag = "vmtest"

// guestTest is a test that runs in a guest.
type guestTest struct {
	pkg     string // folder below the checkout, with slashes
	name    string
	timeout time.Duration
}

// discover lists the tests in files that only the tag brings in, by package
// and in the order of the sources.
func discover(root, tag string, timeout time.Duration) (tests []guestTest, err error) {
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && path != root && (e.Name() == "testdata" || e.Name() == "bin" || strings.HasPrefix(e.Name(), ".")):
			return filepath.SkipDir
		case e.IsDir() || !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		found, err := testsOf(path, tag, timeout)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		for _, t := range found {
			t.pkg = filepath.ToSlash(dir)
			tests = append(tests, t)
		}
		return err
	})
	return tests, err
}

func testsOf(file, tag string, timeout time.Duration) (tests []guestTest, err error) {
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
	if err != nil || !needsTag(f, tag) {
		return nil, err
	}
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || !isTest(fn) {
			continue
		}
		t := guestTest{name: fn.Name.Name, timeout: timeout}
		if t.timeout, err = ownTimeout(fn.Doc, timeout); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", file, t.name, err)
		}
		tests = append(tests, t)
	}
	return tests, nil
}

// needsTag reports whether the file is built on Linux with the tag and not
// without it.
func needsTag(f *ast.File, tag string) bool {
	for _, group := range f.Comments {
		for _, c := range group.List {
			if c.Pos() > f.Package || !constraint.IsGoBuild(c.Text) {
				continue
			}
			expr, err := constraint.Parse(c.Text)
			return err == nil && expr.Eval(tags(tag)) && !expr.Eval(tags(""))
		}
	}
	return false
}

func tags(more string) func(string) bool {
	on := []string{"linux", "unix", "amd64", "gc", more}
	return func(tag string) bool { return slices.Contains(on, tag) || strings.HasPrefix(tag, "go1.") }
}

var testName = regexp.MustCompile(`^Test([^\p{Ll}].*)?$`)

func isTest(fn *ast.FuncDecl) bool {
	return fn.Recv == nil && fn.Name.Name != "TestMain" && testName.MatchString(fn.Name.Name) && len(fn.Type.Params.List) == 1
}

// ownTimeout reads a comment "//vmtest:timeout 3m".
func ownTimeout(doc *ast.CommentGroup, usual time.Duration) (time.Duration, error) {
	if doc == nil {
		return usual, nil
	}
	for _, c := range doc.List {
		if d, found := strings.CutPrefix(c.Text, "//vmtest:timeout "); found {
			own, err := time.ParseDuration(strings.TrimSpace(d))
			return max(own, usual), err
		}
	}
	return usual, nil
}
