package xz

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

// unpack decodes a stream, and tells how many bytes behind it were left alone.
func unpack(packed []byte) (data []byte, behind int, err error) {
	in := bytes.NewReader(packed)
	z, err := NewReader(in, MaxDictionary)
	if err != nil {
		return nil, 0, err
	}
	data, err = io.ReadAll(z)
	return data, in.Len(), err
}

func checkUnpack(t *testing.T, packed, want []byte) {
	t.Helper()
	got, behind, err := unpack(append(packed, "behind"...))
	if err != nil || !bytes.Equal(got, want) || behind != 6 {
		t.Errorf("expected %d bytes and 6 behind the stream, found %d and %d, %v", len(want), len(got), behind, err)
	}
}

// code is what all of testdata were made of (see its README): text, zeros, and words
// among which are branches of each processor.
func code() (data []byte) {
	r := rand.New(rand.NewPCG(4, 5))
	data = bytes.Repeat([]byte("branches and loads "), 100)
	data = append(data, make([]byte, 300)...)
	for i := range uint32(1500) {
		word := [...]uint32{i / 7, 0x94000000 | i&63, 0x90000000 | i&63<<5, 0xeb000000 | i&31, 0xf800f000 | i&15, 0xe8, 0xe9e8 | i<<24}[r.IntN(7)]
		data = binary.LittleEndian.AppendUint32(data, word)
		if i%16 == 0 {
			data = append(data, 0xe8, byte(i), 0, 0, byte(-(i / 16 & 1)))
		}
	}
	return append(data, data[:5000]...)
}

func TestTestdata(t *testing.T) {
	files, err := filepath.Glob("testdata/*.xz")
	if err != nil || len(files) < 10 {
		t.Fatalf("expected streams, found %q, %v", files, err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			packed, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			checkUnpack(t, packed, code())
		})
	}
}

func TestUnpackOurs(t *testing.T) {
	var e Encoder
	for name, data := range samples(t) {
		for _, level := range []Level{Fast, Best} {
			t.Run(name, func(t *testing.T) { checkUnpack(t, e.Append(nil, data, level), data) })
		}
	}
}

// What Debian's xz makes of larger data than those of testdata.
func TestUnpackTool(t *testing.T) {
	if _, err := exec.LookPath("xz"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("no xz")
	}
	for _, options := range []string{"-0", "-6 --check=sha256", "--lzma2=preset=6,lc=0,lp=4,pb=4,dict=4KiB --check=none", "--lzma2=preset=6,lc=4,lp=0,pb=0,dict=64KiB --check=crc32",
		"-T2 --block-size=30000", "--x86 --lzma2=dict=12KiB", "--arm --lzma2=dict=4KiB", "--armthumb --lzma2=preset=4", "--arm64=start=4096 --lzma2=preset=4"} {
		t.Run(options, func(t *testing.T) {
			for _, data := range samples(t) {
				cmd := exec.Command("xz", append([]string{"-c"}, strings.Fields(options)...)...)
				cmd.Stdin = bytes.NewReader(data)
				packed, err := cmd.Output()
				if err != nil {
					t.Skip(err) // an older one, that has not all filters
				}
				checkUnpack(t, packed, data)
			}
		})
	}
}

// Neither the size of reads nor that of what the reader below gives matters; nor does
// what became of the stream before.
func TestReuse(t *testing.T) {
	packed, err := os.ReadFile("testdata/blocks.xz")
	if err != nil {
		t.Fatal(err)
	}
	var z Reader
	z.limit = MaxDictionary
	for _, cut := range []int{0, 5, 30, len(packed) / 2, len(packed) - 1} {
		if err := z.Reset(bytes.NewReader(packed[:cut])); err == nil {
			io.ReadAll(&z)
		}
		if err := z.Reset(iotest.OneByteReader(bytes.NewReader(packed))); err != nil {
			t.Fatal(err)
		}
		if err := iotest.TestReader(&z, code()); err != nil {
			t.Errorf("after %d bytes: %v", cut, err)
		}
	}
}

func TestReadError(t *testing.T) {
	packed := new(Encoder).Append(nil, code(), Fast)
	broken := errors.New("broken")
	for n := range packed {
		z, err := NewReader(io.MultiReader(bytes.NewReader(packed[:n]), iotest.ErrReader(broken)), MaxDictionary)
		if err == nil {
			_, err = io.ReadAll(z)
		}
		if !errors.Is(err, broken) || errors.Is(err, ErrCorrupt) {
			t.Fatalf("after %d bytes: expected %v, found %v", n, broken, err)
		}
	}
}

func TestTruncated(t *testing.T) {
	for _, name := range []string{"blocks", "x86"} {
		packed, err := os.ReadFile("testdata/" + name + ".xz")
		if err != nil {
			t.Fatal(err)
		}
		for n := range packed {
			if _, _, err := unpack(packed[:n]); !errors.Is(err, io.ErrUnexpectedEOF) || !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%s, %d of %d bytes: expected %v, found %v", name, n, len(packed), io.ErrUnexpectedEOF, err)
			}
		}
	}
}

// A stream with a byte that is another is refused: none of them is of no account.
func TestFlipped(t *testing.T) {
	blocks, err := os.ReadFile("testdata/blocks.xz")
	if err != nil {
		t.Fatal(err)
	}
	var e Encoder
	for name, packed := range map[string][]byte{"blocks": blocks, "text": e.Append(nil, samples(t)["text"], Best), "stored": e.Append(nil, samples(t)["noise"][:300], Fast)} {
		for i := range packed {
			for _, flip := range []byte{1, 0x80} {
				packed[i] ^= flip
				if _, _, err := unpack(packed); err == nil {
					t.Errorf("%s, byte %d with %#x: expected an error", name, i, flip)
				}
				packed[i] ^= flip
			}
		}
	}
}

// A dictionary of 4 GiB is refused, and where it is allowed takes no more than the data.
func TestLongDictionary(t *testing.T) {
	packed := new(Encoder).Append(nil, code(), Fast)
	packed[16] = 40
	fixSums(packed)
	if _, _, err := unpack(packed); !errors.Is(err, ErrDictionary) {
		t.Errorf("expected %v, found %v", ErrDictionary, err)
	}
	if math.MaxInt == math.MaxInt32 {
		return
	}
	z, err := NewReader(bytes.NewReader(packed), math.MaxInt)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, code()) {
		t.Errorf("expected the data, found %d bytes, %v", len(got), err)
	}
	if n := cap(z.chunks.w.buf); n > ringStart {
		t.Errorf("expected a ring of %d bytes, found %d", ringStart, n)
	}
}
