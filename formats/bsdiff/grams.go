package bsdiff

import (
	"encoding/binary"
	"math/bits"
	"sync"
)

// grams finds matches by the strings of eight bytes that source and target share. It
// takes a tenth of the time that sorting all suffixes does, and misses a match only
// where a string is in the source so often that not all its places are tried.
type grams struct {
	source []byte
	shift  uint     // of a hash, for its place in wanted; head has a sixteenth of the places
	wanted []uint64 // bits: the target has a gram of this hash
	listed []uint64 // bits: and so has the source
	head   []int32  // by hash: the first place in the source, + 1
	next   []int32  // by place / gramStep: the next one with the hash, + 1; valid for those that are listed
}

const (
	gram = 8
	// gramStep is how far the listed places are apart: what begins between two of them is
	// found a byte later.
	gramStep = 2
	// gramTries is how many places of a string are compared.
	gramTries = 6
	// headShift is how many more bits of a hash wanted tells apart than head does.
	headShift = 4
)

// gramPool keeps tables, as most files are small and all of them want one.
var gramPool = sync.Pool{New: func() any { return new(grams) }}

func gramHash(b []byte, shift uint) uint64 {
	return binary.LittleEndian.Uint64(b) * 0x9e3779b97f4a7c15 >> shift
}

// newGrams lists the places in the source of what the target has as well. It is to be
// given back.
func newGrams(source, target []byte) *grams {
	g := gramPool.Get().(*grams)
	width := min(max(bits.Len(uint(len(target)))+3, 10), 26)
	g.source, g.shift = source, uint(64-width)
	g.wanted, g.listed = cleared(g.wanted, 1<<width/64), cleared(g.listed, 1<<width/64)
	g.head = cleared(g.head, 1<<(width-headShift))
	places := len(source)/gramStep + 1
	if cap(g.next) < places {
		g.next = make([]int32, places+places/4)
	}
	g.next = g.next[:places]
	for i := 0; i+gram <= len(target); i++ {
		h := gramHash(target[i:], g.shift)
		g.wanted[h/64] |= 1 << (h % 64)
	}
	g.list()
	return g
}

// mostKept is how many places tables have at most that are kept.
const mostKept = 16 << 20

func (g *grams) giveBack() {
	if g.source = nil; cap(g.next) <= mostKept {
		gramPool.Put(g)
	}
}

// list goes backwards, so that a string's first place comes first. Of a run of one
// byte it takes only the ends.
func (g *grams) list() {
	source, last := g.source, ^uint64(0)
	for i := len(source) - gram; i >= 0; i -= gramStep {
		h := gramHash(source[i:], g.shift)
		if g.wanted[h/64]&(1<<(h%64)) == 0 || h == last && i > 0 && source[i-1] == source[i] {
			last = h
			continue
		}
		last = h
		g.listed[h/64] |= 1 << (h % 64)
		g.next[i/gramStep] = g.head[h>>headShift]
		g.head[h>>headShift] = int32(i + 1)
	}
}

// cleared clears what is new as well: a page that is read before it is written costs a
// second fault, which interrupts all processors.
func cleared[T any](b []T, n int) []T {
	if cap(b) < n {
		b = make([]T, n)
	}
	b = b[:n]
	clear(b)
	return b
}

// find returns the longest of the matches that are tried, or length 0.
func (g *grams) find(key []byte) (pos, length int) {
	if len(key) < gram {
		return 0, 0
	}
	h := gramHash(key, g.shift)
	if g.listed[h/64]&(1<<(h%64)) == 0 {
		return 0, 0
	}
	i := g.head[h>>headShift]
	for tries := 0; i > 0 && tries < gramTries; tries++ {
		at := int(i - 1)
		if at+length < len(g.source) && length < len(key) && g.source[at+length] == key[length] {
			if n := matchLen(g.source[at:], key); n > length {
				pos, length = at, n
			}
		}
		i = g.next[at/gramStep]
	}
	return pos, length
}
