package cow

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"cowbird/formats/cowfile"
)

// versions are two images in which files have grown by a few bytes in the middle,
// one in its place and one elsewhere, and what is kin.
func versions() (base, target []byte, kin []Kin) {
	r := rand.New(rand.NewPCG(7, 8))
	random := func(blocks int) []byte {
		b := make([]byte, blocks*blockSize)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	file := random(60)
	grown := bytes.Clone(file)
	copy(grown[100_000+13:], file[100_000:])
	copy(grown[100_000:], "thirteen more")
	for i := 0; i < len(grown); i += 700 {
		grown[i]++
	}
	base = append(append(append(random(5), file...), random(20)...), file...)
	target = append(append(append(base[:5*blockSize:5*blockSize], grown...), random(40)...), random(40)...)
	copy(target[90*blockSize:], grown)
	kin = []Kin{
		{Target: []Range{{90 * blockSize, 60 * blockSize}}, Base: []Range{{85 * blockSize, 60 * blockSize}}},
		{Target: []Range{{-1, 4}, {1 << 50, 1 << 50}, {0, 1 << 62}}, Base: []Range{{5, -5}, {1 << 60, 1}, {0, 1 << 62}}},
	}
	return base, target[:140*blockSize], kin
}

// Shifted contents are found at any byte, kin or not, and at every effort what
// comes out is the target, with any number of workers the same.
func TestShifted(t *testing.T) {
	base, target, kin := versions()
	for name, o := range map[string]BuildOptions{
		"kin":     {Kin: kin},
		"no kin":  {},
		"max":     {Kin: kin, Effort: EffortMax},
		"v2":      {Kin: kin, Version: 2},
		"no room": {Kin: kin, MaxUnit: blockSize},
	} {
		t.Run(name, func(t *testing.T) {
			o.Compression = cowfile.Zstd
			o.Workers = 1
			cow, stats := build(t, base, target, o)
			if stats.Xor < 90 {
				t.Errorf("expected some 110 deltas, found %+v", stats)
			}
			o.Workers = 7
			if again, _ := build(t, base, target, o); !bytes.Equal(again, cow) {
				t.Error("expected the same with more workers")
			}
			if _, err := Check(context.Background(), CheckOptions{Cow: newMem(cow), Base: newMem(base), Target: bytes.NewReader(target), TargetSize: int64(len(target))}); err != nil {
				t.Error(err)
			}
			mergeAll(t, cow, base, target)
		})
	}
	_, fast := build(t, base, target, BuildOptions{Compression: cowfile.Zstd, Effort: EffortFast})
	if fast.Xor > 10 {
		t.Errorf("fast: expected whole blocks only, found %+v", fast)
	}
}

// Nothing is found in noise, and nothing is worse for having been looked for.
func TestNoise(t *testing.T) {
	_, target, _ := versions()
	r := rand.New(rand.NewPCG(9, 9))
	base := make([]byte, len(target))
	for i := range base {
		base[i] = byte(r.Uint32())
	}
	_, stats := build(t, base, target, BuildOptions{Compression: cowfile.LZ4})
	if stats.Xor > 0 {
		t.Errorf("expected no deltas, found %+v", stats)
	}
}

// The same bytes have the same anchors wherever they are, zeros none.
func TestAnchors(t *testing.T) {
	_, data, _ := versions()
	x := newIndex(int64(len(data)), 1<<14)
	at := map[int]uint64{}
	x.anchors(data, func(i int, h uint64) { at[i] = h })
	if n := len(data) >> x.rate; len(at) < n*9/10 || len(at) > n*11/10 {
		t.Errorf("expected about %d anchors, found %d", n, len(at))
	}
	seen := 0
	x.anchors(data[12345:], func(i int, h uint64) {
		seen++
		if at[i+12345] != h {
			t.Fatalf("byte %d: expected hash %x, found %x", i+12345, at[i+12345], h)
		}
	})
	if seen == 0 {
		t.Error("expected anchors behind byte 12345")
	}
	x.anchors(make([]byte, 1<<16), func(i int, _ uint64) { t.Fatalf("zeros: an anchor at %d", i) })
}

// mergeAll merges a COW in small batches and compares what comes out.
func mergeAll(t *testing.T, cow, base, target []byte) {
	t.Helper()
	s, err := Open(Options{Cow: newMem(cow), Base: newMem(base), Size: int64(max(len(target), len(base)))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Merge(context.Background(), MergeOptions{limits: tight}); err != nil {
		t.Fatal(err)
	}
	if got := readWhole(t, s, int64(len(target))); !bytes.Equal(got, target) {
		t.Error("merged: " + firstDifference(got, target))
	}
}
