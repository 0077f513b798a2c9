package bsdiff

// index is what positions are stored as: 32 bits where they suffice.
type index interface{ ~int32 | ~int64 }

// suffixes sorts the suffixes of text by induced sorting (Nong, Zhang and Chan,
// "Two Efficient Algorithms for Linear Time Suffix Array Construction", 2009),
// in linear time and, but for a few counters, in the array that it returns.
func suffixes[T index](text []byte) []T {
	sa := make([]T, len(text))
	induce(text, sa, 256)
	return sa
}

// A suffix is of type S if it is less than the one after it, else of type L;
// the last one is L. It is LMS if it is S and the one before it is L. The
// text falls into pieces from one LMS suffix to the next. Sorting these, and
// after them their sequence, sorts the LMS suffixes; the others follow from
// them in two passes.
func induce[C byte | int32 | int64, T index](text []C, sa []T, k int) {
	n := len(text)
	if n < 2 {
		clear(sa)
		return
	}
	b := newBuckets[C, T](text, k)
	clear(sa)
	b.ends()
	m := 0
	eachLMS(text, func(i int) { sa[b.pop(text[i])] = T(i); m++ })
	if m > 1 {
		sortPieces(text, sa, b)
		names := namePieces(text, sa, m)
		reduced := sa[n-m:]
		if names < m {
			sortReduced(sa, m, names)
		} else {
			for i, name := range reduced {
				sa[name] = T(i)
			}
		}
		spread(text, sa, b, m)
	}
	induceL(text, sa, b)
	induceS(text, sa, b)
}

// eachLMS calls f with the LMS suffixes, the last one first.
func eachLMS[C byte | int32 | int64](text []C, f func(i int)) {
	isS := false
	for i := len(text) - 2; i >= 0; i-- {
		c, next := text[i], text[i+1]
		if c < next {
			isS = true
		} else if c > next {
			if isS {
				f(i + 1)
			}
			isS = false
		}
	}
}

// buckets are the places of suffixes by their first character.
type buckets[C byte | int32 | int64, T index] struct {
	count, at []T
}

func newBuckets[C byte | int32 | int64, T index](text []C, k int) *buckets[C, T] {
	b := &buckets[C, T]{make([]T, k), make([]T, k)}
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

// sortPieces begins with the LMS positions anywhere in their buckets and leaves
// their pieces in order. Zero means an empty place: position 0 is never LMS and
// nothing follows from it. What has been used is cleared, except what ends a
// run of its type, which is left negative.
func sortPieces[C byte | int32 | int64, T index](text []C, sa []T, b *buckets[C, T]) {
	n := len(text)
	b.starts()
	put := func(j T) { // of type L; the mark says that none of type L comes before it
		c := text[j]
		if j == 0 || text[j-1] < c {
			j = ^j
		}
		sa[b.at[c]] = j
		b.at[c]++
	}
	put(T(n - 1))
	for i := range sa {
		if j := sa[i]; j > 0 {
			sa[i] = 0
			put(j - 1)
		} else if j < 0 {
			sa[i] = ^j
		}
	}
	b.ends()
	for i := n - 1; i >= 0; i-- {
		j := sa[i]
		if j <= 0 {
			continue
		}
		sa[i] = 0
		j--
		c := text[j]
		b.at[c]--
		if j == 0 || text[j-1] > c {
			j = ^j
		}
		sa[b.at[c]] = j
	}
}

// namePieces gathers the m sorted LMS positions in front and writes the rank of
// each piece, equal ones having equal ranks, in the order of the text to the end
// of sa. It returns how many ranks there are.
func namePieces[C byte | int32 | int64, T index](text []C, sa []T, m int) int {
	n, w := len(text), 0
	for _, j := range sa {
		if j < 0 && ^j > 0 {
			sa[w] = ^j
			w++
		}
	}
	// LMS positions are two or more apart, so half as many places will do.
	names := sa[m:]
	clear(names)
	end := n
	eachLMS(text, func(i int) {
		names[i/2] = T(end - i)
		end = i + 1
	})
	name, last, lastLen := 0, 0, 0
	for _, p := range sa[:m] {
		i, l := int(p), int(names[p/2])
		if l != lastLen || i+l == n || last+l == n || !equal(text[i:i+l], text[last:last+l]) {
			name++
		}
		names[p/2] = T(name)
		last, lastLen = i, l
	}
	w = n
	for i := len(names) - 1; i >= 0; i-- {
		if names[i] > 0 {
			w--
			sa[w] = names[i] - 1
		}
	}
	return name
}

func equal[C byte | int32 | int64](a, b []C) bool {
	for i, c := range a {
		if c != b[i] {
			return false
		}
	}
	return true
}

// sortReduced sorts the suffixes of the sequence of ranks into sa[:m].
func sortReduced[T index](sa []T, m, names int) {
	reduced := sa[len(sa)-m:]
	switch s, r := any(sa[:m]), any(reduced); s := s.(type) {
	case []int32:
		induce(r.([]int32), s, names)
	case []int64:
		induce(r.([]int64), s, names)
	}
}

// spread puts the LMS suffixes, sorted by number in sa[:m], to the ends of
// their buckets, and clears all else.
func spread[C byte | int32 | int64, T index](text []C, sa []T, b *buckets[C, T], m int) {
	n := len(text)
	positions := sa[n-m:]
	w := m
	eachLMS(text, func(i int) {
		w--
		positions[w] = T(i)
	})
	for i, r := range sa[:m] {
		sa[i] = positions[r]
	}
	clear(sa[m:])
	b.ends()
	for i := m - 1; i >= 0; i-- {
		j := sa[i]
		sa[i] = 0
		sa[b.pop(text[j])] = j
	}
}

// induceL places all suffixes of type L after the LMS ones. Negative means that
// the suffix before is not of type L; such a one is for induceS.
func induceL[C byte | int32 | int64, T index](text []C, sa []T, b *buckets[C, T]) {
	b.starts()
	put := func(j T) {
		c := text[j]
		if j > 0 && text[j-1] < c {
			j = ^j
		}
		sa[b.at[c]] = j
		b.at[c]++
	}
	put(T(len(text) - 1))
	for i := range sa {
		j := sa[i]
		sa[i] = ^j
		if j > 0 {
			put(j - 1)
		}
	}
}

// induceS places all suffixes of type S, over the LMS ones, from the others.
func induceS[C byte | int32 | int64, T index](text []C, sa []T, b *buckets[C, T]) {
	b.ends()
	for i := len(sa) - 1; i >= 0; i-- {
		j := sa[i]
		if j <= 0 {
			sa[i] = ^j
			continue
		}
		j--
		c := text[j]
		b.at[c]--
		if j == 0 || text[j-1] > c {
			j = ^j
		}
		sa[b.at[c]] = j
	}
}
