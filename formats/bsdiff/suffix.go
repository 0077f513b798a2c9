package bsdiff

import "runtime"

// index is what positions are stored as: 32 bits where they suffice.
type index interface{ ~int32 | ~int64 }

// character is what is sorted: bytes, or the ranks of longer pieces.
type character interface{ ~uint8 | ~int32 | ~int64 }

// suffixes sorts the suffixes of text by induced sorting (Nong, Zhang and Chan,
// "Two Efficient Algorithms for Linear Time Suffix Array Construction", 2009),
// in linear time and, but for a few counters and blocks, in the array that it returns.
// All processors share what is not a chain of steps: finding the types, ranking the
// pieces and looking up positions, which is a third of the work.
func suffixes[T index](text []byte) []T {
	sa := make([]T, len(text))
	induce(text, sa, 256, crew(runtime.GOMAXPROCS(0)))
	return sa
}

// A suffix is of type S if it is less than the one after it, else of type L;
// the last one is L. It is LMS if it is S and the one before it is L. The
// text falls into pieces from one LMS suffix to the next. Sorting these, and
// after them their sequence, sorts the LMS suffixes; the others follow from
// them in two passes.
func induce[C character, T index](text []C, sa []T, k int, w crew) {
	n := len(text)
	if n < 2 {
		clear(sa)
		return
	}
	s := newSorter[C, T](text, sa, k, w)
	clear(sa)
	s.ends()
	m := 0
	s.eachLMS(func(found []T) {
		for _, i := range found {
			sa[s.pop(text[i])] = i
		}
		m += len(found)
	})
	if m > 1 {
		s.sortPieces()
		names := s.namePieces(m)
		reduced := sa[n-m:]
		if names < m {
			sortReduced(sa, m, names, w)
		} else {
			for i, name := range reduced {
				sa[name] = T(i)
			}
		}
		s.spread(m)
	}
	s.induceL()
	s.induceS()
}

// sortReduced sorts the suffixes of the sequence of ranks into sa[:m].
func sortReduced[T index](sa []T, m, names int, w crew) {
	reduced := sa[len(sa)-m:]
	switch s, r := any(sa[:m]), any(reduced); s := s.(type) {
	case []int32:
		induce(r.([]int32), s, names, w)
	case []int64:
		induce(r.([]int64), s, names, w)
	}
}

// buckets are the places of suffixes by their first character.
type buckets[C character, T index] struct {
	count, at []T
}

func newBuckets[C character, T index](text []C, k int) buckets[C, T] {
	b := buckets[C, T]{make([]T, k), make([]T, k)}
	for _, c := range text {
		b.count[c]++
	}
	return b
}

func (b *buckets[C, T]) starts() {
	var sum T
	for i, n := range b.count {
		b.at[i] = sum
		sum += n
	}
}

func (b *buckets[C, T]) ends() {
	var sum T
	for i, n := range b.count {
		sum += n
		b.at[i] = sum
	}
}

func (b *buckets[C, T]) pop(c C) T {
	b.at[c]--
	return b.at[c]
}

// sorter is the work on one text.
type sorter[C character, T index] struct {
	text []C
	sa   []T
	crew crew
	buckets[C, T]

	found [][]T // what each of the crew has found, in a block at most
}

// block is how many places, or characters, each of the crew is given at a time.
const block = 1 << 16

func newSorter[C character, T index](text []C, sa []T, k int, w crew) *sorter[C, T] {
	w = max(1, min(w, crew(len(text)/block))) // a block for each, or memory for nothing
	s := &sorter[C, T]{text: text, sa: sa, crew: w, buckets: newBuckets[C, T](text, k)}
	n := min(len(text), block)
	for range s.crew {
		s.found = append(s.found, make([]T, n+1))
	}
	return s
}

// eachLMS calls f with LMS suffixes, a few at a time, the last one first.
func (s *sorter[C, T]) eachLMS(f func(found []T)) {
	isS := 0 // the type of the last suffix: 0 for L, -1 for S
	types, counts := make([]int, s.crew), make([]int, s.crew)
	for hi := len(s.text) - 1; hi > 0; {
		lo := max(0, hi-int(s.crew)*block)
		here, after := s.text[lo:hi+1], isS
		s.crew.share(hi-lo, func(part, from, to int) {
			last := to
			for last < hi-lo && here[last] == here[last+1] {
				last++
			}
			isS := after
			if last < hi-lo {
				isS = less(here[last], here[last+1])
			}
			types[part], counts[part] = findLMS(here[from:to+1], lo+from, isS, s.found[part])
		})
		for part := len(counts) - 1; part >= 0; part-- {
			f(s.found[part][:counts[part]])
		}
		isS, hi = types[0], lo
	}
}

// less is -1 or 0.
func less[C character](a, b C) int {
	return int((int64(a) - int64(b)) >> 63)
}

// findLMS writes the LMS suffixes of a part of the text that begins at a position, but
// not that of its first character, to found, which has a place more than there may be.
// isS is the type of the last one; it returns that of the first one, and how many it has
// found. It does not branch: types are not to be foretold.
func findLMS[C character, T index](text []C, at, isS int, found []T) (first, n int) {
	next := text[len(text)-1]
	for i := len(text) - 2; i >= 0; i-- {
		c := text[i]
		d := int64(c) - int64(next)
		now := int(d>>63) | isS&^int((d|-d)>>63)
		found[n] = T(at + i + 1)
		n -= isS &^ now
		isS, next = now, c
	}
	return isS, n
}

