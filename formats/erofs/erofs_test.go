package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"cowbird/tools/fixture"
)

// tree makes a folder with files of many kinds, and returns their contents.
func tree(t *testing.T) (dir string, files map[string][]byte) {
	t.Helper()
	dir = t.TempDir()
	r := rand.New(rand.NewPCG(1, 2))
	text := func(n int) []byte {
		var b bytes.Buffer
		for b.Len() < n {
			fmt.Fprintf(&b, "line %d of %x\n", b.Len(), r.Uint32N(1000))
		}
		return b.Bytes()[:n]
	}
	noise := make([]byte, 100<<10+5)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	files = map[string][]byte{
		"empty": {}, "short": []byte("short"), "d/e/f/deep": []byte("deep"), "noise": noise, "text": text(700 << 10), "block": text(4096),
		"mixed": append(append(text(100_001), noise...), text(50_000)...), "zeros": make([]byte, 200<<10),
	}
	for i := range 200 { // more than one block of a directory
		files[fmt.Sprintf("many/a-name-that-is-not-short-%03d", i)] = text(r.IntN(9000))
	}
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Link(filepath.Join(dir, "text"), filepath.Join(dir, "text-too")), os.Symlink("short", filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	return dir, files
}

func mkfs(t *testing.T, dir string, args ...string) string {
	t.Helper()
	tool, err := exec.LookPath("mkfs.erofs")
	if err != nil {
		fixture.Missing(t, "mkfs.erofs is not installed (Debian: erofs-utils)")
	}
	img := filepath.Join(t.TempDir(), "image")
	if out, err := exec.Command(tool, append(args, img, dir)...).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs %v: %v\n%s", args, err, out)
	}
	return img
}

func files(img []byte) (fs *FS, all []File, err error) {
	fs, err = Open(bytes.NewReader(img), int64(len(img)))
	if err == nil {
		err = fs.Walk(func(f File) error {
			all = append(all, f)
			return nil
		})
	}
	return fs, all, err
}

// decodeLZ4 decodes n bytes; what follows in b is no part of the block.
func decodeLZ4(b []byte, n int) (out []byte) {
	length := func(v int) int {
		for more := v == 15; more && len(b) > 0; b = b[1:] {
			v += int(b[0])
			more = b[0] == 255
		}
		return v
	}
	for len(b) > 0 && len(out) < n {
		token := b[0]
		b = b[1:]
		literals := min(length(int(token>>4)), len(b))
		out, b = append(out, b[:literals]...), b[literals:]
		if len(out) >= n || len(b) < 2 {
			break
		}
		from := len(out) - int(le16(b, 0))
		b = b[2:]
		for k := range length(int(token&15)) + 4 {
			if from < 0 || from+k >= len(out) {
				return out
			}
			out = append(out, out[from+k])
		}
	}
	return out[:min(len(out), n)]
}

// compare checks what the extents of a file hold against its contents, and returns
// how many bytes they cover.
func compare(t *testing.T, fs *FS, img []byte, f File, want []byte) (covered int64) {
	t.Helper()
	for _, e := range f.Extents {
		stored := img[e.Physical:][:e.Stored]
		got := stored[:min(e.Length, e.Stored)]
		if e.Compressed {
			if fs.Padded {
				stored = bytes.TrimLeft(stored, "\x00")
			}
			got = decodeLZ4(stored, int(e.Length))
		}
		if !bytes.Equal(got, want[e.Logical:][:e.Length]) {
			t.Fatalf("%s: %+v: other contents than the file's", f.Path, e)
		}
		covered += e.Length
	}
	return covered
}

// What the extents hold is what was put into the image. A form is what mkfs.erofs is
// asked for, and whether all of the larger files is in extents then.
func TestWalk(t *testing.T) {
	dir, want := tree(t)
	for form, whole := range map[string]bool{
		"":                                       false, // tails beside the inodes
		"-zlz4":                                  true,
		"-zlz4hc,9":                              true,
		"-zlz4hc,9 -C65536":                      true,
		"-zlz4 -C16384 -Elegacy-compress":        true,
		"-zlz4hc -Elegacy-compress":              true,
		"-zlz4hc -C32768 -Eztailpacking":         false,
		"-zlz4hc -C65536 -Efragments":            false,
		"-zlz4hc -C65536 -Eforce-inode-extended": true,
		"--chunksize=8192":                       true,
	} {
		t.Run(form, func(t *testing.T) {
			img, err := os.ReadFile(mkfs(t, dir, strings.Fields(form)...))
			if err != nil {
				t.Fatal(err)
			}
			fs, all, err := files(img)
			if err != nil {
				t.Fatal(err)
			}
			links := 0
			for _, f := range all {
				data, known := want[strings.Replace(f.Path, "text-too", "text", 1)]
				if f.LinkTo != "" {
					links++
					continue
				}
				if !known || f.Size != int64(len(data)) {
					t.Fatalf("%s: expected %d bytes, found %d", f.Path, len(data), f.Size)
				}
				covered := compare(t, fs, img, f, data)
				if missing := f.Size - covered; whole && len(data) > 10000 && f.Path != "zeros" && missing >= 4096 || !whole && missing >= f.Size && len(data) > 100<<10 && f.Path != "zeros" {
					t.Errorf("%s: expected all of it in extents, found %d bytes missing of %d", f.Path, missing, f.Size)
				}
			}
			if len(all) != len(want)+1 || links != 1 {
				t.Errorf("expected %d files and a link, found %d with %d links", len(want), len(all), links)
			}
		})
	}
}

