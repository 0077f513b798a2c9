package cow

import (
	"fmt"
	"io"

	"cowbird/formats/cowfile"
)

// reader serves one request. It walks through the blocks, but touches a device
// once for each stretch of bytes that follow each other there: a megabyte of
// unchanged blocks is one read of the base.
type reader struct {
	s    *Snapshot
	dst  []byte // what is still to be filled
	off  int64  // its offset in the snapshot
	hint int    // place in the index

	// The stretch that is waiting to be read, and its bytes before dst.
	dev     Device
	devOff  int64
	pending []byte
}

func (r *reader) run() error {
	for len(r.dst) > 0 {
		if err := r.step(); err != nil {
			return err
		}
	}
	return r.flush()
}

// step serves the bytes up to the next block that another op serves.
func (r *reader) step() error {
	s := r.s
	block, inner := uint32(r.off/blockSize), r.off%blockSize
	if s.complete {
		return r.from(s.base, r.off, int64(len(r.dst)))
	}
	i, n := s.file.Lookup(&r.hint, block)
	if i < 0 {
		return r.from(s.base, r.off, int64(min(n, 1<<32))*blockSize-inner)
	}
	o := s.file.Op(i)
	switch o.Type {
	case cowfile.OpReplace:
		return r.replace(i, o, int64(block-o.NewBlock)*blockSize+inner)
	case cowfile.OpZero:
		clear(r.take(blockSize - inner))
		return nil
	}
	dev, off := s.locate(i, o)
	if dev == nil {
		return r.xor(i, o, inner)
	}
	blocks := 1
	if o.Type == cowfile.OpCopy && r.plain(i) {
		blocks = s.file.CopiesUp(i, int(min(n, uint64(len(r.dst)/blockSize)+1)))
	}
	return r.from(dev, off+inner, int64(blocks)*blockSize-inner)
}

// plain tells whether all ops from i on are where the merge order is the
// table's: not merged, nor in the window.
func (r *reader) plain(i int) bool {
	return r.s.bits == nil && r.s.window == nil && i >= r.s.merged
}

// locate says where an ordered op's block can be read as it is. For an xor op
// that is not merged, nowhere: dev is nil.
func (s *Snapshot) locate(i int, o cowfile.Op) (dev Device, off int64) {
	if s.isMerged(i) {
		return s.base, int64(o.NewBlock) * blockSize
	}
	if w := s.inWindow(o.NewBlock); w >= 0 {
		return s.cow, s.window[w].off
	}
	if o.Type == cowfile.OpXor {
		return nil, 0
	}
	return s.source, int64(o.Source) * blockSize
}

