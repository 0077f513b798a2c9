package grubenv

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cowbird/tools/fixture"
)

func block(text string, size int) []byte {
	return []byte(header + text + strings.Repeat("#", size-len(header)-len(text)))
}

func TestParse(t *testing.T) {
	in := block("# a comment\nORDER=A B\nA_OK=\nescaped=back\\\\slash\\\nline = 2\n", Size)
	e, err := Parse(in)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"ORDER": "A B", "A_OK": "", "escaped": "back\\slash\nline = 2"} {
		if got, found := e.Get(name); got != want || !found {
			t.Errorf("%s: expected %q, found %q, %v", name, want, got, found)
		}
	}
	for _, name := range []string{"", "line ", "# a comment", "B_OK"} {
		if got, found := e.Get(name); found {
			t.Errorf("%q: expected none, found %q", name, got)
		}
	}
	if out, err := e.Marshal(); err != nil || !bytes.Equal(out, in) {
		t.Errorf("expected\n%s, found\n%s, %v", in, out, err)
	}
	if err := e.Set("A_OK", "1"); err != nil {
		t.Fatal(err)
	}
	e.Unset("escaped")
	e.Unset("escaped")
	e.Unset("")
	if out, err := e.Marshal(); err != nil || !bytes.Equal(out, block("# a comment\nORDER=A B\nA_OK=1\n", Size)) {
		t.Errorf("found %s, %v", out, err)
	}
}

func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"short": {[]byte("# GRUB"), ErrSize}, "large": {block("", MaxSize+1), ErrSize}, "zero": {make([]byte, Size), ErrHeader},
		"no equals": {block("name\n", Size), ErrData}, "no name": {block("=1\n", Size), ErrData}, "name with backslash": {block("a\\b=1\n", Size), ErrData},
		"not filled": {append(block("", 900), make([]byte, 124)...), ErrData}, "open line": {[]byte(header + "a=1"), ErrData}, "open escape": {[]byte(header + "a=1\\"), ErrData},
	} {
		if e, err := Parse(c.b); !errors.Is(err, c.want) || e != nil {
			t.Errorf("%s: expected %v, found %v, %+v", name, c.want, err, e)
		}
	}
	for _, name := range []string{"", "a=b", "#a", "a\nb", "a\\"} {
		if err := New().Set(name, "1"); !errors.Is(err, ErrVariable) {
			t.Errorf("%q: expected %v, found %v", name, ErrVariable, err)
		}
	}
}

func TestFull(t *testing.T) {
	e := New()
	room := Size - len(header) - len("a=\n")
	_ = e.Set("a", strings.Repeat("x", room))
	b, err := e.Marshal()
	if err != nil || len(b) != Size {
		t.Fatalf("expected %d bytes, found %d, %v", Size, len(b), err)
	}
	if _, err := Parse(b); err != nil {
		t.Error(err)
	}
	_ = e.Set("a", strings.Repeat("x", room-1)+"\\")
	if _, err := e.Marshal(); !errors.Is(err, ErrSize) {
		t.Errorf("expected %v, since a backslash takes two bytes, found %v", ErrSize, err)
	}
}

func TestGrubEditenv(t *testing.T) {
	editenv, err := exec.LookPath("grub-editenv")
	if err != nil {
		fixture.Missing(t, "grub-editenv is not installed (Debian: grub-common)")
	}
	file := filepath.Join(t.TempDir(), "grubenv")
	run := func(args ...string) string {
		out, err := exec.Command(editenv, append([]string{file}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	run("create")
	run("set", "ORDER=A B", "path=C:\\x", "lines=1\n2")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	e, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"ORDER": "A B", "path": "C:\\x", "lines": "1\n2"} {
		if got, _ := e.Get(name); got != want {
			t.Errorf("%s: expected %q, found %q", name, want, got)
		}
	}
	if out, err := e.Marshal(); err != nil || !bytes.Equal(out, b) {
		t.Errorf("expected\n%s, found\n%s, %v", b, out, err)
	}
	_ = e.Set("ORDER", "B A")
	_ = e.Set("more", "\\\\\n\n")
	if b, err = e.Marshal(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := run("list"), "ORDER=B A\npath=C:\\x\nlines=1\n2\nmore=\\\\\n\n\n"; got != want {
		t.Errorf("expected %q, found %q", want, got)
	}
	run("set", "A_OK=1")
	if b, err = os.ReadFile(file); err != nil {
		t.Fatal(err)
	}
	if e, err = Parse(b); err != nil {
		t.Fatal(err)
	}
	if got, _ := e.Get("more"); got != "\\\\\n\n" {
		t.Errorf("expected the value to survive, found %q", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(block("ORDER=A B\nx=\\\\\\\n\n", Size))
	f.Add(block("# comment\n", 100))
	f.Add([]byte(header + "a=1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Parse(b)
		if err != nil {
			return
		}
		out, err := e.Marshal()
		if errors.Is(err, ErrSize) {
			return // something was not escaped that is escaped here
		}
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(out)
		if err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		if twice, err := again.Marshal(); err != nil || !bytes.Equal(twice, out) || len(out) != len(b) {
			t.Fatalf("expected\n%q, found\n%q, %v", out, twice, err)
		}
	})
}
