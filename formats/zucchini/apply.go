package zucchini

import (
	"fmt"
	"hash/crc32"
	"slices"
)

// Apply makes the target, which must become size bytes long, from all of the
// source. Errors wrap one of the package's. It is safe for concurrent use.
func (p *Patch) Apply(source []byte, size int64) ([]byte, error) {
	if err := p.check(source, size); err != nil {
		return nil, err
	}
	target := make([]byte, size)
	return target, p.apply(target, source)
}

// ApplyTo is Apply with memory of the caller's, which holds zeros, and some of the
// target after an error.
func (p *Patch) ApplyTo(target, source []byte) error {
	if err := p.check(source, int64(len(target))); err != nil {
		return err
	}
	return p.apply(target, source)
}

func (p *Patch) check(source []byte, size int64) error {
	if int64(p.TargetSize) != size {
		return refuse(ErrCorrupt, "target length", size, p.TargetSize)
	}
	if int64(len(source)) != int64(p.SourceSize) {
		return refuse(ErrSource, "length", p.SourceSize, len(source))
	}
	if sum := crc32.ChecksumIEEE(source); sum != p.SourceCRC {
		return refuse(ErrSource, "CRC-32", hex(p.SourceCRC), hex(sum))
	}
	return nil
}

func (p *Patch) apply(target, source []byte) error {
	builds := make([]*build, len(p.Elements))
	for i := range p.Elements {
		b, err := newBuild(&p.Elements[i], source, target)
		if err != nil {
			return fmt.Errorf("element %d: %w", i, err)
		}
		builds[i] = b
	}
	return p.finish(builds, target)
}

func hex(v uint32) string { return fmt.Sprintf("%#08x", v) }

// finish tries the orders of equivalences that tie, until the checksum is right.
func (p *Patch) finish(builds []*build, target []byte) (first error) {
	for order := stable; order < tieOrders; order++ {
		changed := order == stable
		for i, b := range builds {
			new, err := b.references(order)
			if err != nil && order == stable {
				return fmt.Errorf("element %d: %w", i, err)
			}
			changed = changed || new && err == nil
		}
		if !changed {
			continue
		}
		sum := crc32.ChecksumIEEE(target)
		if sum == p.TargetCRC {
			return nil
		}
		if first == nil {
			first = refuse(ErrTarget, "CRC-32", hex(p.TargetCRC), hex(sum))
		}
	}
	return first
}

// build is an element in the making.
type build struct {
	*Element
	source, target []byte
	all            []equivalence
	before         []byte        // the target with references as they were, if there are ties
	current        []equivalence // in the order that references were corrected in
}

// newBuild does all but the references, which depend on an order.
func newBuild(e *Element, source, target []byte) (*build, error) {
	b := &build{Element: e, source: source[e.Source.Offset:e.Source.end()], target: target[e.Target.Offset:e.Target.end()]}
	var err error
	if b.all, err = e.equivalences(); err != nil {
		return nil, err
	}
	b.copy()
	return b, b.rawDeltas()
}

// copy brings over what the equivalences say, and extra data between them.
func (b *build) copy() {
	at, extra := uint32(0), b.extra
	for _, e := range b.all {
		extra = extra[copy(b.target[at:e.dst], extra):]
		copy(b.target[e.dst:e.dstEnd()], b.source[e.src:])
		at = e.dstEnd()
	}
	copy(b.target[at:], extra)
}

// rawDeltas corrects bytes. Offsets count through all equivalences.
func (b *build) rawDeltas() error {
	skips := ascending{numbers: numbers{b: b.rawSkip, what: "raw delta skips"}}
	base, rest := uint32(0), b.all
	for _, diff := range b.rawDiff {
		if skips.done() {
			return refuse(ErrCorrupt, "raw delta skips", len(b.rawDiff), "less")
		}
		at, err := skips.next()
		if err != nil {
			return err
		}
		for len(rest) > 0 && at-base >= rest[0].length {
			base += rest[0].length
			rest = rest[1:]
		}
		if len(rest) == 0 || diff == 0 {
			return refuse(ErrCorrupt, fmt.Sprintf("raw delta at %d", at), "a change inside of an equivalence", diff)
		}
		b.target[rest[0].dst+at-base] += diff
	}
	if !skips.done() {
		return refuse(ErrCorrupt, "raw delta skips", len(b.rawDiff), "more")
	}
	return nil
}

