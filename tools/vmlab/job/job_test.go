package job

import (
	"reflect"
	"testing"
	"time"
)

func TestJobGoesThroughItsFile(t *testing.T) {
	dir := t.TempDir()
	want := &Job{
		Vehicle: "uml", Keep: []string{"/src"}, Modules: []string{"a.ko"}, Env: []string{"A=b"},
		Tests: []Test{{Name: "TestX", Binary: "x.test", Dir: "/src/x", Timeout: time.Minute}},
	}
	if err := want.Write(dir); err != nil {
		t.Fatal(err)
	}
	got, err := Read(dir)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("expected %+v, found %+v, %v", want, got, err)
	}
	if _, err := Read(t.TempDir()); err == nil {
		t.Error("expected an empty folder to have no job")
	}
}

func TestParseMark(t *testing.T) {
	for line, want := range map[string][2]string{
		"[    0.250000] vmlab: begin 3 TestX\r": {"begin", "3 TestX"},
		"vmlab: ready":                          {"ready", ""},
		"[ 1.5] vmlab: allow WARNING: .* [x]":   {"allow", "WARNING: .* [x]"},
	} {
		word, rest, ok := ParseMark(line)
		if !ok || word != want[0] || rest != want[1] {
			t.Errorf("%q: expected %q, found %q %q %v", line, want, word, rest, ok)
		}
	}
	for _, line := range []string{"", "[    0.2] ready", "[x] vmlab: ready", "say vmlab: ready"} {
		if word, _, ok := ParseMark(line); ok {
			t.Errorf("%q: expected no mark, found %q", line, word)
		}
	}
}
