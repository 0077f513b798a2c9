package zucchini

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/andybalholm/brotli"
)

// MaxCreate is how long source and target can be at most for Create, in bytes.
const MaxCreate = 1 << 30

// Create makes a patch from source to target. ELF images in the target are
// compared to the most similar ones in the source, the rest is taken as raw
// bytes. Equal input gives equal bytes. It takes some 15 times the length of
// both. The only error is ErrLength.
func Create(source, target []byte) (*Patch, error) {
	for _, n := range []int{len(source), len(target)} {
		if n < 1 || n > MaxCreate {
			return nil, refuse(ErrLength, "source and target", fmt.Sprintf("1 to %d bytes", MaxCreate), n)
		}
	}
	p := &Patch{SourceSize: uint32(len(source)), TargetSize: uint32(len(target)),
		SourceCRC: crc32.ChecksumIEEE(source), TargetCRC: crc32.ChecksumIEEE(target)}
	at := uint32(0)
	for _, m := range matchElements(source, target) {
		e, ok := createElement(m, source, target)
		if !ok {
			continue
		}
		p.addRaw(source, target, at, e.Target.Offset)
		p.Elements = append(p.Elements, e)
		at = uint32(e.Target.end())
	}
	p.addRaw(source, target, at, p.TargetSize)
	return p, nil
}

// addRaw makes an element of what is between two others, from all of the source.
func (p *Patch) addRaw(source, target []byte, from, to uint32) {
	if from < to {
		e, _ := createElement(elementMatch{NoOp, Region{0, p.SourceSize}, Region{from, to - from}}, source, target)
		p.Elements = append(p.Elements, e)
	}
}

// Pack compresses a patch as payloads have it, by brotli with a quality of 1 to 11.
func Pack(patch []byte, quality int) ([]byte, error) {
	var b bytes.Buffer
	w := brotli.NewWriterOptions(&b, brotli.WriterOptions{Quality: quality, LGWin: 20})
	if _, err := w.Write(patch); err != nil {
		return nil, err
	}
	err := w.Close()
	return b.Bytes(), err
}

// AppendTo appends the patch, as Parse reads it, to b.
func (p *Patch) AppendTo(b []byte) []byte {
	le := binary.LittleEndian
	b = append(b, magic...)
	b = le.AppendUint16(le.AppendUint16(b, major), minor)
	for _, v := range []uint32{p.SourceSize, p.SourceCRC, p.TargetSize, p.TargetCRC, uint32(len(p.Elements))} {
		b = le.AppendUint32(b, v)
	}
	for i := range p.Elements {
		b = p.Elements[i].appendTo(b)
	}
	return b
}

func (e *Element) appendTo(b []byte) []byte {
	le := binary.LittleEndian
	for _, v := range []uint32{e.Source.Offset, e.Source.Length, e.Target.Offset, e.Target.Length, uint32(e.Kind)} {
		b = le.AppendUint32(b, v)
	}
	b = le.AppendUint16(b, elementVer)
	for _, buf := range [][]byte{e.srcSkip, e.dstSkip, e.copyCount, e.extra, e.rawSkip, e.rawDiff, e.refDelta} {
		b = append(le.AppendUint32(b, uint32(len(buf))), buf...)
	}
	b = le.AppendUint32(b, uint32(len(e.pools)))
	for _, p := range e.pools {
		b = append(le.AppendUint32(append(b, p.tag), uint32(len(p.extra))), p.extra...)
	}
	return b
}

// elementMatch is an element before it has contents.
type elementMatch struct {
	kind           Kind
	source, target Region
}

// creation is an element in the making, the other way round.
type creation struct {
	e              Element
	source, target []byte
	old, new       side
	all            []equivalence
	mapper         mapper
}

// side is an image and its references, by type.
type side struct {
	groups []group
	refs   [][]reference
	view   *view
}

// newSide fails for an image whose references overlap or make no sense.
func newSide(k Kind, img []byte) (s side, ok bool) {
	var err error
	if s.groups, err = disassemble(k, img); err != nil {
		return s, false
	}
	for _, g := range s.groups {
		refs := g.read()
		if len(untilInvalid(refs)) < len(refs) {
			return s, false
		}
		s.refs = append(s.refs, refs)
	}
	s.view = newView(img, s.refs, s.groups)
	return s, s.view != nil
}

// createElement returns false if the region must be taken as raw bytes. Raw
// bytes always succeed.
func createElement(m elementMatch, source, target []byte) (Element, bool) {
	c := creation{e: Element{Kind: m.kind, Source: m.source, Target: m.target}, source: source[m.source.Offset:m.source.end()],
		target: target[m.target.Offset:m.target.end()]}
	var ok, ok2 bool
	c.old, ok = newSide(m.kind, c.source)
	c.new, ok2 = newSide(m.kind, c.target)
	if !ok || !ok2 {
		return c.e, false
	}
	c.all = findMatches(c.old.view, c.new.view)
	c.untie()
	pruned, err := prune(stable.sorted(c.all))
	if err != nil {
		return c.e, false
	}
	c.mapper = mapper{pruned, m.source.Length, m.target.Length}
	c.putEquivalences()
	if !c.putReferences() {
		return c.e, false
	}
	c.putRawDeltas()
	return c.e, m.kind == NoOp || c.applies()
}

