package erofs

import "fmt"

// Advice in the header of a file's cluster index.
const (
	compact2B      = 0x1
	bigHead1       = 0x2
	bigHead2       = 0x4
	inlineTail     = 0x8
	fragmentTail   = 0x20
	knownAdvice    = 0x3F
	countsBlocks   = 0x800 // in a distance: the number of blocks of the cluster
	wholeFragment  = 0x80
	indexHeader    = 8
	fullIndexExtra = 8
)

// Kinds of logical clusters.
const (
	plain = iota
	head1
	nonhead
	head2
)

// clusterIndex is where the logical clusters of a file are described.
type clusterIndex struct {
	m         *mapper
	base      int64 // of the entries
	count     int64
	bits      uint // log2 of the size of a logical cluster
	advice    uint16
	algorithm [2]uint8
	initial   int64 // compact: entries of 4 bytes at the front
	twoByte   int64 // compact: entries of 2 bytes after those
}

// logical is an entry of the index.
type logical struct {
	kind   int
	offset int64  // of the beginning of a head's contents
	block  int64  // of a head's data
	value  uint32 // of others
}

func (m *mapper) clusters() error {
	at := (m.n.end + 7) &^ 7
	b, err := m.fs.bytes(at, indexHeader, "cluster header")
	if err != nil {
		return err
	}
	if b[7]&wholeFragment != 0 || m.n.size == 0 {
		return nil
	}
	x := clusterIndex{m: m, base: at + indexHeader, advice: le16(b, 4), algorithm: [2]uint8{b[6] & 15, b[6] >> 4}, bits: m.fs.blockBits + uint(b[7]&7)}
	if x.advice&^knownAdvice != 0 || b[7]&0x78 != 0 {
		return refuse(ErrUnsupported, m.n.where("clusters"), fmt.Sprintf("advice among %#x", knownAdvice), fmt.Sprintf("%#x, shift %d", x.advice, b[7]))
	}
	x.count = (m.n.size-1)>>x.bits + 1
	if err := m.fs.spend(x.count, m.n.where("clusters")); err != nil {
		return err
	}
	if m.n.layout == clustersFull {
		x.base += fullIndexExtra
	} else {
		x.initial = min((32-x.base%32)/4&7, x.count)
		if x.advice&compact2B != 0 {
			x.twoByte = (x.count - x.initial) &^ 15
		}
	}
	return x.walk()
}

// walk goes through the entries and makes an extent of each head, which reaches to
// the next one.
func (x *clusterIndex) walk() error {
	var last *Extent
	for k := range x.count {
		e, err := x.entry(k)
		if err != nil {
			return err
		}
		if e.kind == nonhead {
			if last != nil && e.value&countsBlocks != 0 && last.Logical>>x.bits == k-1 {
				last.Stored = int64(e.value&^countsBlocks) << x.m.fs.blockBits
			}
			continue
		}
		start := k<<x.bits + e.offset
		if start == x.m.n.size {
			break // it marks the end
		}
		if err := x.end(last, start); err != nil {
			return err
		}
		last = &Extent{Logical: start, Physical: e.block << x.m.fs.blockBits, Stored: 1 << x.bits, Compressed: e.kind != plain}
		if last.Compressed {
			last.Algorithm = x.algorithm[(e.kind-head1)/2]
		}
	}
	if x.advice&(inlineTail|fragmentTail) != 0 {
		return nil // the last one is elsewhere
	}
	return x.end(last, x.m.n.size)
}

// end takes an extent that reaches to a byte of the file.
func (x *clusterIndex) end(e *Extent, to int64) error {
	if e == nil {
		return nil
	}
	m := x.m
	if e.Length = to - e.Logical; e.Length == 0 && to == m.n.size {
		return nil
	}
	if e.Length <= 0 || e.Logical >= m.n.size {
		return refuse(ErrCorrupt, m.n.where("clusters"), fmt.Sprintf("one behind byte %d, below %d", e.Logical, m.n.size), fmt.Sprintf("one at byte %d", to))
	}
	if !e.Compressed && e.Length <= e.Stored {
		return m.add(e.Logical, e.Length, e.Physical)
	}
	if e.Stored == 0 {
		return refuse(ErrCorrupt, m.n.where("cluster"), "a block at least", 0)
	}
	if err := m.check(e.Physical, e.Stored); err != nil {
		return err
	}
	m.extents = append(m.extents, *e)
	return nil
}

func (x *clusterIndex) entry(k int64) (logical, error) {
	if x.m.n.layout == clustersFull {
		b, err := x.m.fs.bytes(x.base+8*k, 8, "cluster")
		if err != nil {
			return logical{}, err
		}
		e := logical{kind: int(le16(b, 0) & 3), offset: int64(le16(b, 2)), block: int64(le32(b, 4)), value: uint32(le16(b, 4))}
		return e, x.checkOffset(e)
	}
	return x.compactEntry(k)
}

func (x *clusterIndex) checkOffset(e logical) error {
	if e.kind != nonhead && e.offset >= 1<<x.bits {
		return refuse(ErrCorrupt, x.m.n.where("cluster: offset"), fmt.Sprintf("below %d", 1<<x.bits), e.offset)
	}
	return nil
}

// compactEntry finds an entry in its pack: some values of the same number of bits,
// and the block that the first head's address is counted from.
func (x *clusterIndex) compactEntry(k int64) (logical, error) {
	at, shift, values := x.base, uint(2), int64(2)
	switch {
	case k < x.initial:
	case k < x.initial+x.twoByte:
		at, k, shift, values = at+4*x.initial, k-x.initial, 1, 16
	default:
		at, k = at+4*x.initial+2*x.twoByte, k-x.initial-x.twoByte
	}
	size := int(values << shift)
	b, err := x.m.fs.bytes(at+k/values*int64(size), size, "cluster pack")
	if err != nil {
		return logical{}, err
	}
	p := pack{b: b, valueBits: (size - 4) * 8 / int(values), lowBits: max(x.bits, 12)}
	if int(p.lowBits)+2 > p.valueBits {
		return logical{}, refuse(ErrUnsupported, x.m.n.where("clusters: bits"), fmt.Sprintf("at most %d", p.valueBits-2), p.lowBits)
	}
	i := int(k % values)
	low, kind := p.value(i)
	e := logical{kind: kind, offset: int64(low), value: low}
	if kind != nonhead {
		e.block = int64(le32(b, size-4)) + p.blocksBefore(i, x.advice&(bigHead1|bigHead2) != 0)
	}
	return e, x.checkOffset(e)
}

// pack is some entries of a compact index.
type pack struct {
	b         []byte
	valueBits int
	lowBits   uint
}

func (p pack) value(i int) (low uint32, kind int) {
	bit := p.valueBits * i
	var v uint32
	for k := 3; k >= 0; k-- {
		if at := bit/8 + k; at < len(p.b) {
			v = v<<8 | uint32(p.b[at])
		}
	}
	v >>= bit % 8
	return v & (1<<p.lowBits - 1), int(v >> p.lowBits & 3)
}

// blocksBefore is the distance of a head's data from the block of the pack.
func (p pack) blocksBefore(i int, big bool) (n int64) {
	if !big {
		n = 1
	}
	for i > 0 {
		i--
		low, kind := p.value(i)
		switch {
		case kind != nonhead:
			n++
		case big && low&countsBlocks != 0:
			i--
			n += int64(low &^ countsBlocks)
		case big:
			i -= max(int(low)-2, 0)
		default:
			if i -= int(low); i >= 0 {
				n++
			}
		}
	}
	return n
}
