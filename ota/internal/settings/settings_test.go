package settings

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

type config struct {
	Path string `json:"path"`
}

func parse(b []byte, dir string) (*config, error) {
	c := &config{}
	err := Decode(b, c)
	c.Path = InDir(dir, c.Path)
	return c, err
}

func TestRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.json")
	for text, want := range map[string]string{
		`{"path": "x"}` + "\n": filepath.Join(filepath.Dir(file), "x"), `{"path": "/x"}`: "/x", `{}`: "",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if c, err := Read(file, parse); err != nil || c.Path != want {
			t.Errorf("%s: expected %q, found %v, %v", text, want, c, err)
		}
	}
	for _, text := range []string{`{"bogus": 1}`, `{`, ``, `{"path": 1}`, `{} {}`, `{} x`} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(file, parse); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%q: expected an error with the file's name, found %v", text, err)
		}
	}
	if err := Decode([]byte(`{} {}`), &config{}); !errors.Is(err, ErrTrailing) {
		t.Errorf("expected ErrTrailing, found %v", err)
	}
	if _, err := Read(file+"x", parse); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("expected a missing file, found %v", err)
	}
}
