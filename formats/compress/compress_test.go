package compress_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"cowbird/formats/compress"
	"cowbird/formats/cowfile"
)

const maxUnit = 256 << 10

var levels = map[cowfile.Compression][]int{
	cowfile.GZ:     {1, 6, 9},
	cowfile.Brotli: {0, 5, 11},
	cowfile.LZ4:    {-5, 0, 1, 2, 3, 9, 12},
	cowfile.Zstd:   {1, 3, 9, 19},
}

// each runs f for every algorithm at several levels.
func each(t *testing.T, f func(t *testing.T, c cowfile.Compression, fresh func() compress.Func)) {
	for c, all := range levels {
		for _, level := range all {
			t.Run(fmt.Sprintf("%v,%d", c, level), func(t *testing.T) {
				f(t, c, func() compress.Func {
					f, err := compress.New(c.String(), level, maxUnit)
					if err != nil {
						t.Fatal(err)
					}
					return f
				})
			})
		}
	}
}

func units() [][]byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	var all [][]byte
	for _, n := range []int{4096, 16384, 4096} {
		random, text := make([]byte, n), make([]byte, 0, n+20)
		for i := range random {
			random[i] = byte(rnd.Uint32())
		}
		for len(text) < n {
			text = fmt.Appendf(text, "line %d of %d\n", rnd.IntN(1000), n)
		}
		all = append(all, random, make([]byte, n), text[:n])
	}
	return all
}

func TestRoundTrip(t *testing.T) {
	each(t, func(t *testing.T, c cowfile.Compression, fresh func() compress.Func) {
		f := fresh()
		for i, unit := range units() {
			out, err := f([]byte("before"), unit)
			stored, kept := bytes.CutPrefix(out, []byte("before"))
			if err != nil || !kept {
				t.Fatalf("unit %d: expected to append, found %.20q, %v", i, out, err)
			}
			found := make([]byte, len(unit))
			if err := cowfile.Decode(c, found, stored); err != nil || !bytes.Equal(found, unit) {
				t.Fatalf("unit %d: expected the unit again, found another, %v", i, err)
			}
			if random := i%3 == 0; random != (len(stored) >= len(unit)) {
				t.Errorf("unit %d of %d bytes (random: %v): found %d", i, len(unit), random, len(stored))
			}
		}
	})
}

func TestSameBytes(t *testing.T) {
	each(t, func(t *testing.T, _ cowfile.Compression, fresh func() compress.Func) {
		used := fresh()
		for i, unit := range units() {
			first, err := fresh()(nil, unit)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := used(nil, unit); err != nil || !bytes.Equal(first, again) {
				t.Errorf("unit %d: expected equal bytes after other units, found other ones, %v", i, err)
			}
		}
	})
}

// Units end to end in one buffer are what the writer of a cow may ask for.
func TestAppend(t *testing.T) {
	each(t, func(t *testing.T, c cowfile.Compression, fresh func() compress.Func) {
		f := fresh()
		var all []byte
		var ends []int
		for _, unit := range units() {
			var err error
			if all, err = f(all, unit); err != nil {
				t.Fatal(err)
			}
			ends = append(ends, len(all))
		}
		start := 0
		for i, unit := range units() {
			found := make([]byte, len(unit))
			if err := cowfile.Decode(c, found, all[start:ends[i]]); err != nil || !bytes.Equal(found, unit) {
				t.Fatalf("unit %d: expected the unit again, found another, %v", i, err)
			}
			start = ends[i]
		}
	})
}

func TestNone(t *testing.T) {
	if f, err := compress.New("none", 0, maxUnit); f != nil || err != nil {
		t.Errorf("expected no compressor and no error, found %v", err)
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct {
		algorithm string
		level     int
	}{
		{"", 0}, {"lzma", 3}, {"LZ4", 0}, {"lz4", 13}, {"lz4", -70_000}, {"gz", 10}, {"gz", -3},
	} {
		if f, err := compress.New(c.algorithm, c.level, maxUnit); err == nil || f != nil {
			t.Errorf("%s,%d: expected an error, found none", c.algorithm, c.level)
		} else {
			t.Log(err)
		}
	}
}

// Bytes of which some are more frequent become fewer, although none repeat.
func TestZstdWithoutMatches(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	unit := make([]byte, 64<<10)
	for i := range unit {
		unit[i] = byte(rnd.Uint32() & rnd.Uint32() >> rnd.IntN(3))
	}
	for _, level := range levels[cowfile.Zstd] {
		f, err := compress.New("zstd", level, maxUnit)
		if err != nil {
			t.Fatal(err)
		}
		out, err := f(nil, unit)
		if err != nil || len(out) > len(unit)*9/10 {
			t.Errorf("level %d: expected at most nine tenths of %d bytes, found %d, %v", level, len(unit), len(out), err)
		}
	}
}
