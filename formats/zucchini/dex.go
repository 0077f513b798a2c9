package zucchini

import (
	"bytes"
	"math"
	"slices"
)

// dex is a DEX image: tables of items that refer to each other by index or by
// offset, and bytecode that does both.
type dex struct {
	img   []byte
	items map[uint32]dexItems // by type

	// Where the entries of lists are.
	typeList, setRefs, sets                  []uint32
	directories, fields, methods, parameters []uint32
	code                                     []uint32
}

// dexItems is a table. Items that vary in size count from where the first is.
type dexItems struct{ offset, count uint32 }

const dexHeader = 112

// Types of items, as the map numbers them.
const (
	dexString      = 1
	dexType        = 2
	dexProto       = 3
	dexField       = 4
	dexMethod      = 5
	dexClass       = 6
	dexCallSite    = 7
	dexHandle      = 8
	dexTypeList    = 0x1001
	dexSetRefs     = 0x1002
	dexSet         = 0x1003
	dexCode        = 0x2001
	dexDirectory   = 0x2006
	dexMaxMapItems = 21
)

// dexSizes has the sizes of items, at least for those that vary.
var dexSizes = map[uint32]uint32{dexString: 4, dexType: 4, dexProto: 12, dexField: 8, dexMethod: 8, dexClass: 32, dexCallSite: 4,
	dexHandle: 8, dexTypeList: 4, dexSetRefs: 4, dexSet: 4, dexCode: 16, dexDirectory: 16}

func dexSize(typ uint32) uint32 { return max(dexSizes[typ], 1) }

// isDex takes a quick look at the header.
func isDex(b []byte) bool {
	if len(b) < dexHeader || !bytes.HasPrefix(b, []byte("dex\n")) || b[7] != 0 {
		return false
	}
	switch string(b[4:7]) {
	case "035", "037", "038", "039":
	default:
		return false
	}
	return u32(b, 32) <= uint32(len(b)) && u32(b, 32) >= dexHeader && u32(b, 52) >= dexHeader
}

// parseDex returns nil for what is no DEX image. What follows it is cut off.
func parseDex(b []byte) *dex {
	if len(b) >= maxOffset || !isDex(b) {
		return nil
	}
	d := &dex{img: b[:u32(b, 32)], items: map[uint32]dexItems{}}
	if !d.readMap(u32(b, 52)) {
		return nil
	}
	ok := d.lists(dexTypeList, 2, &d.typeList) && d.lists(dexSetRefs, 4, &d.setRefs) && d.lists(dexSet, 4, &d.sets)
	if !ok || !d.readDirectories() || !d.readCode() {
		return nil
	}
	return d
}

func (d *dex) readMap(at uint32) bool {
	if !covers(d.img, uint64(at), 1, 4) {
		return false
	}
	n := u32(d.img, at)
	if n > dexMaxMapItems || !covers(d.img, uint64(at)+4, uint64(n), 12) {
		return false
	}
	for i := range n {
		m := d.img[at+4+12*i:]
		typ, t := u16(m, 0), dexItems{offset: u32(m, 8), count: u32(m, 4)}
		if _, twice := d.items[typ]; twice || !covers(d.img, uint64(t.offset), uint64(t.count), uint64(dexSize(typ))) {
			return false
		}
		d.items[typ] = t
	}
	return true
}

// cursor reads through an image. It fails for good when it leaves it.
type cursor struct {
	img []byte
	at  uint64
	bad bool
}

func (c *cursor) skip(n, size uint64) {
	if c.bad = c.bad || !covers(c.img, c.at, n, size); !c.bad {
		c.at += n * size
	}
}

func (c *cursor) align4() {
	c.at = (c.at + 3) &^ 3
	c.bad = c.bad || c.at > uint64(len(c.img))
}

func (c *cursor) u32() uint32 {
	at := c.at
	if c.skip(1, 4); c.bad {
		return 0
	}
	return u32(c.img, uint32(at))
}

