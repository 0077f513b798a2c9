package cow

import (
	"slices"

	"cowbird/formats/cowfile"
)

// breakCycles replaces ordered blocks until the others can be ordered: what is
// left of "block a is read by the op of b" has no ring.
//
// As long as each op reads one block the rings are disjoint, and replacing the
// cheapest block of each is the best that can be done. An xor op at a byte
// offset reads two blocks; then rings share blocks, and to give up the fewest
// bytes is a feedback vertex set, for which no fast exact way is known. The
// method is local ratio: of each ring that is met, all blocks are charged what
// the cheapest of them has left, and one that has nothing left is replaced. In
// the end those are taken back that turn out not to be in a ring. What is
// charged adds up to no more than the best choice gives up, and a block is
// charged by each ring once; so what is given up is at most L times the best,
// where L is the longest ring that was met. (Two bounds on the work can make it
// worse: maxWeighed, and maxSteps, after which the block met last is replaced.)
func (b *builder) breakCycles() error {
	c := cutter{b: b, state: make([]uint8, b.n), left: map[int]int{}, steps: maxSteps * (b.n + 1)}
	for i := range b.n {
		c.pending = append(c.pending, i)
		for len(c.pending) > 0 {
			last := len(c.pending) - 1
			i := c.pending[last]
			c.pending = c.pending[:last]
			if b.kind[i].ordered() && c.state[i] == unseen {
				if err := c.search(i); err != nil {
					return err
				}
			}
		}
	}
	c.takeBack()
	b.stats.CyclesBroken = len(c.cuts)
	for _, cut := range c.cuts {
		b.stats.CycleBytes += int64(c.cost[cut.block])
	}
	return nil
}

const (
	// maxWeighed bounds the copied blocks of a ring that are compressed to find
	// the smallest.
	maxWeighed = 64
	// maxSteps bounds the steps of the search, a block of the target.
	maxSteps = 64
	// maxLooked bounds the search for a ring through one block.
	maxLooked = 4096
)

// The states of a block in a search for rings.
const (
	unseen uint8 = iota
	onPath
	finished // no ring can be reached from it
)

// hop is a block on the path of a search.
type hop struct {
	block int
	slot  int // of the successors, that is to be followed next
}

type cut struct {
	block int
	was   kind
}

type cutter struct {
	b       *builder
	enc     *cowfile.Encoder
	buf     [blockSize]byte
	state   []uint8
	path    []hop
	pending []int       // blocks to search from
	left    map[int]int // bytes that a block of a ring has not been charged yet
	cost    map[int]int // what replacing it costs
	cuts    []cut
	steps   int // that may still be made
}

func (c *cutter) push(i int) {
	c.state[i] = onPath
	c.path = append(c.path, hop{block: i})
}

// search follows successors from a block, depth first, and opens each ring.
func (c *cutter) search(i int) error {
	c.push(i)
	for len(c.path) > 0 {
		c.steps--
		top := &c.path[len(c.path)-1]
		if top.slot == 2 {
			c.state[top.block] = finished
			c.path = c.path[:len(c.path)-1]
			continue
		}
		s, ok := c.b.successor(top.block, top.slot)
		top.slot++
		switch {
		case !ok:
		case c.state[s] == unseen:
			c.push(s)
		case c.state[s] == onPath:
			if err := c.open(s); err != nil {
				return err
			}
		}
	}
	return nil
}

// open replaces a block of the ring from a block on the path to the path's end.
// What comes behind it on the path is searched anew.
func (c *cutter) open(from int) error {
	start := len(c.path) - 1
	for c.path[start].block != from {
		start--
	}
	at := len(c.path) - 1
	if c.steps > 0 {
		var err error
		if at, err = c.charge(start); err != nil {
			return err
		}
	}
	block := c.path[at].block
	c.cuts = append(c.cuts, cut{block, c.b.kind[block]})
	c.b.kind[block] = fresh
	for _, s := range c.path[at:] {
		c.state[s.block] = unseen
		if s.block != block {
			c.pending = append(c.pending, s.block)
		}
	}
	c.path = c.path[:at]
	return nil
}

// charge charges the blocks of the ring, and returns the place of the one that
// is to be replaced.
func (c *cutter) charge(start int) (at int, err error) {
	ring, weighed := c.path[start:], 0
	at = -1
	for k, s := range ring {
		if _, known := c.left[s.block]; !known {
			if err := c.weigh(s.block, &weighed); err != nil {
				return 0, err
			}
		}
		if at < 0 || c.left[s.block] < c.left[ring[at].block] || c.left[s.block] == c.left[ring[at].block] && s.block < ring[at].block {
			at = k
		}
	}
	least := c.left[ring[at].block]
	for _, s := range ring {
		c.left[s.block] -= least
	}
	return start + at, nil
}

// weigh finds what replacing a block costs: the bytes that its delta saves, or
// those that a copied block takes by itself. Beyond maxWeighed of a ring a block
// counts in full.
func (c *cutter) weigh(i int, weighed *int) error {
	cost := blockSize
	switch {
	case c.b.kind[i] == changed:
		cost = c.b.saved(i)
	case *weighed < maxWeighed:
		*weighed++
		var err error
		if cost, err = c.compressed(i); err != nil {
			return err
		}
	}
	if c.cost == nil {
		c.cost = map[int]int{}
	}
	c.cost[i], c.left[i] = cost, cost
	return nil
}

func (c *cutter) compressed(i int) (int, error) {
	if c.enc == nil {
		var err error
		if c.enc, err = c.b.newEncoder(); err != nil {
			return 0, err
		}
	}
	if _, err := readBlocks(c.b.o.Target, "target", i, c.buf[:]); err != nil {
		return 0, err
	}
	stored, _, err := c.enc.Encode(c.buf[:])
	return len(stored), err
}

// takeBack takes cuts back that are not needed, the last ones first.
func (c *cutter) takeBack() {
	for k := len(c.cuts) - 1; k >= 0; k-- {
		x := c.cuts[k]
		c.b.kind[x.block] = x.was
		if c.inRing(x.block) {
			c.b.kind[x.block] = fresh
			continue
		}
		c.cuts = slices.Delete(c.cuts, k, k+1)
	}
}

// inRing tells whether a block is in a ring, or may be: the search is bounded.
func (c *cutter) inRing(i int) bool {
	seen, todo := map[int]bool{}, []int{i}
	for len(todo) > 0 {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for slot := range 2 {
			s, ok := c.b.successor(at, slot)
			if ok && s == i || len(seen) > maxLooked {
				return true
			}
			if ok && !seen[s] {
				seen[s] = true
				todo = append(todo, s)
			}
		}
	}
	return false
}
