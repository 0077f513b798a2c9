package xz

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/mikelolasagasti/xz"
)

// BenchmarkDecode compares with the module that Android's decoder was taken from, and
// with Debian's xz: how many times as long they take, each at its best.
func BenchmarkDecode(b *testing.B) {
	data := programs(b, 16<<20)
	for _, level := range []string{"-0", "-6", "-9"} {
		b.Run("xz"+level, func(b *testing.B) {
			var out bytes.Buffer
			if err := tool(&out, data, level, "-T1", "-c"); err != nil {
				b.Skip(err)
			}
			packed := out.Bytes()
			b.SetBytes(int64(len(data)))
			z := &Reader{limit: MaxDictionary}
			best := [3]time.Duration{1 << 62, 1 << 62, 1 << 62}
			for b.Loop() {
				best[0] = min(best[0], timed(b, func() error { return drain(z, z.Reset(bytes.NewReader(packed))) }))
				b.StopTimer()
				best[1] = min(best[1], timed(b, func() error { return drain(xz.NewReader(bytes.NewReader(packed), MaxDictionary)) }))
				best[2] = min(best[2], timed(b, func() error { return tool(nil, packed, "-dc", "-T1") }))
				b.StartTimer()
			}
			b.ReportMetric(best[1].Seconds()/best[0].Seconds(), "module/ours")
			b.ReportMetric(best[2].Seconds()/best[0].Seconds(), "tool/ours")
		})
	}
}

func timed(b *testing.B, f func() error) time.Duration {
	start := time.Now()
	if err := f(); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

func drain(r io.Reader, err error) error {
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	return err
}

// tool has xz make of input what goes to out.
func tool(out io.Writer, in []byte, args ...string) error {
	cmd := exec.Command("xz", args...)
	cmd.Stdin, cmd.Stdout = bytes.NewReader(in), out
	return cmd.Run()
}

// programs are so many bytes of the machine's own.
func programs(b *testing.B, n int) (data []byte) {
	files, err := filepath.Glob("/usr/bin/*")
	if err != nil {
		b.Fatal(err)
	}
	for _, f := range files {
		if more, err := os.ReadFile(f); err == nil && len(more) < 4<<20 {
			data = append(data, more...)
		}
		if len(data) >= n {
			return data[:n]
		}
	}
	b.Skip("too few programs")
	return nil
}
