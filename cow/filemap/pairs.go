package filemap

import (
	"cmp"
	"path"
	"slices"
	"strings"
)

// Pair is a file of the target and the one of the base that it probably is a
// version of: indexes of the two lists.
type Pair struct{ Target, Base int }

// Pairs finds for each file of the target its origin in the base, if it has one.
// Both lists are sorted by path, as Files gives them. The pairs are by Target.
func Pairs(base, target []File) []Pair {
	f := newFinder(base)
	var all []Pair
	for t := range target {
		if b, found := f.origin(&target[t]); found {
			all = append(all, Pair{t, b})
		}
	}
	return all
}

// finder knows the files of the base in three ways.
type finder struct {
	base   []File
	byPath map[string]int
	near   map[string][]int // by path with the numbers of its last element blanked
	byName map[string][]int // by last element
}

func newFinder(base []File) *finder {
	f := &finder{base: base, byPath: map[string]int{}, near: map[string][]int{}, byName: map[string][]int{}}
	for i := range base {
		p := base[i].Path
		f.byPath[p] = i
		f.near[unversioned(p)] = append(f.near[unversioned(p)], i)
		f.byName[path.Base(p)] = append(f.byName[path.Base(p)], i)
	}
	return f
}

func (f *finder) origin(t *File) (int, bool) {
	if i, found := f.byPath[t.Path]; found {
		return i, true
	}
	if i, found := f.nearest(t, f.near[unversioned(t.Path)]); found {
		return i, true
	}
	alike := func(i int) bool { return f.base[i].Size <= 2*t.Size && t.Size <= 2*f.base[i].Size }
	named := slices.DeleteFunc(slices.Clone(f.byName[path.Base(t.Path)]), func(i int) bool { return !alike(i) })
	return f.nearest(t, named)
}

// maxCompared bounds the work on names that the base has very often.
const maxCompared = 256

// nearest is the candidate whose path shares most with that of t, at the front
// and the end; among equals the one of the nearest length, then of the nearest
// size, then the first.
func (f *finder) nearest(t *File, candidates []int) (int, bool) {
	if len(candidates) == 0 {
		return 0, false
	}
	candidates = candidates[:min(len(candidates), maxCompared)]
	best := slices.MinFunc(candidates, func(a, b int) int {
		return cmp.Or(
			cmp.Compare(shared(t.Path, f.base[b].Path), shared(t.Path, f.base[a].Path)),
			cmp.Compare(distance(int64(len(t.Path)), int64(len(f.base[a].Path))), distance(int64(len(t.Path)), int64(len(f.base[b].Path)))),
			cmp.Compare(distance(t.Size, f.base[a].Size), distance(t.Size, f.base[b].Size)),
			cmp.Compare(a, b))
	})
	return best, true
}

// shared counts the bytes that two paths have in common at both ends.
func shared(a, b string) int {
	n, most := 0, min(len(a), len(b))
	for n < most && a[n] == b[n] {
		n++
	}
	end := 0
	for end < most-n && a[len(a)-1-end] == b[len(b)-1-end] {
		end++
	}
	return n + end
}

func distance(a, b int64) int64 { return max(a-b, b-a) }

// unversioned is the path with each number of its last element, and the dots
// between numbers, replaced by one mark.
func unversioned(p string) string {
	dir, name := path.Split(p)
	var b strings.Builder
	b.WriteString(dir)
	digits := false
	for i := range len(name) {
		c := name[i]
		isDigit := c >= '0' && c <= '9'
		if isDigit && !digits {
			b.WriteByte('#')
		}
		joins := c == '.' && digits && i+1 < len(name) && name[i+1] >= '0' && name[i+1] <= '9'
		if !isDigit && !joins {
			b.WriteByte(c)
		}
		digits = isDigit || joins
	}
	return b.String()
}
