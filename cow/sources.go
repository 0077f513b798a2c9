package cow

import (
	"bytes"
	"cmp"
	"context"
	"slices"
)

// candidate is a block of the base whose hash some fresh block has.
type candidate struct {
	hash  uint64
	block uint32
}

// findSources turns fresh blocks that the base has elsewhere into copied ones.
// Of several places it takes the one that continues the copy before it (long
// runs are read and merged at once), else one that the update leaves as it is
// (nothing has to wait for it), else the first.
func (b *builder) findSources(ctx context.Context) error {
	all := b.candidates()
	b.hashes.base = nil
	target, base := make([]byte, chunkBlocks*blockSize), make([]byte, blockSize)
	for first := 0; first < b.n; first += chunkBlocks {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !slices.Contains(b.kind[first:min(b.n, first+chunkBlocks)], fresh) {
			continue
		}
		chunk, err := readBlocks(b.o.Target, "target", first, target)
		if err != nil {
			return err
		}
		for i := first; i < first+len(chunk)/blockSize; i++ {
			if b.kind[i] != fresh {
				continue
			}
			block := chunk[(i-first)*blockSize:][:blockSize]
			if err := b.chooseSource(i, block, base, withHash(all, b.hashes.target[i])); err != nil {
				return err
			}
		}
	}
	b.hashes.target = nil
	return nil
}

// candidates returns the base blocks that a fresh block may be a copy of,
// sorted by hash and block.
func (b *builder) candidates() []candidate {
	var wanted []uint64
	for i, k := range b.kind {
		if k == fresh {
			wanted = append(wanted, b.hashes.target[i])
		}
	}
	slices.Sort(wanted)
	filter := newFilter(wanted)
	var all []candidate
	for i, h := range b.hashes.base {
		if !filter.has(h) {
			continue
		}
		if _, found := slices.BinarySearch(wanted, h); found {
			all = append(all, candidate{h, uint32(i)})
		}
	}
	slices.SortFunc(all, func(x, y candidate) int {
		return cmp.Or(cmp.Compare(x.hash, y.hash), cmp.Compare(x.block, y.block))
	})
	return all
}

// filter is a bit set of hashes that saves most searches for absent ones.
type filter struct {
	bits []uint64
	mask uint64
}

func newFilter(hashes []uint64) filter {
	size := uint64(64)
	for size < 8*uint64(len(hashes)) {
		size *= 2
	}
	f := filter{make([]uint64, size/64), size - 1}
	for _, h := range hashes {
		f.bits[h&f.mask/64] |= 1 << (h % 64)
	}
	return f
}

func (f filter) has(h uint64) bool { return f.bits[h&f.mask/64]>>(h%64)&1 != 0 }

func withHash(all []candidate, h uint64) []candidate {
	i, _ := slices.BinarySearchFunc(all, h, func(c candidate, h uint64) int { return cmp.Compare(c.hash, h) })
	n := i
	for n < len(all) && all[n].hash == h {
		n++
	}
	return all[i:n]
}

// maxAlternatives bounds the work on contents that the base has very often.
const maxAlternatives = 64

// chooseSource decides where block i can be copied from, if anywhere. buf is
// room for one block.
func (b *builder) chooseSource(i int, block, buf []byte, places []candidate) error {
	equal := func(at uint32) (bool, error) {
		_, err := readBlocks(b.o.Base, "base", int(at), buf)
		return err == nil && bytes.Equal(block, buf), err
	}
	best, found := uint32(0), false
	if i > 0 && b.kind[i-1] == copied {
		next := b.source[i-1] + 1
		if _, listed := slices.BinarySearchFunc(places, next, func(c candidate, n uint32) int { return cmp.Compare(c.block, n) }); listed {
			ok, err := equal(next)
			if err != nil {
				return err
			}
			best, found = next, ok
		}
	}
	for _, c := range places[:min(len(places), maxAlternatives)] {
		if found {
			break
		}
		ok, err := equal(c.block)
		if err != nil {
			return err
		}
		if ok {
			best, found = b.preferStill(c.block, places), true
			if best != c.block {
				if ok, err = equal(best); err != nil || !ok {
					best = c.block
				}
			}
		}
	}
	if found {
		b.kind[i], b.source[i] = copied, best
	}
	return nil
}

// preferStill returns the first of the places that the update leaves alone, or
// first.
func (b *builder) preferStill(first uint32, places []candidate) uint32 {
	for _, c := range places[:min(len(places), maxAlternatives)] {
		if int(c.block) < b.n && b.kind[c.block] == same {
			return c.block
		}
	}
	return first
}
