package cowfile

import "encoding/binary"

// A stretch is a number of consecutive copy or zero ops whose blocks – and
// sources – all go up or all go down by one: what remains of a file that has
// moved. Most ops of real deltas are in long ones, and everything that is asked
// of each op at Open can be answered for a whole stretch.
type stretch struct {
	ops  int
	down bool
}

// stretchAt returns the stretch that begins with op i; other ops, and those
// that are alone, are stretches of one.
func (f *File) stretchAt(i int) stretch { return f.stretchOf(i, f.n-i) }

// CopiesUp returns how many ops, of at most n from copy op i on, copy block
// after block, upwards in both places.
func (f *File) CopiesUp(i, n int) int {
	if s := f.stretchOf(i, min(n, f.n-i)); !s.down {
		return s.ops
	}
	return 1
}

// stretchOf looks at no more than most ops, at least one.
func (f *File) stretchOf(i, most int) stretch {
	le := binary.LittleEndian
	b := f.ops[i*opSizeV3 : (i+most)*opSizeV3]
	at, info := le.Uint64(b), le.Uint64(b[8:]) // data_length and new_block, source_info
	step := uint64(0)
	switch OpType(info >> typeShift) {
	case OpCopy:
		step = 1
	case OpZero:
	default:
		return stretch{ops: 1}
	}
	block, source := at>>32, info&sourceMask
	limit, down := min(1<<32-block, sourceMask-source+1), false
	move := uint64(1 << 32)
	if len(b) >= 2*opSizeV3 && le.Uint64(b[opSizeV3:]) == at-move {
		down, move, step = true, -move, -step
		limit = block + 1
		if step != 0 {
			limit = min(limit, source+1)
		}
	}
	n := 1
	for b = b[opSizeV3:]; len(b) >= opSizeV3 && uint64(n) < limit; b = b[opSizeV3:] {
		at, info = at+move, info+step
		if le.Uint64(b) != at || le.Uint64(b[8:]) != info {
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

// overlapsItself tells whether the stretch that begins with copy op o reads a block
// that an earlier op of it writes.
func (s stretch) overlapsItself(o Op) bool {
	ahead := int64(o.NewBlock) - int64(o.Source)
	if s.down {
		ahead = -ahead
	}
	return 0 < ahead && ahead < int64(s.ops)
}

// sources is the range of blocks that the stretch, which begins with copy op o,
// reads.
func (s stretch) sources(o Op) (first, last uint64) {
	if s.down {
		return o.Source - uint64(s.ops-1), o.Source
	}
	return o.Source, o.Source + uint64(s.ops-1)
}