// leb reads a number of at most five groups of seven bits.
func (c *cursor) leb() (v uint32, signed int32) {
	for i := uint32(0); i < 5 && !c.bad && c.at < uint64(len(c.img)); i++ {
		b := c.img[c.at]
		c.at++
		v |= uint32(b&0x7f) << (7 * i)
		if b&0x80 == 0 {
			return v, signExtend(v, min(7*i+6, 31))
		}
	}
	c.bad = true
	return 0, 0
}

// entries appends where n entries of a size are.
func (c *cursor) entries(n, size uint32, to *[]uint32) {
	at := uint32(c.at)
	if c.skip(uint64(n), uint64(size)); c.bad {
		return
	}
	for i := range n {
		*to = append(*to, at+i*size)
	}
}

// lists finds the entries of items that are lists, each behind its length.
func (d *dex) lists(typ, size uint32, to *[]uint32) bool {
	t := d.items[typ]
	c := cursor{img: d.img, at: uint64(t.offset)}
	for i := uint32(0); i < t.count && !c.bad; i++ {
		c.align4()
		c.entries(c.u32(), size, to)
	}
	return !c.bad
}

func (d *dex) readDirectories() bool {
	t := d.items[dexDirectory]
	c := cursor{img: d.img, at: uint64(t.offset)}
	for i := uint32(0); i < t.count && !c.bad; i++ {
		c.align4()
		at := uint32(c.at)
		if c.skip(1, 16); c.bad {
			break
		}
		d.directories = append(d.directories, at)
		c.entries(u32(d.img, at+4), 8, &d.fields)
		c.entries(u32(d.img, at+8), 8, &d.methods)
		c.entries(u32(d.img, at+12), 8, &d.parameters)
	}
	return !c.bad
}

func (d *dex) readCode() bool {
	t := d.items[dexCode]
	c := cursor{img: d.img, at: uint64(t.offset)}
	for i := uint32(0); i < t.count && !c.bad; i++ {
		c.align4()
		at := uint32(c.at)
		if c.skip(1, 16); c.bad {
			break
		}
		d.code = append(d.code, at)
		tries, units := u16(d.img, at+6), u32(d.img, at+12)
		if c.skip(uint64(units), 2); tries > 0 {
			c.align4()
			c.skip(uint64(tries), 8)
			c.skipHandlers()
		}
	}
	return !c.bad && len(d.code) > 0
}

func (c *cursor) skipHandlers() {
	n, _ := c.leb()
	for i := uint32(0); i < n && !c.bad; i++ {
		_, size := c.leb()
		pairs := int64(size)
		if size <= 0 { // a handler for the rest follows
			pairs = -pairs
		}
		for j := int64(0); j < pairs && !c.bad; j++ {
			c.leb()
			c.leb()
		}
		if size <= 0 {
			c.leb()
		}
	}
}

// How targets are found and written.

// toIndex refers to an item of a table by its index, in width bytes.
func (d *dex) toIndex(pool byte, width, typ uint32) group {
	t, size := d.items[typ], dexSize(typ)
	return group{pool: pool, width: width, write: func(img []byte, r reference) {
		i := (r.target - t.offset) / size
		switch {
		case i >= t.count:
		case width == 4:
			put32(img, r.location, i)
		case i <= math.MaxUint16:
			put16(img, r.location, i)
		}
	}}
}

// index is the target of toIndex; noIndex stands for the absence of one.
func (d *dex) index(at, width, typ uint32) uint32 {
	t := d.items[typ]
	i := u16(d.img, at)
	if width == 4 {
		i = u32(d.img, at)
	}
	switch {
	case i == noIndex:
		return noIndex
	case i >= t.count:
		return invalid
	}
	return t.offset + i*dexSize(typ)
}

const noIndex = 1<<32 - 1

