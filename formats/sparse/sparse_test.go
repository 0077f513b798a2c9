package sparse

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// image has noise, zeros, a fill and noise again.
func image() []byte {
	b := make([]byte, 64*4096)
	chacha := rand.NewChaCha8([32]byte{1})
	_, _ = chacha.Read(b[:5*4096])
	for i := 20 * 4096; i < 30*4096; i++ {
		b[i] = "abcd"[i%4]
	}
	_, _ = chacha.Read(b[60*4096:])
	return b
}

func written(t testing.TB, b []byte, block int64) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := Write(&out, bytes.NewReader(b), int64(len(b)), block); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func contents(b []byte) ([]byte, error) {
	m, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(m, 0, m.Size()))
}

func TestThereAndBack(t *testing.T) {
	for _, block := range []int64{4, 512, 4096, 16384} {
		for _, b := range [][]byte{image(), {}, make([]byte, 1<<20)} {
			got, err := contents(written(t, b, block))
			if err != nil || !bytes.Equal(got, b) {
				t.Errorf("blocks of %d: expected the same %d bytes, found %d, %v", block, len(b), len(got), err)
			}
		}
	}
	if n := len(written(t, image(), 4096)); n != 28+5*12+9*4096+3*4 {
		t.Errorf("expected five chunks, found %d bytes", n)
	}
}

func TestReadAt(t *testing.T) {
	b := image()
	s := written(t, b, 4096)
	m, err := Open(bytes.NewReader(s), int64(len(s)))
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 1, 5*4096 - 3, 20*4096 - 1, 29*4096 + 4095, int64(len(b)) - 1, int64(len(b)), int64(len(b)) + 9} {
		p := make([]byte, 100000)
		n, err := m.ReadAt(p, off)
		want := b[min(off, int64(len(b))):]
		want = want[:min(len(want), len(p))]
		if !bytes.Equal(p[:n], want) || (err == io.EOF) != (n < len(p)) {
			t.Errorf("at %d: expected %d bytes, found %d, %v", off, len(want), n, err)
		}
	}
	if _, err := m.ReadAt(nil, -1); err == nil {
		t.Error("expected an error for a negative offset")
	}
}

func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatalf("expected %s, which tools/setup.sh test installs, found none", name)
	}
	if err != nil {
		t.Skipf("%s is not installed: tools/setup.sh test does so", name)
	}
	return path
}

// Android's own tools read what is written here, and write what is read here.
func TestAgainstAndroidTools(t *testing.T) {
	img2simg, simg2img := tool(t, "img2simg"), tool(t, "simg2img")
	dir := t.TempDir()
	raw, theirs, ours, back := filepath.Join(dir, "raw"), filepath.Join(dir, "theirs"), filepath.Join(dir, "ours"), filepath.Join(dir, "back")
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	if err := errors.Join(os.WriteFile(raw, image(), 0o600), os.WriteFile(ours, written(t, image(), 4096), 0o600)); err != nil {
		t.Fatal(err)
	}
	run(img2simg, raw, theirs)
	run(simg2img, ours, back)
	b, err := os.ReadFile(theirs)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := contents(b); err != nil || !bytes.Equal(got, image()) {
		t.Errorf("img2simg: expected the image, found %d bytes, %v", len(got), err)
	}
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, image()) {
		t.Errorf("simg2img: expected the image, found %d bytes, %v", len(got), err)
	}
}

func TestRefuses(t *testing.T) {
	good := written(t, image(), 4096)
	for name, c := range map[string]struct {
		off   int
		value uint32
		want  error
	}{
		"magic": {0, 1, ErrMagic}, "version": {4, 2, ErrCorrupt}, "header sizes": {8, 27 | 12<<16, ErrCorrupt}, "chunk header": {8, 28 | 11<<16, ErrCorrupt},
		"block size": {12, 0, ErrCorrupt}, "odd block size": {12, 4098, ErrCorrupt}, "large blocks": {12, 1 << 31, ErrCorrupt},
		"blocks": {16, 65, ErrCorrupt}, "fewer blocks": {16, 63, ErrCorrupt}, "chunks": {20, 6, ErrCorrupt}, "fewer chunks": {20, 4, ErrCorrupt},
		"many chunks": {20, 1 << 31, ErrCorrupt}, "type": {28, 0xcac5, ErrCorrupt}, "crc with blocks": {28, 0xcac4, ErrCorrupt},
		"chunk blocks": {32, 6, ErrCorrupt}, "huge chunk": {32, 1<<32 - 1, ErrCorrupt}, "chunk size": {36, 12, ErrCorrupt},
	} {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint32(b[c.off:], c.value)
		if _, err := contents(b); !errors.Is(err, c.want) {
			t.Errorf("%s: expected %q, found %v", name, c.want, err)
		}
	}
	for n := 0; n < len(good); n += 101 {
		if _, err := contents(good[:n]); err == nil {
			t.Errorf("expected an error for the first %d bytes", n)
		}
	}
	for _, c := range [][2]int64{{4096, 0}, {4096, 6}, {4097, 4096}, {-4096, 4096}, {4096, 2 << 20}} {
		if err := Write(io.Discard, bytes.NewReader(make([]byte, 8192)), c[0], c[1]); !errors.Is(err, ErrSize) {
			t.Errorf("%v: expected ErrSize, found %v", c, err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(written(f, image()[:4096*6], 512))
	f.Add(written(f, make([]byte, 4096), 4096))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil || m.Size() > 1<<20 {
			return
		}
		got, err := contents(b)
		if err != nil || int64(len(got)) != m.Size() {
			t.Fatalf("expected %d bytes, found %d, %v", m.Size(), len(got), err)
		}
		if again, err := contents(written(t, append(got, make([]byte, -len(got)&4095)...), 4096)); err != nil || !bytes.Equal(again[:len(got)], got) {
			t.Fatalf("expected the same after a round trip, found %v", err)
		}
	})
}