// references corrects the references, with equivalences that tie in an order.
// It tells whether that is another order than the current one.
func (b *build) references(order tieOrder) (changed bool, err error) {
	if b.Kind == NoOp {
		return false, b.noReferences()
	}
	sorted := order.sorted(b.all)
	if slices.Equal(b.current, sorted) && order != stable {
		return false, nil
	}
	if b.before != nil {
		copy(b.target, b.before)
	} else if ties(sorted) {
		b.before = slices.Clone(b.target)
	}
	b.current = slices.Clone(sorted)
	return true, b.correct(sorted)
}

// noReferences is how it must be in raw data.
func (b *build) noReferences() error {
	if len(b.refDelta) > 0 || len(b.pools) > 0 {
		return refuse(ErrCorrupt, b.Kind.String(), "no references", fmt.Sprintf("%d bytes of them", len(b.refDelta)))
	}
	return nil
}

func ties(sorted []equivalence) bool {
	for i := 1; i < len(sorted); i++ {
		if sorted[i].src == sorted[i-1].src {
			return true
		}
	}
	return false
}

func (b *build) correct(sorted []equivalence) error {
	old, err := disassemble(b.Kind, b.source)
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	// The target's headers are as they will be: references are elsewhere.
	new, err := disassemble(b.Kind, b.target)
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	pruned, err := prune(sorted)
	if err != nil {
		return err
	}
	c := correction{build: b, mapper: mapper{pruned, b.Source.Length, b.Target.Length}, deltas: numbers{b: b.refDelta, what: "reference deltas"}}
	pools := 0
	for first := 0; first < len(old); pools++ {
		n := poolSize(old[first:])
		if err := c.pool(old[first:first+n], new[first:first+n]); err != nil {
			return err
		}
		first += n
	}
	if !c.deltas.done() {
		return refuse(ErrCorrupt, "reference deltas", c.deltas.at, len(c.deltas.b))
	}
	for _, p := range b.pools {
		if int(p.tag) >= pools {
			return refuse(ErrCorrupt, "extra targets", fmt.Sprintf("%d pools", pools), fmt.Sprintf("pool %d", p.tag))
		}
	}
	return nil
}

// poolSize is how many groups share the first one's pool; they follow each
// other.
func poolSize(groups []group) int {
	n := 0
	for n < len(groups) && groups[n].pool == groups[0].pool {
		n++
	}
	return n
}

// correction is the state of correcting an element's references.
type correction struct {
	*build
	mapper mapper
	deltas numbers
}

// pool corrects the references of the groups that share a pool.
func (c *correction) pool(old, new []group) error {
	refs := make([][]reference, len(old))
	var offsets []uint32
	for i := range old {
		refs[i] = old[i].read()
		for _, r := range untilInvalid(refs[i]) {
			offsets = append(offsets, r.target)
		}
	}
	pool, err := c.targets(old[0].pool, offsets)
	if err != nil {
		return err
	}
	for i := range old {
		if err := c.group(&old[i], &new[i], refs[i], pool); err != nil {
			return err
		}
	}
	return nil
}

// targets makes a pool of the source's targets and those that the patch adds.
func (c *correction) targets(tag byte, offsets []uint32) (targets, error) {
	pool := c.mapper.projectCovered(sortUnique(offsets))
	for extra := c.extraTargets(tag); !extra.done(); {
		v, err := extra.next()
		if err != nil {
			return nil, err
		}
		pool = append(pool, v)
	}
	return sortUnique(pool), nil
}

func (c *correction) group(old, new *group, refs []reference, pool targets) error {
	for _, e := range c.all {
		for _, r := range old.within(refs, e.src, e.srcEnd()) {
			if c.deltas.done() {
				return refuse(ErrCorrupt, "reference deltas", "more", len(c.deltas.b))
			}
			delta, err := c.deltas.nextSigned()
			if err != nil {
				return err
			}
			key := pool.nearest(c.mapper.project(r.target)) + uint32(delta)
			if key >= uint32(len(pool)) {
				return refuse(ErrCorrupt, fmt.Sprintf("reference at %d", r.location), fmt.Sprintf("a key below %d", len(pool)), key)
			}
			at := r.location - e.src + e.dst
			if uint64(at)+uint64(new.width) > uint64(len(c.target)) {
				return refuse(ErrCorrupt, fmt.Sprintf("reference at %d", at), "room for it", len(c.target))
			}
			new.write(c.target, reference{at, pool[key]})
		}
	}
	return nil
}
