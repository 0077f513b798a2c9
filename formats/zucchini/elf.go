package zucchini

import (
	"bytes"
	"cmp"
	"slices"
)

// elf is an ELF image. Fields of headers are found by tables, as both sizes of
// ELF have the same ones at different places.
type elf struct {
	kind     Kind
	img      []byte
	layout   *elfLayout
	sections []section
	exec     []section // executable ones, sorted by offset
	relocs   []section // with relocations, sorted by offset
	tr       *translator
	absolute []uint32 // where addresses are stored, sorted
}

// section has what matters of a section header.
type section struct {
	typ                           uint32
	flags                         uint64
	address, offset, size, entity uint32
}

func (s section) end() uint32 { return s.offset + s.size }

type elfLayout struct {
	class, width                            uint32
	ehdr, phoff, shoff, phnum, shnum, names uint32
	shentsize                               uint32
	shdr, flags, addr, offset, size, entity uint32
	phdr, pOffset, pFilesz                  uint32
	rel, rela, info                         uint32
}

var elf32 = elfLayout{class: 1, width: 4, ehdr: 52, phoff: 28, shoff: 32, phnum: 44, shentsize: 46, shnum: 48, names: 50,
	shdr: 40, flags: 8, addr: 12, offset: 16, size: 20, entity: 36, phdr: 32, pOffset: 4, pFilesz: 16, rel: 8, rela: 12, info: 4}

var elf64 = elfLayout{class: 2, width: 8, ehdr: 64, phoff: 32, shoff: 40, phnum: 56, shentsize: 58, shnum: 60, names: 62,
	shdr: 64, flags: 8, addr: 16, offset: 24, size: 32, entity: 56, phdr: 56, pOffset: 8, pFilesz: 32, rel: 16, rela: 24, info: 8}

// word reads a field that has the width of an address.
func (l *elfLayout) word(b []byte, at uint32) uint64 {
	if l.width == 4 {
		return uint64(u32(b, at))
	}
	return u64(b, at)
}

// elfKinds has layout, machine and the type of relative relocations.
var elfKinds = map[Kind]struct {
	layout            *elfLayout
	machine, relative uint32
}{
	ElfX86: {&elf32, 3, 8}, ElfX64: {&elf64, 62, 8}, ElfARM: {&elf32, 40, 23}, ElfARM64: {&elf64, 183, 0x403},
}

const (
	progbits, rela, nobits, rel = 1, 4, 8, 9 // types of sections
	execFlag, tlsFlag           = 4, 0x400
	execType, dynType           = 2, 3
	// sizeBound is how far sections without bytes may reach.
	sizeBound = 0x7fff0000
)

// isElf takes a quick look at the header.
func isElf(k Kind, b []byte) bool {
	l, m := elfKinds[k].layout, elfKinds[k].machine
	if l == nil || uint32(len(b)) < l.ehdr || !bytes.HasPrefix(b, []byte{0x7f, 'E', 'L', 'F', byte(l.class), 1, 1}) {
		return false
	}
	typ := u16(b, 16)
	return (typ == execType || typ == dynType) && u16(b, 18) == m && u32(b, 20) == 1 && u16(b, l.shentsize) == l.shdr
}

// parseElf returns nil for what is no ELF image of the kind. What follows the
// image is cut off: specs/payload.md 10.
func parseElf(k Kind, b []byte) *elf {
	if !isElf(k, b) || len(b) >= maxOffset {
		return nil
	}
	e := &elf{kind: k, img: b, layout: elfKinds[k].layout}
	l := e.layout
	size := uint64(len(b))
	shoff, shnum := min(l.word(b, l.shoff), size), uint64(u16(b, l.shnum))
	phoff, phnum := min(l.word(b, l.phoff), size), uint64(u16(b, l.phnum))
	if !covers(b, shoff, shnum, uint64(l.shdr)) || !covers(b, phoff, phnum, uint64(l.phdr)) {
		return nil
	}
	end := max(shoff+shnum*uint64(l.shdr), phoff+phnum*uint64(l.phdr))
	end, ok := e.segmentsEnd(b, phoff, phnum, end)
	if !ok || !e.readSections(shoff, shnum) || !e.namesEnd() {
		return nil
	}
	if end, ok = e.useSections(end); !ok {
		return nil
	}
	e.img = b[:end]
	e.findAbsolute()
	return e
}

func (e *elf) segmentsEnd(b []byte, phoff, phnum, end uint64) (uint64, bool) {
	for i := range phnum {
		h := b[phoff+i*uint64(e.layout.phdr):]
		offset, size := e.layout.word(h, e.layout.pOffset), e.layout.word(h, e.layout.pFilesz)
		if !covers(b, offset, size, 1) {
			return 0, false
		}
		end = max(end, offset+size)
	}
	return end, true
}

