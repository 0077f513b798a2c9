package bsdiff

import (
	"encoding/binary"
	"math/bits"
)

// finder finds the longest match of a string in the source.
type finder[T index] struct {
	source []byte
	sa     []T
	first  []T // by the first two bytes: where their suffixes begin in sa
}

func newFinder[T index](source []byte) *finder[T] {
	f := &finder[T]{source: source, sa: suffixes[T](source), first: make([]T, 1<<16+1)}
	n := len(source)
	if n == 0 {
		return f
	}
	for i := range n - 1 {
		f.first[pair(source[i:])+1]++
	}
	f.first[int(source[n-1])<<8]++ // the suffix of one byte sorts before its pairs
	for i := range 1 << 16 {
		f.first[i+1] += f.first[i]
	}
	return f
}

func pair(b []byte) int { return int(b[0])<<8 | int(b[1]) }

// find returns the longest match of two bytes or more, or length 0. Both sides
// of the search know how much of the key they share, so that no byte of it is
// compared twice.
func (f *finder[T]) find(key []byte) (pos, length int) {
	if len(key) < 2 {
		return 0, 0
	}
	p := pair(key)
	lo, hi := int(f.first[p]), int(f.first[p+1])
	if p&0xff == 0xff {
		hi -= f.single(p>>8 + 1)
	}
	if lo >= hi {
		return 0, 0
	}
	var below, above struct{ pos, shared int }
	below.shared, above.shared = 2, 2
	found := 0
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		at := int(f.sa[mid])
		n := min(below.shared, above.shared)
		n += matchLen(f.source[min(at+n, len(f.source)):], key[n:])
		if n >= found {
			pos, found = at, n
		}
		if n == len(key) {
			break
		}
		if at+n == len(f.source) || f.source[at+n] < key[n] {
			lo, below.shared = mid+1, n
		} else {
			hi, above.shared = mid, n
		}
	}
	return pos, found
}

// single is 1 if the source ends with byte c, else 0: then sa has a suffix of
// one byte at the beginning of c's.
func (f *finder[T]) single(c int) int {
	if n := len(f.source); n > 0 && int(f.source[n-1]) == c {
		return 1
	}
	return 0
}

// matchLen is the length of the common prefix.
func matchLen(a, b []byte) int {
	n := min(len(a), len(b))
	a, b = a[:n], b[:n]
	i := 0
	for ; i+8 <= n; i += 8 {
		if d := binary.LittleEndian.Uint64(a[i:]) ^ binary.LittleEndian.Uint64(b[i:]); d != 0 {
			return i + bits.TrailingZeros64(d)/8
		}
	}
	for i < n && a[i] == b[i] {
		i++
	}
	return i
}
