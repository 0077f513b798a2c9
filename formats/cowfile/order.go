package cowfile

import (
	"encoding/binary"
	"fmt"
)

// The merge order (section 7.1) is never stored: it is one of three rules over
// the op table and the index.
type orderKind uint8

const (
	orderTable    orderKind = iota // version 3 without a sequence: the table
	orderSequence                  // the sequence, then the others by block
	orderTypes                     // version 2: copy and xor ops, then the others by block
)

// NumMergeOps is the number of ops at the start of the merge order that were
// in the base when the file was opened.
func (f *File) NumMergeOps() int { return int(f.h.NumMergeOps) }

// OrderedOps is the number of ordered ops; they come first in merge order.
func (f *File) OrderedOps() int { return f.nOrder }

// SourceEnd is the size in bytes, of whole blocks, that a source needs for the
// ordered ops that were not merged when the file was opened.
func (f *File) SourceEnd() uint64 { return f.sourceEnd }

// SequenceLen is the number of blocks that the file's merge sequence lists.
func (f *File) SequenceLen() int { return len(f.seq) / 4 }

// InTableOrder reports whether the merge order is the order of the op table, so
// that the op at position i of the merge order is Op(i).
func (f *File) InTableOrder() bool { return f.order == orderTable }

// MergeIter walks through the ops in merge order. It belongs to one goroutine.
type MergeIter struct {
	f      *File
	pos    int    // position in the merge order
	scan   int    // orderTypes: next op to look at
	run    int    // by block: run …
	at     uint64 // … and block in it
	opened bool
}

// Merge returns an iterator that stands at position from of the merge order.
// Getting there costs time in proportion to from, except in table order.
func (f *File) Merge(from int) *MergeIter {
	it := &MergeIter{f: f}
	if f.order == orderTable {
		it.pos = from
		return it
	}
	for it.pos < from {
		if _, ok := it.Next(); !ok {
			break
		}
	}
	return it
}

// Pos is the position of the op that Next returns next.
func (it *MergeIter) Pos() int { return it.pos }

// Next returns the number of the next op, or false at the end.
func (it *MergeIter) Next() (op int, ok bool) {
	f := it.f
	if it.pos >= f.n {
		return 0, false
	}
	switch {
	case f.order == orderTable:
		op = it.pos
	case it.pos < f.listed && f.order == orderSequence:
		op = f.Find(binary.LittleEndian.Uint32(f.seq[4*it.pos:]))
	case it.pos < f.listed:
		op = it.nextListed()
	default:
		op = it.nextByBlock()
	}
	it.pos++
	return op, true
}

func (it *MergeIter) nextListed() int {
	for !bitGet(it.f.placed, uint64(it.scan)) {
		it.scan++
	}
	it.scan++
	return it.scan - 1
}

// nextByBlock returns the next op by ascending block that is not listed.
func (it *MergeIter) nextByBlock() int {
	if !it.opened {
		it.opened = true
		it.run, it.at = 0, uint64(it.f.runs[0].block)
	}
	for {
		r := it.f.runs[it.run]
		if it.at >= r.end() {
			it.run++
			it.at = uint64(it.f.runs[it.run].block)
			continue
		}
		op := r.opAt(uint32(it.at))
		it.at += 1 << r.factor()
		if !bitGet(it.f.placed, uint64(op)) {
			return op
		}
	}
}

// buildOrder decides which rule gives the merge order and checks that the
// merge can follow it.
func (f *File) buildOrder() error {
	switch {
	case len(f.seq) > 0:
		f.order = orderSequence
	case f.h.Major < 3:
		f.order = orderTypes
	default:
		f.order = orderTable
	}
	if f.order != orderTable {
		if err := f.place(); err != nil {
			return err
		}
	}
	if f.h.NumMergeOps > uint64(f.n) {
		return refuse(ErrCorrupt, "num_merge_ops at byte 26", fmt.Sprintf("at most the %d ops of the file", f.n), f.h.NumMergeOps)
	}
	return f.checkOrder()
}

