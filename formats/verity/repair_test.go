package verity

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// As many errors and erasures as the code can correct are corrected.
func TestCorrect(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, roots := range []int{2, 3, 4, 8, 15, 24} {
		c := newCorrector(roots)
		for range 300 {
			word := randomWord(rng, roots)
			s := rng.IntN(roots + 1)
			e := rng.IntN((roots-s)/2 + 1)
			places := rng.Perm(codeWord)[:s+e]
			wrong := bytes.Clone(word)
			for i, p := range places {
				if i < s {
					wrong[p] ^= byte(rng.Uint32()) // an erasure may be right
				} else {
					wrong[p] ^= byte(rng.IntN(255) + 1)
				}
			}
			found, ok := c.correct(syndromesOf(wrong, roots), places[:s])
			for _, f := range found {
				wrong[f.position] ^= f.value
			}
			if !ok || !bytes.Equal(wrong, word) {
				t.Fatalf("%d roots, %d erasures, %d errors: expected the code word, found ok %v", roots, s, e, ok)
			}
		}
	}
}

// More errors than that are seldom taken for another code word where there are many
// roots, and nothing breaks.
func TestCorrectTooMany(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	c := newCorrector(8)
	refused := 0
	for range 200 {
		wrong := randomWord(rng, 8)
		for _, p := range rng.Perm(codeWord)[:7] {
			wrong[p] ^= byte(rng.IntN(255) + 1)
		}
		if found, ok := c.correct(syndromesOf(wrong, 8), nil); !ok {
			refused++
		} else if len(found) > 4 {
			t.Fatalf("expected at most 4 corrections, found %d", len(found))
		}
	}
	if refused < 150 {
		t.Errorf("expected most to be refused, found %d of 200", refused)
	}
}

func randomWord(rng *rand.Rand, roots int) []byte {
	word := make([]byte, codeWord-roots)
	for i := range word {
		word[i] = byte(rng.Uint32())
	}
	parity := make([]byte, roots)
	e := newEncoder(roots)
	for _, b := range word {
		e.add(parity, []byte{b})
	}
	return append(word, parity...)
}

func syndromesOf(word []byte, roots int) (out []byte) {
	for i := range roots {
		out = append(out, evaluate(word, exponents[i]))
	}
	return out
}

// small blocks make deep trees of few bytes.
const small = 512

// protect makes the area of data and tree, and its error correction.
func protect(t testing.TB, algorithm string, blocks, roots int) (fixed, *Protected) {
	t.Helper()
	tree, err := NewTree(algorithm, []byte("salt"), small)
	if err != nil {
		t.Fatal(err)
	}
	size := int64(blocks) * small
	area := fixed(noise(7, int(size+tree.Size(size))))
	p := &Protected{Tree: tree, Size: size, TreeOffset: size, FEC: FEC{roots, small}, AreaSize: int64(len(area))}
	if p.Root, err = tree.Build(area, size, io.NewOffsetWriter(area, size)); err != nil {
		t.Fatal(err)
	}
	parity := make(fixed, p.FEC.Size(p.AreaSize))
	if err := p.FEC.Build(area, p.AreaSize, parity); err != nil {
		t.Fatal(err)
	}
	p.Parity = parity
	return area, p
}

func spoil(area []byte, blocks ...int) {
	for _, b := range blocks {
		for i := range small {
			area[b*small+i] ^= byte(i) | 1
		}
	}
}

