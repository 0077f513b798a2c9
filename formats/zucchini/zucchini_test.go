package zucchini

import (
	"bytes"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

// makePatch makes a patch with one element of a kind.
func makePatch(t testing.TB, k Kind, source, target []byte) *Patch {
	t.Helper()
	p := &Patch{SourceSize: uint32(len(source)), TargetSize: uint32(len(target)), SourceCRC: crc32.ChecksumIEEE(source), TargetCRC: crc32.ChecksumIEEE(target)}
	e, ok := createElement(elementMatch{k, Region{0, p.SourceSize}, Region{0, p.TargetSize}}, source, target)
	if !ok {
		t.Fatalf("no element of kind %v", k)
	}
	p.Elements = []Element{e}
	return p
}

func mustApply(t testing.TB, b, source, target []byte) {
	t.Helper()
	p, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	got, err := p.Apply(source, int64(len(target)))
	if err != nil || !bytes.Equal(got, target) {
		t.Fatalf("target of %d bytes became %d, %v", len(target), len(got), err)
	}
}

// Elements of every kind round-trip, and references make them smaller than raw
// ones.
func TestKinds(t *testing.T) {
	for _, k := range allKinds {
		var size, rawSize int
		for seed := range uint64(8) {
			source, target := makeImage(k, seed, 1), makeImage(k, seed, 3+int(seed))
			b := makePatch(t, k, source, target).AppendTo(nil)
			mustApply(t, b, source, target)
			if again := makePatch(t, k, source, target).AppendTo(nil); !bytes.Equal(again, b) {
				t.Errorf("%v: other bytes the second time", k)
			}
			size += len(b)
			rawSize += len(makePatch(t, NoOp, source, target).AppendTo(nil))
		}
		if k != NoOp && k != Dex && k != Text && size >= rawSize {
			t.Errorf("%v: %d bytes, raw %d", k, size, rawSize)
		}
		t.Logf("%v: %d bytes, raw %d", k, size, rawSize)
	}
}

// Every type of reference occurs in the images that tests use.
func TestImagesHaveAllTypes(t *testing.T) {
	for _, k := range allKinds {
		groups, err := disassemble(k, makeImage(k, 1, 1))
		if err != nil {
			t.Fatalf("%v: %v", k, err)
		}
		for i, g := range groups {
			if n := len(g.read()); n == 0 && k != ElfARM && k != Text {
				t.Errorf("%v: no references of type %d", k, i)
			}
		}
	}
}

// A reference that is read and written again leaves the image as it was, and
// written into another place of its type leads to the same target.
func TestWriteIsInverse(t *testing.T) {
	for _, k := range allKinds {
		img := makeImage(k, 5, 2)
		groups, err := disassemble(k, img)
		if err != nil {
			t.Fatal(err)
		}
		for i, g := range groups {
			refs := g.read()
			for j, r := range refs {
				b := bytes.Clone(img)
				if g.write(b, r); !bytes.Equal(b, img) {
					t.Fatalf("%v type %d: reference %+v changes the image", k, i, r)
				}
				other := refs[(j+1)%len(refs)]
				g.write(b, reference{r.location, other.target})
				after, err := disassemble(k, b)
				if err != nil {
					continue
				}
				found := after[i].within(after[i].read(), r.location, r.location+g.width)
				if len(found) == 1 && found[0] != (reference{r.location, other.target}) && found[0] != r {
					t.Fatalf("%v type %d: expected %+v to %d, found %+v", k, i, r, other.target, found)
				}
			}
		}
	}
}

// Whatever is damaged, there is an error or the target.
func TestDamage(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, k := range allKinds {
		source, target := makeImage(k, 1, 1), makeImage(k, 1, 4)
		good := makePatch(t, k, source, target).AppendTo(nil)
		apply := func(b, source []byte) {
			p, err := Parse(b)
			if err != nil {
				return
			}
			if got, err := p.Apply(source, int64(len(target))); err == nil && !bytes.Equal(got, target) {
				t.Errorf("%v: damage gave another target", k)
			}
		}
		for range 200 {
			b := bytes.Clone(good)
			for range 1 + r.IntN(3) {
				b[r.IntN(len(b))] ^= 1 << r.IntN(8)
			}
			apply(b, source)
			apply(good[:r.IntN(len(good))], source)
		}
		b := bytes.Clone(source)
		b[r.IntN(len(b))] ^= 16
		if p, _ := Parse(good); p != nil {
			if _, err := p.Apply(b, int64(len(target))); !errors.Is(err, ErrSource) {
				t.Errorf("expected ErrSource, found %v", err)
			}
		}
	}
}

// Damaged images are no images, or images with other references; nothing worse.
func TestDamagedImages(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, k := range allKinds {
		good := makeImage(k, 1, 1)
		for range 100 {
			b := bytes.Clone(good)
			for range 1 + r.IntN(4) {
				b[r.IntN(len(b))] = byte(r.Uint32())
			}
			// Headers are few bytes: they get more than their share.
			b[r.IntN(64)] ^= byte(r.IntN(2)) << r.IntN(8)
			touch(k, b)
			touch(k, b[:r.IntN(len(b))])
		}
	}
}

// touch reads and writes all that it can.
func touch(k Kind, b []byte) {
	groups, err := disassemble(k, b)
	if err != nil {
		return
	}
	for _, g := range groups {
		img := bytes.Clone(b)
		for _, r := range g.read() {
			if uint64(r.location)+uint64(g.width) <= uint64(len(b)) {
				g.write(img, reference{r.location, r.target + 4})
			}
		}
	}
}

func TestRefuses(t *testing.T) {
	source, target := makeImage(ElfX64, 1, 1), makeImage(ElfX64, 1, 2)
	good := makePatch(t, ElfX64, source, target).AppendTo(nil)
	const element = 28 // offset of the first one
	change := func(at int, v ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], v)
		return b
	}
	for _, c := range []struct {
		name string
		want error
		b    []byte
	}{
		{"nothing", ErrNotPatch, nil},
		{"magic", ErrNotPatch, change(0, 'z')},
		{"short", ErrCorrupt, good[:20]},
		{"version", ErrUnsupported, change(4, 2)},
		{"kind of Windows", ErrUnsupported, change(element+16, 'P')},
		{"element version", ErrUnsupported, change(element+20, 2)},
		{"gap before an element", ErrCorrupt, change(element+8, 1)},
		{"empty element", ErrCorrupt, change(element+12, 0, 0, 0, 0)},
		{"source beyond its end", ErrCorrupt, change(element, 0, 0, 0, 1)},
		{"no elements", ErrCorrupt, change(24, 0, 0, 0, 0)},
		{"rest", ErrCorrupt, append(bytes.Clone(good), 0)},
		{"length of 2 GiB", ErrCorrupt, change(16, 255, 255, 255, 255)},
	} {
		if _, err := Parse(c.b); !errors.Is(err, c.want) {
			t.Errorf("%s: expected %v, found %v", c.name, c.want, err)
		}
	}
	p, err := Parse(good)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		want   error
		change func(p *Patch, e *Element)
	}{
		{"target checksum", ErrTarget, func(p *Patch, _ *Element) { p.TargetCRC++ }},
		{"source checksum", ErrSource, func(p *Patch, _ *Element) { p.SourceCRC++ }},
		{"kind", ErrImage, func(_ *Patch, e *Element) { e.Kind = ElfARM64 }},
		{"extra data", ErrCorrupt, func(_ *Patch, e *Element) { e.extra = append(e.extra[:len(e.extra):len(e.extra)], 0) }},
		{"more reference deltas", ErrCorrupt, func(_ *Patch, e *Element) { e.refDelta = append(e.refDelta[:len(e.refDelta):len(e.refDelta)], 0) }},
		{"less reference deltas", ErrCorrupt, func(_ *Patch, e *Element) { e.refDelta = e.refDelta[:len(e.refDelta)-1] }},
		{"no raw delta", ErrCorrupt, func(_ *Patch, e *Element) { e.rawSkip, e.rawDiff = []byte{0}, []byte{0} }},
		{"raw delta far away", ErrCorrupt, func(_ *Patch, e *Element) { e.rawSkip, e.rawDiff = []byte{0xff, 0xff, 0x7f}, []byte{1} }},
		{"unknown pool", ErrCorrupt, func(_ *Patch, e *Element) { e.pools = append(e.pools[:len(e.pools):len(e.pools)], pool{tag: 9}) }},
		{"copies from nowhere", ErrCorrupt, func(_ *Patch, e *Element) { e.srcSkip = append([]byte{1}, e.srcSkip[1:]...) }},
		{"references in raw data", ErrCorrupt, func(_ *Patch, e *Element) { e.Kind = NoOp }},
	} {
		q := *p
		q.Elements = []Element{p.Elements[0]}
		c.change(&q, &q.Elements[0])
		if _, err := q.Apply(source, int64(len(target))); !errors.Is(err, c.want) {
			t.Errorf("%s: expected %v, found %v", c.name, c.want, err)
		}
	}
	if _, err := p.Apply(source, int64(len(target))+1); !errors.Is(err, ErrCorrupt) {
		t.Errorf("other size: found %v", err)
	}
	if _, err := p.Apply(source[1:], int64(len(target))); !errors.Is(err, ErrSource) {
		t.Errorf("short source: found %v", err)
	}
}

