package puffin

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"cowbird/formats/bsdiff"
)

// FuzzPuff: what is puffed can be huffed, and says the same when it is puffed
// again. Bit by bit it need not be the same: 258 has two spellings.
func FuzzPuff(f *testing.F) {
	r := rand.New(rand.NewPCG(11, 11))
	for level := range 10 {
		f.Add(deflate(f, level, prose(r, 300)), byte(0))
	}
	f.Add(append([]byte{0xff}, spell("11", "1", "10", "10010001", "0000001", "00000", "0000000")...), byte(3))
	f.Fuzz(func(t *testing.T, data []byte, start byte) {
		var fi finder
		fi.puffer.start(nil, data, uint64(start%8), 1<<20)
		for {
			from := fi.puffer.r.at()
			fi.puffer.out = fi.puffer.out[:0]
			final, _, err := fi.puffer.block()
			if err != nil {
				return
			}
			checkPuff(t, data, BitExtent{from, fi.puffer.r.at() - from}, fi.puffer.out)
			if final {
				return
			}
		}
	})
}

func checkPuff(t *testing.T, data []byte, e BitExtent, puff []byte) {
	if got, err := Puff(nil, data, e); err != nil || !bytes.Equal(got, puff) {
		t.Fatalf("expected % x, found % x, %v", puff, got, err)
	}
	if uint64(len(puff)) > mostPuff*e.Length || e.Length > mostBits*uint64(len(puff)) {
		t.Fatalf("%d bits are %d bytes", e.Length, len(puff))
	}
	start := uint(e.Offset % 8)
	back, bits, err := Huff(nil, start, puff)
	if err != nil {
		t.Fatalf("% x: %v", puff, err)
	}
	again, err := Puff(nil, back, BitExtent{uint64(start), bits})
	if err != nil || !bytes.Equal(again, puff) {
		t.Fatalf("expected % x, found % x, %v", puff, again, err)
	}
	if bits == e.Length != Reproducible(data, e) {
		t.Fatalf("%d bits of %d, reproducible %v", bits, e.Length, !(bits == e.Length))
	}
}

// FuzzHuff: what is huffed is a deflate stream, whose puff makes it again.
func FuzzHuff(f *testing.F) {
	r := rand.New(rand.NewPCG(12, 12))
	for level := range 10 {
		data := deflate(f, level, prose(r, 300))
		blocks, _, err := FindRaw(data)
		if err != nil {
			f.Fatal(err)
		}
		for _, e := range blocks {
			puff, err := Puff(nil, data, e)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(puff, byte(e.Offset))
		}
	}
	f.Add([]byte("\x00\x00\x80\x02xyz\xff\x81"), byte(5))
	f.Fuzz(func(t *testing.T, puff []byte, start byte) {
		data, bits, err := Huff(nil, uint(start%8), puff)
		if err != nil {
			return
		}
		e := BitExtent{uint64(start % 8), bits}
		again, err := Puff(nil, data, e)
		if err != nil {
			t.Fatalf("% x: %v", data, err)
		}
		back, n, err := Huff(nil, uint(start%8), again)
		if err != nil || n != bits || !bytes.Equal(back, data) {
			t.Fatalf("expected % x, found % x, %v", data, back, err)
		}
	})
}

// FuzzPatch: a patch is refused, or makes as many bytes as it promised.
func FuzzPatch(f *testing.F) {
	r := rand.New(rand.NewPCG(13, 13))
	for i := range 4 {
		source, target := patchwork(r, 6), patchwork(r, 6)
		algorithm := []bsdiff.Algorithm{bsdiff.None, bsdiff.Brotli}[i%2]
		var patch bytes.Buffer
		if err := Create(&patch, source, target, Options{Bsdiff: bsdiff.Options{Algorithms: []bsdiff.Algorithm{algorithm}}}); err != nil {
			f.Fatal(err)
		}
		f.Add(patch.Bytes(), source.Data)
	}
	f.Fuzz(func(t *testing.T, patch, source []byte) {
		p, err := Open(bytes.NewReader(patch), int64(len(patch)))
		if err != nil || p.TargetSize() > 1<<20 {
			return
		}
		var n counter
		if err := p.Apply(&n, bytes.NewReader(source), int64(len(source)), ApplyOptions{}); err == nil && int64(n) != p.TargetSize() {
			t.Fatalf("expected %d bytes, found %d", p.TargetSize(), n)
		}
	})
}

// FuzzFind: what is found in any bytes can be puffed.
func FuzzFind(f *testing.F) {
	for name, pair := range archives(f, rand.New(rand.NewPCG(14, 14)), 400) {
		f.Add(pair[0], name == "a.gz")
	}
	f.Fuzz(func(t *testing.T, data []byte, gzip bool) {
		name := "a.zip"
		if gzip {
			name = "a.gz"
		}
		file := File{data, Find(name, data)}
		if _, err := puffFile(file, true, false); err != nil || file.check() != nil {
			t.Fatalf("%v: %v, %v", file.Deflates, err, file.check())
		}
	})
}