func TestCheck(t *testing.T) {
	area, p := protect(t, "sha256", 4000, 2)
	tree := bytes.NewReader(area[p.Size:])
	check := func(wantData, wantTree []int64) {
		t.Helper()
		d, err := p.Tree.Check(area, p.Size, tree, p.Root)
		if err != nil {
			t.Fatal(err)
		}
		if data, tree := slices.Collect(d.Data.All()), slices.Collect(d.Tree.All()); !slices.Equal(data, wantData) || !slices.Equal(tree, wantTree) {
			t.Errorf("expected bad blocks %v and %v of the tree, found %v and %v", wantData, wantTree, data, tree)
		}
		if err := d.Err(); (err == nil) != (wantData == nil && wantTree == nil) || err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("found %v", err)
		}
	}
	check(nil, nil)
	area[5*small+7] ^= 1
	area[3999*small] ^= 1
	check([]int64{5, 3999}, nil)
	area[(4000+18)*small+500] ^= 1 // hash of block 31: level 0 is behind 1 and 16 blocks
	check([]int64{5, 31, 3999}, []int64{18})
	area[4000*small] ^= 0x80 // the top: hash of the tree's block 1
	check([]int64{5, 31, 3999}, []int64{0, 1, 18})
	d, err := p.Tree.Check(area, p.Size, tree, noise(1, 32))
	if err != nil || d.Tree.First() != 0 || d.Data.First() != 5 || d.Data.Count() != 3 {
		t.Errorf("another root: expected the top to be bad, found %v, %v", d.Err(), err)
	}
}

func TestCheckRoot(t *testing.T) {
	area, p := protect(t, "sha1", 300, 2)
	if err := p.Tree.CheckRoot(area, p.Size, p.Root); err != nil {
		t.Error(err)
	}
	area[77] ^= 1
	if err := p.Tree.CheckRoot(area, p.Size, p.Root); !errors.Is(err, ErrRoot) {
		t.Errorf("expected ErrRoot, found %v", err)
	}
}

// One block is compared with the root, and repaired like any other.
func TestCheckOneBlock(t *testing.T) {
	area, p := protect(t, "sha256", 1, 2)
	area[9] ^= 1
	d, err := p.Tree.Check(area, small, bytes.NewReader(nil), p.Root)
	if err != nil || d.Data.Count() != 1 || d.Tree.Count() != 0 || d.Tree.First() != -1 {
		t.Errorf("expected one bad block, found %v, %v", d.Err(), err)
	}
	if repaired, left, err := p.Repair(area); err != nil || left.Err() != nil || repaired.Data.Count() != 1 {
		t.Errorf("expected it to be repaired, found %v, %v", left, err)
	}
}

func TestCheckRefuses(t *testing.T) {
	area, p := protect(t, "sha256", 300, 2)
	for what, c := range map[string]struct {
		size int64
		tree io.ReaderAt
		root []byte
		want error
	}{
		"size":       {4097, area, p.Root, ErrSize},
		"nothing":    {0, area, p.Root, ErrSize},
		"root":       {p.Size, area, p.Root[:31], ErrUnsupported},
		"short tree": {p.Size, area[:small*3], p.Root, io.ErrUnexpectedEOF},
		"short data": {p.Size * 1000, area, p.Root, io.ErrUnexpectedEOF},
	} {
		if _, err := p.Tree.Check(area, c.size, c.tree, c.root); !errors.Is(err, c.want) {
			t.Errorf("%s: expected %v, found %v", what, c.want, err)
		}
	}
	for what, change := range map[string]func(p *Protected){
		"root":        func(p *Protected) { p.Root = nil },
		"roots":       func(p *Protected) { p.FEC.Roots = 25 },
		"block size":  func(p *Protected) { p.FEC.BlockSize = 4096 },
		"no block":    func(p *Protected) { p.FEC.BlockSize = 0 },
		"tree":        func(p *Protected) { p.TreeOffset = p.AreaSize },
		"tree inside": func(p *Protected) { p.TreeOffset = small },
		"area":        func(p *Protected) { p.AreaSize = p.Size },
		"parity":      func(p *Protected) { p.Parity = bytes.NewReader(nil); area[0] ^= 1 },
	} {
		q := *p
		change(&q)
		if _, _, err := q.Repair(area); err == nil {
			t.Errorf("%s: expected an error, found none", what)
		}
	}
}

