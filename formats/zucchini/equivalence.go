package zucchini

import (
	"cmp"
	"fmt"
	"slices"
)

// equivalence says that length bytes of the target are, but for deltas, those of
// the source.
type equivalence struct{ src, dst, length uint32 }

func (e equivalence) srcEnd() uint32 { return e.src + e.length }
func (e equivalence) dstEnd() uint32 { return e.dst + e.length }

func bySource(a, b equivalence) int { return cmp.Compare(a.src, b.src) }

// equivalences reads and checks them: they are in the order of the target and
// do not overlap in it.
func (e *Element) equivalences() ([]equivalence, error) {
	src := numbers{b: e.srcSkip, what: "source skips"}
	dst := numbers{b: e.dstSkip, what: "target skips"}
	count := numbers{b: e.copyCount, what: "copy counts"}
	var all []equivalence
	var prev equivalence
	total := uint64(len(e.extra))
	for !src.done() || !dst.done() || !count.done() {
		skip, err := src.nextSigned()
		dstSkip, err2 := dst.next()
		length, err3 := count.next()
		if err := cmp.Or(err, err2, err3); err != nil {
			return nil, err
		}
		from, to := int64(prev.srcEnd())+int64(skip), uint64(prev.dstEnd())+uint64(dstSkip)
		if !inside(from, length, e.Source.Length) || !inside(int64(to), length, e.Target.Length) {
			return nil, refuse(ErrCorrupt, fmt.Sprintf("equivalence %d", len(all)), fmt.Sprintf("places in elements of %d and %d bytes",
				e.Source.Length, e.Target.Length), fmt.Sprintf("%d bytes from %d to %d", length, from, to))
		}
		prev = equivalence{uint32(from), uint32(to), length}
		all = append(all, prev)
		total += uint64(length)
	}
	if total != uint64(e.Target.Length) {
		return nil, refuse(ErrCorrupt, "equivalences and extra data", fmt.Sprintf("%d bytes", e.Target.Length), total)
	}
	return all, nil
}

func inside(offset int64, length, size uint32) bool {
	return offset >= 0 && offset < int64(size) && int64(length) <= int64(size)-offset
}

// maxLookAhead bounds the work of pruning. Real patches take a few steps for
// each equivalence.
const maxLookAhead = 1 << 28

// prune makes equivalences, sorted by source, cover every byte of the source at
// most once: specs/payload.md 10. Of those that overlap the longer one stays
// whole.
func prune(all []equivalence) ([]equivalence, error) {
	steps := 0
	for i := 0; i < len(all); i++ {
		current := &all[i]
		end := current.srcEnd()
		next := i + 1
		for next < len(all) && all[next].src < end && all[next].length <= current.length {
			next++
		}
		if steps += next - i; steps > maxLookAhead {
			return nil, refuse(ErrCorrupt, "equivalences", "fewer that overlap", len(all))
		}
		if next < len(all) && all[next].src < end { // it is longer
			current.length -= end - all[next].src
			for j := i + 1; j < next; j++ {
				all[j].length = 0
			}
			i = next - 1
			continue
		}
		for j := i + 1; j < next; j++ {
			all[j].cutFront(end)
		}
	}
	return slices.DeleteFunc(all, func(e equivalence) bool { return e.length == 0 }), nil
}

// cutFront lets e begin at src.
func (e *equivalence) cutFront(src uint32) {
	cut := min(e.length, src-e.src)
	e.length -= cut
	e.dst += cut
	e.src = src
}

// mapper projects offsets of the source into the target. It holds equivalences
// that are sorted by source and do not overlap there.
type mapper struct {
	all                    []equivalence
	sourceSize, targetSize uint32
}

// project finds where in the target an offset belongs, by the equivalence that
// covers it or the nearest one. There must be one.
func (m *mapper) project(offset uint32) uint32 {
	if offset >= m.sourceSize {
		return uint32(min(uint64(m.targetSize)+uint64(offset-m.sourceSize), maxOffset-1))
	}
	i, found := slices.BinarySearchFunc(m.all, offset, func(e equivalence, o uint32) int { return cmp.Compare(e.src, o) })
	if !found && i > 0 && (i == len(m.all) || offset < m.all[i-1].srcEnd() || offset-m.all[i-1].srcEnd() < m.all[i].src-offset) {
		i--
	}
	e := m.all[i]
	return uint32(min(max(int64(offset)-int64(e.src)+int64(e.dst), 0), int64(m.targetSize)-1))
}

// projectCovered projects sorted offsets in place and drops those that no
// equivalence covers.
func (m *mapper) projectCovered(offsets []uint32) []uint32 {
	kept, rest := offsets[:0], m.all
	for _, o := range offsets {
		for len(rest) > 0 && rest[0].srcEnd() <= o {
			rest = rest[1:]
		}
		if len(rest) > 0 && rest[0].src <= o {
			kept = append(kept, o-rest[0].src+rest[0].dst)
		}
	}
	return kept
}

// targets is a pool: sorted and unique. A target's index is its key.
type targets []uint32

func sortUnique(t []uint32) targets {
	slices.Sort(t)
	return slices.Compact(t)
}

// nearest is the key of the target that is nearest to offset, of the lower one
// where two are.
func (t targets) nearest(offset uint32) uint32 {
	i, _ := slices.BinarySearch(t, offset)
	if i > 0 && (i == len(t) || t[i]-offset >= offset-t[i-1]) {
		i--
	}
	return uint32(i)
}
