package zucchini

import (
	"math"
	"sync"
)

// dexOp is an instruction, or the first of a row that are alike, with a
// reference at some bytes from its beginning.
type dexOp struct{ opcode, at uint32 }

// dexInstruction has an instruction's length in units of two bytes, 0 where
// there is none, and the first of those that are alike.
type dexInstruction struct{ units, first byte }

// dexRows has the instructions: first opcode, how many are alike, units.
var dexRows = [...][3]byte{
	{0x00, 1, 1}, {0x01, 1, 1}, {0x02, 1, 2}, {0x03, 1, 3}, {0x04, 1, 1}, {0x05, 1, 2}, {0x06, 1, 3}, {0x07, 1, 1}, {0x08, 1, 2},
	{0x09, 1, 3}, {0x0a, 9, 1}, {0x13, 1, 2}, {0x14, 1, 3}, {0x15, 1, 2}, {0x16, 1, 2}, {0x17, 1, 3}, {0x18, 1, 5}, {0x19, 1, 2},
	{0x1a, 1, 2}, {0x1b, 1, 3}, {0x1c, 1, 2}, {0x1d, 2, 1}, {0x1f, 1, 2}, {0x20, 1, 2}, {0x21, 1, 1}, {0x22, 1, 2}, {0x23, 1, 2},
	{0x24, 1, 3}, {0x25, 1, 3}, {0x26, 1, 3}, {0x27, 1, 1}, {0x28, 1, 1}, {0x29, 1, 2}, {0x2a, 1, 3}, {0x2b, 1, 3}, {0x2c, 1, 3},
	{0x2d, 5, 2}, {0x32, 6, 2}, {0x38, 6, 2}, {0x44, 14, 2}, {0x52, 14, 2}, {0x60, 14, 2}, {0x6e, 5, 3}, {0x74, 5, 3}, {0x7b, 21, 1},
	{0x90, 32, 2}, {0xb0, 32, 1}, {0xd0, 8, 2}, {0xd8, 11, 2}, {0xfa, 1, 4}, {0xfb, 1, 4}, {0xfc, 1, 3}, {0xfd, 1, 3}, {0xfe, 1, 2},
	{0xff, 1, 2},
}

var dexInstructions = sync.OnceValue(func() *[256]dexInstruction {
	var all [256]dexInstruction
	for _, row := range dexRows {
		for i := range row[1] {
			all[row[0]+i] = dexInstruction{units: row[2], first: row[0]}
		}
	}
	return &all
})

// eachInstruction calls f with the instructions of a code item, up to the data
// that some of them have behind the code, or to what is no instruction.
func (d *dex) eachInstruction(item uint32, f func(at uint32, first byte)) {
	at := item + 16
	end := at + 2*u32(d.img, item+12)
	data := end
	for at < data {
		in := dexInstructions()[d.img[at]]
		size := 2 * uint32(in.units)
		if size == 0 || end-at < size {
			return
		}
		if in.first == 0x26 || in.first == 0x2b || in.first == 0x2c {
			units := u32(d.img, at+2)
			if int32(units) < int32(in.units) || units >= (end-at)/2 {
				return
			}
			data = min(data, at+2*units)
		}
		f(at, in.first)
		at += size
	}
}

// fromCode reads the references of some instructions.
func (d *dex) fromCode(ops []dexOp, target func(at uint32) uint32) []reference {
	var refs []reference
	for _, item := range d.code {
		d.eachInstruction(item, func(at uint32, first byte) {
			for _, op := range ops {
				if op.opcode != uint32(first) {
					continue
				}
				if v := target(at + op.at); v != invalid {
					refs = append(refs, reference{at + op.at, v})
				}
			}
		})
	}
	return refs
}

// jump is the target of a jump: as many units from the instruction as width
// bytes say. It counts from two bytes before the reference, be that the
// instruction or not.
func (d *dex) jump(at, width uint32) uint32 {
	switch width {
	case 1:
		return at - 2 + uint32(2*int32(int8(d.img[at])))
	case 2:
		return at - 2 + uint32(2*int32(int16(u16(d.img, at))))
	}
	v := int64(at) - 2 + 2*int64(int32(u32(d.img, at)))
	if v < 0 || v >= maxOffset {
		return invalid
	}
	return uint32(v)
}

// toCode is the group that jumps belong to.
func toCode(width uint32) group {
	limit := int64(math.MaxInt8)
	switch width {
	case 2:
		limit = math.MaxInt16
	case 4:
		limit = math.MaxInt32
	}
	return group{pool: 11, width: width, write: func(img []byte, r reference) {
		units := (int64(r.target)-int64(r.location))/2 + 1
		switch {
		case units > limit || units < -limit-1:
		case width == 1:
			img[r.location] = byte(units)
		case width == 2:
			put16(img, r.location, uint32(units))
		default:
			put32(img, r.location, uint32(units))
		}
	}}
}
