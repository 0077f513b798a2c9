package cow

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"cowbird/formats/compress"
	"cowbird/formats/cowfile"
)

// sample is a generated COW with its base and the target it stands for, which
// is computed here by the definition of the ops and nothing else.
type sample struct {
	name              string
	cow, base, target []byte
	ops               []cowfile.Op
}

// generate makes a random valid COW. Every kind of op, source alignment,
// version and compression occurs; ordered ops overlap heavily.
func generate(t testing.TB, seed uint64, blocks int, scratch bool) sample {
	t.Helper()
	g := generator{r: rand.New(rand.NewPCG(seed, 99)), scratch: scratch}
	g.base = make([]byte, blocks*blockSize)
	for i := range g.base {
		if i%blockSize < 64 || i%7 == 0 { // compressible, but every block its own
			g.base[i] = byte(g.r.Uint32())
		}
	}
	g.target = append([]byte(nil), g.base...)
	if g.r.IntN(4) == 0 { // a target that has grown
		g.target = append(g.target, make([]byte, g.r.IntN(6)*blockSize)...)
	}
	g.used, g.written = make([]bool, len(g.target)/blockSize), make([]bool, len(g.target)/blockSize)
	version := 2 + g.r.IntN(2)
	comp := cowfile.Compression(g.r.IntN(5))
	opts := cowfile.WriterOptions{Version: version, Compression: comp, OpCountMax: uint32(4 * blocks), NoScratch: !scratch, ClusterOps: 2 + g.r.IntN(9)}
	if scratch {
		opts.ScratchSize = []uint32{0, 64 << 10, 128 << 10}[g.r.IntN(3)]
	}
	if version == 3 {
		opts.MaxUnit = blockSize << g.r.IntN(5)
	}
	mem := &growMem{}
	w, err := cowfile.NewWriter(cowfile.WriteOnly(mem), opts)
	if err != nil {
		t.Fatal(err)
	}
	g.enc = encoder(t, version, comp, comp.DefaultLevel(), max(opts.MaxUnit, blockSize))
	g.w = w
	for range g.r.IntN(3 * blocks) {
		g.addOrdered(t)
	}
	for range g.r.IntN(blocks) {
		g.addUnordered(t, max(1, opts.MaxUnit/blockSize))
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("seed%d/v%d/%v/%d_blocks/%d_ops/scratch_%v", seed, version, comp, blocks, len(g.ops), scratch)
	return sample{name, mem.b, g.base, g.target, g.ops}
}

func compressor(t testing.TB, c cowfile.Compression, level, maxUnit int) func(dst, unit []byte) ([]byte, error) {
	t.Helper()
	f, err := compress.New(c.String(), level, maxUnit)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func encoder(t testing.TB, version int, c cowfile.Compression, level, maxUnit int) *cowfile.Encoder {
	t.Helper()
	return cowfile.NewEncoder(version, c, compressor(t, c, level, maxUnit))
}

type generator struct {
	r             *rand.Rand
	scratch       bool
	base, target  []byte
	used, written []bool // blocks that have an op; that an ordered op overwrites
	w             cowfile.Writer
	enc           *cowfile.Encoder
	ops           []cowfile.Op
}

// addOrdered adds a copy or xor op near its source, if the order allows it.
func (g *generator) addOrdered(t testing.TB) {
	n := g.r.IntN(len(g.used))
	last := len(g.base)/blockSize - 1
	src := max(0, min(last, n+g.r.IntN(7)-3))
	o := cowfile.Op{Type: cowfile.OpCopy, NewBlock: uint32(n), Source: uint64(src)}
	if g.r.IntN(3) == 0 {
		o.Type, o.Source = cowfile.OpXor, uint64(src*blockSize)
		if src < last && g.r.IntN(2) == 0 {
			o.Source += uint64(1 + g.r.IntN(blockSize-1))
		}
	}
	first, end := o.SourceBlocks()
	onItself := first <= uint64(n) && uint64(n) <= end
	if g.used[n] || g.written[first] || g.written[end] || onItself && o.Type == cowfile.OpCopy {
		return
	}
	g.used[n], g.written[n] = true, true
	off, _ := o.SourceRange()
	want := append([]byte(nil), g.base[off:off+blockSize]...)
	var stored []byte
	if o.Type == cowfile.OpXor {
		delta := g.random(1)
		xorBytes(want, delta)
		stored = g.encode(t, &o, delta)
	}
	copy(g.target[n*blockSize:], want)
	g.add(t, o, stored)
}

func (g *generator) addUnordered(t testing.TB, maxBlocks int) {
	n := g.r.IntN(len(g.used))
	units := 1 << g.r.IntN(4)
	for units > maxBlocks || n+units > len(g.used) {
		units /= 2
	}
	for i := range units {
		if g.used[n+i] {
			units = 0
			break
		}
	}
	if units == 0 {
		return
	}
	o := cowfile.Op{Type: cowfile.OpReplace, NewBlock: uint32(n), Factor: cowfile.FactorOf(uint32(units))}
	data := g.random(units)
	if g.r.IntN(4) == 0 {
		o.Type, o.Factor, units = cowfile.OpZero, 0, 1
		data = make([]byte, blockSize)
	}
	for i := range units {
		g.used[n+i] = true
	}
	copy(g.target[n*blockSize:], data)
	var stored []byte
	if o.Type == cowfile.OpReplace {
		stored = g.encode(t, &o, data)
	}
	g.add(t, o, stored)
}

// random returns contents of which some do not compress.
func (g *generator) random(blocks int) []byte {
	b := make([]byte, blocks*blockSize)
	every := []int{1, 5, 40}[g.r.IntN(3)]
	for i := 0; i < len(b); i += every {
		b[i] = byte(g.r.Uint32())
	}
	return b
}

func (g *generator) encode(t testing.TB, o *cowfile.Op, data []byte) []byte {
	stored, c, err := g.enc.Encode(data)
	if err != nil {
		t.Fatal(err)
	}
	o.Compression = c
	return append([]byte(nil), stored...)
}

func (g *generator) add(t testing.TB, o cowfile.Op, stored []byte) {
	if err := g.w.Add(o, stored); err != nil {
		t.Fatal(err)
	}
	g.ops = append(g.ops, o)
}

// growMem is a file in memory.
type growMem struct{ b []byte }

func (m *growMem) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p) - len(m.b); need > 0 {
		m.b = append(m.b, make([]byte, need)...)
	}
	return copy(m.b[off:], p), nil
}

