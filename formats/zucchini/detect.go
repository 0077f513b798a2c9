package zucchini

import (
	"bytes"
	"cmp"
	"slices"
)

// found is an image inside of a file.
type found struct {
	kind Kind
	Region
}

// findImages returns the ELF images in a file, in order.
func findImages(b []byte) []found {
	var all []found
	for at := 0; ; {
		i := bytes.Index(b[at:], []byte("\x7fELF"))
		if i < 0 {
			return all
		}
		at += i
		n := 4
		for _, k := range []Kind{ElfX86, ElfX64, ElfARM, ElfARM64} {
			if e := parseElf(k, b[at:]); e != nil {
				all = append(all, found{k, Region{uint32(at), uint32(len(e.img))}})
				n = len(e.img)
				break
			}
		}
		at += n
	}
}

// matchElements chooses for each image of the target the most similar one of the
// source.
func matchElements(source, target []byte) []elementMatch {
	var all []elementMatch
	from := findImages(source)
	if len(from) == 0 {
		return nil
	}
	counts := make([]*histogram, len(from))
	for _, to := range findImages(target) {
		best, bestAt := 0.0, -1
		var h *histogram
		for i, f := range from {
			if f.kind != to.kind {
				continue
			}
			if h == nil {
				h = newHistogram(target[to.Offset:to.end()])
			}
			if counts[i] == nil {
				counts[i] = newHistogram(source[f.Offset:f.end()])
			}
			if d := h.distance(counts[i]); bestAt < 0 || d < best {
				best, bestAt = d, i
			}
		}
		if bestAt >= 0 {
			all = append(all, elementMatch{to.kind, from[bestAt].Region, to.Region})
		}
	}
	slices.SortFunc(all, func(a, b elementMatch) int { return cmp.Compare(a.target.Offset, b.target.Offset) })
	return all
}

// histogram counts pairs of bytes: what is called what it was is mostly made of
// the same ones, wherever it is.
type histogram struct {
	counts [1 << 16]int32
}

func newHistogram(b []byte) *histogram {
	h := new(histogram)
	for i := 1; i < len(b); i++ {
		h.counts[int(b[i-1])<<8|int(b[i])]++
	}
	return h
}

func (h *histogram) distance(o *histogram) (d float64) {
	for i, n := range h.counts {
		d += float64(max(n-o.counts[i], o.counts[i]-n))
	}
	return d
}