func toOffset(pool byte) group {
	return group{pool: pool, width: 4, write: func(img []byte, r reference) { put32(img, r.location, r.target) }}
}

// offsetAt is the target of toOffset; 0 stands for the absence of one.
func (d *dex) offsetAt(at uint32) uint32 {
	if v := u32(d.img, at); v < uint32(len(d.img)) {
		return v
	}
	return invalid
}

// fromItems reads a member of all items of a table.
func (d *dex) fromItems(typ, member uint32, target func(at uint32) uint32) []reference {
	t := d.items[typ]
	if t.offset == 0 {
		return nil
	}
	var refs []reference
	for i := range t.count {
		at := t.offset + i*dexSize(typ) + member
		if v := target(at); v != 0 && v != noIndex {
			refs = append(refs, reference{at, v})
		}
	}
	return refs
}

// fromList reads a member of all entries of lists.
func fromList(entries []uint32, member uint32, target func(at uint32) uint32) []reference {
	var refs []reference
	for _, at := range entries {
		if v := target(at + member); v != 0 {
			refs = append(refs, reference{at + member, v})
		}
	}
	return refs
}

// groups has all types in order: specs/payload.md 10.
func (d *dex) groups() []group {
	return slices.Concat(d.toStrings(), d.toTypes(), d.toProtos(), d.toFields(), d.toMethods(), d.toOthers(), d.jumps(), d.toData())
}

// Each of these is a group of a pool: what refers to what, and where it is.

// indexIn is a member of a table that is the index of an item of another one.
func (d *dex) indexIn(pool byte, width, typ, table, member uint32) group {
	g := d.toIndex(pool, width, typ)
	g.read = func() []reference {
		return d.fromItems(table, member, func(at uint32) uint32 { return d.index(at, width, typ) })
	}
	return g
}

// indexInList is the same in the entries of lists.
func (d *dex) indexInList(pool byte, width, typ uint32, entries []uint32) group {
	g := d.toIndex(pool, width, typ)
	g.read = func() []reference {
		return fromList(entries, 0, func(at uint32) uint32 { return d.index(at, width, typ) })
	}
	return g
}

// indexInHandle is the same in method handles of the types from … to.
func (d *dex) indexInHandle(pool byte, typ, from, to uint32) group {
	g := d.toIndex(pool, 2, typ)
	g.read = func() []reference {
		return d.fromItems(dexHandle, 4, func(at uint32) uint32 { return d.handle(at, typ, from, to) })
	}
	return g
}

// indexInCode is the same in instructions.
func (d *dex) indexInCode(pool byte, width, typ uint32, ops ...dexOp) group {
	g := d.toIndex(pool, width, typ)
	g.read = func() []reference {
		return d.fromCode(ops, func(at uint32) uint32 { return d.index(at, width, typ) })
	}
	return g
}

// offsetIn is a member of a table that is an offset.
func (d *dex) offsetIn(pool byte, table, member uint32) group {
	g := toOffset(pool)
	g.read = func() []reference { return d.fromItems(table, member, d.offsetAt) }
	return g
}

// offsetInList is the same in the entries of lists.
func (d *dex) offsetInList(pool byte, entries []uint32, member uint32) group {
	g := toOffset(pool)
	g.read = func() []reference { return fromList(entries, member, d.offsetAt) }
	return g
}

// jumpIn is the distance that an instruction jumps.
func (d *dex) jumpIn(width uint32, ops ...dexOp) group {
	g := toCode(width)
	g.read = func() []reference {
		return d.fromCode(ops, func(at uint32) uint32 { return d.jump(at, width) })
	}
	return g
}

func (d *dex) toStrings() []group {
	return []group{
		d.indexIn(0, 4, dexString, dexType, 0),
		d.indexIn(0, 4, dexString, dexProto, 0),
		d.indexIn(0, 4, dexString, dexField, 4),
		d.indexIn(0, 4, dexString, dexMethod, 4),
		d.indexIn(0, 4, dexString, dexClass, 16),
		d.indexInCode(0, 2, dexString, dexOp{0x1a, 2}),
		d.indexInCode(0, 4, dexString, dexOp{0x1b, 2}),
	}
}

