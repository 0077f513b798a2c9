package zucchini

import (
	"cmp"
	"math/bits"
	"slices"
)

// Pruning goes through equivalences in the order of their source offsets, which
// several can share. Producers sort with C++'s std::sort, which leaves open what
// becomes of those, so that the result depends on the library: specs/payload.md
// 10. These are the orders that occur.

type tieOrder int

const (
	stable    tieOrder = iota
	total              // longer ones first, then by target: the newest producers
	libcxx             // LLVM's library since release 17
	libcxxOld          // and before that, as Android's tools have it until 2023
	libstdcxx          // GNU's library
	tieOrders
)

// sorted returns all, which are in the order of the target, sorted by source.
func (o tieOrder) sorted(all []equivalence) []equivalence {
	s := sorter(slices.Clone(all))
	switch o {
	case stable:
		slices.SortStableFunc(s, bySource)
	case total:
		slices.SortFunc(s, func(a, b equivalence) int {
			return cmp.Or(cmp.Compare(a.src, b.src), cmp.Compare(-a.length, -b.length), cmp.Compare(a.dst, b.dst))
		})
	case libcxx:
		s.llvm(0, len(s), 2*log2(len(s)), true)
	case libcxxOld:
		s.llvmOld(0, len(s), 2*log2(len(s)))
	case libstdcxx:
		s.gnu(0, len(s), 2*log2(len(s)))
		s.insertion(0, len(s))
	}
	return s
}

func log2(n int) int { return bits.Len(uint(n|1)) - 1 }

// sorter holds what is sorted. Its methods take half-open ranges of indexes, and
// make the comparisons and moves that their originals are known to make, since
// these decide where equal elements end up.
type sorter []equivalence

func (s sorter) less(i, j int) bool { return s[i].src < s[j].src }
func (s sorter) swap(i, j int)      { s[i], s[j] = s[j], s[i] }

// insert moves the element at i forward over larger ones, down to first.
func (s sorter) insert(first, i int) {
	v := s[i]
	for ; i > first && v.src < s[i-1].src; i-- {
		s[i] = s[i-1]
	}
	s[i] = v
}

func (s sorter) insertion(first, last int) {
	for i := first + 1; i < last; i++ {
		s.insert(first, i)
	}
}

// Where parting a range has gone too deep, a heap sort follows.

// descend moves larger children up into the hole, until that is a leaf. Of two
// equal ones it takes the right one, or not.
func (h sorter) descend(hole int, right bool) (leaf int) {
	for {
		child := 2*hole + 1
		if child >= len(h) {
			return hole
		}
		if child+1 < len(h) && (h.less(child, child+1) || right && !h.less(child+1, child)) {
			child++
		}
		h[hole] = h[child]
		hole = child
	}
}

// ascend moves v from the hole up over smaller parents, at most to top.
func (h sorter) ascend(hole, top int, v equivalence) {
	for hole > top && h[(hole-1)/2].src < v.src {
		h[hole] = h[(hole-1)/2]
		hole = (hole - 1) / 2
	}
	h[hole] = v
}

// GNU's library.

const gnuThreshold = 16

// gnu sorts down to pieces of gnuThreshold elements.
func (s sorter) gnu(first, last, depth int) {
	for ; last-first > gnuThreshold; depth-- {
		if depth == 0 {
			s[first:last].gnuHeap()
			return
		}
		cut := s.gnuPartition(first, last)
		s.gnu(cut, last, depth-1)
		last = cut
	}
}

// gnuPartition puts the median of three to the front and parts the rest by it.
func (s sorter) gnuPartition(first, last int) int {
	s.swap(first, s.median(first+1, first+(last-first)/2, last-1))
	for i, j := first+1, last; ; i++ {
		for s.less(i, first) {
			i++
		}
		for j--; s.less(first, j); j-- {
		}
		if i >= j {
			return i
		}
		s.swap(i, j)
	}
}

func (s sorter) median(a, b, c int) int {
	if s.less(a, b) {
		switch {
		case s.less(b, c):
			return b
		case s.less(a, c):
			return c
		}
		return a
	}
	switch {
	case s.less(a, c):
		return a
	case s.less(b, c):
		return c
	}
	return b
}

