package filemap

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"cowbird/cow"
	"cowbird/tools/fixture"
)

func TestUnversioned(t *testing.T) {
	for path, want := range map[string]string{
		"lib/libfoo.so.1.2.10":   "lib/libfoo.so.#",
		"lib/libfoo-3.so":        "lib/libfoo-#.so",
		"usr/v2/python3.11":      "usr/v2/python#",
		"a.b":                    "a.b",
		"7":                      "#",
		"x1y2.":                  "x#y#.",
		"vmlinuz-6.1.0-26-amd64": "vmlinuz-#-#-amd#",
	} {
		if got := unversioned(path); got != want {
			t.Errorf("%s: expected %s, found %s", path, want, got)
		}
	}
}

func TestPairs(t *testing.T) {
	base := []File{
		{Path: "bin/tool", Size: 10}, {Path: "lib/a/libx.so", Size: 1000}, {Path: "lib/b/libx.so", Size: 100},
		{Path: "lib/liby.so.1.2", Size: 50}, {Path: "lib/liby.so.1.20", Size: 50}, {Path: "lib/liby.so.3", Size: 50},
	}
	for name, c := range map[string]struct {
		target File
		want   string
	}{
		"the same path":                   {File{Path: "bin/tool", Size: 99999}, "bin/tool"},
		"the next version":                {File{Path: "lib/liby.so.1.21", Size: 50}, "lib/liby.so.1.20"},
		"another folder, about as large":  {File{Path: "lib/c/libx.so", Size: 90}, "lib/b/libx.so"},
		"another folder, another size":    {File{Path: "opt/tool", Size: 100}, ""},
		"another folder, another version": {File{Path: "opt/liby.so.1.3", Size: 50}, ""},
		"nothing like it":                 {File{Path: "new", Size: 50}, ""},
	} {
		got := ""
		for _, p := range Pairs(base, []File{c.target}) {
			got = base[p.Base].Path
		}
		if got != c.want {
			t.Errorf("%s: expected %q, found %q", name, c.want, got)
		}
	}
}

// makeImage makes an ext4 image of a folder.
func makeImage(t *testing.T, files map[string][]byte) cow.Image {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	mkfs, err := exec.LookPath("/usr/sbin/mkfs.ext4")
	if err != nil {
		fixture.Missing(t, "mkfs.ext4 is not installed (Debian: e2fsprogs)")
	}
	img := filepath.Join(t.TempDir(), "image")
	if out, err := exec.Command(mkfs, "-q", "-F", "-b", "4096", "-d", dir, img, "8M").CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	b, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	return cow.Image{R: bytes.NewReader(b), Size: int64(len(b))}
}

// The kin of two images are the bytes of the files that are versions of each other.
func TestBetween(t *testing.T) {
	one, two := bytes.Repeat([]byte("one"), 5000), bytes.Repeat([]byte("two"), 4000)
	base := makeImage(t, map[string][]byte{"lib/l.so.1": one, "gone": one})
	target := makeImage(t, map[string][]byte{"lib/l.so.2": two, "lib/new": two})
	kin, err := Between(base, target)
	if err != nil || len(kin) != 1 {
		t.Fatalf("expected one pair, found %v, %v", kin, err)
	}
	read := func(img cow.Image, ranges []cow.Range) (b []byte) {
		for _, r := range ranges {
			p := make([]byte, r.Length)
			if _, err := img.R.ReadAt(p, r.Offset); err != nil {
				t.Fatal(err)
			}
			b = append(b, p...)
		}
		return b
	}
	if !bytes.HasPrefix(read(base, kin[0].Base), one) || !bytes.HasPrefix(read(target, kin[0].Target), two) {
		t.Error("expected the contents of both versions where they are said to be")
	}
}

// An unknown file system has no files; a damaged one says so.
func TestUnknown(t *testing.T) {
	for _, size := range []int{0, 512, 1 << 20} {
		b := make([]byte, size)
		if m, err := Files(bytes.NewReader(b), int64(size)); err != nil || m.System != "" || len(m.Files) != 0 {
			t.Errorf("%d zeros: expected nothing, found %v, %v", size, m, err)
		}
	}
	img := makeImage(t, map[string][]byte{"a": []byte("a")})
	if _, err := Files(img.R, img.Size/2); err == nil {
		t.Error("half an image: expected an error, found none")
	}
	m, err := Files(img.R, img.Size)
	if err != nil || m.System != "ext4" || !slices.ContainsFunc(m.Files, func(f File) bool { return f.Path == "a" }) {
		t.Errorf("expected the file of an ext4 image, found %v, %v", m, err)
	}
}
