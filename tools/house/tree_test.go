package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "cowbird"

// root is the top of the checkout as seen from this package.
const root = "../.."

// goFile is one Go source file of the module, for any platform and build tag.
type goFile struct {
	path    string // slash-separated, from root: "cow/merge.go"
	test    bool
	pkg     string // package clause
	doc     string // package comment
	imports []string
}

func (f goFile) dir() string { return path.Dir(f.path) }

// sources parses the head of every Go file in the module. It goes by the file
// tree and not by `go list`, so files for other platforms count too.
func sources(t *testing.T) []goFile {
	t.Helper()
	var files []goFile
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && p != root && skipDir(d.Name()):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(p, ".go"):
			return nil
		}
		f, err := parseHead(p)
		files = append(files, f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatal("expected Go files, found none: is root right?")
	}
	return files
}

func skipDir(name string) bool {
	return name == "testdata" || name == "vendor" || name == "bin" || strings.HasPrefix(name, ".")
}

func parseHead(p string) (goFile, error) {
	head, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.ImportsOnly|parser.ParseComments)
	if err != nil {
		return goFile{}, err
	}
	rel, err := filepath.Rel(root, p)
	if err != nil {
		return goFile{}, err
	}
	return goFile{
		path:    filepath.ToSlash(rel),
		test:    strings.HasSuffix(p, "_test.go"),
		pkg:     head.Name.Name,
		doc:     head.Doc.Text(),
		imports: importPaths(head.Imports),
	}, nil
}

func importPaths(specs []*ast.ImportSpec) []string {
	var paths []string
	for _, s := range specs {
		if p, err := strconv.Unquote(s.Path.Value); err == nil {
			paths = append(paths, p)
		}
	}
	return paths
}
