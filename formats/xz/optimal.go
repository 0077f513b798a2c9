package xz

import "math"

// window is how many bytes a way is looked for through at a time.
const window = 2048

// node is a place in the window, and the cheapest way to it that is known.
type node struct {
	price uint32
	choice
	// first and then a literal come before the choice, which is a repeat of the last
	// distance then: strings that differ in one byte. A length of 0: no first.
	first choice
	alone bool // the literal is there
	state int
	reps  [4]int
}

// total is how many bytes back the way comes from.
func (n *node) total() int {
	if n.alone {
		return n.first.length + 1 + n.length
	}
	return n.length
}

// arrive works out what is known after the way to n.
func (n *node) arrive(from *node) {
	n.state, n.reps = from.state, from.reps
	if n.alone {
		if n.first.length > 0 {
			n.after(n.first)
		}
		n.after(literal)
	}
	n.after(n.choice)
}

func (n *node) after(c choice) {
	switch {
	case c.length == 1 && c.rep < 0:
		n.state = afterLiteral(n.state)
	case c.length == 1:
		n.state = afterShortRep(n.state)
	case c.rep >= 0:
		n.state = afterRep(n.state)
		d := n.reps[c.rep]
		copy(n.reps[1:c.rep+1], n.reps[:c.rep])
		n.reps[0] = d
	default:
		n.state = afterMatch(n.state)
		copy(n.reps[1:], n.reps[:3])
		n.reps[0] = c.distance
	}
}

// cheapest codes until end, or until the chunk is full, on the way that costs least by
// the prices at the beginning of each window.
func (e *Encoder) cheapest(end int) {
	if e.nodes == nil {
		e.nodes = make([]node, window+1)
	}
	for e.done < end && e.room() {
		n := min(end-e.done, window)
		e.p.refresh(&e.m, min(n, e.f.nice))
		e.follow(e.way(n))
	}
}

// way finds the ways to n bytes, or to less and a long match, which is taken anyhow.
func (e *Encoder) way(n int) (reached int, long choice) {
	for i := range e.nodes[:n+1] {
		e.nodes[i].price = math.MaxUint32
	}
	e.nodes[0] = node{state: e.m.state, reps: e.m.reps}
	for i := range n {
		if i > 0 {
			e.nodes[i].arrive(&e.nodes[i-e.nodes[i].total()])
		}
		if long := e.edges(i, n); long.length > 0 {
			return i, long
		}
	}
	return n, choice{}
}

// follow codes the way to n, and what comes behind it.
func (e *Encoder) follow(n int, long choice) {
	e.path = e.path[:0]
	for ; n > 0; n -= e.nodes[n].total() {
		x := &e.nodes[n]
		e.path = append(e.path, x.choice)
		if x.alone {
			e.path = append(e.path, literal)
			if x.first.length > 0 {
				e.path = append(e.path, x.first)
			}
		}
	}
	for i := len(e.path) - 1; i >= 0; i-- {
		if !e.room() {
			return
		}
		e.put(e.path[i])
	}
	if long.length > 0 && e.room() {
		e.put(long)
	}
}

// relax notes a way to node i if it is the cheapest.
func (e *Encoder) relax(i int, price uint32, c choice) {
	if x := &e.nodes[i]; price < x.price {
		x.price, x.choice, x.alone = price, c, false
	}
}

// edges tries all symbols from node i on, unless one is so long that it is taken.
func (e *Encoder) edges(i, n int) (long choice) {
	x, pos := &e.nodes[i], e.done+i
	want := e.data[pos:min(pos+maxMatch, e.done+n)]
	at, m := pos%positions, &e.m
	e.single(x, i, pos, at)
	if len(want) < minMatch {
		return long
	}
	match := x.price + price1(m.isMatch[x.state][at])
	rep, longest := match+price1(m.isRep[x.state]), minMatch-1
	for r, d := range x.reps {
		if d >= pos || e.data[pos-d-1] != want[0] {
			continue
		}
		length := common(e.data[pos-d-1:], want)
		if length < minMatch {
			continue
		}
		if length >= e.f.nice {
			return choice{length: length, rep: r}
		}
		if r == 0 {
			longest = length
		}
		p := rep + m.repPrice(r, x.state, at)
		for l := length; l >= minMatch; l-- {
			e.relax(i+l, p+e.p.repeated[at][l], choice{length: l, rep: r})
		}
		e.again(i, len(want), p+e.p.repeated[at][length], choice{length: length, distance: d, rep: r}, afterRep(x.state))
	}
	return e.matches(i, longest+1, want, match+price0(m.isRep[x.state]))
}

// matches tries matches at new distances, from a length on.
func (e *Encoder) matches(i, from int, want []byte, price uint32) (long choice) {
	pos := e.done + i
	found := e.f.find(pos, len(want))
	if len(found) == 0 {
		return long
	}
	if last := found[len(found)-1]; last.length >= e.f.nice {
		return choice{length: last.length, distance: last.distance, rep: -1}
	}
	lengths, state := &e.p.lengths[pos%positions], e.nodes[i].state
	l := from
	for _, f := range found {
		for ; l <= f.length; l++ {
			p := price + lengths[l] + e.p.distance(uint32(f.distance), l)
			c := choice{length: l, distance: f.distance, rep: -1}
			e.relax(i+l, p, c)
			if l == f.length {
				e.again(i, len(want), p, c, afterMatch(state))
			}
		}
	}
	return long
}

// single tries what is one byte long, and a literal before a repeat.
func (e *Encoder) single(x *node, i, pos, at int) {
	m, rep0 := &e.m, x.reps[0]
	p := x.price + price0(m.isMatch[x.state][at]) + e.literalPrice(pos, x.state, rep0)
	e.relax(i+1, p, literal)
	if rep0 >= pos {
		return
	}
	if e.data[pos-rep0-1] == e.data[pos] {
		p := x.price + price1(m.isMatch[x.state][at]) + price1(m.isRep[x.state]) + price0(m.isRepG0[x.state]) + price0(m.isRep0Len[x.state][at])
		e.relax(i+1, p, choice{length: 1, rep: 0})
	}
}

// again tries a literal and the same distance behind a match from node i on.
func (e *Encoder) again(i, limit int, p uint32, c choice, state int) {
	rest := limit - c.length - 1
	pos := e.done + i + c.length
	if rest < minMatch || e.data[pos+1] != e.data[pos-c.distance] {
		return
	}
	length := common(e.data[pos-c.distance:], e.data[pos+1:pos+1+min(rest, e.f.nice)])
	if length < minMatch {
		return
	}
	m, at := &e.m, pos%positions
	p += price0(m.isMatch[state][at]) + e.literalPrice(pos, state, c.distance)
	state, at = afterLiteral(state), (pos+1)%positions
	p += price1(m.isMatch[state][at]) + price1(m.isRep[state]) + m.repPrice(0, state, at) + e.p.repeated[at][length]
	if x := &e.nodes[i+c.length+1+length]; p < x.price {
		x.price, x.choice, x.alone, x.first = p, choice{length: length, rep: 0}, true, c
	}
}

// repPrice is what it costs to say which of the last distances it is, not a single byte.
func (m *model) repPrice(r, state, at int) uint32 {
	if r == 0 {
		return price0(m.isRepG0[state]) + price1(m.isRep0Len[state][at])
	}
	p := price1(m.isRepG0[state])
	if r == 1 {
		return p + price0(m.isRepG1[state])
	}
	return p + price1(m.isRepG1[state]) + price(m.isRepG2[state], uint32(r-2))
}