// The generated samples have everything that makes a merge difficult.
func TestGeneratedSamples(t *testing.T) {
	found := map[string]int{}
	for seed := range uint64(few(60, 20)) {
		for what := range generate(t, seed, 40, seed%3 > 0).features() {
			found[what]++
		}
	}
	for _, what := range []string{
		"copy", "xor", "replace", "zero", "unit of several blocks", "unaligned xor", "op that reads its own block", "chain",
		"cycle broken by a replace op", "source beside what another op overwrites",
	} {
		if found[what] < 2 {
			t.Errorf("%s: expected in some samples, found in %d", what, found[what])
		}
	}
}

// features are the difficulties that occur in a sample.
func (c sample) features() map[string]bool {
	found, writer := map[string]bool{}, map[uint64]cowfile.Op{}
	for _, o := range c.ops {
		found[o.Type.String()] = true
		found["unit of several blocks"] = found["unit of several blocks"] || o.Blocks() > 1
		for b := range o.Blocks() {
			writer[uint64(o.NewBlock+b)] = o
		}
	}
	for _, o := range c.ops {
		if !o.Type.Ordered() {
			continue
		}
		first, last := o.SourceBlocks()
		found["unaligned xor"] = found["unaligned xor"] || first != last
		own := uint64(o.NewBlock)
		if first <= own && own <= last {
			found["op that reads its own block"] = true
			continue
		}
		w, ok := writer[first]
		switch {
		case !ok:
			found["source beside what another op overwrites"] = found["source beside what another op overwrites"] || writer[first+1].Type != 0
		case w.Type.Ordered():
			found["chain"] = true
		case w.Type == cowfile.OpReplace:
			found["cycle broken by a replace op"] = true
		}
	}
	return found
}