func TestUnpackLimit(t *testing.T) {
	blob, err := Pack(make([]byte, 1<<20), 9)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Unpack(blob, 1<<20-1); !errors.Is(err, ErrLength) {
		t.Errorf("expected ErrLength, found %v", err)
	}
	if b, err := Unpack(blob, 1<<20); err != nil || len(b) != 1<<20 {
		t.Errorf("found %d bytes, %v", len(b), err)
	}
	if _, err := Unpack(blob[:len(blob)-2], 1<<21); !errors.Is(err, ErrCorrupt) {
		t.Errorf("expected ErrCorrupt, found %v", err)
	}
}

// Patches have to be independent of how equivalences that tie are ordered.
func TestCreateLeavesNoTies(t *testing.T) {
	source := makeImage(ElfX64, 1, 1)
	part := source[0x200:0x400]
	target := append(append(append(bytes.Clone(source), part...), part...), part...)
	e, _ := createElement(elementMatch{NoOp, Region{0, uint32(len(source))}, Region{0, uint32(len(target))}}, source, target)
	all, err := e.equivalences()
	if err != nil || len(all) < 3 {
		t.Fatalf("%d equivalences, %v", len(all), err)
	}
	want, err := prune(stable.sorted(all))
	if err != nil {
		t.Fatal(err)
	}
	for o := stable; o < tieOrders; o++ {
		got, err := prune(o.sorted(all))
		if err != nil || !bytes.Equal(flat(got), flat(want)) {
			t.Errorf("order %d: %v instead of %v, %v", o, got, want, err)
		}
	}
}

