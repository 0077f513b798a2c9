package puffin

import (
	"bytes"
	"compress/bzip2"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/andybalholm/brotli"

	"cowbird/formats/bsdiff"
)

// twoGzips are a gzip file of about size bytes and its next version, with an
// edit every few KiB.
func twoGzips(b *testing.B, size int) (source, target File) {
	r := rand.New(rand.NewPCG(15, 15))
	text := vocabulary(r, 20000, 4*size)
	edited := bytes.Clone(text)
	for i := 0; i < len(edited); i += 1024 + r.IntN(8192) {
		edited[i] ^= 3
	}
	for i, t := range [][]byte{text, edited} {
		raw := deflate(b, 6, t)
		raw = raw[:min(len(raw), size)]
		f := File{Data: raw}
		var fi finder
		f.Deflates, _, _ = fi.stream(nil, raw, 0) // cut off: the blocks before the cut
		*[]*File{&source, &target}[i] = f
	}
	return source, target
}

type made struct {
	source, target File
	patch          []byte
}

var makePatch = func() func(b *testing.B, size int) made {
	var mu sync.Mutex
	cache := map[int]made{}
	return func(b *testing.B, size int) made {
		mu.Lock()
		defer mu.Unlock()
		m, ok := cache[size]
		if !ok {
			m.source, m.target = twoGzips(b, size)
			m.patch = create(b, m.source, m.target)
			cache[size] = m
		}
		return m
	}
}()

func benchSizes(b *testing.B, f func(b *testing.B, m made)) {
	for _, size := range []struct {
		name string
		n    int
	}{{"8MiB", 8 << 20}, {"64MiB", 64 << 20}} {
		b.Run(size.name, func(b *testing.B) {
			m := makePatch(b, size.n)
			b.SetBytes(int64(len(m.target.Data)))
			b.ResetTimer()
			f(b, m)
		})
	}
}

func open(b *testing.B, m made) *Patch {
	p, err := Open(bytes.NewReader(m.patch), int64(len(m.patch)))
	if err != nil {
		b.Fatal(err)
	}
	return p
}

func BenchmarkApply(b *testing.B) { benchApply(b, CacheSize) }

// BenchmarkApplyCached keeps all puffs. The difference is what is puffed again.
func BenchmarkApplyCached(b *testing.B) { benchApply(b, 1<<40) }

func benchApply(b *testing.B, cache int64) {
	benchSizes(b, func(b *testing.B, m made) {
		b.ReportAllocs()
		for range b.N {
			if err := open(b, m).Apply(io.Discard, bytes.NewReader(m.source.Data), int64(len(m.source.Data)), ApplyOptions{CacheSize: cache}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkDecode decodes the streams that Apply has to: those of the inner
// patch, and the deflates of the source.
func BenchmarkDecode(b *testing.B) {
	benchSizes(b, func(b *testing.B, m made) {
		for range b.N {
			decodeInner(b, m)
			puffSource(b, m)
		}
	})
}

// BenchmarkDecodeInner decodes those of the inner patch only.
func BenchmarkDecodeInner(b *testing.B) {
	benchSizes(b, func(b *testing.B, m made) {
		for range b.N {
			decodeInner(b, m)
		}
	})
}

func decodeInner(b *testing.B, m made) {
	p := open(b, m)
	inner, err := bsdiff.Open(io.NewSectionReader(p.r, p.offset, p.size), p.size)
	if err != nil {
		b.Fatal(err)
	}
	body := m.patch[p.offset:]
	n, d := binary.LittleEndian.Uint64(body[8:]), binary.LittleEndian.Uint64(body[16:])
	body = body[bsdiff.HeaderSize:]
	for i, s := range [][]byte{body[:n], body[n:][:d], body[n+d:]} {
		var r io.Reader = bytes.NewReader(s)
		if inner.Algorithms()[i] == bsdiff.Bzip2 {
			r = bzip2.NewReader(r)
		} else {
			r = brotli.NewReader(r)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			b.Fatal(err)
		}
	}
}

func puffSource(b *testing.B, m made) {
	p := open(b, m)
	v := newView(p.source, bytes.NewReader(m.source.Data), CacheSize)
	if _, err := io.Copy(io.Discard, io.NewSectionReader(v, 0, v.puffedSize)); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkPuff(b *testing.B) {
	benchSizes(b, func(b *testing.B, m made) {
		for range b.N {
			puffSource(b, m)
		}
	})
}

func BenchmarkHuff(b *testing.B) {
	benchSizes(b, func(b *testing.B, m made) {
		p, err := puffFile(m.target, true, false)
		if err != nil {
			b.Fatal(err)
		}
		b.ResetTimer()
		for range b.N {
			w := &writer{layout: p.layout, dst: io.Discard}
			if _, err := w.Write(p.data); err != nil {
				b.Fatal(err)
			}
			if err := w.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