func (d *dex) toTypes() []group {
	return []group{
		d.indexIn(1, 4, dexType, dexProto, 4),
		d.indexIn(1, 2, dexType, dexField, 0),
		d.indexIn(1, 2, dexType, dexField, 2),
		d.indexIn(1, 2, dexType, dexMethod, 0),
		d.indexIn(1, 4, dexType, dexClass, 0),
		d.indexIn(1, 4, dexType, dexClass, 8),
		d.indexInList(1, 2, dexType, d.typeList),
		d.indexInCode(1, 2, dexType, dexOp{0x1c, 2}, dexOp{0x1f, 2}, dexOp{0x20, 2}, dexOp{0x22, 2}, dexOp{0x23, 2}, dexOp{0x24, 2}, dexOp{0x25, 2}),
	}
}

func (d *dex) toProtos() []group {
	return []group{
		d.indexInCode(2, 2, dexProto, dexOp{0xfa, 6}, dexOp{0xfb, 6}, dexOp{0xff, 2}),
		d.indexIn(2, 2, dexProto, dexMethod, 2),
	}
}

func (d *dex) toFields() []group {
	return []group{
		d.indexInCode(3, 2, dexField, dexOp{0x52, 2}, dexOp{0x60, 2}),
		d.indexInHandle(3, dexField, 0, 3),
		d.indexInList(3, 4, dexField, d.fields),
	}
}

func (d *dex) toMethods() []group {
	return []group{
		d.indexInCode(4, 2, dexMethod, dexOp{0x6e, 2}, dexOp{0x74, 2}, dexOp{0xfa, 2}, dexOp{0xfb, 2}),
		d.indexInHandle(4, dexMethod, 4, 8),
		d.indexInList(4, 4, dexMethod, d.methods),
		d.indexInList(4, 4, dexMethod, d.parameters),
	}
}

func (d *dex) toOthers() []group {
	return []group{
		d.indexInCode(5, 2, dexCallSite, dexOp{0xfc, 2}, dexOp{0xfd, 2}),
		d.indexInCode(6, 2, dexHandle, dexOp{0xfe, 2}),
		d.offsetIn(7, dexProto, 8),
		d.offsetIn(7, dexClass, 12),
		d.offsetInList(8, d.parameters, 4),
		d.offsetInList(9, d.setRefs, 0),
		d.offsetInList(9, d.directories, 0),
		d.offsetInList(9, d.fields, 4),
		d.offsetInList(9, d.methods, 4),
		d.offsetIn(10, dexClass, 24),
	}
}

func (d *dex) jumps() []group {
	return []group{
		d.jumpIn(1, dexOp{0x28, 1}),
		d.jumpIn(2, dexOp{0x29, 2}, dexOp{0x32, 2}, dexOp{0x38, 2}),
		d.jumpIn(4, dexOp{0x26, 2}, dexOp{0x2a, 2}, dexOp{0x2b, 2}, dexOp{0x2c, 2}),
	}
}

func (d *dex) toData() []group {
	return []group{
		d.offsetIn(12, dexString, 0),
		d.offsetInList(13, d.sets, 0),
		d.offsetIn(14, dexClass, 28),
		d.offsetIn(15, dexClass, 20),
		d.offsetIn(16, dexCallSite, 0),
	}
}

// handle is the target of a method handle's member at an offset, if the handle is
// of one of the types from … to.
func (d *dex) handle(at, typ, from, to uint32) uint32 {
	switch kind := u16(d.img, at-4); {
	case kind > 8:
		return invalid
	case kind < from || kind > to:
		return noIndex
	}
	return d.index(at, 2, typ)
}
