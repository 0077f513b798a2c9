package zucchini

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
)

// Small images of every kind. Two of the same kind and seed differ in what was
// inserted, which moves what references point to.

// makeElf has code, data and relocations for the data.
func makeElf(k Kind, seed uint64, inserted int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	l := elfKinds[k].layout
	code := makeCode(k, r, inserted)
	const codeAt, align = 0x200, 16
	dataAt := (codeAt + len(code) + align - 1) &^ (align - 1)
	var data []byte
	pointers := 24
	for range pointers {
		data = appendWord(data, l, uint64(codeAt+0x1000+r.IntN(len(code))&^3))
	}
	relAt := dataAt + len(data)
	var rels []byte
	for i := range pointers {
		rels = appendWord(rels, l, uint64(dataAt+0x1000+i*int(l.width)))
		rels = appendWord(rels, l, uint64(elfKinds[k].relative))
	}
	namesAt := relAt + len(rels)
	shoff := (namesAt + 1 + 7) &^ 7
	img := make([]byte, shoff)
	copy(img[codeAt:], code)
	copy(img[dataAt:], data)
	copy(img[relAt:], rels)
	putElfHeader(img, k, l, shoff, 5)
	img = append(img, make([]byte, l.shdr)...)
	img = appendSection(img, l, progbits, execFlag, codeAt+0x1000, codeAt, len(code), 0)
	img = appendSection(img, l, progbits, 0, dataAt+0x1000, dataAt, len(data), 0)
	img = appendSection(img, l, rel, 0, relAt+0x1000, relAt, len(rels), int(l.rel))
	return appendSection(img, l, 3, 0, 0, namesAt, 1, 0)
}

func putElfHeader(img []byte, k Kind, l *elfLayout, shoff, sections int) {
	copy(img, []byte{0x7f, 'E', 'L', 'F', byte(l.class), 1, 1})
	le := binary.LittleEndian
	le.PutUint16(img[16:], dynType)
	le.PutUint16(img[18:], uint16(elfKinds[k].machine))
	le.PutUint32(img[20:], 1)
	le.PutUint32(img[l.shoff:], uint32(shoff))
	le.PutUint16(img[l.shentsize:], uint16(l.shdr))
	le.PutUint16(img[l.shnum:], uint16(sections))
	le.PutUint16(img[l.names:], uint16(sections-1))
}

func appendWord(b []byte, l *elfLayout, v uint64) []byte {
	if l.width == 4 {
		return binary.LittleEndian.AppendUint32(b, uint32(v))
	}
	return binary.LittleEndian.AppendUint64(b, v)
}

func appendSection(img []byte, l *elfLayout, typ, flags, address, offset, size, entity int) []byte {
	h := make([]byte, l.shdr)
	le := binary.LittleEndian
	le.PutUint32(h[4:], uint32(typ))
	for at, v := range map[uint32]int{l.flags: flags, l.addr: address, l.offset: offset, l.size: size, l.entity: entity} {
		le.PutUint32(h[at:], uint32(v))
	}
	return append(img, h...)
}

// makeCode is functions that call each other.
func makeCode(k Kind, r *rand.Rand, inserted int) []byte {
	type call struct{ at, to int }
	var code []byte
	var begins []int
	var calls []call
	for f := range 40 {
		begins = append(begins, len(code))
		if f == 20 {
			for range inserted {
				code = append(code, 0xa5, 0xa5, 0xa5, 0xe5)
			}
		}
		for range 3 + r.IntN(4) {
			for range 1 + r.IntN(3) {
				code = append(code, byte(r.IntN(64)), byte(r.IntN(64)), byte(r.IntN(32)), 0xe3)
			}
			calls = append(calls, call{len(code), r.IntN(40)})
			code = append(code, make([]byte, 8)...)
		}
	}
	for _, c := range calls {
		putCall(k, code[c.at:], c.at, begins[c.to])
	}
	return code
}

// putCall writes calls of the kinds that there are.
func putCall(k Kind, b []byte, at, to int) {
	disp := int32(to - at)
	put := func(branches []branch, i int, code uint32, at int) {
		br := &branches[i]
		code, ok := br.retarget(uint32(0x10000+at), code, uint32(0x10000+to))
		if !ok {
			code = 0xe3000000
		}
		br.store(b, 0, code)
	}
	switch k {
	case ElfX86, ElfX64:
		b[0] = 0xe8
		binary.LittleEndian.PutUint32(b[1:], uint32(disp-5))
	case ElfARM64:
		i := at / 4 % 3
		put(arm64Branches[:], i, []uint32{0x36000003, 0xb4000001, 0x94000000}[i], at)
	case ElfARM:
		put(armBranches[:], 0, []uint32{0xeb000000, 0xfa000000, 0x1a000000}[at/4%3], at)
	}
}