// untie shortens equivalences of equal length with equal sources, as their order
// would matter.
func (c *creation) untie() {
	for {
		byAll := slices.Clone(c.all)
		slices.SortFunc(byAll, func(a, b equivalence) int {
			return cmp.Or(bySource(a, b), cmp.Compare(a.length, b.length), cmp.Compare(a.dst, b.dst))
		})
		tied := map[uint32]bool{} // by target
		for i := 1; i < len(byAll); i++ {
			if a, b := byAll[i-1], byAll[i]; a.src == b.src && a.length == b.length {
				tied[b.dst] = true
			}
		}
		if len(tied) == 0 {
			return
		}
		c.shorten(tied)
	}
}

// shorten takes the last byte, or reference, from some equivalences.
func (c *creation) shorten(which map[uint32]bool) {
	for i := range c.all {
		e := &c.all[i]
		if !which[e.dst] {
			continue
		}
		for e.length--; continues(c.new.view.role[e.dstEnd()]); e.length-- {
		}
	}
	c.all = slices.DeleteFunc(c.all, func(e equivalence) bool { return e.length == 0 })
}

func (c *creation) putEquivalences() {
	var prev equivalence
	for _, e := range c.all {
		c.e.srcSkip = appendSigned(c.e.srcSkip, int32(e.src-prev.srcEnd()))
		c.e.dstSkip = appendNumber(c.e.dstSkip, e.dst-prev.dstEnd())
		c.e.copyCount = appendNumber(c.e.copyCount, e.length)
		c.e.extra = append(c.e.extra, c.target[prev.dstEnd():e.dst]...)
		prev = e
	}
	c.e.extra = append(c.e.extra, c.target[prev.dstEnd():]...)
}

// putReferences goes through the pools as correction does.
func (c *creation) putReferences() bool {
	for first := 0; first < len(c.old.groups); {
		n := poolSize(c.old.groups[first:])
		pool := c.putPool(first, first+n)
		for t := first; t < first+n; t++ {
			if !c.putGroup(t, pool) {
				return false
			}
		}
		first += n
	}
	return true
}

// putPool makes the pool of some types, and notes what the source does not have.
func (c *creation) putPool(from, to int) targets {
	collect := func(s *side) (t targets) {
		for _, refs := range s.refs[from:to] {
			for _, r := range refs {
				t = append(t, r.target)
			}
		}
		return sortUnique(t)
	}
	have, want := sortUnique(c.mapper.projectCovered(collect(&c.old))), collect(&c.new)
	p := pool{tag: c.old.groups[from].pool}
	least := uint32(0)
	all := slices.Clone(have)
	for _, t := range want {
		if _, found := slices.BinarySearch(have, t); !found {
			p.extra = appendNumber(p.extra, t-least)
			least = t + 1
			all = append(all, t)
		}
	}
	c.e.pools = append(c.e.pools, p)
	return sortUnique(all)
}

func (c *creation) putGroup(t int, pool targets) bool {
	for _, e := range c.all {
		old := c.old.groups[t].within(c.old.refs[t], e.src, e.srcEnd())
		new := c.new.groups[t].within(c.new.refs[t], e.dst, e.dstEnd())
		if len(old) != len(new) {
			return false
		}
		for i, r := range new {
			key, found := slices.BinarySearch(pool, r.target)
			if !found || r.target >= maxOffset {
				return false
			}
			c.e.refDelta = appendSigned(c.e.refDelta, int32(uint32(key)-pool.nearest(c.mapper.project(old[i].target))))
		}
	}
	return true
}

// putRawDeltas compares bytes. Of references it compares what stays when they
// are written.
func (c *creation) putRawDeltas() {
	base, least := uint32(0), uint32(0)
	want := c.beforeReferences()
	for _, e := range c.all {
		for i := range e.length {
			diff := want[e.dst+i] - c.source[e.src+i]
			if diff != 0 {
				c.e.rawSkip = appendNumber(c.e.rawSkip, base+i-least)
				c.e.rawDiff = append(c.e.rawDiff, diff)
				least = base + i + 1
			}
		}
		base += e.length
	}
}

// beforeReferences is the target with references as they may be before they are
// corrected: as in the source, but where that would not do.
func (c *creation) beforeReferences() []byte {
	want := slices.Clone(c.target)
	for t, g := range c.new.groups {
		for _, e := range c.all {
			for _, r := range g.within(c.new.refs[t], e.dst, e.dstEnd()) {
				from := r.location - e.dst + e.src
				at, old := want[r.location:r.location+g.width], c.source[from:from+g.width]
				g.mixIn(at, old)
				if g.write(want, r); bytes.Equal(at, c.target[r.location:r.location+g.width]) {
					g.mixIn(at, old)
				} else {
					copy(at, c.target[r.location:])
				}
			}
		}
	}
	return want
}

// applies makes the target with the patch, for whatever should not have come back
// as it was.
func (c *creation) applies() bool {
	target := make([]byte, len(c.target))
	e := c.e
	e.Source.Offset, e.Target.Offset = 0, 0
	for order := stable; order < tieOrders; order++ {
		b, err := newBuild(&e, c.source, target)
		if err == nil {
			_, err = b.references(order)
		}
		if err != nil || !bytes.Equal(target, c.target) {
			return false
		}
		if !ties(stable.sorted(c.all)) {
			return true
		}
	}
	return true
}
