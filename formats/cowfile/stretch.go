package cowfile

import (
	"encoding/binary"
	"math/bits"
)

// A stretch is a number of consecutive copy, zero or xor ops whose blocks – and
// sources – all go up or all go down by one: what remains of a file that has
// moved. Most ops of real deltas are in long ones, and everything that is asked
// of each op at Open can be answered for a whole stretch, except how long the
// data of each xor op are.
type stretch struct {
	ops  int
	down bool
}

// stretchAt returns the stretch that begins with op i; other ops, and those
// that are alone, are stretches of one. While a file is being opened it looks at
// the ops between only once.
func (f *File) stretchAt(i int) stretch {
	if f.starts == nil {
		return f.stretchOf(i, f.n-i)
	}
	s := stretch{ops: nextBit(f.starts, i+1, f.n) - i}
	s.down = s.ops > 1 && f.newBlock(i+1) < f.newBlock(i)
	return s
}

// findStretch is stretchAt for the first time, for op after op.
func (f *File) findStretch(i int) stretch {
	bitSet(f.starts, uint64(i))
	return f.stretchOf(i, f.n-i)
}

func (f *File) newBlock(i int) uint32 {
	return uint32(binary.LittleEndian.Uint64(f.ops[i*opSizeV3:]) >> 32)
}

// nextBit is the first bit from i on that is set, or end.
func nextBit(s []uint64, i, end int) int {
	if i >= end {
		return end
	}
	w := i / 64
	for word := s[w] >> (i % 64) << (i % 64); ; word = s[w] {
		if word != 0 {
			return min(end, w*64+bits.TrailingZeros64(word))
		}
		if w++; w == len(s) {
			return end
		}
	}
}

// CopiesUp returns how many ops, of at most n from copy op i on, copy block
// after block, upwards in both places.
func (f *File) CopiesUp(i, n int) int {
	if s := f.stretchOf(i, min(n, f.n-i)); !s.down {
		return s.ops
	}
	return 1
}

// UnitsUp returns how many replace ops, of at most n from compressed op i on, have
// units that follow each other in the snapshot, all of one size and compressed,
// and data that follow each other in the file. They are ops that can be read at
// once: stored is the length of their data, at most most bytes unless op i's are
// longer than that.
func (f *File) UnitsUp(i, n, most int) (ops int, stored int64) {
	first := f.Op(i)
	blocks := first.Blocks()
	o := first
	for {
		ops++
		stored += int64(o.DataLength)
		if ops == n || i+ops == f.n {
			return ops, stored
		}
		o = f.Op(i + ops)
		if o.Type != OpReplace || o.Factor != first.Factor || o.Compression == None || o.NewBlock != first.NewBlock+uint32(ops)*blocks ||
			int64(o.Source) != int64(first.Source)+stored || stored+int64(o.DataLength) > int64(most) {
			return ops, stored
		}
	}
}

// stretchOf looks at no more than most ops, at least one.
func (f *File) stretchOf(i, most int) stretch {
	le := binary.LittleEndian
	b := f.ops[i*opSizeV3 : (i+most)*opSizeV3]
	at, info := le.Uint64(b), le.Uint64(b[8:]) // data_length and new_block, source_info
	step, alike := uint64(0), ^uint64(0)       // alike: what must be as expected of the first word
	switch OpType(info >> typeShift) {
	case OpCopy:
		step = 1
	case OpZero:
	case OpXor:
		step, alike = BlockSize, ^uint64(1<<32-1)
	default:
		return stretch{ops: 1}
	}
	block, source := at>>32, info&sourceMask
	limit, down := 1<<32-block, false
	move := uint64(1 << 32)
	if len(b) >= 2*opSizeV3 && (le.Uint64(b[opSizeV3:])^(at-move))&alike == 0 {
		down, move = true, -move
		limit = block + 1
	}
	switch {
	case step != 0 && down:
		limit = min(limit, source/step+1)
		step = -step
	case step != 0:
		limit = min(limit, (sourceMask-source)/step+1)
	}
	n := 1
	b = b[:min(uint64(len(b)), limit*opSizeV3)]
	for b = b[opSizeV3:]; len(b) >= opSizeV3; b = b[opSizeV3:] {
		at, info = at+move, info+step
		if (le.Uint64(b)^at)&alike|(le.Uint64(b[8:])^info) != 0 {
			break
		}
		n++
	}
	return stretch{n, down && n > 1}
}

// extendBy adds up to n ops that go on as the run does; it returns how many.
func (r *run) extendBy(n int, down bool) int {
	if r.factor() != 0 || r.down() != down || r.ops() < 2 {
		return 0
	}
	n = min(n, int(runOps-r.ops()))
	r.meta += uint32(n)
	if down {
		r.block -= uint32(n)
	}
	return n
}

// overlapsItself tells whether the stretch that begins with ordered op o may
// read a block that an earlier op of it writes. It is sure of copies.
func (s stretch) overlapsItself(o Op) bool {
	first, last := o.SourceBlocks()
	ahead := func(source uint64) bool {
		n := int64(o.NewBlock) - int64(source)
		if s.down {
			n = -n
		}
		return 0 < n && n < int64(s.ops)
	}
	return ahead(first) || ahead(last)
}

// sources is the range of blocks that the stretch, which begins with ordered op
// o, reads.
func (s stretch) sources(o Op) (first, last uint64) {
	first, last = o.SourceBlocks()
	if s.down {
		return first - uint64(s.ops-1), last
	}
	return first, last + uint64(s.ops-1)
}
