package zucchini

import (
	"cmp"
	"slices"
)

// branch is a kind of ARM instruction that holds a reference.
type branch struct {
	width uint32 // of the instruction: 2 or 4
	ahead uint32 // how far the program counter is ahead of the instruction
	align uint32 // of the instruction
	// read tells the displacement in a word, and what the target is aligned to;
	// 0 if it is another instruction.
	read func(code uint32) (disp int32, align uint32)
	// write returns a word of the kind with another displacement, unless that
	// does not fit.
	write func(code uint32, disp int32) (uint32, bool)
	// thumb words of four bytes are two halves, the higher one first.
	thumb bool
	// displacement has the bits of a word of the kind that write can change.
	displacement func(code uint32) uint32
}

func (b *branch) fetch(img []byte, at uint32) uint32 {
	switch {
	case b.width == 2:
		return u16(img, at)
	case b.thumb:
		return u16(img, at)<<16 | u16(img, at+2)
	}
	return u32(img, at)
}

func (b *branch) store(img []byte, at, code uint32) {
	switch {
	case b.width == 2:
		put16(img, at, code)
	case b.thumb:
		put16(img, at, code>>16)
		put16(img, at+2, code)
	default:
		put32(img, at, code)
	}
}

// maskAt tells which bits of an instruction are its displacement.
func (b *branch) maskAt(place []byte) []byte {
	code := b.fetch(place, 0)
	mask := make([]byte, b.width)
	b.store(mask, 0, b.displacement(code))
	return mask
}

// target is the address that an instruction at an address points to.
func (b *branch) target(address, code uint32) (uint32, bool) {
	disp, align := b.read(code)
	if align == 0 || address%b.align != 0 {
		return 0, false
	}
	return (address + b.ahead + uint32(disp)) &^ (align - 1), true
}

// retarget lets an instruction point elsewhere.
func (b *branch) retarget(address, code, target uint32) (uint32, bool) {
	_, align := b.read(code)
	if align == 0 || address%b.align != 0 || target%align != 0 {
		return 0, false
	}
	disp := target - (address + b.ahead)
	return b.write(code, int32((disp+align-1)&^(align-1)))
}

// bitsOf takes the bits of v from lo to hi.
func bitsOf(v, lo, hi uint32) uint32 { return v << (31 - hi) >> (31 - hi + lo) }

// signExtend extends the sign, which is in bit n.
func signExtend(v, n uint32) int32 { return int32(v<<(31-n)) >> (31 - n) }

func fits(disp int32, bits uint32) bool { return disp == signExtend(uint32(disp), bits-1) }

// simple is a branch whose displacement is one field from bit lo to bit hi of the
// word, in steps of 1<<shift bytes.
func simple(lo, hi, shift uint32, is func(code uint32) bool) (read func(uint32) (int32, uint32), write func(uint32, int32) (uint32, bool)) {
	step := int32(1) << shift
	read = func(code uint32) (int32, uint32) {
		if !is(code) {
			return 0, 0
		}
		return signExtend(bitsOf(code, lo, hi), hi-lo) << shift, uint32(step)
	}
	write = func(code uint32, disp int32) (uint32, bool) {
		mask := uint32(1)<<(hi+1) - 1<<lo
		return code&^mask | uint32(disp>>shift)<<lo&mask, disp%step == 0 && fits(disp, hi-lo+1+shift)
	}
	return read, write
}

func bitMask(v uint32) func(uint32) uint32 { return func(uint32) uint32 { return v } }

func newBranch(width, ahead, align uint32, thumb bool, lo, hi, shift uint32, is func(code uint32) bool) branch {
	b := branch{width: width, ahead: ahead, align: align, thumb: thumb}
	b.read, b.write = simple(lo, hi, shift, is)
	b.displacement = bitMask(1<<(hi+1) - 1<<lo)
	return b
}

// The branches, in the order of their types.
var (
	armBranches = [...]branch{
		{width: 4, ahead: 8, align: 4, read: readA24, write: writeA24, displacement: maskA24},
		newBranch(2, 4, 2, true, 0, 7, 1, func(c uint32) bool { return c&0xf000 == 0xd000 && c&0x0f00 != 0x0f00 }),
		newBranch(2, 4, 2, true, 0, 10, 1, func(c uint32) bool { return c&0xf800 == 0xe000 }),
		{width: 4, ahead: 4, align: 2, thumb: true, read: readT20, write: writeT20, displacement: bitMask(0x043f2fff)},
		{width: 4, ahead: 4, align: 2, thumb: true, read: readT24, write: writeT24, displacement: bitMask(0x07ff2fff)},
	}
	arm64Branches = [...]branch{
		newBranch(4, 0, 4, false, 5, 18, 2, func(c uint32) bool { return c&0x7e000000 == 0x36000000 }),                               // tbz, tbnz
		newBranch(4, 0, 4, false, 5, 23, 2, func(c uint32) bool { return c&0xff000010 == 0x54000000 || c&0x7e000000 == 0x34000000 }), // b.cond, cbz, cbnz
		newBranch(4, 0, 4, false, 0, 25, 2, func(c uint32) bool { return c&0x7c000000 == 0x14000000 }),                               // b, bl
	}
)

// A24 is b, bl and, with a condition of 15, blx of ARM.

func isBLX(code uint32) bool { return code>>28 == 15 }

func readA24(code uint32) (int32, uint32) {
	if code&0x0e000000 != 0x0a000000 {
		return 0, 0
	}
	disp := signExtend(code, 23) << 2
	if isBLX(code) {
		return disp | int32(code>>24&1<<1), 2
	}
	return disp, 4
}