func flat(all []equivalence) (b []byte) {
	for _, e := range all {
		b = appendNumber(appendNumber(appendNumber(b, e.src), e.dst), e.length)
	}
	return b
}

// The source's checksum and the lengths are put right, so that fuzzing gets
// behind them; the target's is left to be wrong.
func FuzzApply(f *testing.F) {
	for _, k := range allKinds {
		source, target := makeImage(k, 1, 1), makeImage(k, 1, 2)
		f.Add(makePatch(f, k, source, target).AppendTo(nil), source)
	}
	f.Fuzz(func(t *testing.T, patch, source []byte) {
		p, err := Parse(patch)
		if err != nil {
			return
		}
		if again := p.AppendTo(nil); !bytes.Equal(again[8:], patch[8:]) {
			t.Fatalf("patch of %d bytes became %d", len(patch), len(again))
		}
		if p.TargetSize > 1<<20 {
			return
		}
		p.SourceCRC = crc32.ChecksumIEEE(source)
		target, err := p.Apply(source, int64(p.TargetSize))
		if err == nil && crc32.ChecksumIEEE(target) != p.TargetCRC {
			t.Fatal("wrong target without an error")
		}
	})
}

// Images come from elsewhere: whatever they are, patches between them hold.
func FuzzCreate(f *testing.F) {
	for _, k := range allKinds {
		f.Add(makeImage(k, 1, 1), makeImage(k, 1, 2))
	}
	f.Fuzz(func(t *testing.T, source, target []byte) {
		for _, k := range allKinds {
			touch(k, source)
		}
		p, err := Create(source, target)
		if err != nil {
			return
		}
		mustApply(t, p.AppendTo(nil), source, target)
	})
}

