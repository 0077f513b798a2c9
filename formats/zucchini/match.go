package zucchini

import (
	"encoding/binary"
	"sync"
)

// view is an image as it is compared: bytes of references do not count as such.
// What counts is that there is a reference of the same type at the same place.
type view struct {
	img []byte
	// role is 0 for raw bytes, 2·type+1 for the first byte of a reference and
	// 2·type+2 for the others.
	role []byte
	// seen is the raw byte, or for references something of their type.
	seen []byte
}

func raw(role byte) bool       { return role == 0 }
func continues(role byte) bool { return role != 0 && role%2 == 0 }

// newView returns nil if references overlap.
func newView(img []byte, refs [][]reference, groups []group) *view {
	v := &view{img: img, role: make([]byte, len(img)), seen: append([]byte(nil), img...)}
	for t, g := range groups {
		for _, r := range refs[t] {
			for i := range g.width {
				at := r.location + i
				if at >= uint32(len(img)) || v.role[at] != 0 {
					return nil
				}
				v.role[at] = byte(2*t + 2)
				v.seen[at] = byte(2*t + 2)
			}
			v.role[r.location]--
		}
	}
	return v
}

const (
	gram       = 8  // how many bytes must be alike for a match to be found
	maxTries   = 48 // candidates for each place
	maxBack    = 1 << 16
	minLike    = 12.0 // what a match must be worth
	unlikeByte = -1.5
)

// candidate is an equivalence and how much alike its sides are.
type candidate struct {
	equivalence
	like float64
}

// matcher finds what of the source the target repeats.
type matcher struct {
	source, target *view
	head           []int32 // by hash of a gram: the last place that has it, + 1
	next           []int32 // the one before, + 1; valid for those that are listed
	shift          uint
	found          []candidate // in the order of the target, without overlaps
}

// matcherPool keeps tables: a program's are up to five times its size.
var matcherPool = sync.Pool{New: func() any { return new(matcher) }}

// mostKept is how many places tables have at most that are kept.
const mostKept = 16 << 20

// findMatches returns what the target repeats of the source, in the order of the target.
func findMatches(source, target *view) []equivalence {
	m := matcherPool.Get().(*matcher)
	m.reset(source, target)
	found := m.matches()
	if m.source, m.target = nil, nil; cap(m.next) <= mostKept {
		matcherPool.Put(m)
	}
	return found
}

func (m *matcher) reset(source, target *view) {
	m.source, m.target, m.found = source, target, m.found[:0]
	m.shift = 64 - uint(min(max(log2(len(source.img)), 8), 22))
	m.head, m.next = sized(m.head, 1<<(64-m.shift)), sized(m.next, len(source.img))
	clear(m.head) // what is new as well: pages that are read first cost a second fault, which interrupts all processors
	for at := 0; at+gram <= len(source.img); at++ {
		if role := source.role[at]; !continues(role) && (at%2 == 0 || !raw(role)) {
			h := m.hash(source, at)
			m.next[at] = m.head[h]
			m.head[h] = int32(at + 1)
		}
	}
}

// sized returns n places, whose contents nobody knows.
func sized(b []int32, n int) []int32 {
	if cap(b) < n {
		return make([]int32, n)
	}
	return b[:n]
}

func (m *matcher) hash(v *view, at int) uint64 {
	return load(v.seen[at:]) * 0x9e3779b97f4a7c15 >> m.shift
}

func load(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

// matches goes through the target and takes the best match at each place.
func (m *matcher) matches() []equivalence {
	for at := 0; at < len(m.target.img); {
		best := candidate{}
		if !continues(m.target.role[at]) {
			best = m.best(at)
		}
		if best.like < minLike {
			at++
			continue
		}
		best = m.backward(best)
		m.add(best)
		at = int(best.dstEnd())
	}
	all := make([]equivalence, len(m.found))
	for i, c := range m.found {
		all[i] = c.equivalence
	}
	return all
}

// best tries where the source goes on after the last match, and where it has
// the same gram.
func (m *matcher) best(at int) (best candidate) {
	if n := len(m.found); n > 0 {
		last := m.found[n-1]
		best = m.forward(int(last.src)+at-int(last.dst), at)
	}
	if at+gram > len(m.target.img) {
		return best
	}
	i := m.head[m.hash(m.target, at)]
	for tries := 0; i > 0 && tries < maxTries; tries++ {
		if c := m.forward(int(i-1), at); c.like > best.like {
			best = c
		}
		i = m.next[i-1]
	}
	return best
}

// like is what it is worth that two bytes are put side by side.
func (m *matcher) like(src, dst int) float64 {
	role := m.target.role[dst]
	switch {
	case continues(role):
		return 0.5
	case !raw(role):
		return 1
	case m.source.img[src] == m.target.img[dst]:
		return 1
	}
	return unlikeByte
}

// forward extends a match from two places on for as long as it is worth it.
func (m *matcher) forward(src, dst int) candidate {
	best := candidate{equivalence: equivalence{uint32(src), uint32(dst), 0}}
	if src < 0 || src >= len(m.source.img) || continues(m.source.role[src]) {
		return best
	}
	like := 0.0
	n := min(len(m.source.img)-src, len(m.target.img)-dst)
	s, t := m.source.role[src:src+n], m.target.role[dst:dst+n]
	a, b := m.source.img[src:src+n], m.target.img[dst:dst+n]
	for i := 0; i < n; {
		if i+8 < n && load(s[i:])|load(t[i:])|(load(a[i:])^load(b[i:])) == 0 { // raw bytes, and all alike
			like += 8
			i += 8
		} else {
			if s[i] != t[i] {
				break
			}
			like += m.like(src+i, dst+i)
			i++
		}
		if like < best.like-minLike {
			break
		}
		if like >= best.like && (i == n || !continues(t[i])) {
			best.like, best.length = like, uint32(i)
		}
	}
	return best
}

// backward extends a match to what is before it.
func (m *matcher) backward(c candidate) candidate {
	best, like := c, c.like
	n := min(int(c.src), int(c.dst), maxBack)
	for i := 1; i <= n; i++ {
		src, dst := int(c.src)-i, int(c.dst)-i
		if m.source.role[src] != m.target.role[dst] {
			break
		}
		like += m.like(src, dst)
		if like < best.like-minLike {
			break
		}
		if like >= best.like && !continues(m.target.role[dst]) {
			best = candidate{equivalence{uint32(src), uint32(dst), c.length + uint32(i)}, like}
		}
	}
	return best
}

// add appends a match. Where it overlaps the ones before, the better one keeps
// what both have.
func (m *matcher) add(c candidate) {
	for len(m.found) > 0 {
		last := &m.found[len(m.found)-1]
		if last.dstEnd() <= c.dst {
			break
		}
		if last.like >= c.like {
			c.cutFrontDst(last.dstEnd())
			break
		}
		if last.dst >= c.dst {
			m.found = m.found[:len(m.found)-1]
			continue
		}
		last.length = c.dst - last.dst
		last.like = m.worth(last.equivalence)
		if last.like < minLike {
			m.found = m.found[:len(m.found)-1]
		}
	}
	if c.length > 0 {
		m.found = append(m.found, c)
	}
}

func (c *candidate) cutFrontDst(dst uint32) {
	cut := min(dst-c.dst, c.length)
	c.src, c.dst, c.length = c.src+cut, c.dst+cut, c.length-cut
}

func (m *matcher) worth(e equivalence) (sum float64) {
	for i := range int(e.length) {
		sum += m.like(int(e.src)+i, int(e.dst)+i)
	}
	return sum
}