func (h sorter) gnuHeap() {
	for top := len(h)/2 - 1; top >= 0; top-- {
		v := h[top]
		h.ascend(h.descend(top, true), top, v)
	}
	for ; len(h) > 1; h = h[:len(h)-1] {
		last := len(h) - 1
		v := h[last]
		h[last] = h[0]
		h[:last].ascend(h[:last].descend(0, true), 0, v)
	}
}

// LLVM's library, both ages.

func (h sorter) llvmHeap() {
	for top := len(h)/2 - 1; top >= 0; top-- {
		h.llvmSift(top)
	}
	for ; len(h) > 1; h = h[:len(h)-1] {
		last, v := len(h)-1, h[0]
		hole := h.descend(0, false)
		if hole != last {
			h.ascend(hole, 0, h[last])
		}
		h[last] = v
	}
}

// llvmSift moves the element at top down below its children, except smaller ones.
func (h sorter) llvmSift(top int) {
	v, hole := h[top], top
	for child := 2*hole + 1; child < len(h); child = 2*hole + 1 {
		if child+1 < len(h) && h.less(child, child+1) {
			child++
		}
		if h[child].src < v.src {
			break
		}
		h[hole] = h[child]
		hole = child
	}
	h[hole] = v
}

// llvmQuick is how many elements out of place an attempt to sort by insertion
// gives up at.
const llvmQuick = 8

// sort2 puts two elements into order and tells whether they were not.
func (s sorter) sort2(x, y int) int {
	if s.less(y, x) {
		s.swap(x, y)
		return 1
	}
	return 0
}

// sort3 returns how many swaps it made.
func (s sorter) sort3(x, y, z int) int {
	switch {
	case !s.less(y, x):
		if s.sort2(y, z) == 0 {
			return 0
		}
		return 1 + s.sort2(x, y)
	case s.less(z, y):
		s.swap(x, z)
		return 1
	}
	s.swap(x, y)
	return 1 + s.sort2(y, z)
}

func (s sorter) sort5(a, b, c, d, e int) int {
	n := s.sort3(a, b, c)
	for _, p := range [][]int{{a, b, c, d}, {a, b, c, d, e}} {
		for i := len(p) - 1; i > 0; i-- {
			if s.sort2(p[i-1], p[i]) == 0 {
				break
			}
			n++
		}
	}
	return n
}

// quickInsertion sorts a range by insertion, unless too much is out of place.
func (s sorter) quickInsertion(first, last int) bool {
	if last-first <= 5 {
		s.insertion(first, last)
		return true
	}
	s.insertion(first, first+3)
	moved := 0
	for i := first + 3; i < last; i++ {
		if !s.less(i, i-1) {
			continue
		}
		s.insert(first, i)
		if moved++; moved == llvmQuick {
			return i+1 == last
		}
	}
	return true
}

// finishQuickly tries to sort both sides of i by insertion, after they turned
// out to be parted already. It returns what is left to sort.
func (s sorter) finishQuickly(first, i, last int) (from, to int, tried bool) {
	left := s.quickInsertion(first, i)
	right := s.quickInsertion(i+1, last)
	switch {
	case left && right:
		return last, last, true
	case right:
		return first, i, true
	case left:
		return i + 1, last, true
	}
	return first, last, false
}

const (
	llvmThreshold = 24
	llvmNinther   = 128
)

func (s sorter) llvm(first, last, depth int, leftmost bool) {
	for ; last-first >= llvmThreshold; depth-- {
		if depth == 0 {
			s[first:last].llvmHeap()
			return
		}
		s.llvmPivot(first, last)
		if !leftmost && !s.less(first-1, first) {
			first = s.partEqualLeft(first, last)
			continue
		}
		i, parted := s.partEqualRight(first, last)
		if parted {
			var done bool
			if first, last, done = s.finishQuickly(first, i, last); done {
				// The side that is left may border on what was sorted before.
				continue
			}
		}
		s.llvm(first, i, depth-1, leftmost)
		leftmost = false
		first = i + 1
	}
	s.insertion(first, last)
}

