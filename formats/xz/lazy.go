package xz

// choice is a symbol: a match, a repeat of distance rep, or with length 1 a literal or,
// if rep is 0, the byte at the last distance.
type choice struct {
	length, distance, rep int // rep is −1 for none
}

var literal = choice{length: 1, rep: -1}

// far is how much a distance has to be less, so that one byte less of a match costs no
// more: its bits are more or less those of a literal.
func far(near, distance int) bool { return distance>>7 > near }

// lazy codes until end, or until the chunk is full. A match is taken unless a byte later
// there is a better one.
func (e *Encoder) lazy(end int) {
	ahead, have := pairing{}, false // what the next byte has, if that is known
	for e.done < end && e.room() {
		pos := e.done
		main := ahead
		if !have {
			main = e.longest(pos, end)
		}
		have = false
		rep := e.bestRep(pos, end)
		switch {
		case rep.length >= minMatch && e.preferRep(rep.length, main):
			e.put(rep)
			continue
		case main.length < minMatch || main.length == minMatch && main.distance >= 1<<7:
			e.byteAlone(rep)
			ahead, have = pairing{}, false
			continue
		}
		if main.length < e.f.nice && pos+1 < end {
			ahead, have = e.longest(pos+1, end), true
			if better(main, ahead) || e.repAt(pos+1, end, max(main.length-1, minMatch)) {
				e.byteAlone(rep)
				continue
			}
			have = false
		}
		e.putMatch(main.distance, main.length)
	}
}

// byteAlone codes one byte, at the last distance if that is the same.
func (e *Encoder) byteAlone(rep choice) {
	if d := e.m.reps[0] + 1; e.m.state >= 7 && d <= e.done && e.data[e.done] == e.data[e.done-d] {
		e.putShortRep()
		return
	}
	e.putLiteral()
}

func (e *Encoder) put(c choice) {
	switch {
	case c.length == 1 && c.rep < 0:
		e.putLiteral()
	case c.length == 1:
		e.putShortRep()
	case c.rep >= 0:
		e.putRep(c.rep, c.length)
	default:
		e.putMatch(c.distance, c.length)
	}
}

// longest is the longest match, or one a byte shorter and much nearer.
func (e *Encoder) longest(pos, end int) pairing {
	found := e.f.find(pos, end-pos)
	n := len(found)
	if n == 0 {
		return pairing{}
	}
	m := found[n-1]
	for i := n - 2; i >= 0 && found[i].length+1 == m.length && far(found[i].distance, m.distance); i-- {
		m = found[i]
	}
	return m
}

// bestRep is the longest string at one of the last distances.
func (e *Encoder) bestRep(pos, end int) choice {
	best := choice{rep: -1}
	want := e.data[pos:min(end, pos+maxMatch)]
	for i, d := range e.m.reps {
		if d >= pos || e.data[pos-d-1] != want[0] {
			continue
		}
		if n := common(e.data[pos-d-1:], want); n > best.length {
			best.length, best.rep = n, i
		}
	}
	return best
}

// repAt tells whether there is a string of so many bytes at one of the last distances.
func (e *Encoder) repAt(pos, end, length int) bool {
	if pos+length > end {
		return false
	}
	want := e.data[pos : pos+length]
	for _, d := range e.m.reps {
		if d < pos && common(e.data[pos-d-1:], want) == length {
			return true
		}
	}
	return false
}

// preferRep tells whether a repeat is as good as a match, which also has to tell its
// distance.
func (e *Encoder) preferRep(length int, main pairing) bool {
	return length+1 >= main.length || length+2 >= main.length && main.distance >= 1<<9 || length+3 >= main.length && main.distance >= 1<<15
}

// better tells whether the match a byte later is.
func better(now, later pairing) bool {
	if later.length < minMatch {
		return false
	}
	return later.length >= now.length && later.distance < now.distance ||
		later.length == now.length+1 && !far(now.distance, later.distance) ||
		later.length > now.length+1 ||
		later.length+1 >= now.length && now.length >= 3 && far(later.distance, now.distance)
}
