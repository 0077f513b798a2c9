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
	dir, names := manualOf(t)
	for _, name := range names {
		lint(t, filepath.Join(dir, name))
	}
}

func lint(t *testing.T, page string) {
	t.Helper()
	mandoc, err := exec.LookPath("mandoc")
	if err != nil {
		fixture.Missing(t, "mandoc is not installed: %v", err)
	}
	out, _ := exec.Command(mandoc, "-T", "lint", "-W", "warning", page).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		// Pages have no date: the same source gives the same bytes.
		if !strings.Contains(line, "missing date") {
			t.Errorf("%s: %s", page, line)
		}
	}
}

// helpText is as Go's flag package prints flags.
const helpText = "Usage: it [flags]        serve\n       it [flags] probe  look\n\nServes things. Runs.\n\nExamples:\n  it -x\n    more\n\n" +
	"Flags:\n  -name path\n    \t.where it's; path (default \"x-y\")\n  -on\n    \ttwo\n    \tlines\n\nMore of it.\n\nExit codes: 0 ok.\n"

// A program that is not made of these commands has its page from its --help.
func TestHelpPage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man")
	write := func(help string) (int, string) {
		var errs bytes.Buffer
		code := (Program{Root: &cobra.Command{Use: "tool"}}).Run([]string{"man", dir, "it"}, strings.NewReader(help), &errs, &errs)
		return code, errs.String()
	}
	if code, errs := write("It helps nobody.\n"); code != Failed || !strings.Contains(errs, "Usage:") {
		t.Errorf("expected it to be refused, found %d, %s", code, errs)
	}
	if code, errs := write(helpText); code != OK {
		t.Fatalf("%d, %s", code, errs)
	}
	b, err := os.ReadFile(filepath.Join(dir, "it.8"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"it \\- serves things\n", ".nf\nit [flags]        serve\nit [flags] probe  look\n", ".PP\nMore of it.\n", ".nf\nit \\-x\n  more\n",
		"\\fB\\-\\-name\\fP \\fIpath\\fP\n\\&.where it\\(aqs", "\\fB\\-\\-on\\fP", "two\nlines\n", ".SH EXIT STATUS\n0 ok."} {
		if !strings.Contains(string(b), want) {
			t.Errorf("expected %q in\n%s", want, b)
		}
	}
	lint(t, filepath.Join(dir, "it.8"))
}
