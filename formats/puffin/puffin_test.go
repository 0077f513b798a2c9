package puffin

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	"cowbird/formats/bsdiff"

	"pgregory.net/rapid"
)

var errDevice = errors.New("device is gone")

// prose is n bytes that compress like text.
func prose(r *rand.Rand, n int) []byte { return vocabulary(r, 200, n) }

func vocabulary(r *rand.Rand, distinct, n int) []byte {
	words := make([]string, distinct)
	for i := range words {
		for range 2 + r.IntN(8) {
			words[i] += string(rune('a' + r.IntN(26)))
		}
	}
	var b []byte
	for len(b) < n {
		b = append(append(b, words[r.IntN(len(words))]...), ' ')
	}
	return b[:n]
}

func deflate(t testing.TB, level int, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := flate.NewWriter(&out, level)
	if err == nil {
		_, err = w.Write(b)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// spell turns bits, as RFC 1951 writes them, into bytes: groups of digits, the
// first bit of the stream first.
func spell(groups ...string) []byte {
	var w bitWriter
	for _, c := range strings.Join(groups, "") {
		if c != ' ' {
			w.put(uint32(c-'0'), 1)
		}
	}
	w.put(0, -w.n%8)
	w.align()
	return w.out
}

// The bits of some blocks, and their puffs byte by byte (specs/payload.md 8.3).
func TestPuffBytes(t *testing.T) {
	for _, c := range []struct {
		name, puff string
		bits       []string
	}{
		{"empty fixed", "\x00\x00\xa0\xff\x81", []string{"1", "10", "0000000"}},
		{"literals", "\x00\x00\x20\x01ab\xff\x81", []string{"0", "10", "10010001", "10010010", "0000000"}},
		// 'a', then length 3 from distance 1, then length 258 from distance 1
		{"copies", "\x00\x00\xa0\x00a\x80\x00\x00\xff\x80\x00\x00\xff\x81", []string{"1", "10", "10010001", "0000001", "00000", "11000101", "00000", "0000000"}},
		// length 129 is 280 (115) with 14; 130 is 280 with 15; distance 32768 is 29 with 8191
		{"long copies", "\x00\x00\xa0\xfe\x7f\xff\xff\x00\x00\x04\xff\x81", []string{"1", "10", "11000000", "0111", "11101", "1111111111111", "11000000", "1111", "00100", "0", "0000000"}},
		{"stored", "\x00\x00\x95\x02xyz\xff\x81", []string{"1", "00", "10101", "1100000000000000", "0011111111111111", "00011110", "10011110", "01011110"}},
		{"stored, empty", "\x00\x00\x00\xff\x81", []string{"0", "00", "00000", "0000000000000000", "1111111111111111"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := uint64(len(strings.Join(c.bits, "")))
			for start := range uint(8) {
				if c.name[:4] == "stor" && start > 0 {
					break // these bits are only right at the beginning of a byte
				}
				data := spell(append([]string{strings.Repeat("1", int(start))}, c.bits...)...)
				puff, err := Puff(nil, data, BitExtent{uint64(start), n})
				if err != nil || string(puff) != c.puff {
					t.Fatalf("puff: expected % x, found % x, %v", c.puff, puff, err)
				}
				back, bits, err := Huff(nil, start, puff)
				data[0] = data[0] >> start << start
				if err != nil || bits != n || !bytes.Equal(back, data) {
					t.Fatalf("huff: expected %d bits % x, found %d bits % x, %v", n, data, bits, back, err)
				}
			}
		})
	}
}

// A run is cut at 65663 literals, and the longest short run has 127.
func TestLiteralRuns(t *testing.T) {
	for _, n := range []int{1, 127, 128, 129, 65662, 65663, 65664, 2*65663 + 1} {
		var w bitWriter
		w.put(0b011, 3) // fixed
		var lit encoder
		lengths, _ := fixedLengths()
		lit.init(lengths[:])
		for range n {
			w.put(lit['x']>>4, 8)
		}
		w.put(0, 7)
		bits := w.written()
		w.put(0, -w.n%8)
		w.align()
		puff, err := Puff(nil, w.out, BitExtent{0, bits})
		if err != nil {
			t.Fatal(err)
		}
		want := 3 + 2
		for left := n; left > 0; left -= 65663 {
			if want += min(left, 65663) + 1; left > 127 {
				want += 2
			}
		}
		if len(puff) != want {
			t.Errorf("%d literals: expected a puff of %d bytes, found %d", n, want, len(puff))
		}
		if n == 128 && !bytes.Equal(puff[3:6], []byte{0x7f, 0, 0}) {
			t.Errorf("128 literals: expected 7f 00 00, found % x", puff[3:6])
		}
		if back, n, err := Huff(nil, 0, puff); err != nil || n != bits || !bytes.Equal(back, w.out) {
			t.Errorf("expected %d bits, found %d, %v", bits, n, err)
		}
	}
}

// 258 is symbol 285. As 284 with 31 it reads the same, but is not made again.
func TestLength258(t *testing.T) {
	odd := spell("1", "10", "10010001", "11000100", "11111", "00000", "0000000")
	n := uint64(3 + 8 + 8 + 5 + 5 + 7)
	puff, err := Puff(nil, odd, BitExtent{0, n})
	if want := "\x00\x00\xa0\x00a\xff\x80\x00\x00\xff\x81"; err != nil || string(puff) != want {
		t.Fatalf("expected % x, found % x, %v", want, puff, err)
	}
	if Reproducible(odd, BitExtent{0, n}) {
		t.Error("expected it not to be reproducible")
	}
	target := append(bytes.Clone(odd), deflate(t, 9, prose(rand.New(rand.NewPCG(1, 1)), 9000))...)
	blocks, _, err := FindRaw(target[len(odd):])
	if err != nil {
		t.Fatal(err)
	}
	for i := range blocks {
		blocks[i].Offset += uint64(len(odd)) * 8
	}
	patch := create(t, File{Data: odd}, File{target, append([]BitExtent{{0, n}}, blocks...)})
	p, err := Open(bytes.NewReader(patch), int64(len(patch)))
	if err != nil || len(p.target.deflates) != len(blocks) {
		t.Errorf("expected %d deflates to be used, found %d, %v", len(blocks), len(p.target.deflates), err)
	}
	if got, err := apply(patch, odd); err != nil || !bytes.Equal(got, target) {
		t.Error("the target is not reproduced", err)
	}
}

func create(t testing.TB, source, target File) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Create(&b, source, target, Options{Bsdiff: bsdiff.Options{BrotliQuality: 3}}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// All that the standard library compresses comes back from its puff.
func TestStreams(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for level := flate.HuffmanOnly; level <= flate.BestCompression; level++ {
		for _, data := range [][]byte{nil, []byte("x"), prose(r, 300), prose(r, 100000), make([]byte, 50000), noise(r, 70000)} {
			packed := deflate(t, level, data)
			blocks, n, err := FindRaw(packed)
			if err != nil || n != len(packed) {
				t.Fatalf("level %d: expected %d bytes, found %d, %v", level, len(packed), n, err)
			}
			for _, e := range blocks {
				if !Reproducible(packed, e) {
					t.Errorf("level %d, %d bytes: %v is not reproducible", level, len(data), e)
				}
			}
			// As one extent, stored blocks and all:
			end := uint64(len(packed)) * 8
			var puff []byte
			for range 8 { // the last byte may have a few bits too many
				if puff, err = Puff(nil, packed, BitExtent{0, end}); err == nil {
					break
				}
				end--
			}
			back, bits, huffErr := Huff(nil, 0, puff)
			if err != nil || huffErr != nil || bits != end || !bytes.Equal(back, packed) {
				t.Errorf("level %d, %d bytes: expected %d bits, found %d; %v, %v", level, len(data), end, bits, err, huffErr)
			}
		}
	}
}

func noise(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// A file of raw bits and fixed blocks at any bit, some of them next to each
// other, some with a few bits between.
func patchwork(r *rand.Rand, pieces int) File {
	var w bitWriter
	var deflates []BitExtent
	for range pieces {
		switch r.IntN(3) {
		case 0:
			for range r.IntN(20) {
				w.put(r.Uint32()&1, 1)
			}
		case 1:
			for range r.IntN(40) {
				w.put(r.Uint32()&0xff, 8)
			}
		}
		if r.IntN(4) == 0 {
			continue
		}
		from := w.written()
		var h huffer
		puff := []byte{0, 0, byte(r.IntN(2))<<7 | typeFixed<<5}
		if n := r.IntN(30); n > 0 {
			puff = append(appendRun(puff, n), noise(r, n)...)
		}
		if r.IntN(2) == 0 {
			puff = append(puff, 0x80|byte(r.IntN(127)), byte(r.IntN(128)), byte(r.Uint32()))
		}
		if err := h.huff(&w, append(puff, endOfPuff[:]...)); err != nil {
			panic(err)
		}
		deflates = append(deflates, BitExtent{from, w.written() - from})
	}
	w.put(0, -w.n%8)
	w.align()
	return File{w.out, deflates}
}

func TestPatchwork(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 3))
		source, target := patchwork(r, r.IntN(20)), patchwork(r, r.IntN(20))
		// The puffed form, piece by piece and at once, and back.
		p, err := puffFile(target, true, false)
		if err != nil {
			t.Fatal(err)
		}
		if len(p.deflates) != len(target.Deflates) {
			t.Fatalf("expected %d deflates, found %d", len(target.Deflates), len(p.deflates))
		}
		checkView(t, r, p, target.Data)
		checkWriter(t, r, p, target.Data)
		var patch bytes.Buffer
		if err := Create(&patch, source, target, Options{Bsdiff: bsdiff.Options{Algorithms: []bsdiff.Algorithm{bsdiff.None}}}); err != nil {
			t.Fatal(err)
		}
		got, err := apply(patch.Bytes(), source.Data)
		if err != nil || !bytes.Equal(got, target.Data) {
			t.Fatalf("expected % x, found % x, %v", target.Data, got, err)
		}
	})
}

