package bsdiff

import (
	"encoding/binary"
	"slices"
)

// differ splits the target into stretches that are like one of the source, and
// what is left between them. It goes through the target with an alignment, that
// of the last stretch, and looks for one that is better by so much that a triple
// pays.
type differ struct {
	source, target []byte
	find           func(key []byte) (pos, length int)
	local          bool

	// The stretch that is being continued began here.
	at, from int // in target and source

	control, diff, extra []byte
}

const (
	// better is how many more bytes another alignment must match.
	better = 8
	// far is a distance in the source from which on a match must have farBetter
	// more bytes, if the way there is costly (Options.Local).
	far       = 1 << 20
	farBetter = 24
	// long is a match with which the alignment is kept without a search.
	long = 256
	// patience is how often in a row the search may return nearly the same.
	patience = 100
)

// match is a string of the target that the source has at pos.
type match struct{ scan, pos, length int }

func (d *differ) run() {
	for scan := 0; scan < len(d.target); {
		if n := d.aligned(scan); n >= long {
			scan += n
			continue
		}
		m, keep := d.next(scan)
		if m.scan < len(d.target) && !keep {
			d.begin(m)
		}
		scan = m.scan + m.length
	}
	d.finish()
}

// aligned is how many bytes from scan on the present alignment matches.
func (d *differ) aligned(scan int) int {
	p := scan - d.at + d.from
	if p < 0 || p >= len(d.source) {
		return 0
	}
	return matchLen(d.source[p:], d.target[scan:])
}

// same is 1 if the present alignment matches at i, else 0.
func (d *differ) same(i int) int {
	p := i - d.at + d.from
	if p >= 0 && p < len(d.source) && d.source[p] == d.target[i] {
		return 1
	}
	return 0
}

// next returns the first match from scan on that is either all that the present
// alignment has as well (then keep is true) or clearly better.
func (d *differ) next(scan int) (m match, keep bool) {
	score, scored := 0, scan // matches of the present alignment in [scan, scored)
	var last match
	lastScore, repeats := 0, 0
	for ; scan < len(d.target); scan++ {
		m.scan = scan
		m.pos, m.length = d.find(d.target[scan:])
		for ; scored < scan+m.length; scored++ {
			score += d.same(scored)
		}
		if m.length == score && m.length > 0 || m.length > score+d.needed(m) {
			return m, m.length == score
		}
		if scored > scan {
			score -= d.same(scan)
		} else {
			scored = scan + 1
		}
		if near(last, m, lastScore, score) {
			repeats++
		} else {
			repeats = 0
		}
		if repeats > patience {
			return m, false
		}
		last, lastScore = m, score
	}
	return match{scan: len(d.target)}, false
}

// needed is how many more bytes than the present alignment m must match.
func (d *differ) needed(m match) int {
	if move := (m.pos - m.scan) - (d.from - d.at); d.local && (move > far || move < -far) {
		return farBetter
	}
	return better
}

// near says that two searches at neighbours found nearly the same: in a long
// region with few differences the next hundred will as well.
func near(last, m match, lastScore, score int) bool {
	within := func(lo, v, hi int) bool { return lo <= v && v <= hi }
	return m.length > better && within(last.length-better, m.length, last.length) &&
		within(lastScore-better, score, lastScore) &&
		within(last.pos, m.pos, last.pos+better) &&
		within(score, m.length, score+better)
}

// begin ends the present stretch and begins one with m. Both are extended into
// what lies between them.
func (d *differ) begin(m match) {
	forward := d.forward(m.scan)
	backward := d.backward(m)
	if overlap := d.at + forward - (m.scan - backward); overlap > 0 {
		keep := d.split(m, forward, backward, overlap)
		forward -= overlap - keep
		backward -= keep
	}
	d.emit(forward, m.scan-backward, m.pos-backward)
}

func (d *differ) finish() {
	if d.at < len(d.target) {
		n := d.forward(len(d.target))
		d.emit(n, len(d.target), d.from+n)
	}
}

// forward is how far the present stretch goes on well, at most to end.
func (d *differ) forward(end int) int {
	n := min(end-d.at, len(d.source)-d.from)
	source, target := d.source[d.from:d.from+n], d.target[d.at:d.at+n]
	var r reach
	for len(target) >= 8 {
		if load(source) == load(target) {
			r.same(8)
		} else {
			for i, c := range target[:8] {
				r.add(source[i] == c)
			}
		}
		source, target = source[8:], target[8:]
	}
	for i, c := range target {
		r.add(source[i] == c)
	}
	return r.at
}

// backward is how far m can well begin earlier.
func (d *differ) backward(m match) int {
	n := min(m.scan-d.at, m.pos)
	source, target := d.source[m.pos-n:m.pos], d.target[m.scan-n:m.scan]
	var r reach
	for n >= 8 {
		if n -= 8; load(source[n:]) == load(target[n:]) {
			r.same(8)
			continue
		}
		for i := n + 7; i >= n; i-- {
			r.add(source[i] == target[i])
		}
	}
	for n--; n >= 0; n-- {
		r.add(source[n] == target[n])
	}
	return r.at
}

// reach is how far a stretch goes on well: to where the matches are ahead of the
// mismatches by most.
type reach struct{ gone, sum, best, at int }

func (r *reach) add(same bool) {
	if r.gone++; !same {
		r.sum--
	} else if r.sum++; r.sum > r.best {
		r.best, r.at = r.sum, r.gone
	}
}

// same adds n matches.
func (r *reach) same(n int) {
	r.gone += n
	if r.sum += n; r.sum > r.best {
		r.best, r.at = r.sum, r.gone
	}
}

// split says how many of the overlapping bytes the present stretch keeps.
func (d *differ) split(m match, forward, backward, overlap int) int {
	sum, best, at := 0, 0, 0
	for i := range overlap {
		c := d.target[m.scan-backward+i]
		if d.source[d.from+forward-overlap+i] == c {
			sum++
		}
		if d.source[m.pos-backward+i] == c {
			sum--
		}
		if sum > best {
			best, at = sum, i+1
		}
	}
	return at
}

// emit writes n bytes of the present stretch and what is missing up to at. The
// next one begins there, in the source at from.
func (d *differ) emit(n, at, from int) {
	done := len(d.diff)
	d.diff = slices.Grow(d.diff, n)[:done+n]
	subtract(d.diff[done:], d.target[d.at:d.at+n], d.source[d.from:d.from+n])
	d.extra = append(d.extra, d.target[d.at+n:at]...)
	for _, v := range [...]int{n, at - d.at - n, from - d.from - n} {
		d.control = appendInt(d.control, int64(v))
	}
	d.at, d.from = at, from
}

// subtract puts the differences of the bytes of a and b, which are as long, into diff.
func subtract(diff, a, b []byte) {
	const high = 0x8080808080808080 // of each byte, which must not borrow from the next
	diff, b = diff[:len(a)], b[:len(a)]
	i := 0
	for ; i+8 <= len(a); i += 8 {
		x, y := load(a[i:]), load(b[i:])
		binary.LittleEndian.PutUint64(diff[i:], (x|high)-(y&^high)^(x^^y)&high)
	}
	for ; i < len(a); i++ {
		diff[i] = a[i] - b[i]
	}
}

func load(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }
