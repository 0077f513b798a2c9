package puffin

import (
	"fmt"
	"math"
	"sort"
)

// extent is a stretch of bytes.
type extent struct{ offset, length int64 }

func (e extent) end() int64 { return e.offset + e.length }

// layout says how a file and its puffed form correspond: stretches of raw bytes
// and deflates take turns (specs/payload.md 8.2).
//
//	raw 0 │ deflate 0 │ raw 1 │ deflate 1 │ … │ raw n
type layout struct {
	deflates   []BitExtent // in the file
	puffs      []extent    // in the puffed file
	size       int64       // of the file
	puffedSize int64
	largest    int64 // deflate and its puff, in bytes
}

// maxSize keeps sums of sizes, also when counted in bits, within 64 bits.
const maxSize = math.MaxInt64 / 64

// newLayout checks that the parts follow one another as they must, and computes
// the size of the file.
func newLayout(deflates []BitExtent, puffs []BitExtent, puffedSize uint64) (*layout, error) {
	if len(deflates) != len(puffs) {
		return nil, refuse(ErrCorrupt, "puffs", fmt.Sprintf("%d, one for each deflate", len(deflates)), len(puffs))
	}
	if puffedSize > maxSize {
		return nil, refuse(ErrCorrupt, "puffed size", fmt.Sprintf("at most %d", int64(maxSize)), puffedSize)
	}
	l := &layout{deflates: deflates, puffs: make([]extent, len(puffs)), size: int64(puffedSize), puffedSize: int64(puffedSize)}
	for i := range deflates {
		if err := l.add(i, puffs[i]); err != nil {
			return nil, err
		}
	}
	if n := len(deflates); n > 0 {
		end := deflates[n-1].End()
		l.size = int64(end/8) + l.puffedSize - l.puffs[n-1].end()
		if l.size < int64(end+7)/8 {
			return nil, refuse(ErrCorrupt, "puffed size", "the rest of the last deflate's last byte", puffedSize)
		}
	}
	return l, nil
}

// add checks deflate i and its puff, which is counted in bits.
func (l *layout) add(i int, puff BitExtent) error {
	d, previous := l.deflates[i], l.rawBits(i)
	if d.Offset < previous || d.Length == 0 || d.Offset > maxSize || d.Length > maxSize {
		return refuse(ErrCorrupt, fmt.Sprintf("deflate %d", i), fmt.Sprintf("bits from %d on", previous), d)
	}
	if puff.Offset%8 != 0 || puff.Length%8 != 0 || puff.Offset/8 > maxSize || puff.Length/8 > maxSize {
		return refuse(ErrCorrupt, fmt.Sprintf("puff %d", i), "whole bytes", puff)
	}
	l.puffs[i] = extent{int64(puff.Offset / 8), int64(puff.Length / 8)}
	if want := l.rawStart(i) + l.rawLen(i); l.puffs[i].offset != want || l.puffs[i].end() > l.puffedSize || l.puffs[i].length == 0 {
		return refuse(ErrCorrupt, fmt.Sprintf("puff %d", i), fmt.Sprintf("some of bytes %d to %d", want, l.puffedSize), puff)
	}
	return nil
}

// rawBits is the first bit of raw stretch i.
func (l *layout) rawBits(i int) uint64 {
	if i == 0 {
		return 0
	}
	return l.deflates[i-1].End()
}

// rawEnd is the bit after raw stretch i.
func (l *layout) rawEnd(i int) uint64 {
	if i == len(l.deflates) {
		return uint64(l.size) * 8
	}
	return l.deflates[i].Offset
}

// rawStart is where raw stretch i begins in the puffed file.
func (l *layout) rawStart(i int) int64 {
	if i == 0 {
		return 0
	}
	return l.puffs[i-1].end()
}

// rawLen is how many bytes of the puffed file raw stretch i takes: as many as
// have a bit of it.
func (l *layout) rawLen(i int) int64 { return rawLen(l.rawBits(i), l.rawEnd(i)) }

func rawLen(from, to uint64) int64 {
	if from == to {
		return 0
	}
	return int64((to+7)/8) - int64(from/8)
}

// stretch is the number of the raw stretch or puff that holds byte pos of the
// puffed file.
func (l *layout) stretch(pos int64) int {
	return sort.Search(len(l.puffs), func(i int) bool { return l.puffs[i].end() > pos })
}

// makeLayout finds where puffs of the given sizes go.
func makeLayout(deflates []BitExtent, puffSizes []int64, size int64) *layout {
	l := &layout{deflates: deflates, puffs: make([]extent, len(deflates)), size: size}
	for i, n := range puffSizes {
		l.puffs[i] = extent{l.rawStart(i) + l.rawLen(i), n}
	}
	n := len(deflates)
	l.puffedSize = l.rawStart(n) + l.rawLen(n)
	return l
}