func checkView(t *rapid.T, r *rand.Rand, p puffed, data []byte) {
	v := newView(p.layout, bytes.NewReader(data), int64(r.IntN(300)))
	if got, err := io.ReadAll(io.NewSectionReader(v, 0, math.MaxInt64)); err != nil || !bytes.Equal(got, p.data) {
		t.Fatalf("puffed: expected % x, found % x, %v", p.data, got, err)
	}
	for range 20 {
		off := r.IntN(len(p.data) + 1)
		b := make([]byte, r.IntN(50))
		n, err := v.ReadAt(b, int64(off))
		if want := p.data[off:min(off+len(b), len(p.data))]; !bytes.Equal(b[:n], want) || (err == io.EOF) != (n < len(b)) {
			t.Fatalf("%d bytes from %d: expected % x, found % x, %v", len(b), off, want, b[:n], err)
		}
	}
}

func checkWriter(t *rapid.T, r *rand.Rand, p puffed, data []byte) {
	var out bytes.Buffer
	w := &writer{layout: p.layout, dst: &out}
	for rest := p.data; len(rest) > 0; {
		n := min(len(rest), 1+r.IntN(40))
		if _, err := w.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	if err := w.Close(); err != nil || !bytes.Equal(out.Bytes(), data) {
		t.Fatalf("expected % x, found % x, %v", data, out.Bytes(), err)
	}
}

// archives are two versions of a zip archive and of a gzip file with two members.
func archives(t testing.TB, r *rand.Rand, size int) (pairs map[string][2][]byte) {
	t.Helper()
	before := [][]byte{prose(r, size), prose(r, size/2), prose(r, size/3)}
	after := slices.Clone(before)
	after[0] = append(append(bytes.Clone(before[0][:size/2]), "something new"...), before[0][size/2:]...)
	after[2] = bytes.Clone(before[2])
	after[2][size/6] ^= 1
	pairs = map[string][2][]byte{}
	for i, files := range [][][]byte{before, after} {
		var z, g bytes.Buffer
		zw := zip.NewWriter(&z)
		for j, b := range files {
			w, err := zw.CreateHeader(&zip.FileHeader{Name: fmt.Sprint(j), Method: []uint16{zip.Deflate, zip.Deflate, zip.Store}[j]})
			if err == nil {
				_, err = w.Write(b)
			}
			if err != nil {
				t.Fatal(err)
			}
			gw := gzip.NewWriter(&g)
			gw.Name, gw.Comment, gw.Extra = "name", "comment", []byte("extra")
			if _, err := gw.Write(b); err != nil {
				t.Fatal(err)
			}
			gw.Close()
		}
		zw.Close()
		zs, gs := pairs["a.apk"], pairs["a.gz"]
		zs[i], gs[i] = z.Bytes(), append(g.Bytes(), "tail"...)
		pairs["a.apk"], pairs["a.gz"] = zs, gs
	}
	return pairs
}

func TestArchives(t *testing.T) {
	for name, pair := range archives(t, rand.New(rand.NewPCG(4, 4)), 60000) {
		source, target := File{pair[0], Find(name, pair[0])}, File{pair[1], Find(strings.ToUpper(name), pair[1])}
		if len(source.Deflates) < 2 || len(target.Deflates) < 2 {
			t.Fatalf("%s: expected deflates, found %d and %d", name, len(source.Deflates), len(target.Deflates))
		}
		patch := create(t, source, target)
		if got, err := apply(patch, source.Data); err != nil || !bytes.Equal(got, target.Data) {
			t.Errorf("%s: the target is not reproduced: %v", name, err)
		}
		var plain bytes.Buffer
		if err := bsdiff.Create(&plain, source.Data, target.Data, bsdiff.Options{BrotliQuality: 3}); err != nil {
			t.Fatal(err)
		}
		if len(patch) > plain.Len()/2 {
			t.Errorf("%s: expected much less than the %d bytes of bsdiff, found %d", name, plain.Len(), len(patch))
		}
		if !bytes.Equal(patch, create(t, source, target)) {
			t.Error("two patches of the same input differ")
		}
		p, err := Open(bytes.NewReader(patch), int64(len(patch)))
		if err != nil || p.SourceSize() != int64(len(source.Data)) || p.TargetSize() != int64(len(target.Data)) {
			t.Errorf("expected sizes %d and %d, found %d and %d, %v", len(source.Data), len(target.Data), p.SourceSize(), p.TargetSize(), err)
		}
	}
}

func TestFind(t *testing.T) {
	data := prose(rand.New(rand.NewPCG(5, 5)), 5000)
	raw := deflate(t, 6, data)
	want, _, err := FindRaw(raw)
	if err != nil {
		t.Fatal(err)
	}
	var z bytes.Buffer
	w, err := zlib.NewWriterLevelDict(&z, 6, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(data)
	w.Close()
	got, n, err := FindZlib(append(z.Bytes(), "more"...))
	for i := range got {
		got[i].Offset -= 16
	}
	if err != nil || n != z.Len() || !slices.Equal(got, want) {
		t.Errorf("zlib: expected %v in %d bytes, found %v in %d, %v", want, z.Len(), got, n, err)
	}
	for _, bad := range [][]byte{nil, {0x78}, {0x78, 0}, {0x79, 0x9c}, z.Bytes()[:z.Len()-1], {0x78, 0xbb}} {
		if _, _, err := FindZlib(bad); !errors.Is(err, ErrDeflate) {
			t.Errorf("zlib % x: expected %v, found %v", bad[:min(len(bad), 4)], ErrDeflate, err)
		}
	}
	for _, bad := range [][]byte{nil, {0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0}, {0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 0, 'x'}, {0x1f, 0x8b, 8, 2, 0, 0, 0, 0, 0, 0}} {
		if _, err := FindGzip(bad); !errors.Is(err, ErrDeflate) {
			t.Errorf("gzip % x: expected %v, found %v", bad, ErrDeflate, err)
		}
	}
	if b := Find("a.txt", raw); b != nil {
		t.Errorf("text: expected nothing, found %v", b)
	}
	if b := FindZip(bytes.Repeat([]byte("PK\x03\x04\x00\x00\x00\x00\x08\x00"), 10)); b != nil {
		t.Errorf("headers without entries: expected nothing, found %v", b)
	}
}

func TestWithin(t *testing.T) {
	blocks := []BitExtent{{7, 20}, {32, 32}, {70, 10}, {79, 10}}
	if got := Within(blocks, 4, 6); !slices.Equal(got, []BitExtent{{0, 32}, {38, 10}}) {
		t.Errorf("found %v", got)
	}
}

// refused are puffs with one thing wrong each.
func TestHuffRefuses(t *testing.T) {
	fixed, end := "\x00\x00\x20", "\xff\x81"
	dynamic := "\x00\x11\x40\x00\x00\x0e" // 257 lengths and one distance, 18 code lengths, nine bytes
	for name, puff := range map[string]string{
		"half a header length": "\x00",
		"no header":            "\x00\x00",
		"short header":         "\x00\x02\x40",
		"long fixed header":    "\x00\x01\x20\x00" + end,
		"type 3":               "\x00\x00\x60" + end,
		"skipped in fixed":     "\x00\x00\x21" + end,
		"skipped too much":     "\x00\x00\x1f\x00x" + end + "\x00\x00\x00" + end + "\x00\x00\x20" + end + "\x00\x00\x1f" + end,
		"no end":               fixed,
		"half a run":           fixed + "\x02xx",
		"half a run length":    fixed + "\x7f\x00",
		"half a copy":          fixed + "\x80\x00",
		"half a long copy":     fixed + "\xff",
		"far copy":             fixed + "\x80\x80\x00" + end,
		"length 260":           fixed + "\xff\x82\x00\x00" + end,
		"stored copy":          "\x00\x00\x00\x80\x00\x00" + end,
		"stored twice":         "\x00\x00\x00\x00x\x00x" + end,
		"stored, no end":       "\x00\x00\x00\x00x",
		"stored, cut":          "\x00\x00\x00\x02x",
		"stored too long":      "\x00\x00\x00\x7f\xff\xff" + strings.Repeat("x", 65663) + end,
		"stored, nothing":      "\x00\x00\x00",
		"counts":               "\x00\x03\x40\x1e\x00\x00" + end,
		"code lengths cut":     "\x00\x03\x40\x00\x00\x0f" + end,
		"code length 8":        dynamic + "\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" + end,
		"too many codes":       dynamic + "\x11\x11\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" + end,
		"no code for symbol":   dynamic + "\x00\x11\x00\x00\x00\x00\x00\x00\x00\x01\x9b\x9b" + end,
		"symbol 156":           dynamic + "\x00\x11\x00\x00\x00\x00\x00\x00\x00\x9c\x9b\x9b" + end,
		"nothing to repeat":    dynamic + "\x11\x00\x00\x00\x00\x00\x00\x00\x00\x10\x9b\x9b" + end,
		"too few lengths":      dynamic + "\x00\x11\x00\x00\x00\x00\x00\x00\x00\x00\x9b\x00" + end,
		"too many lengths":     dynamic + "\x00\x11\x00\x00\x00\x00\x00\x00\x00\x9b\x9b\x9b" + end,
	} {
		if _, _, err := Huff(nil, 0, []byte(puff)); !errors.Is(err, ErrPuff) {
			t.Errorf("%s: expected %v, found %v", name, ErrPuff, err)
		}
	}
}

func TestPuffRefuses(t *testing.T) {
	for name, bits := range map[string][]string{
		"nothing":          {""},
		"type 3":           {"1", "11"},
		"no end":           {"1", "10", "10010001"},
		"length 286":       {"1", "10", "11000110", "00000", "0000000"},
		"distance 30":      {"1", "10", "0000001", "11110", "0000000"},
		"stored cut":       {"1", "00", "00000", "1100000000000000", "0011111111111111", "00000000"},
		"stored length":    {"1", "00", "00000", "1100000000000000", "0011111111111110", "0000000000000000", "00000000"},
		"287 literals":     {"1", "01", "01111", "00000", "0000"},
		"31 distances":     {"1", "01", "00000", "01111", "0000"},
		"too many codes":   {"1", "01", "00000", "00000", "0000", "100", "100", "100", "000"},
		"nothing repeated": {"1", "01", "00000", "00000", "0000", "100", "000", "000", "100", "000"},
		"no codes":         {"1", "01", "00000", "00000", "0000", "000", "000", "000", "000"},
		"too many lengths": {"1", "01", "00000", "00000", "0000", "000", "000", "100", "100", "1", "1111111", "1", "1111111"},
	} {
		data := spell(bits...)
		if _, err := Puff(nil, append(data, 0), BitExtent{0, uint64(len(data))*8 + 8}); !errors.Is(err, ErrDeflate) {
			t.Errorf("%s: expected %v, found %v", name, ErrDeflate, err)
		}
	}
	for _, e := range []BitExtent{{9, 0}, {0, 9}, {1, 8}, {8, math.MaxUint64}, {math.MaxUint64, 1}} {
		if _, err := Puff(nil, []byte{0}, e); !errors.Is(err, ErrDeflate) {
			t.Errorf("%v: expected %v, found %v", e, ErrDeflate, err)
		}
	}
	// The extent ends where the block does, not before or after it.
	data := spell("1", "10", "10010001", "0000000", "00000000")
	for n := range uint64(len(data)*8 + 1) {
		if _, err := Puff(nil, data, BitExtent{0, n}); (err == nil) != (n == 18 || n == 0) {
			t.Errorf("%d of 18 bits: found %v", n, err)
		}
	}
}

// handmade is a patch with the given header around an inner patch.
func handmade(message []byte, inner string) []byte {
	b := binary.BigEndian.AppendUint32([]byte(magic), uint32(len(message)))
	return append(append(b, message...), inner...)
}

func TestOpenRefuses(t *testing.T) {
	stream := func(puffLength uint64, pairs ...[2]BitExtent) []byte {
		var b []byte
		for _, p := range pairs {
			b = appendExtent(b, 1, p[0].Offset, p[0].Length)
		}
		for _, p := range pairs {
			b = appendExtent(b, 2, p[1].Offset, p[1].Length)
		}
		return appendNumber(b, 3, puffLength)
	}
	header := func(version uint64, s []byte, inner uint64) []byte {
		return appendNumber(appendMessage(appendNumber(nil, 1, version), 3, s), 4, inner)
	}
	one := [2]BitExtent{{16, 10}, {16, 40}} // two raw bytes, five of a puff, six bits
	for _, c := range []struct {
		name  string
		patch []byte
		err   error
	}{
		{"good", handmade(header(1, stream(8, one), 0), ""), nil},
		{"no deflates", handmade(header(1, stream(8), 0), ""), nil},
		{"empty", nil, ErrCorrupt},
		{"magic", []byte("PUF2\x00\x00\x00\x00"), ErrNotPatch},
		{"long header", []byte("PUF1\x00\x00\x00\x01"), ErrCorrupt},
		{"version 2", handmade(header(2, nil, 0), ""), ErrUnsupported},
		{"no version", handmade(header(0, nil, 0), ""), ErrUnsupported},
		{"type 2", handmade(header(1, nil, 2), ""), ErrUnsupported},
		{"no message", handmade([]byte{0x08}, ""), ErrCorrupt},
		{"no tag", handmade([]byte{0x80}, ""), ErrCorrupt},
		{"no bytes", handmade([]byte{0x12, 5, 1}, ""), ErrCorrupt},
		{"empty extent", handmade(header(1, []byte{0x0a, 0, 0x12, 0}, 0), ""), ErrCorrupt},
		{"no length", handmade(header(1, stream(8, [2]BitExtent{{16, 0}, {16, 40}}), 0), ""), ErrCorrupt},
		{"no puff", handmade(header(1, appendExtent(stream(8), 1, 16, 10), 0), ""), ErrCorrupt},
		{"half a byte", handmade(header(1, stream(8, [2]BitExtent{{16, 10}, {16, 44}}), 0), ""), ErrCorrupt},
		{"empty puff", handmade(header(1, stream(8, [2]BitExtent{{16, 10}, {16, 0}}), 0), ""), ErrCorrupt},
		{"puff elsewhere", handmade(header(1, stream(9, [2]BitExtent{{16, 10}, {24, 40}}), 0), ""), ErrCorrupt},
		{"puff behind the end", handmade(header(1, stream(6, one), 0), ""), ErrCorrupt},
		{"no last bits", handmade(header(1, stream(7, one), 0), ""), ErrCorrupt},
		{"overlap", handmade(header(1, stream(20, one, [2]BitExtent{{20, 10}, {56, 40}}), 0), ""), ErrCorrupt},
		{"far away", handmade(header(1, stream(8, [2]BitExtent{{math.MaxUint64 - 1, 10}, {16, 40}}), 0), ""), ErrCorrupt},
		{"endless", handmade(header(1, stream(8, [2]BitExtent{{16, math.MaxUint64 - 8}, {16, 40}}), 0), ""), ErrCorrupt},
		{"huge file", handmade(header(1, stream(math.MaxUint64), 0), ""), ErrCorrupt},
		{"puff too large for its deflate", handmade(header(1, stream(50, [2]BitExtent{{16, 10}, {16, 8 * 21}}), 0), ""), ErrCorrupt},
		{"deflate too large for its puff", handmade(header(1, stream(8, [2]BitExtent{{16, 81}, {16, 40}}), 0), ""), ErrCorrupt},
		{"huge puff", handmade(header(1, stream(1<<40, [2]BitExtent{{16, 10}, {16, 8 * (MaxPuff + 1)}}), 0), ""), ErrLimit},
		{"huge deflate", handmade(header(1, stream(1<<40, [2]BitExtent{{16, 8 * (MaxPuff + 1)}, {16, 40}}), 0), ""), ErrLimit},
	} {
		_, err := Open(bytes.NewReader(c.patch), int64(len(c.patch)))
		if !errors.Is(err, c.err) || c.err == nil && err != nil {
			t.Errorf("%s: expected %v, found %v", c.name, c.err, err)
		}
	}
	unknown := append(header(1, stream(8, one), 0), 0xfa, 1, 1, 'x', 0xf5, 1, 1, 2, 3, 4)
	if _, err := Open(bytes.NewReader(handmade(unknown, "")), int64(len(handmade(unknown, "")))); err != nil {
		t.Errorf("unknown fields: expected them to be skipped, found %v", err)
	}
}

func TestApplyRefuses(t *testing.T) {
	pair := archives(t, rand.New(rand.NewPCG(6, 6)), 30000)["a.gz"]
	source, target := File{pair[0], Find("a.gz", pair[0])}, File{pair[1], Find("a.gz", pair[1])}
	patch := create(t, source, target)
	if _, err := apply(patch, source.Data[:len(source.Data)-1]); !errors.Is(err, ErrCorrupt) {
		t.Errorf("short source: expected %v, found %v", ErrCorrupt, err)
	}
	other := bytes.Clone(source.Data)
	for i := range other {
		other[i] ^= 0xff
	}
	if _, err := apply(patch, other); !errors.Is(err, ErrDeflate) {
		t.Errorf("other source: expected %v, found %v", ErrDeflate, err)
	}
	p, err := Open(bytes.NewReader(patch), int64(len(patch)))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Apply(io.Discard, broken{}, p.SourceSize(), ApplyOptions{}); !errors.Is(err, errDevice) {
		t.Errorf("broken source: expected %v, found %v", errDevice, err)
	}
	if err := p.Apply(broken{}, bytes.NewReader(source.Data), p.SourceSize(), ApplyOptions{}); !errors.Is(err, errDevice) {
		t.Errorf("broken target: expected %v, found %v", errDevice, err)
	}
	checkBehind(t, p)
	if _, err := Open(broken{}, 100); !errors.Is(err, errDevice) {
		t.Errorf("broken patch: expected %v, found %v", errDevice, err)
	}
	for _, f := range []File{
		{source.Data, []BitExtent{{0, 80}}}, {source.Data, []BitExtent{{0, math.MaxUint64}}},
		{source.Data, []BitExtent{source.Deflates[0], source.Deflates[0]}},
	} {
		if err := Create(io.Discard, f, target, Options{}); !errors.Is(err, ErrDeflate) {
			t.Errorf("%v: expected %v, found %v", f.Deflates, ErrDeflate, err)
		}
	}
	if err := Create(broken{}, source, target, Options{}); !errors.Is(err, errDevice) {
		t.Errorf("broken patch: expected %v, found %v", errDevice, err)
	}
	if err := Create(io.Discard, source, target, Options{Bsdiff: bsdiff.Options{Legacy: true}}); err == nil {
		t.Error("legacy inner patch: expected an error, found none")
	}
}

// A large target is written in the background. Its errors come out as well, and
// the inner patch learns of them early.
func checkBehind(t *testing.T, p *Patch) {
	t.Helper()
	large := *p
	large.inner = Zucchini
	large.target = makeLayout(nil, nil, 100<<20)
	written := 0
	endless := func(w io.Writer, size int64, _ io.Reader, _ io.ReaderAt, _ int64) error {
		for buf := make([]byte, 100000); ; written += len(buf) {
			if _, err := w.Write(buf); err != nil {
				return err
			}
		}
	}
	err := large.Apply(broken{}, bytes.NewReader(make([]byte, p.SourceSize())), p.SourceSize(), ApplyOptions{Zucchini: endless})
	if !errors.Is(err, errDevice) || written > 10<<20 {
		t.Errorf("broken target, in the background: expected %v soon, found %v after %d bytes", errDevice, err, written)
	}
	late := func(w io.Writer, _ int64, _ io.Reader, _ io.ReaderAt, _ int64) error {
		_, err := w.Write(make([]byte, 65536))
		return err
	}
	err = large.Apply(broken{}, bytes.NewReader(make([]byte, p.SourceSize())), p.SourceSize(), ApplyOptions{Zucchini: late})
	if !errors.Is(err, errDevice) {
		t.Errorf("broken target, in the background: expected %v at the end, found %v", errDevice, err)
	}
}

type broken struct{}

func (broken) ReadAt([]byte, int64) (int, error) { return 0, errDevice }
func (broken) Write([]byte) (int, error)         { return 0, errDevice }

// A deflate that is in both files stays as it is.
func TestRemoveEqual(t *testing.T) {
	a, b := deflate(t, 6, prose(rand.New(rand.NewPCG(7, 7)), 5000)), deflate(t, 6, prose(rand.New(rand.NewPCG(8, 8)), 5000))
	file := func(parts ...[]byte) (f File) {
		for _, p := range parts {
			blocks, _, err := FindRaw(p)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range blocks {
				f.Deflates = append(f.Deflates, BitExtent{e.Offset + uint64(len(f.Data))*8, e.Length})
			}
			f.Data = append(f.Data, p...)
		}
		return f
	}
	source, target := file(a), file(b, a)
	n := len(target.Deflates) - len(source.Deflates)
	removeEqual(&source, &target)
	if len(source.Deflates) != 0 || len(target.Deflates) != n {
		t.Errorf("expected 0 and %d deflates, found %d and %d", n, len(source.Deflates), len(target.Deflates))
	}
}

// Clients of minor version 5 want as many bits for a distance as its longest
// code has: in a block that ends too soon after its last copy they fail.
func TestOldClients(t *testing.T) {
	// Codes of 4 bits for the code lengths 0 to 9 and 18, of 2 bits for a, the end
	// and length 3, of 1 to 9 bits for ten distances.
	puff := "\x00\x1c\xc0\x01\x09\x0e" + "\x00\x44\x44\x44\x04\x04\x04\x04\x04" + "\x72\x02\x9b\x25\x02\x02" + "\x01\x02\x03\x04\x05\x06\x07\x08\x09\x09" +
		"\x00a\x80\x00\x00\xff\x81"
	dropped := 0
	for start := range uint(8) {
		data, n, err := Huff(nil, start, []byte(puff))
		if err != nil {
			t.Fatal(err)
		}
		e := BitExtent{uint64(start), n}
		left := uint64(len(data))*8 - e.End() + 1 + 2 // before the distance
		for _, old := range []bool{false, true} {
			p, err := puffFile(File{data, []BitExtent{e}}, true, old)
			if err != nil {
				t.Fatal(err)
			}
			if kept := len(p.deflates) == 1; kept != (!old || left >= 9) {
				t.Errorf("%d bits left, old clients %v: kept %v", left, old, kept)
			}
		}
		if left < 9 {
			dropped++
		}
	}
	if dropped == 0 || dropped == 8 {
		t.Errorf("expected some of 8 deflates to be dropped, found %d", dropped)
	}
}

// Memory does not grow with source and target: the source is puffed again and
// again, the target goes out as it comes.
func TestMemory(t *testing.T) {
	chunk := deflate(t, 6, prose(rand.New(rand.NewPCG(17, 17)), 300000))
	blocks, _, err := FindRaw(chunk)
	if err != nil {
		t.Fatal(err)
	}
	var f File
	for range 120 {
		for _, e := range blocks {
			f.Deflates = append(f.Deflates, BitExtent{e.Offset + uint64(len(f.Data))*8, e.Length})
		}
		f.Data = append(f.Data, chunk...)
	}
	p, err := puffFile(f, false, false)
	if err != nil {
		t.Fatal(err)
	}
	size := p.puffedSize
	p.data = nil
	patch := handmade(appendHeader(nil, Zucchini, p.layout, p.layout), "")
	opened, err := Open(bytes.NewReader(patch), int64(len(patch)))
	if err != nil {
		t.Fatal(err)
	}
	copyAll := func(target io.Writer, targetSize int64, _ io.Reader, source io.ReaderAt, sourceSize int64) error {
		_, err := io.Copy(target, io.NewSectionReader(source, 0, sourceSize))
		return err
	}
	w := &peak{start: heap(), want: f.Data}
	if err := opened.Apply(w, bytes.NewReader(f.Data), int64(len(f.Data)), ApplyOptions{Zucchini: copyAll}); err != nil || len(w.want) > 0 {
		t.Fatalf("%d bytes are missing, %v", len(w.want), err)
	}
	if grown := int64(w.most) - int64(w.start); size < 12<<20 || grown > CacheSize+3<<20 {
		t.Errorf("expected %d bytes or less for %d, found %d", CacheSize+3<<20, size, grown)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// peak is a target that knows what it wants, and looks at the heap now and then.
type peak struct {
	start, most uint64
	want        []byte
	n, next     int64
}

func (p *peak) Write(b []byte) (int, error) {
	if !bytes.HasPrefix(p.want, b) {
		return 0, errDevice
	}
	p.want = p.want[len(b):]
	if p.n += int64(len(b)); p.n >= p.next {
		p.most = max(p.most, heap())
		p.next += 2 << 20
	}
	return len(b), nil
}

// A flipped bit never panics. Puffin has no checksum of its own; but then what
// is written has the promised size.
func TestFlips(t *testing.T) {
	pair := archives(t, rand.New(rand.NewPCG(10, 10)), 3000)["a.gz"]
	source, target := File{pair[0], Find("a.gz", pair[0])}, File{pair[1], Find("a.gz", pair[1])}
	patch := create(t, source, target)
	for bit := 0; bit < 8*len(patch); bit += 1 + bit%3 {
		b := bytes.Clone(patch)
		b[bit/8] ^= 1 << (bit % 8)
		p, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			continue
		}
		var n counter
		if err := p.Apply(&n, bytes.NewReader(source.Data), int64(len(source.Data)), ApplyOptions{}); err == nil && int64(n) != p.TargetSize() {
			t.Fatalf("bit %d: expected %d bytes, found %d", bit, p.TargetSize(), n)
		}
	}
}

type counter int64

func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

// What the inner patch makes has to fit the layout that the header declares, and
// so has the source.
func TestApplyChecks(t *testing.T) {
	// A file of 5 raw bits, a block of 18 bits with one literal, 1 raw bit.
	bits := []string{"10101", "1", "10", "10010001", "0000000", "1"}
	data, e := spell(bits...), BitExtent{5, 18}
	p, err := puffFile(File{data, []BitExtent{e}}, true, false)
	if err != nil || string(p.data) != "\x15\x00\x00\xa0\x00a\xff\x81\x01" {
		t.Fatalf("found % x, %v", p.data, err)
	}
	run := func(l *layout, made []byte, source string) error {
		patch := handmade(appendHeader(nil, Zucchini, p.layout, l), "")
		opened, err := Open(bytes.NewReader(patch), int64(len(patch)))
		if err != nil {
			t.Fatal(err)
		}
		return opened.Apply(io.Discard, strings.NewReader(source), int64(len(source)), ApplyOptions{Zucchini: func(w io.Writer, _ int64, _ io.Reader, source io.ReaderAt, size int64) error {
			if _, err := io.ReadFull(io.NewSectionReader(source, 0, size), make([]byte, size)); err != nil {
				return err
			}
			if _, err := w.Write(made); err != nil {
				_, again := w.Write(made)
				return errors.Join(err, again)
			}
			return nil
		}})
	}
	same := string(data)
	if err := run(p.layout, p.data, same); err != nil {
		t.Errorf("the file itself: %v", err)
	}
	longer := makeLayout([]BitExtent{{5, 17}}, []int64{7}, int64(len(data)))
	for name, c := range map[string]struct {
		layout *layout
		made   string
		source string
		err    error
	}{
		"too little":           {p.layout, string(p.data[:8]), same, ErrCorrupt},
		"too much":             {p.layout, string(p.data) + "x", same, ErrCorrupt},
		"bits of the deflate":  {p.layout, "\x35" + string(p.data[1:]), same, ErrCorrupt},
		"bits after the file":  {p.layout, string(p.data[:8]) + "\x04", same, ErrCorrupt},
		"no puff":              {p.layout, "\x15\x00\x00\xa0\x00a\xff\x82\x01", same, ErrPuff},
		"deflate of 18 bits":   {longer, string(p.data), same, ErrPuff},
		"source without puff":  {p.layout, string(p.data), string(spell("10101", "1", "11", "10010001", "0000000", "1")), ErrDeflate},
		"source, shorter puff": {p.layout, string(p.data), string(spell("10101", "1", "10", "0000000", "00000000", "1")), ErrDeflate},
		"source, longer puff":  {p.layout, string(p.data), string(spell("10101", "1", "10", "0000001", "00000", "000", "0")), ErrDeflate},
	} {
		if err := run(c.layout, []byte(c.made), c.source); !errors.Is(err, c.err) {
			t.Errorf("%s: expected %v, found %v", name, c.err, err)
		}
	}
}