// The types of references and their pools, in order: specs/payload.md 10.
func TestTypes(t *testing.T) {
	for k, pools := range map[Kind][]byte{
		NoOp: nil, ElfX86: {0, 1, 2}, ElfX64: {0, 1, 2}, ElfARM: {0, 1, 2, 2, 2, 2, 2}, ElfARM64: {0, 1, 2, 2, 2},
		Dex: {0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 6, 7, 7, 8, 9, 9, 9, 9, 10, 11, 11, 11,
			12, 13, 14, 15, 16},
		Text: {0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3},
	} {
		groups, err := disassemble(k, makeImage(k, 1, 1))
		if err != nil {
			t.Fatal(err)
		}
		var found []byte
		for _, g := range groups {
			found = append(found, g.pool)
		}
		if !bytes.Equal(found, pools) {
			t.Errorf("%v: expected pools %v, found %v", k, pools, found)
		}
	}
}

// What some known instructions point to.
func TestBranches(t *testing.T) {
	for _, c := range []struct {
		name          string
		b             *branch
		address, code uint32
		target        uint32
	}{
		{"b", &armBranches[0], 0x103050, 0xea020100, 0x183458},
		{"bl backwards", &armBranches[0], 0x8000, 0xebfffffe, 0x8000},
		{"blx to the middle of a word", &armBranches[0], 0x8000, 0xfb000000, 0x800a},
		{"beq, narrow", &armBranches[1], 0x1000, 0xd0fe, 0x1000},
		{"b, narrow", &armBranches[2], 0x1002, 0xe7fe, 0x1002},
		{"beq, wide", &armBranches[3], 0x1000, 0xf0008001, 0x1006},
		{"beq, wide, backwards", &armBranches[3], 0x1000, 0xf43faffe, 0x1000},
		{"bl", &armBranches[4], 0x1030a2, 0xf000fa01, 0x1034a8},
		{"blx rounds down", &armBranches[4], 0x1002, 0xf000e800, 0x1004},
		{"b of AArch64", &arm64Branches[2], 0x305070, 0x14010203, 0x34587c},
		{"cbz", &arm64Branches[1], 0x1000, 0xb4ffffe0, 0xffc},
		{"tbnz", &arm64Branches[0], 0x1000, 0x37080040, 0x1008},
	} {
		target, ok := c.b.target(c.address, c.code)
		if !ok || target != c.target {
			t.Errorf("%s: expected %#x, found %#x, %v", c.name, c.target, target, ok)
		}
		for _, to := range []uint32{c.address + 0x20, c.address - 0x20} {
			to &^= 3
			code, ok := c.b.retarget(c.address, c.code, to)
			if found, _ := c.b.target(c.address, code); !ok || found != to {
				t.Errorf("%s to %#x: %#x leads to %#x, %v", c.name, to, code, found, ok)
			}
		}
		if _, ok := c.b.retarget(c.address, c.code, c.address+1<<30); ok {
			t.Errorf("%s: leads farther than it can", c.name)
		}
		if _, ok := c.b.target(c.address, 0); ok {
			t.Errorf("%s: another instruction is taken for it", c.name)
		}
	}
}
