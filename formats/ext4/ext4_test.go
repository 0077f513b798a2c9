package ext4

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
	"strconv"
	"strings"
	"testing"

	"cowbird/tools/fixture"
)

// tree makes a folder with files of many kinds, and returns their contents.
func tree(t *testing.T) (dir string, files map[string][]byte) {
	t.Helper()
	dir = t.TempDir()
	files = map[string][]byte{"empty": {}, "short": []byte("short"), "d/e/f/deep": []byte("deep"), "sparse": make([]byte, 300<<10)}
	r := rand.New(rand.NewPCG(1, 2))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32() | 1)
		}
		return b
	}
	copy(files["sparse"][40<<10:], random(5000))
	copy(files["sparse"][200<<10:], random(5000))
	files["large"] = random(1500<<10 + 17)
	for i := range 300 { // more than one block of a directory
		files[fmt.Sprintf("many/a-name-that-is-not-short-%03d", i)] = random(r.IntN(3000))
	}
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if name == "sparse" {
			writeSparse(t, path, data)
		} else if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Link(filepath.Join(dir, "short"), filepath.Join(dir, "short-too")), os.Symlink("short", filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	return dir, files
}

func writeSparse(t *testing.T, path string, data []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(data); off += 4096 {
		if b := data[off:min(off+4096, len(data))]; !bytes.Equal(b, make([]byte, len(b))) {
			if _, err := f.WriteAt(b, int64(off)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(f.Truncate(int64(len(data))), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// tool finds a command of e2fsprogs.
func tool(t testing.TB, name string) string {
	t.Helper()
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path := filepath.Join(dir, name); exec.Command(path, "-V").Run() == nil {
			return path
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		fixture.Missing(t, "%s is not installed (Debian: e2fsprogs)", name)
	}
	return path
}

func mkfs(t testing.TB, dir string, args ...string) string {
	t.Helper()
	img := filepath.Join(t.TempDir(), "image")
	args = append([]string{"-q", "-F", "-d", dir}, args...)
	if out, err := exec.Command(tool(t, "mkfs.ext4"), append(args, img, "64M")...).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	return img
}

func load(t testing.TB, img string) []byte {
	t.Helper()
	b, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func files(img []byte) (all []File, err error) {
	fs, err := Open(bytes.NewReader(img), int64(len(img)))
	if err == nil {
		err = fs.Walk(func(f File) error {
			all = append(all, f)
			return nil
		})
	}
	return all, err
}

// contents puts together what the extents of a file hold.
func contents(img []byte, f File) []byte {
	b := make([]byte, f.Size)
	for _, e := range f.Extents {
		copy(b[e.Logical:], img[e.Physical:][:e.Length])
	}
	return b
}

// forms are what mkfs.ext4 is asked for.
var forms = map[string][]string{
	"default":      {"-b", "4096"},
	"1K blocks":    {"-b", "1024"},
	"64K blocks":   {"-b", "65536"},
	"32 bit":       {"-b", "4096", "-O", "^64bit,^metadata_csum"},
	"block map":    {"-b", "1024", "-O", "^extents,^64bit"},
	"small inodes": {"-b", "2048", "-I", "128"},
	"no filetype":  {"-b", "1024", "-O", "^filetype"},
	"casefold":     {"-b", "4096", "-O", "casefold,large_dir,ea_inode"},
}

// What the extents hold is what was put into the image.
func TestWalk(t *testing.T) {
	dir, want := tree(t)
	for name, args := range forms {
		t.Run(name, func(t *testing.T) {
			img := load(t, mkfs(t, dir, args...))
			all, err := files(img)
			if err != nil {
				t.Fatal(err)
			}
			links := 0
			for _, f := range all {
				if f.LinkTo != "" {
					links++
					continue
				}
				if data, known := want[strings.Replace(f.Path, "short-too", "short", 1)]; !known || !bytes.Equal(contents(img, f), data) {
					t.Errorf("%s: expected its %d bytes, found other ones in %v", f.Path, len(data), f.Extents)
				}
				if f.Path == "sparse" && len(f.Extents) < 2 {
					t.Errorf("sparse file: expected holes, found %v", f.Extents)
				}
			}
			if len(all) != len(want)+1 || links != 1 {
				t.Errorf("expected %d files and a link, found %d with %d links", len(want), len(all), links)
			}
		})
	}
}

// debugfs sees the same blocks, also of files that are fragmented or have
// extents that were never written.
func TestAgainstDebugfs(t *testing.T) {
	dir, _ := tree(t)
	img := mkfs(t, dir, "-b", "1024")
	debugfs := tool(t, "debugfs")
	var script strings.Builder
	for i := range 200 { // holes, so that what comes is in pieces
		if i%2 == 0 {
			fmt.Fprintf(&script, "rm many/a-name-that-is-not-short-%03d\n", i)
		}
	}
	fmt.Fprintf(&script, "write %s again\nfallocate short 20 40\n", filepath.Join(dir, "large"))
	cmd := exec.Command(debugfs, "-w", "-f", "-", img)
	cmd.Stdin = strings.NewReader(script.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v\n%s", err, out)
	}
	b := load(t, img)
	all, err := files(b)
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile(`^\d+$`)
	for _, f := range all {
		if f.LinkTo != "" || f.Path == "short" || strings.HasPrefix(f.Path, "many/") {
			continue
		}
		out, err := exec.Command(debugfs, "-R", "blocks "+f.Path, img).Output()
		if err != nil {
			t.Fatal(err)
		}
		var want, got []int64
		for _, w := range strings.Fields(string(out)) {
			if n, err := strconv.ParseInt(w, 10, 64); err == nil && block.MatchString(w) {
				want = append(want, n)
			}
		}
		for _, e := range f.Extents {
			for i := int64(0); i < e.Length; i += 1024 {
				got = append(got, (e.Physical+i)/1024)
			}
		}
		if !isSubsequence(got, want) || len(want)-len(got) > 20 { // debugfs lists blocks of trees as well
			t.Errorf("%s: expected blocks %v, found %v", f.Path, want, got)
		}
		if f.Path == "again" && (len(f.Extents) < 5 || !bytes.Equal(contents(b, f), load(t, filepath.Join(dir, "large")))) {
			t.Errorf("again: expected many extents with the contents, found %v", f.Extents)
		}
	}
	for _, f := range all {
		if f.Path == "short" && len(f.Extents) != 1 {
			t.Errorf("short: expected no extents for what was never written, found %v", f.Extents)
		}
	}
}

func isSubsequence(a, b []int64) bool {
	for _, x := range b {
		if len(a) > 0 && a[0] == x {
			a = a[1:]
		}
	}
	return len(a) == 0
}

// tiny is a valid image of 64 KiB, made by mkfs.ext4 with blocks of 1 KiB.
func tiny(t testing.TB) []byte {
	t.Helper()
	return fixture.Gunzip(t, "testdata/tiny.img.gz")
}

func TestRefused(t *testing.T) {
	put := func(off int, bytes ...byte) func([]byte) []byte {
		return func(b []byte) []byte { copy(b[off:], bytes); return b }
	}
	const super = 1024
	for name, c := range map[string]struct {
		change func([]byte) []byte
		want   error
	}{
		"empty":                    {func([]byte) []byte { return nil }, ErrNotExt4},
		"zeros":                    {func([]byte) []byte { return make([]byte, 8192) }, ErrNotExt4},
		"cut off":                  {func(b []byte) []byte { return b[:32<<10] }, ErrCorrupt},
		"a journal to be replayed": {put(super+0x60, 0x46), ErrUnsupported},
		"blocks of 2 GiB":          {put(super+0x18, 21), ErrCorrupt},
		"no inodes a group":        {put(super+0x28, 0, 0, 0, 0), ErrCorrupt},
		"too many inodes":          {put(super, 0, 0, 0, 1), ErrCorrupt},
		"inodes of 3 bytes":        {put(super+0x58, 3, 0), ErrCorrupt},
		"no blocks a group":        {put(super+0x20, 0, 0, 0, 0), ErrCorrupt},
		"table outside":            {put(2048+8, 0xFF, 0xFF), ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := files(c.change(tiny(t))); !errors.Is(err, c.want) {
				t.Errorf("expected %v, found %v", c.want, err)
			}
		})
	}
}

// A directory that contains itself ends in an error, not in a loop.
func TestLoop(t *testing.T) {
	b := tiny(t)
	at := bytes.Index(b, []byte("sub")) - 8
	if at < 0 {
		t.Fatal("expected a folder named sub in the image")
	}
	copy(b[at:], []byte{2, 0, 0, 0})
	if _, err := files(b); !errors.Is(err, ErrCorrupt) {
		t.Errorf("expected %v, found %v", ErrCorrupt, err)
	}
}

func TestVisitEnds(t *testing.T) {
	b := tiny(t)
	fs, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	stop, n := errors.New("stop"), 0
	if err := fs.Walk(func(File) error { n++; return stop }); err != stop || n != 1 {
		t.Errorf("expected one visit and its error, found %d, %v", n, err)
	}
}

// FuzzWalk changes bytes of a valid image: each change is three bytes of offset and
// one that is put there. No change makes a panic, an endless walk or an extent
// outside of the image.
func FuzzWalk(f *testing.F) {
	base := tiny(f)
	f.Add([]byte{})
	f.Add([]byte{0x00, 0x04, 0x18, 0x02})
	f.Fuzz(func(t *testing.T, changes []byte) {
		b := bytes.Clone(base)
		for ; len(changes) >= 4; changes = changes[4:] {
			b[(int(changes[0])<<16|int(changes[1])<<8|int(changes[2]))%len(b)] = changes[3]
		}
		all, err := files(b)
		for _, file := range all {
			next := int64(0)
			for _, e := range file.Extents {
				if e.Length <= 0 || e.Logical < next || e.Physical < 0 || e.Physical+e.Length > int64(len(b)) {
					t.Fatalf("%s: impossible extents %v", file.Path, file.Extents)
				}
				next = e.Logical + e.Length
			}
		}
		for _, kind := range []error{ErrNotExt4, ErrUnsupported, ErrCorrupt, io.ErrUnexpectedEOF} {
			if err == nil || errors.Is(err, kind) {
				return
			}
		}
		t.Errorf("expected one of the package's errors, found %v", err)
	})
}
