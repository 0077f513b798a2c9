package xz

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/mikelolasagasti/xz"
)

// BenchmarkDecode compares with the module that Android's decoder was taken from, and
// with Debian's xz.
func BenchmarkDecode(b *testing.B) {
	data := programs(b, 16<<20)
	for _, level := range []string{"-0", "-6", "-9"} {
		cmd := exec.Command("xz", level, "-T1", "-c")
		cmd.Stdin = bytes.NewReader(data)
		packed, err := cmd.Output()
		if err != nil {
			b.Skip(err)
		}
		run := func(name string, decode func() error) {
			b.Run(name+level, func(b *testing.B) {
				b.SetBytes(int64(len(data)))
				for b.Loop() {
					if err := decode(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		var z Reader
		z.limit = MaxDictionary
		run("ours", func() error {
			if err := z.Reset(bytes.NewReader(packed)); err != nil {
				return err
			}
			_, err := io.Copy(io.Discard, &z)
			return err
		})
		run("module", func() error {
			r, err := xz.NewReader(bytes.NewReader(packed), MaxDictionary)
			if err == nil {
				_, err = io.Copy(io.Discard, r)
			}
			return err
		})
		run("tool", func() error {
			cmd := exec.Command("xz", "-dc", "-T1")
			cmd.Stdin = bytes.NewReader(packed)
			return cmd.Run()
		})
	}
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
