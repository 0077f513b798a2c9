package cow

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"cowbird/formats/cowfile"
)

// pair makes an image pair as an update makes it: files moved up and down,
// swapped, changed in a few bytes, replaced, deleted; zeros; another size.
func pair(seed uint64) (base, target []byte) {
	r := rand.New(rand.NewPCG(seed, 5))
	block := func() []byte {
		b := make([]byte, blockSize)
		for i := 0; i < blockSize; i += 1 + r.IntN(8) {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	n := 200 + r.IntN(400)
	for range n {
		if r.IntN(10) == 0 {
			base = append(base, make([]byte, blockSize)...)
		} else {
			base = append(base, block()...)
		}
	}
	for len(target) < (n+r.IntN(60)-30)*blockSize {
		at := len(target) / blockSize
		length := 1 + r.IntN(30)
		switch r.IntN(8) {
		case 0: // new
			for range length {
				target = append(target, block()...)
			}
		case 1:
			target = append(target, make([]byte, length*blockSize)...)
		case 2, 3: // unchanged
			target = append(target, base[min(at, n)*blockSize:min(at+length, n)*blockSize]...)
		default: // from nearby, perhaps with changes: shifts, overlaps, cycles
			from := max(0, min(n-length, at+r.IntN(9)-4))
			moved := append([]byte(nil), base[from*blockSize:(from+length)*blockSize]...)
			if r.IntN(2) == 0 {
				for range 1 + r.IntN(20) {
					moved[r.IntN(len(moved))]++
				}
			}
			target = append(target, moved...)
		}
		if at > 2*n {
			break
		}
	}
	return base, target
}

func build(t testing.TB, base, target []byte, o BuildOptions) ([]byte, BuildStats) {
	t.Helper()
	o.Base = Image{bytes.NewReader(base), int64(len(base))}
	o.Target = Image{bytes.NewReader(target), int64(len(target))}
	o.NewCompressor = func() (func(dst, unit []byte) ([]byte, error), error) {
		return compressor(t, o.Compression, min(o.Compression.DefaultLevel(), 3), max(o.MaxUnit, 64<<10)), nil
	}
	out := &growMem{}
	stats, err := Build(context.Background(), out, o)
	if err != nil {
		t.Fatal(err)
	}
	if stats.CowSize != int64(len(out.b)) {
		t.Errorf("size: reported %d, written %d", stats.CowSize, len(out.b))
	}
	return out.b, stats
}

// What Build makes is a valid COW of exactly the target, in every form, and
// merges to it.
func TestBuild(t *testing.T) {
	for seed := range uint64(40) {
		version, comp := 2+int(seed%2), cowfile.Compression(seed/2%5)
		o := BuildOptions{Version: version, Compression: comp, NoXor: seed%7 == 0}
		if version == 3 {
			o.MaxUnit = blockSize << (seed % 7)
		}
		t.Run(fmt.Sprintf("seed%d_v%d_%v_unit%d", seed, version, comp, o.MaxUnit), func(t *testing.T) {
			t.Parallel()
			base, target := pair(seed)
			cow, stats := build(t, base, target, o)
			r, err := Check(context.Background(), CheckOptions{
				Cow: newMem(cow), Base: newMem(base), Target: bytes.NewReader(target), TargetSize: max(int64(len(target)), 1),
				Size: int64(len(target)),
			})
			if err != nil {
				t.Fatal(err)
			}
			blocks := stats.Copy + stats.Xor + stats.Zero + stats.ReplaceBlocks + stats.UnchangedBlocks
			if r.Ops != stats.Copy+stats.Xor+stats.Zero+stats.Replace || blocks != len(target)/blockSize {
				t.Errorf("numbers do not add up: %+v, %+v, %d blocks", r, stats, len(target)/blockSize)
			}
			if o.NoXor && stats.Xor > 0 {
				t.Error("xor ops in spite of NoXor")
			}
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
		})
	}
}

// Same input, same bytes: whatever the number of workers, and every time.
func TestBuildIsReproducible(t *testing.T) {
	base, target := pair(77)
	var first []byte
	for _, workers := range []int{1, 2, 3, 8, 1} {
		cow, _ := build(t, base, target, BuildOptions{Compression: cowfile.Zstd, Workers: workers})
		if first == nil {
			first = cow
		}
		if !bytes.Equal(cow, first) {
			t.Fatalf("%d workers: another file", workers)
		}
	}
}

// Nothing for a block that is right in place, zeros or not; zero ops only where
// the base is not zero.
func TestBuildOfEqualImages(t *testing.T) {
	base := make([]byte, 64*blockSize)
	copy(base[3*blockSize:], "contents")
	_, stats := build(t, base, base, BuildOptions{Compression: cowfile.LZ4})
	if stats.UnchangedBlocks != 64 || stats.Copy+stats.Xor+stats.Zero+stats.Replace != 0 {
		t.Errorf("expected 64 unchanged blocks and no op, found %+v", stats)
	}
	target := make([]byte, len(base))
	if _, stats = build(t, base, target, BuildOptions{}); stats.Zero != 1 || stats.UnchangedBlocks != 63 {
		t.Errorf("expected one zero op, found %+v", stats)
	}
}

// A ring of copies costs one replaced block, and only a ring does.
func TestCycles(t *testing.T) {
	const n = 100
	base := make([]byte, n*blockSize)
	r := rand.New(rand.NewPCG(3, 3))
	for i := range base {
		base[i] = byte(r.Uint32())
	}
	at := func(b []byte, i int) []byte { return b[i*blockSize : (i+1)*blockSize] }
	for _, tc := range []struct {
		name  string
		move  func(i int) int
		rings int
	}{
		{"shift up", func(i int) int { return max(0, i-1) }, 0},
		{"shift down", func(i int) int { return min(n-1, i+1) }, 0},
		{"shift by 7", func(i int) int { return min(n-1, i+7) }, 0},
		{"rotate", func(i int) int { return (i + 1) % n }, 1},
		{"swap neighbours", func(i int) int { return i ^ 1 }, n / 2},
		{"rotate by 20", func(i int) int { return (i + 20) % n }, 20},
	} {
		t.Run(tc.name, func(t *testing.T) {
			target := make([]byte, len(base))
			for i := range n {
				copy(at(target, i), at(base, tc.move(i)))
			}
			cow, stats := build(t, base, target, BuildOptions{Compression: cowfile.LZ4})
			if stats.CyclesBroken != tc.rings || stats.ReplaceBlocks != tc.rings {
				t.Errorf("expected %d replaced blocks, found %+v", tc.rings, stats)
			}
			if _, err := Check(context.Background(), CheckOptions{Cow: newMem(cow), Base: newMem(base), Target: bytes.NewReader(target), TargetSize: int64(len(target))}); err != nil {
				t.Error(err)
			}
		})
	}
}

// Consecutive new blocks are stored in the largest units.
func TestUnits(t *testing.T) {
	base, target := make([]byte, 64*blockSize), make([]byte, 64*blockSize)
	for i := 5; i < 5+37; i++ { // 16 + 16 + 4 + 1 blocks
		target[i*blockSize] = byte(i)
	}
	cow, stats := build(t, base, target, BuildOptions{Compression: cowfile.Zstd, MaxUnit: 64 << 10})
	f, err := cowfile.Open(bytes.NewReader(cow), int64(len(cow)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := [8]int{1, 0, 1, 0, 2}; f.Counts().ByFactor != want || stats.Replace != 4 {
		t.Errorf("expected units %v, found %v", want, f.Counts().ByFactor)
	}
}

func TestBuildRefuses(t *testing.T) {
	img := func(n int) Image { return Image{bytes.NewReader(make([]byte, n)), int64(n)} }
	for _, tc := range []struct {
		name string
		o    BuildOptions
	}{
		{"target that is not whole blocks", BuildOptions{Base: img(4096), Target: img(5000)}},
		{"unit that is no power of two", BuildOptions{Base: img(4096), Target: img(4096), MaxUnit: 12288}},
		{"unit in version 2", BuildOptions{Base: img(4096), Target: img(4096), Version: 2, MaxUnit: 65536}},
		{"image that is too large", BuildOptions{Base: img(4096), Target: Image{Size: 1 << 50}}},
	} {
		if _, err := Build(context.Background(), &growMem{}, tc.o); !errors.Is(err, ErrSize) {
			t.Errorf("%s: expected ErrSize, found %v", tc.name, err)
		}
	}
	short := Image{bytes.NewReader(make([]byte, 4096)), 8192}
	if _, err := Build(context.Background(), &growMem{}, BuildOptions{Base: short, Target: short}); err == nil {
		t.Error("an image that ends early was accepted")
	}
}
