package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "4096": 4096, "64K": 64 << 10, "64k": 64 << 10, "10M": 10 << 20, "2G": 2 << 30, "1T": 1 << 40, "64KiB": 64 << 10, "64KB": 64 << 10,
		"9223372036854775807": math.MaxInt64,
	} {
		var s Size
		if err := s.Set(text); err != nil || int64(s) != want {
			t.Errorf("%s: expected %d, found %d, %v", text, want, s, err)
		}
		var again Size
		if err := again.Set(s.String()); err != nil || again != s {
			t.Errorf("%s: %s does not read as the same, %v", text, s.String(), err)
		}
	}
	for _, text := range []string{"", "K", "-1", "-1K", "1.5M", "64X", "0x10", "9223372036854775808", "8388608T", "1 K"} {
		var s Size
		if err := s.Set(text); err == nil {
			t.Errorf("%q: expected an error, found %d", text, s)
		}
	}
}

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 256 << 20: "256 MiB", 5 << 40: "5.0 TiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("%d: expected %q, found %q", n, want, got)
		}
	}
}

func program(do func() error) Program {
	root := &cobra.Command{Use: "tool"}
	sub := &cobra.Command{Use: "do A [B]", Args: Args("A", "[B]"), RunE: func(*cobra.Command, []string) error { return do() }}
	needed := ""
	sub.Flags().StringVar(&needed, "needed", "", "")
	_ = sub.MarkFlagRequired("needed")
	root.AddCommand(sub)
	return Program{Root: root, Advice: func(error) string { return "try harder" }}
}

func TestExitCodes(t *testing.T) {
	failed, wrong := errors.New("broken\nin two"), Usagef("not so")
	for _, c := range []struct {
		line string
		err  error
		code int
		text string
	}{
		{"do --needed x a", nil, OK, ""},
		{"do --needed x a b", nil, OK, ""},
		{"do --needed x a", failed, Failed, "tool: broken; in two: try harder\n"},
		{"do --needed x a", wrong, Usage, "tool: not so; see tool do --help\n"},
		{"do a", nil, Usage, "tool: required flag(s) \"needed\" not set; see tool do --help\n"},
		{"do --needed x", nil, Usage, "tool: expected A [B], found 0 arguments; see tool do --help\n"},
		{"do --needed x a b c", nil, Usage, "tool: expected A [B], found 3 arguments; see tool do --help\n"},
		{"nothing", nil, Usage, "tool: unknown command \"nothing\" for \"tool\"; see tool --help\n"},
	} {
		var out, errs bytes.Buffer
		code := program(func() error { return c.err }).Run(strings.Fields(c.line), nil, &out, &errs)
		if code != c.code || errs.String() != c.text || out.Len() > 0 {
			t.Errorf("%s: expected %d, %q; found %d, %q, %q", c.line, c.code, c.text, code, errs.String(), out.String())
		}
	}
}

// For programs a step is at most five lines a second; for files it is silent.
func TestMeter(t *testing.T) {
	var out, errs bytes.Buffer
	m := Output{JSON: true, Stdout: &out, Stderr: &errs}.Meter("working")
	for i := range int64(1000) {
		m.Update(i, 1000)
	}
	m.End()
	if lines := strings.Count(out.String(), "\n"); lines != 1 || errs.Len() > 0 {
		t.Errorf("expected 1 line, found %d, %q", lines, errs.String())
	}
	var line progressLine
	if err := json.Unmarshal(out.Bytes(), &line); err != nil || line != (progressLine{"progress", "working", 0, 1000}) {
		t.Errorf("found %+v, %v", line, err)
	}
	out.Reset()
	m = Output{Stdout: &out, Stderr: &errs}.Meter("working")
	m.Update(1, 2)
	m.Describe("still")
	m.End()
	if out.Len() > 0 || errs.Len() > 0 {
		t.Errorf("expected silence, found %q and %q", out.String(), errs.String())
	}
}

func TestBar(t *testing.T) {
	var errs bytes.Buffer
	m := &Meter{step: "working", bar: newBar(&errs, "working")}
	m.Update(5<<20, 10<<20)
	m.Describe("still")
	m.Update(11<<20, 10<<20)
	m.End()
	if !strings.Contains(errs.String(), "working") {
		t.Errorf("expected a bar, found %q", errs.String())
	}
}

func TestOutFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	write := func(commit bool, text string) {
		t.Helper()
		o, err := CreateOut(path)
		if err != nil {
			t.Fatal(err)
		}
		defer o.Discard()
		if _, err := o.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if commit {
			if err := o.Commit(); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(false, "abandoned")
	if _, err := os.Stat(path); err == nil {
		t.Error("expected no file of an abandoned output")
	}
	write(true, "first")
	write(false, "abandoned")
	write(true, "second")
	if got, _ := os.ReadFile(path); string(got) != "second" {
		t.Errorf("found %q", got)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("expected one file, found %v", left)
	}
	if _, err := CreateOut(dir); err == nil {
		t.Error("a folder: expected an error, found none")
	}
	null, err := CreateOut(os.DevNull)
	if err != nil || !null.InPlace() {
		t.Fatalf("/dev/null: expected to be written in place, found %v", err)
	}
	defer null.Discard()
	if err := errors.Join(null.Blank(4096), null.Commit()); err != nil {
		t.Error(err)
	}
}
