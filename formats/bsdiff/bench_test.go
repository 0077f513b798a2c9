package bsdiff

import (
	"bytes"
	"compress/bzip2"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"testing"

	"cowbird/tools/fixture/payloadops"
)

// similar is a source and a target of n bytes that look like two builds of one
// program: the same text with addresses that moved, and some new code.
func similar(n int) (source, target []byte) {
	r := rand.New(rand.NewPCG(14, 15))
	source = make([]byte, n)
	for i := 0; i < n; i += 4 {
		v := r.Uint32N(1 << 12)
		source[i], source[i+1], source[i+2], source[i+3] = byte(v), byte(v>>8), byte(r.Uint32N(4)), 0xe5
	}
	for from := 0; from < n; {
		size := 512 + r.IntN(8192)
		piece := bytes.Clone(source[from:min(from+size, n)])
		for i := 0; i+4 < len(piece); i += 24 + 4*r.IntN(16) {
			piece[i]++
		}
		target = append(target, piece...)
		for range r.IntN(64) {
			target = append(target, byte(r.Uint32()))
		}
		from += size
	}
	return source, target[:n]
}

type made struct{ source, target, patch []byte }

// makePatch is done once for all benchmarks that want the same.
var makePatch = func() func(b *testing.B, a Algorithm, n int) made {
	var mu sync.Mutex
	cache := map[[2]int]made{}
	return func(b *testing.B, a Algorithm, n int) made {
		mu.Lock()
		defer mu.Unlock()
		key := [2]int{int(a), n}
		m, ok := cache[key]
		if !ok {
			m.source, m.target = similar(n)
			m.patch = create(b, m.source, m.target, Options{Algorithms: []Algorithm{a}, BrotliQuality: 9})
			cache[key] = m
		}
		return m
	}
}()

func benchSizes(b *testing.B, f func(b *testing.B, m made)) {
	for _, size := range []struct {
		name string
		n    int
	}{{"8MiB", 8 << 20}, {"64MiB", 64 << 20}} {
		for _, a := range []Algorithm{Bzip2, Brotli, None} {
			b.Run(a.String()+"/"+size.name, func(b *testing.B) {
				m := makePatch(b, a, size.n)
				b.SetBytes(int64(len(m.target)))
				b.ResetTimer()
				f(b, m)
			})
		}
	}
}

func BenchmarkApply(b *testing.B) {
	benchSizes(b, func(b *testing.B, m made) {
		for range b.N {
			p, err := Open(bytes.NewReader(m.patch), int64(len(m.patch)))
			if err == nil {
				err = p.Apply(io.Discard, bytes.NewReader(m.source), int64(len(m.source)))
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkDecode only decompresses the streams: what Apply is measured by.
func BenchmarkDecode(b *testing.B) {
	benchSizes(b, func(b *testing.B, m made) {
		for range b.N {
			p, err := Open(bytes.NewReader(m.patch), int64(len(m.patch)))
			if err != nil {
				b.Fatal(err)
			}
			for _, s := range p.parts {
				if _, err := io.Copy(io.Discard, open(s, p.r).r); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}

func BenchmarkCreate(b *testing.B) {
	for _, a := range []Algorithm{None, Bzip2, Brotli} {
		b.Run(a.String(), func(b *testing.B) {
			source, target := similar(4 << 20)
			b.SetBytes(int64(len(target)))
			for range b.N {
				create(b, source, target, Options{Algorithms: []Algorithm{a}})
			}
		})
	}
}

func BenchmarkSuffixes(b *testing.B) {
	for name, image := range payloadops.Images(b) {
		if len(image) < 8<<20 {
			continue
		}
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(image)))
			for range b.N {
				suffixes[int32](image)
			}
		})
	}
}

// BenchmarkBzip2 and BenchmarkLibbz2 tell whether the standard library's decoder
// is good enough.
func BenchmarkBzip2(b *testing.B) {
	packed, n := bzip2Image(b)
	b.SetBytes(n)
	for range b.N {
		if _, err := io.Copy(io.Discard, bzip2.NewReader(bytes.NewReader(packed))); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLibbz2(b *testing.B) {
	packed, n := bzip2Image(b)
	b.SetBytes(n)
	for range b.N {
		c := exec.Command("bzip2", "-dc")
		c.Stdin = bytes.NewReader(packed)
		if err := c.Run(); err != nil {
			b.Skip(err)
		}
	}
}

func bzip2Image(b *testing.B) (packed []byte, size int64) {
	image, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		b.Skip(err)
	}
	o := Options{}
	if packed, err = o.pack(Bzip2, image); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	return packed, int64(len(image))
}