// Damage is repaired up to what the code allows: with R rounds, blocks i, i+R, i+2R … share
// their code words.
func TestRepair(t *testing.T) {
	for _, c := range []struct {
		name         string
		blocks, root int
		spoil        func(area fixed, p *Protected, rounds int)
		left         int64
	}{
		{"nothing", 600, 2, func(fixed, *Protected, int) {}, 0},
		{"a byte", 600, 2, func(a fixed, _ *Protected, _ int) { a[small*17+5] ^= 1 }, 0},
		{"a run as long as the rounds allow", 2000, 2, func(a fixed, _ *Protected, r int) {
			for b := range 2 * r {
				spoil(a, 100+b)
			}
		}, 0},
		{"as many of one round as there are roots", 2000, 2, func(a fixed, _ *Protected, r int) { spoil(a, 3, 3+r) }, 0},
		{"more than that", 2000, 2, func(a fixed, _ *Protected, r int) { spoil(a, 3, 3+r, 3+2*r) }, 3},
		{"more than that, but in different bytes", 2000, 2, func(a fixed, _ *Protected, r int) {
			for i := range 20 {
				a[(3+i*r/2*2)*small+i] ^= 0xff
			}
		}, 0},
		{"the whole tree", 300, 24, func(a fixed, p *Protected, _ int) { clear(a[p.Size:]) }, 0},
		{"tree and data", 4500, 4, func(a fixed, _ *Protected, _ int) { spoil(a, 4500, 4501, 4502, 4503, 4507, 0, 1, 4499, 2345) }, 0},
		{"parity", 2000, 4, func(a fixed, p *Protected, _ int) {
			for k := range small {
				p.Parity.(fixed)[(2*small+k)*4+k%4] ^= 1
			}
			spoil(a, 2)
		}, 0},
		{"all parity", 600, 2, func(a fixed, p *Protected, _ int) { clear(p.Parity.(fixed)); spoil(a, 2) }, 1},
		{"24 roots", 2000, 24, func(a fixed, _ *Protected, r int) {
			for i := range 24 {
				spoil(a, 1+i*r)
			}
		}, 0},
	} {
		area, p := protect(t, "sha256", c.blocks, c.root)
		want := bytes.Clone(area)
		c.spoil(area, p, int(p.FEC.rounds(p.AreaSize)))
		before := bytes.Clone(area)
		repaired, left, err := p.Repair(area)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if n := left.Data.Count() + left.Tree.Count(); n != c.left || (n == 0) != bytes.Equal(area, want) {
			t.Errorf("%s: expected %d bad blocks to be left, found %v, equal %v", c.name, c.left, left.Err(), bytes.Equal(area, want))
		}
		changed := 0
		for b := 0; b < len(area); b += small {
			if !bytes.Equal(area[b:b+small], before[b:b+small]) {
				changed++
			}
		}
		if n := repaired.Data.Count() + repaired.Tree.Count(); n != int64(changed) {
			t.Errorf("%s: expected %d repaired blocks to be told, found %d", c.name, changed, n)
		}
	}
}