func writeA24(code uint32, disp int32) (uint32, bool) {
	ok := fits(disp, 26)
	if isBLX(code) {
		ok = ok && disp%2 == 0
		code = code&^(1<<24) | uint32(disp)>>1&1<<24
	} else {
		ok = ok && disp%4 == 0
	}
	return code&^0xffffff | uint32(disp>>2)&0xffffff, ok
}

func maskA24(code uint32) uint32 {
	if isBLX(code) {
		return 0x01ffffff
	}
	return 0x00ffffff
}

// T20 is b with a condition, of Thumb-2.

func readT20(code uint32) (int32, uint32) {
	if code&0xf800d000 != 0xf0008000 || code&0x03c00000 == 0x03c00000 {
		return 0, 0
	}
	v := bitsOf(code, 26, 26)<<20 | bitsOf(code, 11, 11)<<19 | bitsOf(code, 13, 13)<<18 | bitsOf(code, 16, 21)<<12 | bitsOf(code, 0, 10)<<1
	return signExtend(v, 20), 2
}

func writeT20(code uint32, disp int32) (uint32, bool) {
	v := uint32(disp)
	code = code&0xfbc0d000 | bitsOf(v, 20, 20)<<26 | bitsOf(v, 12, 17)<<16 | bitsOf(v, 18, 18)<<13 | bitsOf(v, 19, 19)<<11 | bitsOf(v, 1, 11)
	return code, disp%2 == 0 && fits(disp, 21)
}

// T24 is b, bl and blx of Thumb-2.

const blxT24 = 0xf000c000

func readT24(code uint32) (int32, uint32) {
	align := uint32(2)
	switch code & 0xf800d000 {
	case 0xf0009000, 0xf000d000:
	case blxT24:
		if align = 4; code&1 != 0 {
			return 0, 0
		}
	default:
		return 0, 0
	}
	s := bitsOf(code, 26, 26)
	v := s<<24 | (bitsOf(code, 13, 13)^s^1)<<23 | (bitsOf(code, 11, 11)^s^1)<<22 | bitsOf(code, 16, 25)<<12 | bitsOf(code, 0, 10)<<1
	return signExtend(v, 24), align
}

func writeT24(code uint32, disp int32) (uint32, bool) {
	v := uint32(disp)
	s := bitsOf(v, 24, 24)
	ok := disp%2 == 0 && fits(disp, 25) && (code&0xf800d000 != blxT24 || v>>1&1 == 0)
	code = code&0xf800d000 | s<<26 | bitsOf(v, 12, 21)<<16 | (bitsOf(v, 23, 23)^s^1)<<13 | (bitsOf(v, 22, 22)^s^1)<<11 | bitsOf(v, 1, 11)
	return code, ok
}

// armGroups scans the code when the first of the groups is read.
func (e *elf) armGroups(branches []branch) []group {
	var found [][]reference
	groups := make([]group, len(branches))
	for i := range branches {
		b := &branches[i]
		read := func() []reference {
			if found == nil {
				found = e.readArm(branches)
			}
			return found[i]
		}
		groups[i] = group{pool: 2, width: b.width, read: read, write: func(img []byte, r reference) {
			code, ok := b.retarget(e.tr.address(r.location), b.fetch(img, r.location), e.tr.address(r.target))
			if ok {
				b.store(img, r.location, code)
			}
		}, mask: b.maskAt}
	}
	return groups
}

func (e *elf) readArm(branches []branch) [][]reference {
	found := make([][]reference, len(branches))
	for _, s := range e.exec {
		e.gaps(s, func(from, to uint32) {
			if e.kind == ElfARM && e.isThumb(s) {
				e.scanThumb(from, to, found)
				return
			}
			for at := (from + 3) &^ 3; at < to && to-at >= 4; at += 4 {
				e.tryBranches(at, branches, 0, 4, found)
			}
		})
	}
	for _, refs := range found {
		slices.SortFunc(refs, byLocation)
	}
	return found
}

func (e *elf) scanThumb(from, to uint32, found [][]reference) {
	for at := (from + 1) &^ 1; at < to && to-at >= 2; {
		size := uint32(2)
		if half := u16(e.img, at); half&0xf000 == 0xf000 || half&0xf800 == 0xe800 {
			size = 4
		}
		if to-at < size {
			return
		}
		e.tryBranches(at, armBranches[1:], 1, size, found)
		at += size
	}
}

// tryBranches appends a reference if one of the branches is at an offset. first
// is the type of the first one.
func (e *elf) tryBranches(at uint32, branches []branch, first int, width uint32, found [][]reference) {
	for i := range branches {
		b := &branches[i]
		if b.width != width || first == 0 && b.thumb {
			continue
		}
		address, ok := b.target(e.tr.address(at), b.fetch(e.img, at))
		if !ok {
			continue
		}
		if target := e.tr.offset(address); target != badOffset && e.executable(target) {
			found[first+i] = append(found[first+i], reference{at, target})
		}
		return
	}
}

func (e *elf) executable(offset uint32) bool {
	i, _ := slices.BinarySearchFunc(e.exec, offset, func(s section, o uint32) int {
		if s.offset <= o {
			return -1
		}
		return 1
	})
	return i > 0 && offset-e.exec[i-1].offset < e.exec[i-1].size
}

// isThumb guesses which instructions a section has: most of ARM's are executed
// always, which their highest four bits say.
func (e *elf) isThumb(s section) bool {
	if s.address%4 != 0 || s.size%4 != 0 {
		return true
	}
	always := 0
	for at := s.offset; at < s.end(); at += 4 {
		if e.img[at+3]&0xf0 == 0xe0 {
			always++
		}
	}
	return float64(always) < float64(s.size/4)*0.4
}

func byLocation(a, b reference) int { return cmp.Compare(a.location, b.location) }
