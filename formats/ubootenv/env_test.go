package ubootenv

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cowbird/tools/fixture"
)

// image is a copy by hand.
func image(size int, redundant bool, flag byte, data string) []byte {
	b := []byte{0, 0, 0, 0}
	if redundant {
		b = append(b, flag)
	}
	head := len(b)
	b = append(b, data...)
	b = append(b, bytes.Repeat([]byte{0xff}, size-len(b))...)
	binary.LittleEndian.PutUint32(b, crc32.ChecksumIEEE(b[head:]))
	return b
}

func TestParse(t *testing.T) {
	for name, c := range map[string]struct {
		data string
		want []Variable
	}{
		"empty":      {"\x00\x00", nil},
		"two":        {"a=1\x00b=x=y z\x00\x00", []Variable{{"a", "1"}, {"b", "x=y z"}}},
		"no value":   {"a=\x00\x00", []Variable{{"a", ""}}},
		"last wins":  {"a=1\x00b=2\x00a=3\x00\x00", []Variable{{"a", "3"}, {"b", "2"}}},
		"flags":      {".flags=a:sr\x00\x00", []Variable{{".flags", "a:sr"}}},
		"then noise": {"a=1\x00\x00noise\x00", []Variable{{"a", "1"}}},
	} {
		for _, redundant := range []bool{false, true} {
			e, err := Parse(image(64, redundant, 7, c.data), redundant)
			if err != nil || !slices.Equal(e.Variables(), c.want) || redundant && e.Flag != 7 {
				t.Errorf("%s: expected %v, found %+v, %v", name, c.want, e, err)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	torn := image(64, false, 0, "a=1\x00\x00")
	torn[63] = 0
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"short": {make([]byte, 5), ErrSize}, "blank": {make([]byte, 64), ErrChecksum}, "erased": {bytes.Repeat([]byte{0xff}, 64), ErrChecksum}, "torn": {torn, ErrChecksum},
		"no end": {image(64, false, 0, "a=1\x00"), ErrData}, "no equals": {image(64, false, 0, "a\x00\x00"), ErrData}, "no name": {image(64, false, 0, "=1\x00\x00"), ErrData},
		"ends with one NUL": {image(8, false, 0, "a=1\x00"), ErrData}, "other size": {image(64, false, 0, "a=1\x00\x00")[:60], ErrChecksum},
	} {
		if e, err := Parse(c.b, false); !errors.Is(err, c.want) || e != nil {
			t.Errorf("%s: expected %v, found %v, %+v", name, c.want, err, e)
		}
	}
}

func TestSet(t *testing.T) {
	e := &Env{Size: 32}
	for _, v := range []Variable{{"a", "1"}, {"b", "2"}, {"c", ""}, {"a", "3"}, {"b", ""}, {"d", "=4"}} {
		if err := e.Set(v.Name, v.Value); err != nil {
			t.Fatal(err)
		}
	}
	if want := []Variable{{"a", "3"}, {"d", "=4"}}; !slices.Equal(e.Variables(), want) {
		t.Errorf("expected %v, found %v", want, e.Variables())
	}
	if v, found := e.Get("d"); v != "=4" || !found {
		t.Errorf("expected =4, found %q, %v", v, found)
	}
	if v, found := e.Get("b"); v != "" || found {
		t.Errorf("expected none, found %q, %v", v, found)
	}
	for _, v := range []Variable{{"", "1"}, {"a=b", "1"}, {"a\x00", "1"}, {"a", "1\x00"}} {
		if err := e.Set(v.Name, v.Value); !errors.Is(err, ErrVariable) {
			t.Errorf("%q: expected %v, found %v", v, ErrVariable, err)
		}
	}
	next := e.Next()
	_ = next.Set("a", "5")
	if v, _ := e.Get("a"); v != "3" {
		t.Errorf("expected the older one to stay, found %q", v)
	}
}

// Variables that fit to the last byte fit, one byte more does not.
func TestFull(t *testing.T) {
	for _, redundant := range []bool{false, true} {
		e := &Env{Size: 32, Redundant: redundant}
		room := 32 - e.head() - len("a=") - 2
		_ = e.Set("a", strings.Repeat("x", room))
		b, err := e.Marshal()
		if err != nil || len(b) != 32 {
			t.Fatalf("expected 32 bytes, found %d, %v", len(b), err)
		}
		if again, err := Parse(b, redundant); err != nil || !slices.Equal(again.Variables(), e.Variables()) {
			t.Errorf("expected %v, found %+v, %v", e.Variables(), again, err)
		}
		_ = e.Set("a", strings.Repeat("x", room+1))
		if _, err := e.Marshal(); !errors.Is(err, ErrSize) {
			t.Errorf("expected %v, found %v", ErrSize, err)
		}
	}
	if _, err := (&Env{Size: 5}).Marshal(); !errors.Is(err, ErrSize) {
		t.Errorf("expected %v, found %v", ErrSize, err)
	}
}

func TestChoose(t *testing.T) {
	for _, c := range []struct{ first, second, want int }{ // flags; -1 is a broken copy
		{0, 0, 0}, {1, 0, 0}, {0, 1, 1}, {5, 6, 1}, {255, 0, 1}, {0, 255, 0}, {254, 255, 1}, {1, 255, 1}, {-1, 0, 1}, {200, -1, 0},
	} {
		of := func(flag int) []byte {
			b := image(64, true, byte(flag), fmt.Sprintf("flag=%d\x00\x00", flag))
			if flag < 0 {
				b[10] ^= 1
			}
			return b
		}
		e, which, err := Choose(of(c.first), of(c.second))
		if err != nil || which != c.want {
			t.Errorf("%+v: expected copy %d, found %d, %v", c, c.want, which, err)
			continue
		}
		if v, _ := e.Get("flag"); v != fmt.Sprint([]int{c.first, c.second}[which]) {
			t.Errorf("%+v: expected that copy's variables, found %s", c, v)
		}
		if n := e.Next(); n.Flag != e.Flag+1 {
			t.Errorf("expected flag %d, found %d", e.Flag+1, n.Flag)
		}
	}
	if _, _, err := Choose(make([]byte, 64), []byte{1}); !errors.Is(err, ErrChecksum) || !errors.Is(err, ErrSize) {
		t.Errorf("expected both errors, found %v", err)
	}
}

func tool(t *testing.T, name, debian string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		fixture.Missing(t, "%s is not installed (Debian: %s)", name, debian)
	}
	return path
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestMkenvimage(t *testing.T) {
	mkenvimage := tool(t, "mkenvimage", "u-boot-tools")
	dir := t.TempDir()
	text, out := filepath.Join(dir, "env.txt"), filepath.Join(dir, "env.bin")
	if err := os.WriteFile(text, []byte("BOOT_ORDER=A B\nbootcmd=run x; y=z\nempty=\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, redundant := range []bool{false, true} {
		args := []string{"-p", "0x0", "-s", "4096", "-o", out, text}
		if redundant {
			args = append([]string{"-r"}, args...)
		}
		run(t, mkenvimage, args...)
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		e, err := Parse(b, redundant)
		want := []Variable{{"BOOT_ORDER", "A B"}, {"bootcmd", "run x; y=z"}, {"empty", ""}}
		if err != nil || !slices.Equal(e.Variables(), want) {
			t.Fatalf("expected %v, found %+v, %v", want, e, err)
		}
		if again, err := e.Marshal(); err != nil || !bytes.Equal(again, b) {
			t.Errorf("redundant %v: expected the same bytes again, found %v", redundant, err)
		}
	}
}

// fw_printenv reads what is written here, and what fw_setenv writes is read here: one
// copy and two, until the flags have wrapped.
func TestFwTools(t *testing.T) {
	printenv, setenv := tool(t, "fw_printenv", "libubootenv-tool"), tool(t, "fw_setenv", "libubootenv-tool")
	for _, copies := range []int{1, 2} {
		dir := t.TempDir()
		config, lines := filepath.Join(dir, "fw_env.config"), ""
		var paths []string
		for i := range copies {
			e := &Env{Size: 512, Redundant: copies == 2, Flag: byte(252 + i)}
			_ = e.Set("written", fmt.Sprint(i))
			paths = append(paths, filepath.Join(dir, fmt.Sprint(i)))
			lines += paths[i] + " 0x0 0x200\n"
			put(t, paths[i], e)
		}
		if err := os.WriteFile(config, []byte(lines), 0o600); err != nil {
			t.Fatal(err)
		}
		for i := range 6 {
			e, which := get(t, paths)
			want := fmt.Sprintf("value %d", i)
			if i%2 == 0 {
				run(t, setenv, "-c", config, "test", want)
			} else {
				e = e.Next()
				_ = e.Set("test", want)
				put(t, paths[(which+1)%copies], e)
			}
			e, _ = get(t, paths)
			if got, _ := e.Get("test"); got != want || len(e.Variables()) != 2 {
				t.Errorf("%d copies: expected %s, found %v", copies, want, e.Variables())
			}
			if got := run(t, printenv, "-c", config, "test"); got != "test="+want+"\n" {
				t.Errorf("%d copies: expected %s, found %s", copies, want, got)
			}
		}
	}
}

func put(t *testing.T, path string, e *Env) {
	t.Helper()
	b, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, paths []string) (e *Env, which int) {
	t.Helper()
	var copies [2][]byte
	var err error
	for i, p := range paths {
		if copies[i], err = os.ReadFile(p); err != nil {
			t.Fatal(err)
		}
	}
	if len(paths) == 1 {
		e, err = Parse(copies[0], false)
	} else {
		e, which, err = Choose(copies[0], copies[1])
	}
	if err != nil {
		t.Fatal(err)
	}
	return e, which
}

// FuzzParse takes the data of an environment: a checksum would hardly be found.
func FuzzParse(f *testing.F) {
	f.Add("a=1\x00bootcmd=run x\x00\x00", true)
	f.Add("a=1\x00a=2\x00\x00\xff\xff", false)
	f.Fuzz(func(t *testing.T, data string, redundant bool) {
		e, err := Parse(image(len(data)+5, redundant, 1, data), redundant)
		if err != nil {
			return
		}
		b, err := e.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(b, redundant)
		if err != nil || !slices.Equal(again.Variables(), e.Variables()) || again.Flag != e.Flag {
			t.Fatalf("expected %+v, found %+v, %v", e, again, err)
		}
		if _, err := Parse([]byte(data), redundant); err == nil && len(data) < 6 {
			t.Fatal("expected so few bytes to be refused")
		}
	})
}
