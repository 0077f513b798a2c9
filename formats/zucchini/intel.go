package zucchini

import "slices"

// intelGroup is the references that instructions of x86 hold, relative to the
// next instruction.
func (e *elf) intelGroup() group {
	return group{pool: 2, width: 4, read: e.readIntel, write: func(img []byte, r reference) {
		put32(img, r.location, e.tr.address(r.target)-e.tr.address(r.location)-4)
	}}
}

func (e *elf) readIntel() []reference {
	var refs []reference
	for _, s := range e.exec {
		e.gaps(s, func(from, to uint32) {
			for at := from; at < to; {
				r, ok := e.intelReference(s, at, to)
				if !ok {
					at++
					continue
				}
				refs = append(refs, r)
				at = r.location + 4
			}
		})
	}
	slices.SortFunc(refs, byLocation)
	return refs
}

// intelReference looks whether an instruction with a reference is at an offset.
// Where instructions begin is not known: every byte is tried, and what makes
// sense is taken.
func (e *elf) intelReference(s section, at, to uint32) (reference, bool) {
	opcode, anywhere := e.intelOpcode(e.img[at:to])
	if opcode == 0 {
		return reference{}, false
	}
	location := at + opcode
	address := e.tr.address(location) + 4 + u32(e.img, location)
	target := e.tr.offset(address)
	if target == badOffset || !anywhere && address-s.address >= s.size {
		return reference{}, false
	}
	return reference{location, target}, true
}

// intelOpcode returns how many bytes of opcode an instruction begins with before
// its reference, or 0. anywhere: it may point out of its section.
func (e *elf) intelOpcode(b []byte) (n uint32, anywhere bool) {
	if len(b) >= 5 && (b[0] == 0xe8 || b[0] == 0xe9) { // call, jmp
		return 1, false
	}
	if len(b) < 6 {
		return 0, false
	}
	if b[0] == 0x0f && b[1]&0xf0 == 0x80 { // jcc
		return 2, false
	}
	if e.kind != ElfX64 {
		return 0, false
	}
	switch b[0] {
	case 0xff: // call or jmp by a pointer
		if b[1] == 0x15 || b[1] == 0x25 {
			return 2, true
		}
	case 0x89, 0x8b, 0x8d: // mov, lea
		if b[1]&0xc7 == 5 {
			return 2, true
		}
	}
	return 0, false
}