func (s sorter) llvmPivot(first, last int) {
	half := (last - first) / 2
	if last-first <= llvmNinther {
		s.sort3(first+half, first, last-1)
		return
	}
	s.sort3(first, first+half, last-1)
	s.sort3(first+1, first+half-1, last-2)
	s.sort3(first+2, first+half+1, last-3)
	s.sort3(first+half-1, first+half, first+half+1)
	s.swap(first, first+half)
}

// partEqualRight parts by the first element; equal ones go right. It tells
// where the pivot is then, and whether nothing had to be swapped for it.
func (s sorter) partEqualRight(begin, end int) (at int, parted bool) {
	pivot := s[begin].src
	i, j := begin+1, end-1
	for s[i].src < pivot {
		i++
	}
	for (i > begin+1 || i < j) && s[j].src >= pivot {
		j--
	}
	parted = i >= j
	for i < j {
		s.swap(i, j)
		for i++; s[i].src < pivot; i++ {
		}
		for j--; s[j].src >= pivot; j-- {
		}
	}
	s.swap(begin, i-1)
	return i - 1, parted
}

// partEqualLeft parts by the first element; equal ones go left. It returns where
// the larger ones begin.
func (s sorter) partEqualLeft(begin, end int) int {
	pivot := s[begin].src
	i, j := begin+1, end
	for i < end && s[i].src <= pivot {
		i++
	}
	if i < j {
		for j--; s[j].src > pivot; j-- {
		}
	}
	for i < j {
		s.swap(i, j)
		for i++; s[i].src <= pivot; i++ {
		}
		for j--; s[j].src > pivot; j-- {
		}
	}
	s.swap(begin, i-1)
	return i
}

// LLVM's library before release 17.

const (
	llvmOldThreshold = 30
	llvmOldMany      = 1000 // from here on the pivot is a median of five
)

func (s sorter) llvmOld(first, last, depth int) {
	for ; last-first > llvmOldThreshold; depth-- {
		if depth == 0 {
			s[first:last].llvmHeap()
			return
		}
		m, swaps := s.llvmOldPivot(first, last)
		i, n, rest := s.llvmOldPart(first, m, last)
		if rest > 0 { // what is before equals the first element
			first = rest
			continue
		}
		if swaps+n == 0 {
			var done bool
			if first, last, done = s.finishQuickly(first, i, last); done {
				continue
			}
		}
		if i-first < last-i {
			s.llvmOld(first, i, depth-1)
			first = i + 1
		} else {
			s.llvmOld(i+1, last, depth-1)
			last = i
		}
	}
	s.insertion(first, last)
}

func (s sorter) llvmOldPivot(first, last int) (m, swaps int) {
	half := (last - first) / 2
	m = first + half
	if last-first >= llvmOldMany {
		return m, s.sort5(first, first+half/2, m, m+half/2, last-1)
	}
	return m, s.sort3(first, m, last-1)
}

// llvmOldPart parts by the element at m. It tells where that is then and how
// many swaps it took. Or it finds nothing that is smaller: then what is equal
// comes first, and rest is where the others begin.
func (s sorter) llvmOldPart(first, m, last int) (at, swaps, rest int) {
	i, j := first, last-1
	if !s.less(i, m) {
		for j--; j > i && !s.less(j, m); j-- {
		}
		if i == j {
			return 0, 0, s.llvmOldEqual(first, last)
		}
		s.swap(i, j)
		swaps++
	}
	if i++; i < j {
		for ; ; i++ {
			for s.less(i, m) {
				i++
			}
			for j--; !s.less(j, m); j-- {
			}
			if i > j {
				break
			}
			s.swap(i, j)
			swaps++
			if m == i {
				m = j
			}
		}
	}
	if i != m {
		swaps += s.sort2(i, m)
	}
	return i, swaps, 0
}

// llvmOldEqual parts what is not smaller than the first element into what is
// equal to it and what is larger.
func (s sorter) llvmOldEqual(first, last int) (rest int) {
	i, j := first+1, last-1
	if !s.less(first, j) {
		for i < j && !s.less(first, i) {
			i++
		}
		if i == j {
			return last
		}
		s.swap(i, j)
		i++
	}
	if i == j {
		return last
	}
	for ; ; i++ {
		for !s.less(first, i) {
			i++
		}
		for j--; s.less(first, j); j-- {
		}
		if i >= j {
			return i
		}
		s.swap(i, j)
	}
}
