package zucchini

import (
	"encoding/binary"
	"slices"
)

// reference is a place in an image that points to another one.
type reference struct{ location, target uint32 }

// invalid stands for a reference whose target makes no sense, where reading must
// stop.
const invalid = badOffset

// group is all references of one type. Those of several types can share a pool
// of targets.
type group struct {
	pool  byte
	width uint32 // of the reference in the image, in bytes
	// whole: a reference that a range cuts is not in the range. Ranges do not
	// cut others.
	whole bool
	// read finds the references in the image, sorted by location.
	read func() []reference
	// write lets the place at location point to target. img is the image, or one
	// with the same headers. Where target cannot be expressed it does nothing.
	write func(img []byte, r reference)
	// mask, if not nil, tells which bits of a place write can change; it has the
	// width of the place. Without it these are all.
	mask func(place []byte) []byte
}

// mixIn gives a place the bits of another one of the group that write changes.
func (g *group) mixIn(place, other []byte) {
	if g.mask == nil {
		copy(place, other)
		return
	}
	for i, m := range g.mask(place) {
		place[i] = place[i]&^m | other[i]&m
	}
}

// within returns the references of refs that are located in a range.
func (g *group) within(refs []reference, from, to uint32) []reference {
	at := func(o uint32) int {
		i, _ := slices.BinarySearchFunc(refs, o, func(r reference, o uint32) int {
			if r.location < o {
				return -1
			}
			return 1
		})
		return i
	}
	i, j := at(from), at(to)
	if j = max(i, j); g.whole && i < j && refs[j-1].location+g.width > to {
		j--
	}
	return untilInvalid(refs[i:j])
}

func untilInvalid(refs []reference) []reference {
	i := slices.IndexFunc(refs, func(r reference) bool { return r.target == invalid })
	if i < 0 {
		return refs
	}
	return refs[:i]
}

// disassemble finds the groups of references of an image, by type. The image
// must have no more and no less bytes.
func disassemble(k Kind, img []byte) ([]group, error) {
	size, groups := 0, []group(nil)
	switch k {
	case NoOp:
		return nil, nil
	case ElfX86, ElfX64, ElfARM, ElfARM64:
		if e := parseElf(k, img); e != nil {
			size, groups = len(e.img), e.groups()
		}
	case Dex:
		if d := parseDex(img); d != nil {
			size, groups = len(d.img), d.groups()
		}
	case Text:
		if t := parseText(img); t != nil {
			size, groups = len(t.img), t.groups()
		}
	}
	if size != len(img) {
		return nil, refuse(ErrImage, k.String(), len(img), size)
	}
	return groups, nil
}

func u16(b []byte, at uint32) uint32 { return uint32(binary.LittleEndian.Uint16(b[at:])) }
func u32(b []byte, at uint32) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
func u64(b []byte, at uint32) uint64 { return binary.LittleEndian.Uint64(b[at:]) }

func put16(b []byte, at, v uint32) { binary.LittleEndian.PutUint16(b[at:], uint16(v)) }
func put32(b []byte, at, v uint32) { binary.LittleEndian.PutUint32(b[at:], v) }

// covers tells whether n items of a size fit into b from an offset on.
func covers(b []byte, at uint64, n uint64, size uint64) bool {
	return at <= uint64(len(b)) && (uint64(len(b))-at)/size >= n
}