// dump.erofs sees the same extents.
func TestAgainstDump(t *testing.T) {
	dump, err := exec.LookPath("dump.erofs")
	if err != nil {
		fixture.Missing(t, "dump.erofs is not installed (Debian: erofs-utils)")
	}
	dir, _ := tree(t)
	path := mkfs(t, dir, "-zlz4hc,9", "-C65536")
	img, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, all, err := files(img)
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^\s*\d+:\s*(\d+)\.\.\s*(\d+) \|\s*\d+ :\s*(\d+)\.\.\s*(\d+) \|\s*\d+`)
	for _, f := range all {
		if f.Path != "text" && f.Path != "mixed" {
			continue
		}
		out, err := exec.Command(dump, "-e", "--path=/"+f.Path, path).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		var want, got []string
		for _, m := range line.FindAllStringSubmatch(string(out), -1) {
			want = append(want, strings.Join(m[1:], " "))
		}
		for _, e := range f.Extents {
			if e.Compressed {
				got = append(got, fmt.Sprint(e.Logical, e.Logical+e.Length, e.Physical, e.Physical+e.Stored))
			}
		}
		for _, g := range got {
			if !strings.Contains(strings.Join(want, "\n"), g) {
				t.Errorf("%s: expected one of\n%s\nfound %s", f.Path, strings.Join(want, "\n"), g)
			}
		}
		if len(got) < 3 {
			t.Errorf("%s: expected compressed extents, found %v", f.Path, f.Extents)
		}
	}
}

// tiny is a valid image with compressed and inline files.
func tiny(t testing.TB) []byte {
	t.Helper()
	return fixture.Gunzip(t, "testdata/tiny.img.gz")
}

func TestRefused(t *testing.T) {
	put := func(off int, bytes ...byte) func([]byte) []byte {
		return func(b []byte) []byte { copy(b[off:], bytes); return b }
	}
	for name, c := range map[string]struct {
		change func([]byte) []byte
		want   error
	}{
		"empty":          {func([]byte) []byte { return nil }, ErrNotErofs},
		"zeros":          {func([]byte) []byte { return make([]byte, 8192) }, ErrNotErofs},
		"cut off":        {func(b []byte) []byte { return b[:4096] }, ErrCorrupt},
		"a new feature":  {put(1024+80, 0x81), ErrUnsupported},
		"another device": {put(1024+86, 1), ErrUnsupported},
		"tiny blocks":    {put(1024+12, 3), ErrCorrupt},
		"root outside":   {put(1024+40, 0xFF, 0xFF, 0xFF, 0xFF), ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := files(c.change(tiny(t))); !errors.Is(err, c.want) {
				t.Errorf("expected %v, found %v", c.want, err)
			}
		})
	}
}

// FuzzWalk changes bytes of a valid image: each change is three bytes of offset and
// one that is put there. No change makes a panic, an endless walk or an extent
// outside of the image.
func FuzzWalk(f *testing.F) {
	base := tiny(f)
	f.Add([]byte{})
	f.Add([]byte{0x00, 0x04, 0x0C, 0x09})
	f.Fuzz(func(t *testing.T, changes []byte) {
		b := bytes.Clone(base)
		for ; len(changes) >= 4; changes = changes[4:] {
			b[(int(changes[0])<<16|int(changes[1])<<8|int(changes[2]))%len(b)] = changes[3]
		}
		_, all, err := files(b)
		for _, file := range all {
			next := int64(0)
			for _, e := range file.Extents {
				if e.Length <= 0 || e.Logical < next || e.Physical < 0 || e.Stored <= 0 || e.Physical+e.Stored > int64(len(b)) {
					t.Fatalf("%s: impossible extents %v", file.Path, file.Extents)
				}
				next = e.Logical + e.Length
			}
		}
		for _, kind := range []error{ErrNotErofs, ErrUnsupported, ErrCorrupt, io.ErrUnexpectedEOF} {
			if err == nil || errors.Is(err, kind) {
				return
			}
		}
		t.Errorf("expected one of the package's errors, found %v", err)
	})
}
