package verity

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func veritysetup(t *testing.T) string {
	t.Helper()
	tool, err := exec.LookPath("veritysetup")
	if err != nil {
		tool, err = exec.LookPath("/usr/sbin/veritysetup")
	}
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal("expected veritysetup, which tools/setup.sh test installs, found none")
	}
	if err != nil {
		t.Skip("veritysetup is not installed: tools/setup.sh test does so")
	}
	return tool
}

// The trees are those of veritysetup, an independent program.
func TestTreeAgainstVeritysetup(t *testing.T) {
	tool := veritysetup(t)
	salt := noise(2, 32)
	for _, algorithm := range []string{"sha256", "sha1"} {
		for _, blocks := range []int{2, 127, 128, 129, 128*128 + 1} {
			if algorithm == "sha1" && blocks > 1000 {
				continue // three levels, once
			}
			data := noise(1, blocks*4096)
			dir := t.TempDir()
			image, hashes := filepath.Join(dir, "data"), filepath.Join(dir, "hashes")
			if err := os.WriteFile(image, data, 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(tool, "format", "--no-superblock", "--hash="+algorithm, "--salt="+hex.EncodeToString(salt), image, hashes).CombinedOutput()
			if err != nil {
				t.Fatalf("veritysetup: %v\n%s", err, out)
			}
			want, err := os.ReadFile(hashes)
			if err != nil {
				t.Fatal(err)
			}
			tree, err := NewTree(algorithm, salt, 4096)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			root, err := tree.Build(bytes.NewReader(data), int64(len(data)), &got)
			if err != nil {
				t.Fatal(err)
			}
			if n := tree.Size(int64(len(data))); n != int64(len(want)) || !bytes.Equal(got.Bytes(), want) {
				t.Errorf("%s, %d blocks: expected %d bytes as veritysetup writes them, found %d, equal %v", algorithm, blocks, len(want), n, bytes.Equal(got.Bytes(), want))
			}
			if !strings.Contains(string(out), hex.EncodeToString(root)) {
				t.Errorf("%s, %d blocks: expected the root hash in\n%s\nfound %x", algorithm, blocks, out, root)
			}
		}
	}
}

// blake2b-256 is what b2sum gives: veritysetup's libraries lack it, which the kernel has.
func TestBlake2b(t *testing.T) {
	data, salt := noise(4, 2*4096), []byte("salt")
	tree, err := NewTree("blake2b-256", salt, 4096)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	root, err := tree.Build(bytes.NewReader(data), int64(len(data)), &out)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 4096)
	copy(want, b2sum(t, salt, data[:4096]))
	copy(want[32:], b2sum(t, salt, data[4096:]))
	if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("expected a tree of the sums that b2sum gives, found another of %d bytes", out.Len())
	}
	if want := b2sum(t, salt, want); !bytes.Equal(root, want) {
		t.Errorf("expected the root %x, found %x", want, root)
	}
}

func b2sum(t *testing.T, parts ...[]byte) []byte {
	t.Helper()
	cmd := exec.Command("b2sum", "--length=256")
	cmd.Stdin = bytes.NewReader(bytes.Join(parts, nil))
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	sum, err := hex.DecodeString(string(out[:64]))
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// A tree over one block is no tree: the root is the block's hash.
func TestOneBlock(t *testing.T) {
	tree, err := NewTree("sha256", []byte("salt"), 4096)
	if err != nil {
		t.Fatal(err)
	}
	data := noise(3, 4096)
	var out bytes.Buffer
	root, err := tree.Build(bytes.NewReader(data), 4096, &out)
	if want := sha256.Sum256(append([]byte("salt"), data...)); err != nil || out.Len() != 0 || !bytes.Equal(root, want[:]) {
		t.Errorf("expected %x and no tree, found %x, %d bytes, %v", want, root, out.Len(), err)
	}
}

// Code words are multiples of the generator: they are zero at each of its roots.
func TestFEC(t *testing.T) {
	for _, roots := range []int{2, 3, 24} {
		f := FEC{Roots: roots, BlockSize: 512}
		n := codeWord - roots
		for _, blocks := range []int{1, n, n + 1, 20*n + 7} {
			data := noise(byte(roots), blocks*512)
			out := make(fixed, f.Size(int64(len(data))))
			if err := f.Build(bytes.NewReader(data), int64(len(data)), out); err != nil {
				t.Fatal(err)
			}
			rounds := int(f.rounds(int64(len(data))))
			for _, at := range []int{0, 1, 511, (rounds-1)*512 + 17, rounds*512 - 1} {
				word := codeWordAt(data, out, at, rounds, roots)
				for r, x := 0, byte(1); r < roots; r, x = r+1, multiply(x, 2) {
					if v := evaluate(word, x); v != 0 {
						t.Fatalf("%d roots, %d blocks, word %d: expected 0 at root %d, found %d", roots, blocks, at, r, v)
					}
				}
			}
		}
	}
}

func codeWordAt(data, parity []byte, at, rounds, roots int) (word []byte) {
	for j := range codeWord - roots {
		i := at + j*rounds*512
		if i < len(data) {
			word = append(word, data[i])
		} else {
			word = append(word, 0)
		}
	}
	return append(word, parity[at*roots:(at+1)*roots]...)
}

func evaluate(word []byte, x byte) (v byte) {
	for _, b := range word {
		v = multiply(v, x) ^ b
	}
	return v
}

type fixed []byte

func (f fixed) WriteAt(p []byte, off int64) (int, error) { return copy(f[off:], p), nil }

func (f fixed) ReadAt(p []byte, off int64) (int, error) { return memory(f).ReadAt(p, off) }

func TestRefuses(t *testing.T) {
	if _, err := NewTree("md5", nil, 4096); !errors.Is(err, ErrUnsupported) {
		t.Errorf("md5: expected ErrUnsupported, found %v", err)
	}
	if _, err := NewTree("sha256", nil, 5000); !errors.Is(err, ErrUnsupported) {
		t.Errorf("blocks of 5000 bytes: expected ErrUnsupported, found %v", err)
	}
	tree, err := NewTree("sha256", nil, 4096)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{0, -4096, 4097} {
		if _, err := tree.Build(bytes.NewReader(nil), size, io.Discard); !errors.Is(err, ErrSize) {
			t.Errorf("%d bytes: expected ErrSize, found %v", size, err)
		}
		if err := (FEC{2, 4096}).Build(bytes.NewReader(nil), size, fixed(nil)); !errors.Is(err, ErrSize) {
			t.Errorf("%d bytes: expected ErrSize, found %v", size, err)
		}
	}
	if _, err := tree.Build(bytes.NewReader(make([]byte, 4096)), 8192, io.Discard); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short data: expected ErrUnexpectedEOF, found %v", err)
	}
	if err := (FEC{1, 4096}).Build(bytes.NewReader(make([]byte, 4096)), 4096, fixed(nil)); !errors.Is(err, ErrUnsupported) {
		t.Errorf("one root: expected ErrUnsupported, found %v", err)
	}
	if err := (FEC{2, 4096}).Build(bytes.NewReader(make([]byte, 4096)), 8192, make(fixed, 8192)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short data: expected ErrUnexpectedEOF, found %v", err)
	}
}

func BenchmarkFEC(b *testing.B) {
	data := noise(1, 64<<20)
	f := FEC{2, 4096}
	out := make(fixed, f.Size(int64(len(data))))
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if err := f.Build(bytes.NewReader(data), int64(len(data)), out); err != nil {
			b.Fatal(err)
		}
	}
}
