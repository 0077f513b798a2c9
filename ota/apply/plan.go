package apply

import (
	"cmp"
	"slices"

	"cowbird/formats/payload/pb"
)

// mergePlan is what the merge operations of a partition say about its blocks
// (specs/payload.md 12.2).
type mergePlan struct {
	copies []blockRange
	xors   []xorRange
}

type blockRange struct{ first, end uint64 }

// xorRange is blocks from first that are stored as the difference to the source's
// bytes from old, a block, plus offset.
type xorRange struct {
	blockRange
	old, offset uint64
}

func newMergePlan(p *pb.PartitionUpdate) *mergePlan {
	m := &mergePlan{}
	for _, op := range p.GetMergeOperations() {
		dst, src := op.GetDstExtent(), op.GetSrcExtent()
		r := blockRange{dst.GetStartBlock(), dst.GetStartBlock() + dst.GetNumBlocks()}
		switch op.GetType() {
		case pb.CowMergeOperation_COW_COPY:
			m.copies = append(m.copies, r)
		case pb.CowMergeOperation_COW_XOR:
			m.xors = append(m.xors, xorRange{r, src.GetStartBlock(), uint64(op.GetSrcOffset())})
		}
	}
	slices.SortFunc(m.copies, func(a, b blockRange) int { return cmp.Compare(a.first, b.first) })
	slices.SortFunc(m.xors, func(a, b xorRange) int { return cmp.Compare(a.first, b.first) })
	return m
}

// isCopy tells whether a block may be copied when the snapshot is merged.
func (m *mergePlan) isCopy(block uint64) bool {
	i, found := slices.BinarySearchFunc(m.copies, block, func(r blockRange, b uint64) int { return cmp.Compare(r.first, b) })
	return found || i > 0 && block < m.copies[i-1].end
}

// xorsWithin are the parts of xor ranges in the blocks from first up to end.
func (m *mergePlan) xorsWithin(first, end uint64) (inside []xorRange) {
	i, found := slices.BinarySearchFunc(m.xors, first, func(r xorRange, b uint64) int { return cmp.Compare(r.first, b) })
	if !found && i > 0 {
		i--
	}
	for ; i < len(m.xors) && m.xors[i].first < end; i++ {
		r := m.xors[i]
		if from := max(r.first, first); from < min(r.end, end) {
			inside = append(inside, xorRange{blockRange{from, min(r.end, end)}, r.old + from - r.first, r.offset})
		}
	}
	return inside
}

// sequence lists the blocks of ordered ops in the order in which they can be
// merged (specs/payload.md 12.3).
func sequence(p *pb.PartitionUpdate) (blocks []uint32) {
	for _, op := range p.GetMergeOperations() {
		src, dst := op.GetSrcExtent(), op.GetDstExtent()
		from, to, n := src.GetStartBlock(), dst.GetStartBlock(), dst.GetNumBlocks()
		isCopy := op.GetType() == pb.CowMergeOperation_COW_COPY
		if op.GetType() == pb.CowMergeOperation_COW_REPLACE || isCopy && from == to {
			continue
		}
		overlaps := from < to+n && to < from+src.GetNumBlocks()
		descending := overlaps && to > from
		for i := range n {
			if descending {
				i = n - 1 - i
			}
			blocks = append(blocks, uint32(to+i))
		}
	}
	return blocks
}