// place marks the ops that the explicit part of the merge order lists.
func (f *File) place() error {
	var err error
	if f.placed, err = alloc[uint64](f, bitWords(f.n)); err != nil {
		return err
	}
	if f.order == orderTypes {
		for i := range f.n {
			if f.Op(i).Type.Ordered() {
				bitSet(f.placed, uint64(i))
			}
		}
		f.listed = bitCount(f.placed)
		return nil
	}
	for i := 0; i < len(f.seq); i += 4 {
		b := binary.LittleEndian.Uint32(f.seq[i:])
		op := f.Find(b)
		if op < 0 {
			return refuse(ErrCorrupt, fmt.Sprintf("entry %d of the merge sequence", i/4), "a block with an op", fmt.Sprintf("block %d", b))
		}
		if bitGet(f.placed, uint64(op)) {
			return refuse(ErrCorrupt, fmt.Sprintf("entry %d of the merge sequence", i/4), "a block that was not listed before", fmt.Sprintf("block %d", b))
		}
		bitSet(f.placed, uint64(op))
	}
	f.listed = len(f.seq) / 4
	return nil
}

// checkOrder checks section 7.4: ordered ops come first, and none reads a block
// that an earlier one has overwritten.
func (f *File) checkOrder() error {
	if f.counts.Copy+f.counts.Xor == 0 {
		return nil
	}
	c := orderCheck{f: f, unordered: -1}
	var err error
	if c.merged, err = alloc[uint64](f, bitWords(f.n)); err != nil {
		return err
	}
	defer release(f, c.merged)
	for it := f.Merge(0); ; {
		i, ok := it.Next()
		if !ok {
			return nil
		}
		s := stretch{ops: 1}
		if f.order == orderTable {
			s = f.stretchAt(i)
			it.pos += s.ops - 1
		}
		if err := c.stretch(i, it.pos-s.ops, s); err != nil {
			return err
		}
	}
}

// orderCheck goes through the merge order.
type orderCheck struct {
	f         *File
	merged    []uint64 // bit an op: an ordered one that has been passed
	unordered int      // the first other op that has been passed, or −1
	hint      int
}

// stretch passes the ops from i on, which are at pos of the merge order.
func (c *orderCheck) stretch(i, pos int, s stretch) error {
	f := c.f
	o := f.Op(i)
	if !o.Type.Ordered() {
		if c.unordered < 0 {
			c.unordered = i
		}
		return nil
	}
	if u := c.unordered; u >= 0 {
		return refuse(ErrMergeOrder, fmt.Sprintf("position %d: op %d (%v)", pos, i, o), "every copy and xor op before the first other op",
			fmt.Sprintf("it behind op %d (%v)", u, f.Op(u)))
	}
	lo, hi := s.sources(o)
	if s.ops > 1 && (s.overlapsItself(o) || c.overwritten(lo, hi) >= 0) {
		// Which op is it?
		for k := range s.ops {
			if err := c.stretch(i+k, pos+k, stretch{ops: 1}); err != nil {
				return err
			}
		}
		return nil
	}
	if w := c.overwritten(lo, hi); w >= 0 {
		return refuse(ErrMergeOrder, fmt.Sprintf("position %d: op %d (%v)", pos, i, o), "its source blocks still intact",
			fmt.Sprintf("one overwritten before by op %d (%v)", w, f.Op(w)))
	}
	bitSetRange(c.merged, uint64(i), uint64(s.ops))
	f.nOrder += s.ops
	if pos+s.ops > int(f.h.NumMergeOps) {
		f.sourceEnd = max(f.sourceEnd, (hi+1)*BlockSize)
	}
	return nil
}

// run is the one that the last lookup has met.
func (c *orderCheck) run() run { return c.f.runs[c.hint] }

// overwritten returns an op that has been passed and writes one of the blocks
// lo to hi, or −1.
func (c *orderCheck) overwritten(lo, hi uint64) int {
	for b := lo; b <= min(hi, 1<<32-1); {
		op, n := c.f.Lookup(&c.hint, uint32(b))
		n = min(n, hi-b+1)
		if r := c.run(); op >= 0 && r.factor() == 0 { // ordered ops are single blocks
			first := r.served(op, n)
			for k := first; bitAny(c.merged, first, n); k++ {
				if bitGet(c.merged, k) {
					return int(k)
				}
			}
		}
		b += n
	}
	return -1
}