// before is the position before j, with its character. Negative means that a pass for
// that type ends there: the position before it is of the other type, or none.
func before[C character, T index](text []C, j T, typeS bool) (T, C) {
	j--
	c := text[j]
	if j == 0 || typeS && text[j-1] > c || !typeS && text[j-1] < c {
		j = ^j
	}
	return j, c
}

// sortPieces begins with the LMS positions anywhere in their buckets and leaves
// their pieces in order. Zero means an empty place: position 0 is never LMS and
// nothing follows from it. What has been used is cleared, except what ends a
// run of its type, which is left negative.
func (s *sorter[C, T]) sortPieces() {
	text, sa, at := s.text, s.sa, s.at
	s.starts()
	put := func(j T) {
		k, c := before(text, j, false)
		sa[at[c]] = k
		at[c]++
	}
	put(T(len(text)))
	for i := range sa {
		if j := sa[i]; j > 0 {
			sa[i] = 0
			put(j)
		} else if j < 0 {
			sa[i] = ^j
		}
	}
	s.ends()
	for i := len(sa) - 1; i >= 0; i-- {
		if j := sa[i]; j > 0 {
			sa[i] = 0
			k, c := before(text, j, true)
			sa[s.pop(c)] = k
		}
	}
}

// namePieces gathers the m sorted LMS positions in front and writes the rank of
// each piece, equal ones having equal ranks, in the order of the text to the end
// of sa. It returns how many ranks there are.
func (s *sorter[C, T]) namePieces(m int) int {
	sa, n := s.sa, len(s.text)
	starts, counts := make([]int, s.crew), make([]int, s.crew)
	s.crew.share(n, func(part, from, to int) {
		w := from
		for _, j := range sa[from:to] {
			if j < 0 && ^j > 0 {
				sa[w] = ^j
				w++
			}
		}
		starts[part], counts[part] = from, w-from
	})
	w := 0
	for part, from := range starts {
		w += copy(sa[w:], sa[from:from+counts[part]])
	}

	// LMS positions are two or more apart, so half as many places will do.
	names := sa[m:]
	clear(names)
	end := T(n)
	s.eachLMS(func(found []T) {
		for _, i := range found {
			names[i/2] = end - i
			end = i + 1
		}
	})
	s.markFirst(sa[:m], names, counts)
	name := 0
	for part, n := range counts {
		counts[part] = name
		name += n
	}
	s.crew.share(m, func(part, from, to int) {
		name := counts[part]
		for _, p := range sa[from:to] {
			if p < 0 {
				p = ^p
				name++
			}
			names[p/2] = T(name)
		}
	})
	s.crew.share(len(names), func(part, from, to int) {
		w := to
		for i := to - 1; i >= from; i-- {
			if names[i] > 0 {
				w--
				names[w] = names[i] - 1
			}
		}
		starts[part], counts[part] = w, to-w
	})
	w = n
	for part := len(starts) - 1; part >= 0; part-- {
		w -= counts[part]
		copy(sa[w:], names[starts[part]:][:counts[part]])
	}
	return name
}

// markFirst makes those of the sorted positions negative whose pieces differ from the
// one before, and counts them for each of the crew. names has the pieces' lengths.
func (s *sorter[C, T]) markFirst(sorted, names []T, counts []int) {
	text := s.text
	lasts := make([]T, s.crew)
	s.crew.share(len(sorted), func(part, from, to int) {
		if from > 0 && from < to {
			lasts[part] = sorted[from-1]
		}
	})
	s.crew.share(len(sorted), func(part, from, to int) {
		n, last := 0, lasts[part]
		for i, p := range sorted[from:to] {
			l := names[p/2]
			if from+i == 0 || l != names[last/2] || int(p+l) == len(text) || int(last+l) == len(text) || !equal(text[p:p+l], text[last:last+l]) {
				sorted[from+i] = ^p
				n++
			}
			last = p
		}
		counts[part] = n
	})
}

func equal[C character](a, b []C) bool {
	for i, c := range a {
		if c != b[i] {
			return false
		}
	}
	return true
}

// spread puts the LMS suffixes, sorted by number in sa[:m], to the ends of
// their buckets, and clears all else.
func (s *sorter[C, T]) spread(m int) {
	text, sa := s.text, s.sa
	positions := sa[len(sa)-m:]
	w := m
	s.eachLMS(func(found []T) {
		for _, i := range found {
			w--
			positions[w] = i
		}
	})
	s.crew.share(m, func(_, from, to int) {
		for i, r := range sa[from:to] {
			sa[from+i] = positions[r]
		}
	})
	clear(sa[m:])
	s.ends()
	for i := m - 1; i >= 0; i-- {
		j := sa[i]
		sa[i] = 0
		sa[s.pop(text[j])] = j
	}
}

// induceL places all suffixes of type L after the LMS ones. Negative means that
// the suffix before is not of type L; such a one is for induceS.
func (s *sorter[C, T]) induceL() {
	text, sa, at := s.text, s.sa, s.at
	s.starts()
	put := func(j T) {
		k, c := before(text, j, false)
		if k == ^0 { // nothing comes before it, of either type
			k = 0
		}
		sa[at[c]] = k
		at[c]++
	}
	put(T(len(text)))
	for i := range sa {
		j := sa[i]
		sa[i] = ^j
		if j > 0 {
			put(j)
		}
	}
}

// induceS places all suffixes of type S, over the LMS ones, from the others.
func (s *sorter[C, T]) induceS() {
	text, sa := s.text, s.sa
	s.ends()
	for i := len(sa) - 1; i >= 0; i-- {
		j := sa[i]
		if j <= 0 {
			sa[i] = ^j
			continue
		}
		k, c := before(text, j, true)
		sa[s.pop(c)] = k
	}
}
