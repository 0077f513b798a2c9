package lz4_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	pierrec "github.com/pierrec/lz4/v4"

	"cowbird/formats/cowfile"
	"cowbird/formats/lz4"
	"cowbird/tools/fixture"
)

// Every unit and xor block that Android's tools have compressed comes out the
// same again, and what they have stored raw does not get smaller.
func TestFixtures(t *testing.T) {
	e := fast(t, 1)
	for _, c := range fixture.Cows(t, false) {
		if c.Compression != "lz4" {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			data := c.ReadAll(t)
			f, err := cowfile.Open(bytes.NewReader(data), int64(len(data)), nil)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for i := range f.NumOps() {
				if o := f.Op(i); o.DataLength > 0 {
					off := f.DataOffset(i, o)
					encodeAgain(t, e, o, data[off:off+int64(o.DataLength)])
					n++
				}
			}
			t.Logf("%d units", n)
		})
	}
}

func encodeAgain(t *testing.T, e *lz4.Encoder, o cowfile.Op, stored []byte) {
	t.Helper()
	unit := make([]byte, o.Unit())
	if err := cowfile.Decode(o.Compression, unit, stored); err != nil {
		t.Fatal(err)
	}
	block := encode(t, e, unit)
	if o.Compression == cowfile.None && len(block) < len(unit) {
		t.Fatalf("%v: expected at least %d bytes, found %d", o, len(unit), len(block))
	}
	if o.Compression != cowfile.None && !bytes.Equal(block, stored) {
		t.Fatalf("%v: expected the %d bytes stored, found %d other ones", o, len(stored), len(block))
	}
}

// sample returns pieces of 64 KiB from all over the fixtures' base image, one
// each step bytes.
func sample(t testing.TB, step int64) []byte {
	t.Helper()
	packed, err := os.Open(filepath.Join(fixture.Dir(t), "images/base.ext4.zst"))
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	r, err := zstd.NewReader(packed, zstd.WithDecoderMaxWindow(1<<28), zstd.WithDecoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var all bytes.Buffer
	for {
		if _, err := io.CopyN(&all, r, 1<<16); err == io.EOF {
			return all.Bytes()
		} else if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, r, step-1<<16); err != nil && err != io.EOF {
			t.Fatal(err)
		}
	}
}

// The fixtures hold fast blocks only, of a few sizes. The command line tool
// has all levels: its frames are made of independent blocks.
func TestTool(t *testing.T) {
	if _, err := exec.LookPath("lz4"); err != nil {
		fixture.Missing(t, "the lz4 command is missing (Debian: lz4): %v", err)
	}
	src := made()
	if _, err := os.Stat(os.Getenv("COWBIRD_FIXTURES")); err == nil {
		src = append(src, sample(t, 32<<20)...)
	}
	for _, level := range []int{1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12} {
		e := fast(t, 1)
		if level >= lz4.MinHigh {
			e = high(t, level)
		}
		sizes := []int{4096}
		if level%3 != 2 {
			sizes = append(sizes, 65536, 262144)
		}
		for _, size := range sizes {
			t.Run(fmt.Sprintf("level %d, blocks of %d", level, size), func(t *testing.T) {
				compareTool(t, e, level, size, src)
			})
		}
	}
}

// made is some of everything.
func made() (b []byte) {
	rnd := rand.New(rand.NewPCG(11, 12))
	for _, kind := range []string{"copies", "runs", "zeros", "random", "bits"} {
		b = append(b, kinds[kind](rnd, 20_000)...)
	}
	return append(b, kinds["copies"](rnd, 200_000)...)
}

func compareTool(t *testing.T, e *lz4.Encoder, level, size int, src []byte) {
	t.Helper()
	tool := exec.Command("lz4", fmt.Sprintf("-%d", level), fmt.Sprintf("-B%d", size), "-BI", "--no-frame-crc", "-c", "-q", "-")
	tool.Stdin, tool.Stderr = bytes.NewReader(src), os.Stderr
	frame, err := tool.Output()
	if err != nil {
		t.Fatal(err)
	}
	const head, raw = 7, 1 << 31
	for frame = frame[head:]; len(src) > 0; src = src[min(size, len(src)):] {
		n := binary.LittleEndian.Uint32(frame)
		want := frame[4:][:n&^raw]
		frame = frame[4+len(want):]
		unit := src[:min(size, len(src))]
		block := encode(t, e, unit)
		if n&raw != 0 && len(block) < len(unit) || n&raw == 0 && !bytes.Equal(block, want) {
			t.Fatalf("%d bytes before the end: expected the tool's %d bytes, found %d other ones", len(src), len(want), len(block))
		}
	}
}

// BenchmarkEncode compares with the encoder of the module that decodes for us.
func BenchmarkEncode(b *testing.B) {
	image := sample(b, 1<<20)
	for _, size := range []int{4096, 65536} {
		for _, c := range []struct {
			name   string
			encode func(dst, src []byte) int
		}{
			{"fast", ours(b, fast(b, 1))},
			{"fast/pierrec", theirs(new(pierrec.Compressor).CompressBlock)},
			{"high9", ours(b, high(b, 9))},
			{"high9/pierrec", theirs((&pierrec.CompressorHC{Level: pierrec.Level9}).CompressBlock)},
		} {
			b.Run(fmt.Sprintf("%dKiB/%s", size>>10, c.name), func(b *testing.B) {
				dst := make([]byte, lz4.Bound(size))
				b.SetBytes(int64(len(image)))
				total := 0
				for b.Loop() {
					total = 0
					for i := 0; i < len(image); i += size {
						total += c.encode(dst, image[i:i+size])
					}
				}
				b.ReportMetric(float64(total)/float64(len(image)), "ratio")
			})
		}
	}
}

func ours(b *testing.B, e *lz4.Encoder) func(dst, src []byte) int {
	return func(dst, src []byte) int {
		block, err := e.Encode(dst[:0], src)
		if err != nil {
			b.Fatal(err)
		}
		return min(len(block), len(src))
	}
}

func theirs(compress func(src, dst []byte) (int, error)) func(dst, src []byte) int {
	return func(dst, src []byte) int {
		n, err := compress(src, dst)
		if n == 0 || err != nil {
			return len(src) // not compressible
		}
		return min(n, len(src))
	}
}