// makeDex has tables, lists and code.
func makeDex(seed uint64, inserted int) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	le := binary.LittleEndian
	img := make([]byte, dexHeader)
	copy(img, "dex\n038\x00")
	counts := map[int]int{dexString: 40 + inserted, dexType: 30, dexProto: 20, dexField: 24, dexMethod: 25, dexClass: 6, dexCallSite: 3, dexHandle: 6,
		dexTypeList: 5, dexSetRefs: 4, dexSet: 5, dexCode: 12, dexDirectory: 4}
	order := []int{dexString, dexType, dexProto, dexField, dexMethod, dexClass, dexCallSite, dexHandle, dexTypeList, dexSetRefs, dexSet, dexCode, dexDirectory}
	at := map[int]int{}
	index := func(typ, width int) {
		if n := uint32(r.IntN(counts[typ])); width == 2 {
			img = le.AppendUint16(img, uint16(n))
		} else {
			img = le.AppendUint32(img, n)
		}
	}
	offset := func() { img = le.AppendUint32(img, uint32(dexHeader+r.IntN(1000))) }
	list := func(entry func()) {
		n := 1 + r.IntN(4)
		img = le.AppendUint32(img, uint32(n))
		for range n {
			entry()
		}
	}
	items := map[int]func(i int){
		dexString: func(i int) { img = le.AppendUint32(img, uint32(2000+8*i+inserted)) },
		dexType:   func(int) { index(dexString, 4) },
		dexProto:  func(int) { index(dexString, 4); index(dexType, 4); offset() },
		dexField:  func(int) { index(dexType, 2); index(dexType, 2); index(dexString, 4) },
		dexMethod: func(int) { index(dexType, 2); index(dexProto, 2); index(dexString, 4) },
		dexClass: func(i int) {
			index(dexType, 4)
			offset()
			img = le.AppendUint32(img, []uint32{noIndex, 3}[i%2])
			offset()
			index(dexString, 4)
			img = le.AppendUint32(img, []uint32{0, 300}[i%2])
			offset()
			offset()
		},
		dexCallSite:  func(int) { offset() },
		dexHandle:    func(i int) { img = le.AppendUint64(img, uint64(i+i/4*3)|uint64(r.IntN(20))<<32) },
		dexTypeList:  func(int) { list(func() { index(dexType, 2) }) },
		dexSetRefs:   func(int) { list(offset) },
		dexSet:       func(int) { list(offset) },
		dexCode:      func(i int) { img = appendCodeItem(img, r, i) },
		dexDirectory: func(int) { img = appendDirectory(img, r) },
	}
	for _, typ := range order {
		img = append(img, make([]byte, -len(img)&3)...)
		at[typ] = len(img)
		for i := range counts[typ] {
			if typ >= dexTypeList {
				img = append(img, make([]byte, -len(img)&3)...)
			}
			items[typ](i)
		}
	}
	return finishDex(img, order, counts, at)
}

func finishDex(img []byte, order []int, counts, at map[int]int) []byte {
	le := binary.LittleEndian
	img = append(img, make([]byte, -len(img)&3)...)
	le.PutUint32(img[52:], uint32(len(img)))
	img = le.AppendUint32(img, uint32(len(order)))
	for _, typ := range order {
		img = le.AppendUint32(img, uint32(typ))
		img = le.AppendUint32(img, uint32(counts[typ]))
		img = le.AppendUint32(img, uint32(at[typ]))
	}
	for len(img) < 3000 {
		img = append(img, byte(len(img)))
	}
	le.PutUint32(img[32:], uint32(len(img)))
	return img
}

func appendDirectory(img []byte, r *rand.Rand) []byte {
	le := binary.LittleEndian
	counts := []int{r.IntN(3), r.IntN(3), r.IntN(3)}
	img = le.AppendUint32(img, uint32(r.IntN(2)*400))
	total := 0
	for _, n := range counts {
		img = le.AppendUint32(img, uint32(n))
		total += n
	}
	for range total {
		img = le.AppendUint32(img, uint32(r.IntN(24)))
		img = le.AppendUint32(img, uint32(200+r.IntN(900)))
	}
	return img
}

// appendCodeItem has instructions with references of all types, a switch with
// data, and in every third item a handler.
func appendCodeItem(img []byte, r *rand.Rand, i int) []byte {
	le := binary.LittleEndian
	code := []uint16{0x001a, uint16(r.IntN(40)), 0x001b, uint16(r.IntN(40)), 0, 0x001f, uint16(r.IntN(30)), 0x0053, uint16(r.IntN(24)),
		0x006f, uint16(r.IntN(25)), 0, 0x00fa, uint16(r.IntN(25)), 0, uint16(r.IntN(20)), 0x00fc, uint16(r.IntN(3)), 0, 0x00fe, uint16(r.IntN(6)),
		0x00ff, uint16(r.IntN(20)), 0x0328, 0x0029, 9, 0x0033, uint16(0x10000 - 5), 0x003a, 4, 0x002a, 6, 0, 0x002b, 4, 0, 0x000e, 0x0100, 2, 3}
	tries := i % 3 / 2
	img = le.AppendUint64(img, uint64(tries)<<48|3<<16|2)
	img = le.AppendUint64(img, uint64(len(code))<<32)
	for _, unit := range code {
		img = le.AppendUint16(img, unit)
	}
	if tries > 0 {
		img = append(img, make([]byte, -len(img)&3)...)
		img = le.AppendUint64(img, 0x0001000500000000)
		img = append(img, 1, 0x7e, 3, 5, 4, 6, 9) // one handler: -2, so two pairs and one for the rest
	}
	return img
}

// makeText has references of every form.
func makeText(seed uint64, inserted int) []byte {
	r := rand.New(rand.NewPCG(seed, 3))
	b := []byte(textHead + "\n")
	for i := range 30 {
		if i == 12 {
			for range inserted {
				b = append(b, "one line more\n"...)
			}
		}
		line := 1 + r.IntN(9)
		b = fmt.Appendf(b, "line %d <%d,1> {%02d,03} [%03d,001] (+1,+0) <-01,+00> [+001,+002] (%d,%d)\n", r.IntN(50), line, line+10, line+20, line, line)
	}
	return append(b, textFoot...)
}

func makeImage(k Kind, seed uint64, inserted int) []byte {
	switch k {
	case Dex:
		return makeDex(seed, inserted)
	case Text:
		return makeText(seed, inserted)
	case NoOp:
		return append([]byte{byte(inserted)}, makeText(seed, inserted)[9:]...)
	}
	return makeElf(k, seed, inserted)
}

var allKinds = []Kind{NoOp, ElfX86, ElfX64, ElfARM, ElfARM64, Dex, Text}