func (s *Snapshot) inWindow(block uint32) int {
	lo, hi := 0, len(s.window)
	for lo < hi {
		if mid := (lo + hi) / 2; s.window[mid].block < block {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo < len(s.window) && s.window[lo].block == block {
		return lo
	}
	return -1
}

// take moves past at most n bytes and returns them. What waits to be read must
// stay in front of dst, so it is for the caller to flush or to join.
func (r *reader) take(n int64) []byte {
	n = min(n, int64(len(r.dst)))
	b := r.dst[:n]
	r.dst = r.dst[n:]
	r.off += n
	return b
}

// from serves up to n bytes from a device, together with what waits if that
// ends where this begins.
func (r *reader) from(dev Device, off, n int64) error {
	if len(r.pending) > 0 && (dev != r.dev || off != r.devOff+int64(len(r.pending)) || !r.adjacent()) {
		if err := r.flush(); err != nil {
			return err
		}
	}
	if len(r.pending) == 0 {
		r.dev, r.devOff, r.pending = dev, off, r.take(n)
		return nil
	}
	k := len(r.take(n))
	r.pending = r.pending[:len(r.pending)+k]
	return nil
}

// adjacent tells whether dst follows pending in memory: both are parts of one
// request, which was cut from its front.
func (r *reader) adjacent() bool {
	return cap(r.pending)-len(r.pending) == cap(r.dst)
}

func (r *reader) flush() error {
	b := r.pending
	r.pending = nil
	if len(b) == 0 {
		return nil
	}
	if r.dev == r.s.base {
		return readBase(r.dev, b, r.devOff)
	}
	return readFull(r.dev, b, r.devOff)
}

// readBase reads from the base. Beyond its end – a target that has grown, in a
// base that is a file – there are zeros.
func readBase(d Device, b []byte, off int64) error {
	inside := max(0, min(int64(len(b)), d.Size()-off))
	clear(b[inside:])
	if inside == 0 {
		return nil
	}
	return readFull(d, b[:inside], off)
}

// replace serves bytes of a unit from byte inner of it.
func (r *reader) replace(i int, o cowfile.Op, inner int64) error {
	s, unit := r.s, int64(o.Unit())
	if o.Compression == cowfile.None {
		return r.from(s.cow, s.file.DataOffset(i, o)+inner, unit-inner)
	}
	if inner == 0 && int64(len(r.dst)) >= unit {
		ws := s.work.get(-1)
		defer s.work.put(ws)
		n, err := s.decodeUnits(i, len(r.dst)/int(unit), r.dst, ws.stored)
		r.take(int64(n) * unit)
		return err
	}
	ws := s.work.get(i)
	defer s.work.put(ws)
	if ws.op != i {
		ws.op = -1
		if err := s.decode(i, o, ws.unit[:unit], ws.stored); err != nil {
			return err
		}
		ws.op = i
	}
	copy(r.take(unit-inner), ws.unit[inner:unit])
	return nil
}

// decodeUnits reads the data of compressed op i, and of those behind it that can
// be read together, at most most ops, and decompresses them into dst, a unit
// after the other. It returns how many ops those were.
func (s *Snapshot) decodeUnits(i, most int, dst, stored []byte) (ops int, err error) {
	n, length := s.file.UnitsUp(i, most, len(stored))
	stored = stored[:length]
	if err := readFull(s.cow, stored, int64(s.file.Op(i).Source)); err != nil {
		return 0, fmt.Errorf("op %d (%v), data of %d ops: COW: %w", i, s.file.Op(i), n, err)
	}
	for k := range n {
		o := s.file.Op(i + k)
		if err := cowfile.Decode(o.Compression, dst[:o.Unit()], stored[:o.DataLength]); err != nil {
			return k, fmt.Errorf("op %d (%v): %w", i+k, o, err)
		}
		dst, stored = dst[o.Unit():], stored[o.DataLength:]
	}
	return n, nil
}

// decode reads and decompresses the data of op i into unit.
func (s *Snapshot) decode(i int, o cowfile.Op, unit, stored []byte) error {
	if err := decodeOp(s.file, s.cow, i, o, unit, stored); err != nil {
		return fmt.Errorf("op %d (%v): %w", i, o, err)
	}
	return nil
}

func decodeOp(f *cowfile.File, cow io.ReaderAt, i int, o cowfile.Op, unit, stored []byte) error {
	off := f.DataOffset(i, o)
	raw := o.Compression == cowfile.None
	if raw {
		stored = unit
	} else {
		stored = stored[:o.DataLength]
	}
	if err := readFull(cow, stored, off); err != nil {
		return fmt.Errorf("COW: %w", err)
	}
	if raw {
		return nil
	}
	return cowfile.Decode(o.Compression, unit, stored)
}

// xor serves bytes of an xor op's block from byte inner of it.
func (r *reader) xor(i int, o cowfile.Op, inner int64) error {
	ws := r.s.work.get(-1)
	defer r.s.work.put(ws)
	ws.op = -1
	delta := ws.unit[:blockSize]
	if err := r.s.decode(i, o, delta, ws.stored); err != nil {
		return err
	}
	b := r.take(blockSize - inner)
	if err := readFull(r.s.source, b, int64(o.Source)+inner); err != nil {
		return err
	}
	xorBytes(b, delta[inner:])
	return nil
}