func (e *elf) readSections(shoff, shnum uint64) bool {
	l := e.layout
	for i := range shnum {
		h := e.img[shoff+i*uint64(l.shdr):]
		address, offset, size := l.word(h, l.addr), l.word(h, l.offset), l.word(h, l.size)
		s := section{typ: u32(h, 4), flags: l.word(h, l.flags), address: uint32(address), offset: uint32(offset), size: uint32(size),
			entity: uint32(min(l.word(h, l.entity), maxOffset))}
		bound := uint64(len(e.img))
		if s.typ == nobits {
			bound = sizeBound
		}
		if address > sizeBound || size > sizeBound-address || offset > bound || size > bound-offset {
			return false
		}
		e.sections = append(e.sections, s)
	}
	return len(e.sections) > 0
}

// namesEnd checks the section of names, of which nothing else is used.
func (e *elf) namesEnd() bool {
	i := u16(e.img, e.layout.names)
	if i >= uint32(len(e.sections)) {
		return false
	}
	s := e.sections[i]
	return s.size == 0 || s.end() <= uint32(len(e.img)) && e.img[s.end()-1] == 0
}

// useSections gives each section its role and returns where the image ends.
func (e *elf) useSections(end uint64) (uint64, bool) {
	var units []unit
	for _, s := range e.sections {
		if s.size == 0 || s.address == 0 || s.typ == nobits && (s.offset == 0 || s.flags&tlsFlag != 0) {
			continue
		}
		units = append(units, unit{s.offset, s.address, s.size})
		if s.typ == nobits {
			continue
		}
		end = max(end, uint64(s.end()))
		switch {
		case s.typ == rel && s.entity == e.layout.rel, s.typ == rela && s.entity == e.layout.rela:
			e.relocs = append(e.relocs, s)
		case s.typ == progbits && s.flags&execFlag != 0:
			e.exec = append(e.exec, s)
		}
	}
	byOffset := func(a, b section) int { return cmp.Compare(a.offset, b.offset) }
	slices.SortStableFunc(e.relocs, byOffset)
	slices.SortStableFunc(e.exec, byOffset)
	var ok bool
	e.tr, ok = newTranslator(units)
	return end, ok
}

func (e *elf) groups() []group {
	w := e.layout.width
	groups := []group{
		{pool: 0, width: w, read: e.readRelocs, write: func(img []byte, r reference) { e.putWord(img, r.location, e.tr.address(r.target)) }},
		{pool: 1, width: w, read: e.readAbsolute, write: e.writeAbsolute},
	}
	switch e.kind {
	case ElfX86, ElfX64:
		return append(groups, e.intelGroup())
	case ElfARM:
		return append(groups, e.armGroups(armBranches[:])...)
	}
	return append(groups, e.armGroups(arm64Branches[:])...)
}

func (e *elf) putWord(img []byte, at, v uint32) {
	put32(img, at, v)
	if e.layout.width == 8 {
		put32(img, at+4, 0)
	}
}

// readRelocs finds relocations that add the load address to what is stored
// elsewhere. Their targets are those places.
func (e *elf) readRelocs() []reference {
	var refs []reference
	relative, end := elfKinds[e.kind].relative, uint32(0)
	for _, s := range e.relocs {
		for at := max(s.offset, end); at < s.end() && s.entity <= uint32(len(e.img))-at; at += s.entity {
			end = at + s.entity
			address, info := e.layout.word(e.img, at), u32(e.img, at+e.layout.info)
			if e.layout.width == 4 {
				info &= 0xff
			}
			if info != relative || address > 1<<32-1 {
				continue
			}
			if target := e.tr.offset(uint32(address)); target != badOffset && covers(e.img, uint64(target), uint64(e.layout.width), 1) {
				refs = append(refs, reference{at, target})
			}
		}
	}
	return refs
}

// findAbsolute collects the places that relocations point to, without those
// that overlap an earlier one.
func (e *elf) findAbsolute() {
	var all []uint32
	for _, r := range e.readRelocs() {
		if e.absoluteTarget(r.target) != badOffset {
			all = append(all, r.target)
		}
	}
	slices.Sort(all)
	for _, at := range all {
		if n := len(e.absolute); n == 0 || at-e.absolute[n-1] >= e.layout.width {
			e.absolute = append(e.absolute, at)
		}
	}
}

func (e *elf) absoluteTarget(at uint32) uint32 {
	v := e.layout.word(e.img, at)
	if v >= maxOffset {
		return badOffset
	}
	return e.tr.offset(uint32(v))
}

func (e *elf) readAbsolute() []reference {
	refs := make([]reference, len(e.absolute))
	for i, at := range e.absolute {
		refs[i] = reference{at, e.absoluteTarget(at)}
	}
	return refs
}

func (e *elf) writeAbsolute(img []byte, r reference) {
	if address := e.tr.address(r.target); address != badAddress {
		e.putWord(img, r.location, address)
	}
}

// gaps calls f with the parts of a section that hold no stored addresses.
func (e *elf) gaps(s section, f func(from, to uint32)) {
	i, _ := slices.BinarySearch(e.absolute, s.offset)
	from := s.offset
	if i > 0 {
		from = max(from, e.absolute[i-1]+e.layout.width)
	}
	for ; i < len(e.absolute) && e.absolute[i] < s.end(); i++ {
		if from < e.absolute[i] {
			f(from, e.absolute[i])
		}
		from = e.absolute[i] + e.layout.width
	}
	if from < s.end() {
		f(from, s.end())
	}
}