// veritysetup makes tree and error correction; both are ours, byte for byte, and damage
// is repaired with them. It also verifies what ours repairs.
func TestRepairAgainstVeritysetup(t *testing.T) {
	tool := veritysetup(t)
	for _, c := range []struct{ blocks, roots int }{{130, 2}, {1000, 2}, {700, 9}, {300, 24}} {
		dir := t.TempDir()
		file := func(name string) string { return filepath.Join(dir, name) }
		area, p := protect(t, "sha256", c.blocks, c.roots)
		write(t, file("data"), area[:p.Size])
		fec := []string{"--fec-device=" + file("fec"), fmt.Sprint("--fec-roots=", c.roots)}
		run := func(options []string, words ...string) ([]byte, error) {
			words = append(words, "--no-superblock", fmt.Sprint("--data-block-size=", small), fmt.Sprint("--hash-block-size=", small), "--hash=sha256", "--salt="+hex.EncodeToString([]byte("salt")))
			return exec.Command(tool, append(words, options...)...).CombinedOutput()
		}
		if out, err := run(fec, "format", file("data"), file("tree")); err != nil {
			t.Fatalf("veritysetup: %v\n%s", err, out)
		}
		if got := read(t, file("tree")); !bytes.Equal(got, area[p.Size:]) {
			t.Errorf("%d blocks: expected the same tree, found another", c.blocks)
		}
		if got := read(t, file("fec")); !bytes.Equal(got, p.Parity.(fixed)) {
			t.Errorf("%d blocks, %d roots: expected the same error correction, found another of %d bytes", c.blocks, c.roots, len(got))
		}
		spoil(area, 0, c.blocks)
		write(t, file("data"), area[:p.Size])
		write(t, file("tree"), area[p.Size:])
		if out, err := run(nil, "verify", file("data"), file("tree"), hex.EncodeToString(p.Root)); err == nil {
			t.Errorf("expected veritysetup to see the damage, found\n%s", out)
		}
		if _, left, err := p.Repair(area); err != nil || left.Err() != nil {
			t.Fatalf("%d blocks, %d roots: expected the damage to be repaired, found %v, %v", c.blocks, c.roots, left, err)
		}
		write(t, file("data"), area[:p.Size])
		write(t, file("tree"), area[p.Size:])
		if out, err := run(nil, "verify", file("data"), file("tree"), hex.EncodeToString(p.Root)); err != nil {
			t.Errorf("expected veritysetup to verify what was repaired: %v\n%s", err, out)
		}
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// FuzzRepair: whatever is wrong, and wherever, what is written is proved by the root.
func FuzzRepair(f *testing.F) {
	f.Add([]byte{0, 0, 1, 200, 3, 4}, byte(2))
	f.Add(bytes.Repeat([]byte{7, 9, 255}, 60), byte(5))
	f.Fuzz(func(t *testing.T, changes []byte, roots byte) {
		area, p := protect(t, "sha256", 300, 2+int(roots)%23)
		want, parity := bytes.Clone(area), p.Parity.(fixed)
		for i := 0; i+2 < len(changes) && i < 900; i += 3 {
			at := (int(changes[i])<<8 | int(changes[i+1])) * 31
			if changes[i+2]&1 != 0 {
				area[at%len(area)] ^= changes[i+2]
			} else {
				parity[at%len(parity)] ^= changes[i+2]
			}
		}
		repaired, left, err := p.Repair(area)
		if err != nil {
			t.Fatal(err)
		}
		if left.Err() == nil && !bytes.Equal(area, want) {
			t.Fatal("expected the data as they were, found others")
		}
		for block := range repaired.Data.All() {
			if left.Tree.Count() == 0 && !bytes.Equal(area[block*small:][:small], want[block*small:][:small]) {
				t.Fatalf("block %d: expected it to be repaired, found something else", block)
			}
		}
	})
}

func BenchmarkTree(b *testing.B) {
	data := noise(1, 64<<20)
	tree, err := NewTree("sha256", noise(2, 32), small)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := tree.Root(bytes.NewReader(data), int64(len(data))); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	area, p := protect(b, "sha256", 100000, 2)
	b.SetBytes(p.Size)
	for b.Loop() {
		if d, err := p.Tree.Check(area, p.Size, bytes.NewReader(area[p.Size:]), p.Root); err != nil || d.Err() != nil {
			b.Fatal(err, d.Err())
		}
	}
}

func BenchmarkRepair(b *testing.B) {
	area, p := protect(b, "sha256", 100000, 2)
	b.SetBytes(small)
	for b.Loop() {
		spoil(area, 100)
		if _, _, err := p.Repair(area); err != nil {
			b.Fatal(err)
		}
	}
}
