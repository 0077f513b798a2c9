package xz

import (
	"encoding/binary"
	"math/bits"
)

// pairing is a match: how long, and how far back from 0 on.
type pairing struct{ length, distance int }

// finder finds strings that came before, by chains of places with the same four bytes,
// and by the last place with the same three and two.
type finder struct {
	data       []byte
	dictionary int
	tries      int // places of a chain that are compared
	nice       int // a match of that length is good enough

	two, three, four []int32 // by hash: the last place, + 1
	next             []int32 // by place: the one before with the same four, + 1
	shift3, shift4   uint
	at               int // the first place that is not in the tables
	found            []pairing
}

func (f *finder) reset(data []byte, dictionary int, level Level) {
	f.data, f.dictionary, f.at = data, dictionary, 0
	f.tries, f.nice = 8, 64
	if level == Best {
		f.tries, f.nice = 16, 96
	}
	width := min(max(log2(len(data)+1)+1, 10), 20)
	f.two = cleared(f.two, 1<<10)
	f.three = cleared(f.three, 1<<min(width, 16))
	f.four = cleared(f.four, 1<<width)
	f.shift3, f.shift4 = 32-uint(min(width, 16)), 32-uint(width)
	if cap(f.next) < len(data) {
		f.next = make([]int32, len(data))
	}
	f.next = f.next[:len(data)]
}

// cleared clears what is new as well: a page that is read before it is written costs a
// second fault, which interrupts all processors.
func cleared(b []int32, n int) []int32 {
	if cap(b) < n {
		b = make([]int32, n)
	}
	b = b[:n]
	clear(b)
	return b
}

const golden = 0x9e3779b1

func (f *finder) hashes(pos int) (h2, h3, h4 uint32) {
	v := binary.LittleEndian.Uint32(f.data[pos:])
	return v & 0xffff * golden >> 22, v << 8 * golden >> f.shift3, v * golden >> f.shift4
}

// skip puts the places before pos into the tables.
func (f *finder) skip(pos int) {
	for ; f.at < pos; f.at++ {
		if f.at+4 > len(f.data) {
			f.at = pos
			return
		}
		h2, h3, h4 := f.hashes(f.at)
		f.two[h2], f.three[h3] = int32(f.at+1), int32(f.at+1)
		f.next[f.at] = f.four[h4]
		f.four[h4] = int32(f.at + 1)
	}
}

// find gives matches at pos, each longer and further back than the one before, the
// longest of at most limit bytes. They are valid until the next call.
func (f *finder) find(pos, limit int) []pairing {
	f.skip(pos)
	f.found = f.found[:0]
	limit = min(limit, maxMatch)
	if pos+4 > len(f.data) || limit < 4 {
		return nil
	}
	h2, h3, h4 := f.hashes(pos)
	best := minMatch - 1
	best = f.try(pos, int(f.two[h2])-1, best, limit)
	best = f.try(pos, int(f.three[h3])-1, best, limit)
	if best < f.nice && best < limit {
		f.chain(pos, int(f.four[h4])-1, max(best, 3), limit)
	}
	return f.found
}

// try adds the match at place p, if it is longer than best, and gives the longest.
func (f *finder) try(pos, p, best, limit int) int {
	if p < 0 || p >= pos || pos-p > f.dictionary || f.data[p] != f.data[pos] {
		return best
	}
	if n := common(f.data[p:], f.data[pos:pos+limit]); n > best {
		f.found = append(f.found, pairing{n, pos - p - 1})
		return n
	}
	return best
}

func (f *finder) chain(pos, p, best, limit int) {
	data, want := f.data, f.data[pos:pos+limit]
	for p >= pos { // what a way went through that was not taken
		p = int(f.next[p]) - 1
	}
	for tries := f.tries; p >= 0 && pos-p <= f.dictionary && tries > 0; tries-- {
		if data[p+best] == want[best] {
			if n := common(data[p:], want); n > best {
				best = n
				f.found = append(f.found, pairing{n, pos - p - 1})
				if n >= f.nice || n == limit {
					return
				}
			}
		}
		p = int(f.next[p]) - 1
	}
}

// common is how long a and b are the same, at most as long as b; a is not shorter.
func common(a, b []byte) int {
	a = a[:len(b)]
	i := 0
	for ; i+8 <= len(b); i += 8 {
		if d := binary.LittleEndian.Uint64(a[i:]) ^ binary.LittleEndian.Uint64(b[i:]); d != 0 {
			return i + bits.TrailingZeros64(d)/8
		}
	}
	for i < len(b) && a[i] == b[i] {
		i++
	}
	return i
}
