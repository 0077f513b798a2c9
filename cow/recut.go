package cow

import (
	"fmt"
	"sync"

	"cowbird/formats/cowfile"
)

// recut goes through a COW in merge order and cuts its replaced blocks anew:
// the ordered ops first, then the others by block.
type recut struct {
	f       *cowfile.File
	largest uint32             // blocks of a unit
	ordered *cowfile.MergeIter // nil behind the ordered ops
	hint    int
	at      uint64 // block to look at next
	left    uint64 // replaced blocks from there on
}

func newRecut(f *cowfile.File, maxUnit int) *recut {
	return &recut{f: f, largest: uint32(maxUnit / blockSize), ordered: f.Merge(0)}
}

// next returns the next op, without its data.
func (r *recut) next() (cowfile.Op, bool) {
	if r.ordered != nil && r.ordered.Pos() < r.f.OrderedOps() {
		i, _ := r.ordered.Next()
		o := r.f.Op(i)
		return cowfile.Op{Type: o.Type, NewBlock: o.NewBlock, Source: o.Source}, true
	}
	for r.left == 0 {
		i, n := r.lookup()
		if n == 0 {
			return cowfile.Op{}, false
		}
		switch {
		case i < 0:
			r.at += n
		case r.f.Op(i).Type == cowfile.OpReplace:
			r.left = r.replaced()
		case r.f.Op(i).Type == cowfile.OpZero:
			r.at++
			return cowfile.Op{Type: cowfile.OpZero, NewBlock: uint32(r.at - 1)}, true
		default:
			r.at++
		}
	}
	return r.unit(), true
}

// lookup is that of the file at r.at; n is 0 behind the last block.
func (r *recut) lookup() (op int, n uint64) {
	if r.at >= 1<<32 {
		return -1, 0
	}
	return r.f.Lookup(&r.hint, uint32(r.at))
}

// replaced is the number of replaced blocks from r.at on.
func (r *recut) replaced() (n uint64) {
	ahead := *r
	for {
		i, _ := ahead.lookup()
		if i < 0 || r.f.Op(i).Type != cowfile.OpReplace {
			return ahead.at - r.at
		}
		o := r.f.Op(i)
		ahead.at = uint64(o.NewBlock) + uint64(o.Blocks())
	}
}

func (r *recut) unit() cowfile.Op {
	n := r.largest
	for uint64(n) > r.left {
		n /= 2
	}
	o := cowfile.Op{Type: cowfile.OpReplace, NewBlock: uint32(r.at), Factor: cowfile.FactorOf(n)}
	r.at, r.left = r.at+uint64(n), r.left-uint64(n)
	return o
}

// keep returns what the COW stores for an op that need not be encoded again.
// It is decoded all the same, so that what is damaged does not go on.
func (c *converter) keep(o *cowfile.Op, buf []byte) ([]byte, bool, error) {
	i := c.f.Find(o.NewBlock)
	old := c.f.Op(i)
	if old.NewBlock != o.NewBlock || old.Factor != o.Factor || !c.mayKeep(old) {
		return nil, false, nil
	}
	unit, stored := buf[:o.Unit()], buf[c.o.MaxUnit:][:old.DataLength]
	if old.Compression == cowfile.None {
		stored = unit
	}
	if err := decodeOp(c.f, c.o.Cow, i, old, unit, stored); err != nil {
		return nil, false, fmt.Errorf("op %d (%v): %w", i, old, err)
	}
	o.Compression = old.Compression
	c.kept.Add(1)
	return stored, true, nil
}

// mayKeep tells whether the new file would store the unit of an op as the old
// one does (section 5.1).
func (c *converter) mayKeep(old cowfile.Op) bool {
	comp := *c.o.Compression
	if c.o.Recompress || comp != c.f.Compression() {
		return false
	}
	stream := func(version int) bool { return version < 3 && (comp == cowfile.GZ || comp == cowfile.Brotli) }
	switch {
	case old.Compression == cowfile.None:
		// Raw since it would not get smaller, unless nobody has tried.
		return !stream(c.o.Version) && !stream(int(c.f.Header().Major))
	case stream(c.o.Version):
		return true
	}
	return int(old.DataLength) < old.Unit()
}

// fill puts the unit of an op together from those of the old file.
func (c *converter) fill(o cowfile.Op, buf []byte) ([]byte, error) {
	unit, stored := buf[:o.Unit()], buf[c.o.MaxUnit:]
	for done := 0; done < len(unit); {
		block := o.NewBlock + uint32(done/blockSize)
		i := c.f.Find(block)
		old := c.f.Op(i)
		inner := int(block-old.NewBlock) * blockSize
		n := min(len(unit)-done, old.Unit()-inner)
		if err := c.piece(i, old, inner, unit[done:done+n], stored); err != nil {
			return nil, fmt.Errorf("op %d (%v): %w", i, old, err)
		}
		done += n
	}
	return unit, nil
}

// piece fills dst from byte inner of the unit of an op of the old file.
func (c *converter) piece(i int, old cowfile.Op, inner int, dst, stored []byte) error {
	switch {
	case old.Compression == cowfile.None:
		return readFull(c.o.Cow, dst, c.f.DataOffset(i, old)+int64(inner))
	case len(dst) == old.Unit():
		return decodeOp(c.f, c.o.Cow, i, old, dst, stored)
	}
	s := c.shared.get(i)
	defer c.shared.release(i)
	s.decode.Do(func() {
		s.unit = make([]byte, old.Unit())
		s.err = decodeOp(c.f, c.o.Cow, i, old, s.unit, stored)
	})
	copy(dst, s.unit[inner:])
	return s.err
}

// share notes who will use the units at both ends of a new op that reach beyond
// it. All ops go through it in order, before anybody fills them.
func (c *converter) share(o cowfile.Op) {
	if o.Type != cowfile.OpReplace {
		return
	}
	first, last := o.NewBlock, o.NewBlock+o.Blocks()-1
	head, tail := c.f.Find(first), c.f.Find(last)
	c.shareWith(head, first, last)
	if tail != head {
		c.shareWith(tail, first, last)
	}
}

func (c *converter) shareWith(i int, first, last uint32) {
	old := c.f.Op(i)
	begins, ends := old.NewBlock >= first, old.NewBlock+old.Blocks()-1 <= last
	switch {
	case old.Compression == cowfile.None || begins && ends:
	case begins:
		c.shared.retain(i, 2) // this op, and those to come
	case !ends:
		c.shared.retain(i, 1)
	}
}

// sharedUnits are the units of the old file that more than one new op is made
// from: whoever needs one first decodes it, and it is let go of with the last.
type sharedUnits struct {
	mu    sync.Mutex
	units map[int]*sharedUnit
}

type sharedUnit struct {
	users  int // new ops that will use it, and one for as long as more may come
	decode sync.Once
	unit   []byte
	err    error
}

func (s *sharedUnits) retain(i, users int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.units == nil {
		s.units = make(map[int]*sharedUnit)
	}
	u := s.units[i]
	if u == nil {
		u = &sharedUnit{}
		s.units[i] = u
	}
	u.users += users
}

func (s *sharedUnits) get(i int) *sharedUnit {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.units[i]
}

func (s *sharedUnits) release(i int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.units[i]
	if u.users--; u.users == 0 {
		delete(s.units, i)
	}
}
