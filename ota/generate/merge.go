package generate

import (
	"cmp"
	"slices"

	"google.golang.org/protobuf/proto"

	"cowbird/formats/payload/pb"
)

// move is blocks that a merge takes from elsewhere in the partition, in one piece. With
// an offset, in bytes, it reads a part of one block more.
type move struct {
	xor       bool
	dst, src  uint64
	n, offset uint64
}

func (m *move) srcBlocks() uint64 {
	if m.offset > 0 {
		return m.n + 1
	}
	return m.n
}

func (m *move) proto() *pb.CowMergeOperation {
	op := &pb.CowMergeOperation{Type: pb.CowMergeOperation_COW_COPY.Enum(), SrcExtent: extent(m.src, m.srcBlocks()), DstExtent: extent(m.dst, m.n)}
	if m.xor {
		op.Type, op.SrcOffset = pb.CowMergeOperation_COW_XOR.Enum(), proto.Uint32(uint32(m.offset))
	}
	return op
}

func extent(start, n uint64) *pb.Extent {
	return &pb.Extent{StartBlock: proto.Uint64(start), NumBlocks: proto.Uint64(n)}
}

// copies are the moves of a copy item. What overlaps itself is cut into pieces that
// do not (specs/payload.md 12.2).
func (it *Item) copies() (moves []move) {
	dst := it.Dst[0].Start
	for _, r := range it.Src {
		piece := r.Count
		if d := max(r.Start, dst) - min(r.Start, dst); d > 0 {
			piece = min(piece, d)
		}
		for at := uint64(0); at < r.Count; at += piece {
			moves = append(moves, move{dst: dst + at, src: r.Start + at, n: min(piece, r.Count-at)})
		}
		dst += r.Count
	}
	return moves
}

// moves are an item's xors where the blocks really are: each in one range of the new
// partition and one of the old.
func (it *Item) moves(xors []Xor) (moves []move) {
	dst, src := flat(it.Dst), flat(it.Src)
	for _, x := range xors {
		for k := range uint64(x.Count) {
			from := x.Source + int64(k)*blockSize
			first, offset := from/blockSize, uint64(from%blockSize)
			m := move{xor: true, dst: dst[uint64(x.Block)+k], src: src[first], n: 1, offset: offset}
			if offset > 0 && (int(first)+1 >= len(src) || src[first+1] != m.src+1) {
				continue // its bytes are in two places
			}
			if m.readsItself() {
				continue
			}
			if n := len(moves); n > 0 {
				if l := &moves[n-1]; l.offset == offset && l.dst+l.n == m.dst && l.src+l.n == m.src && !begins(it.Dst, m.dst) {
					l.n++
					continue
				}
			}
			moves = append(moves, m)
		}
	}
	return moves
}

// readsItself tells of one block whether it reads what it overwrites: nothing but a
// journal makes that safe.
func (m *move) readsItself() bool { return m.src <= m.dst && m.dst < m.src+m.srcBlocks() }

// begins tells whether a range does at a block, so that no move goes across.
func begins(ranges []Range, block uint64) bool {
	return slices.ContainsFunc(ranges, func(r Range) bool { return r.Start == block })
}

func flat(ranges []Range) (blocks []uint64) {
	for _, r := range ranges {
		for b := range r.Count {
			blocks = append(blocks, r.Start+b)
		}
	}
	return blocks
}

// mergeOrder orders moves so that each comes before those that overwrite what it reads.
// Where they wait for each other in a ring, one of the ring is left out: an xor rather
// than a copy, a short one rather than a long one. That gives up at least one move of
// each ring, and at most all but one of each strongly connected component.
func mergeOrder(moves []move) []move {
	slices.SortFunc(moves, func(a, b move) int { return cmp.Compare(a.dst, b.dst) })
	g := newGraph(moves)
	for g.breakRings() {
	}
	return g.sorted()
}

type graph struct {
	moves []move
	gone  []bool
	after [][]int // by move: those that overwrite what it reads
}

func newGraph(moves []move) *graph {
	g := &graph{moves: moves, gone: make([]bool, len(moves)), after: make([][]int, len(moves))}
	for i := range moves {
		m := &moves[i]
		j, _ := slices.BinarySearchFunc(moves, m.src, func(x move, block uint64) int {
			if x.dst+x.n <= block {
				return -1
			}
			return 1
		})
		for ; j < len(moves) && moves[j].dst < m.src+m.srcBlocks(); j++ {
			if j != i {
				g.after[i] = append(g.after[i], j)
			}
		}
	}
	return g
}

// breakRings leaves out one move of each component of moves that wait for each other.
// It is false when there are none.
func (g *graph) breakRings() (broken bool) {
	for _, c := range g.components() {
		if len(c) == 1 {
			continue
		}
		broken = true
		g.gone[slices.MinFunc(c, func(a, b int) int { return compareLoss(g, a, b) })] = true
	}
	return broken
}

// compareLoss puts what is the least loss first.
func compareLoss(g *graph, a, b int) int {
	x, y := &g.moves[a], &g.moves[b]
	if x.xor != y.xor {
		return map[bool]int{true: -1, false: 1}[x.xor]
	}
	return cmp.Or(cmp.Compare(x.n, y.n), cmp.Compare(len(g.after[b]), len(g.after[a])), cmp.Compare(x.dst, y.dst))
}

// components are the strongly connected ones (Tarjan's algorithm, without recursion).
func (g *graph) components() (all [][]int) {
	index, low := make([]int, len(g.moves)), make([]int, len(g.moves)) // index from 1 on
	onStack := make([]bool, len(g.moves))
	var stack []int
	type frame struct{ at, next int }
	count := 0
	for root := range g.moves {
		if g.gone[root] || index[root] > 0 {
			continue
		}
		calls := []frame{{root, 0}}
		for len(calls) > 0 {
			f := &calls[len(calls)-1]
			v := f.at
			if f.next == 0 {
				count++
				index[v], low[v], onStack[v] = count, count, true
				stack = append(stack, v)
			}
			if f.next < len(g.after[v]) {
				w := g.after[v][f.next]
				f.next++
				switch {
				case g.gone[w]:
				case index[w] == 0:
					calls = append(calls, frame{w, 0})
				case onStack[w]:
					low[v] = min(low[v], index[w])
				}
				continue
			}
			if low[v] == index[v] {
				at := len(stack) - 1
				for stack[at] != v {
					at--
				}
				c := slices.Clone(stack[at:])
				for _, w := range c {
					onStack[w] = false
				}
				stack = stack[:at]
				all = append(all, c)
			}
			calls = calls[:len(calls)-1]
			if n := len(calls); n > 0 {
				low[calls[n-1].at] = min(low[calls[n-1].at], low[v])
			}
		}
	}
	return all
}

// sorted are the moves that stay. Components come out with what waits first, so that
// they are taken from the last.
func (g *graph) sorted() (out []move) {
	for _, c := range slices.Backward(g.components()) {
		out = append(out, g.moves[c[0]])
	}
	return out
}
