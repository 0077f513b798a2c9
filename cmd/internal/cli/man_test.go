package cli

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"cowbird/tools/fixture"
)

func manualOf(t *testing.T) (dir string, names []string) {
	root := &cobra.Command{Use: "tool", Short: "Do things", Long: "Does things.\n\n  an 'example' \\ of -it\n\n.dots and `quotes` …"}
	root.PersistentFlags().Bool("json", false, "print JSON")
	sub := &cobra.Command{Use: "sub NAME", Short: "Do one", Example: "  tool sub x", RunE: func(*cobra.Command, []string) error { return nil }}
	sub.Flags().StringP("out", "o", "x.img", "where to, a `FILE`")
	secret := &cobra.Command{Use: "secret", Hidden: true, RunE: sub.RunE}
	root.AddCommand(sub, secret)
	dir = filepath.Join(t.TempDir(), "man")
	var errs bytes.Buffer
	if code := (Program{Root: root}).Run([]string{"man", dir}, nil, &errs, &errs); code != OK {
		t.Fatalf("man: %d, %s", code, errs.String())
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return dir, names
}

func TestManual(t *testing.T) {
	dir, names := manualOf(t)
	if !slices.Equal(names, []string{"tool-sub.8", "tool.8"}) {
		t.Fatalf("expected a page for each command, found %q", names)
	}
	b, err := os.ReadFile(filepath.Join(dir, "tool-sub.8"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"tool\\-sub \\- Do one", "\\fB\\-o\\fP, \\fB\\-\\-out\\fP \\fIFILE\\fP", "(default x.img)", "\\-\\-json", "tool sub x", "\\fBtool\\fP(8)"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("expected %q in\n%s", want, b)
		}
	}
}

// The typesetter's own check finds nothing.
func TestManualLint(t *testing.T) {
	mandoc, err := exec.LookPath("mandoc")
	if err != nil {
		fixture.Missing(t, "mandoc is not installed: %v", err)
	}
	dir, names := manualOf(t)
	for _, name := range names {
		out, _ := exec.Command(mandoc, "-T", "lint", "-W", "warning", filepath.Join(dir, name)).CombinedOutput()
		for line := range strings.Lines(string(out)) {
			// Pages have no date: the same source gives the same bytes.
			if !strings.Contains(line, "missing date") {
				t.Errorf("%s: %s", name, line)
			}
		}
	}
}
