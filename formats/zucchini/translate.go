package zucchini

import (
	"cmp"
	"slices"
)

// Addresses of a loaded image, relative to where it is loaded. badAddress stands
// for an offset that has none, badOffset for the reverse.
const (
	badAddress = 1<<32 - 2
	badOffset  = 1<<32 - 2
)

// unit maps a piece of the file to an equally long piece of memory.
type unit struct{ offset, address, size uint32 }

func (u unit) offsetEnd() uint32  { return u.offset + u.size }
func (u unit) addressEnd() uint32 { return u.address + u.size }

// translator knows where the bytes of the file are in memory.
type translator struct{ byOffset, byAddress []unit }

// newTranslator takes the units of an image, or none if they contradict each
// other: specs/payload.md 10.
func newTranslator(units []unit) (*translator, bool) {
	for _, u := range units {
		if !inside(int64(u.offset), u.size, maxOffset) || !inside(int64(u.address), u.size, maxOffset) {
			return nil, false
		}
	}
	slices.SortFunc(units, func(a, b unit) int {
		return cmp.Or(cmp.Compare(a.address, b.address), cmp.Compare(a.size, b.size), cmp.Compare(a.offset, b.offset))
	})
	units, ok := joinUnits(units)
	if !ok {
		return nil, false
	}
	t := &translator{byAddress: units, byOffset: slices.Clone(units)}
	slices.SortFunc(t.byOffset, func(a, b unit) int { return cmp.Compare(a.offset, b.offset) })
	var offsets, addresses uint32
	for i, u := range t.byOffset {
		if i > 0 && t.byOffset[i-1].offsetEnd() > u.offset {
			return nil, false
		}
		offsets, addresses = max(offsets, u.offsetEnd()), max(addresses, u.addressEnd())
	}
	return t, inside(int64(offsets), addresses, maxOffset)
}

// joinUnits makes one of those that overlap or touch each other in memory and
// are shifted equally. Others must not overlap.
func joinUnits(units []unit) ([]unit, bool) {
	var joined []unit
	for _, u := range units {
		if len(joined) == 0 || joined[len(joined)-1].addressEnd() < u.address {
			joined = append(joined, u)
			continue
		}
		last := &joined[len(joined)-1]
		if u.offset < last.offset || u.offset-last.offset != u.address-last.address {
			if last.addressEnd() != u.address {
				return nil, false
			}
			joined = append(joined, u)
			continue
		}
		last.size = max(last.size, u.addressEnd()-last.address)
	}
	return joined, true
}

func (t *translator) address(offset uint32) uint32 {
	i, found := slices.BinarySearchFunc(t.byOffset, offset, func(u unit, o uint32) int { return cmp.Compare(u.offset, o) })
	if !found {
		i--
	}
	if i < 0 || offset-t.byOffset[i].offset >= t.byOffset[i].size {
		return badAddress
	}
	return offset - t.byOffset[i].offset + t.byOffset[i].address
}

func (t *translator) offset(address uint32) uint32 {
	i, found := slices.BinarySearchFunc(t.byAddress, address, func(u unit, a uint32) int { return cmp.Compare(u.address, a) })
	if !found {
		i--
	}
	if i < 0 || address-t.byAddress[i].address >= t.byAddress[i].size {
		return badOffset
	}
	return address - t.byAddress[i].address + t.byAddress[i].offset
}
