package cowfile

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// OpType says where a block's contents come from.
type OpType uint8

// The op types and their numbers in the file. Label, cluster, sequence and
// footer ops carry no block; they occur in version 2 only.
const (
	OpCopy     OpType = 1
	OpReplace  OpType = 2
	OpZero     OpType = 3
	OpLabel    OpType = 4
	OpCluster  OpType = 5
	OpXor      OpType = 6
	OpSequence OpType = 7
	OpFooter   OpType = 255
)

func (t OpType) String() string {
	switch t {
	case OpCopy:
		return "copy"
	case OpReplace:
		return "replace"
	case OpZero:
		return "zero"
	case OpLabel:
		return "label"
	case OpCluster:
		return "cluster"
	case OpXor:
		return "xor"
	case OpSequence:
		return "sequence"
	case OpFooter:
		return "footer"
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// IsData reports whether the op gives a block its contents.
func (t OpType) IsData() bool {
	return t == OpCopy || t == OpReplace || t == OpZero || t == OpXor
}

// Ordered reports whether the op reads old contents, so that its place in the
// merge order matters.
func (t OpType) Ordered() bool { return t == OpCopy || t == OpXor }

// Op is one op, decoded.
type Op struct {
	Type OpType
	// Compression of the stored data; None when they are stored as they are,
	// whatever the file's algorithm (section 5.1).
	Compression Compression
	Factor      uint8  // replace: log2 of the unit's blocks
	NewBlock    uint32 // first block of the target that the op covers
	DataLength  uint32 // stored bytes; 0 for copy and zero
	// Source is, for copy, a block of the source; for xor, a byte offset in
	// the source; for replace, the byte offset of the data in the COW; for
	// label and cluster ops, their value.
	Source uint64
}

// Blocks is the number of target blocks that the op covers.
func (o Op) Blocks() uint32 { return 1 << o.Factor }

// Unit is the number of bytes that the op's data decompress to.
func (o Op) Unit() int { return BlockSize << o.Factor }

// SourceRange is the range of source bytes that an ordered op reads.
func (o Op) SourceRange() (off, n int64) {
	switch o.Type {
	case OpCopy:
		return int64(o.Source) * BlockSize, BlockSize
	case OpXor:
		return int64(o.Source), BlockSize
	}
	return 0, 0
}

// SourceBlocks is the first and the last source block that an ordered op reads;
// they differ for an xor op whose offset is not a multiple of the block size.
func (o Op) SourceBlocks() (first, last uint64) {
	off, n := o.SourceRange()
	return uint64(off) / BlockSize, uint64(off+n-1) / BlockSize
}

func (o Op) String() string {
	switch o.Type {
	case OpCopy:
		return fmt.Sprintf("copy block %d from block %d", o.NewBlock, o.Source)
	case OpXor:
		return fmt.Sprintf("xor block %d with byte %d, %d bytes %v", o.NewBlock, o.Source, o.DataLength, o.Compression)
	case OpReplace:
		return fmt.Sprintf("replace block %d+%d, %d bytes %v at %d", o.NewBlock, o.Blocks(), o.DataLength, o.Compression, o.Source)
	case OpZero:
		return fmt.Sprintf("zero block %d", o.NewBlock)
	case OpLabel, OpCluster:
		return fmt.Sprintf("%v %d", o.Type, o.Source)
	case OpSequence:
		return fmt.Sprintf("sequence of %d entries at %d", o.DataLength/4, o.Source)
	}
	return o.Type.String()
}

// maxOps bounds the ops of a file: 16 bytes each must be addressable on a
// 32-bit machine, and a block of each still is on the largest partition.
const maxOps = (1<<31 - 1) / opSizeV3

// FactorOf returns the factor of a unit of n blocks, which must be a power of
// two.
func FactorOf(n uint32) uint8 { return uint8(bits.TrailingZeros32(n)) }

// The packed form is version 3's op (section 3.2): 16 bytes, of which
// source_info holds source (48 bits), reserved (9), factor (3) and type (4).
// Ops of version 2 are kept in the same form; their one extra fact, "stored
// raw", takes a reserved bit in memory.
const (
	sourceBits  = 48
	sourceMask  = 1<<sourceBits - 1
	rawBit      = 1 << sourceBits
	reserved    = (1<<57 - 1) &^ sourceMask
	factorShift = 57
	typeShift   = 60
)

func putOp(b []byte, o Op, flags uint64) {
	le := binary.LittleEndian
	le.PutUint32(b, o.DataLength)
	le.PutUint32(b[4:], o.NewBlock)
	info := o.Source&sourceMask | uint64(o.Factor)<<factorShift | uint64(o.Type)<<typeShift
	le.PutUint64(b[8:], info|flags)
}

// getOp decodes a packed op and returns its reserved bits as well.
func getOp(b []byte) (o Op, flags uint64) {
	_ = b[15]
	le := binary.LittleEndian
	info := le.Uint64(b[8:])
	o = Op{
		Type:       OpType(info >> typeShift),
		Factor:     uint8(info >> factorShift & 7),
		NewBlock:   le.Uint32(b[4:]),
		DataLength: le.Uint32(b),
		Source:     info & sourceMask,
	}
	return o, info & reserved
}

// checkOp checks what holds for a data op of any version, in a file whose
// largest unit is maxUnit bytes. i is the op's number among the data ops.
func checkOp(o Op, i int, maxUnit uint32) error {
	where := func() string { return fmt.Sprintf("op %d (%v)", i, o) }
	if !o.Type.IsData() {
		return refuse(ErrCorrupt, fmt.Sprintf("op %d: type", i), "copy, replace, zero or xor", o.Type)
	}
	if o.Factor > 0 && o.Type != OpReplace {
		return refuse(ErrCorrupt, where()+": compression factor", 0, o.Factor)
	}
	if o.Factor > maxFactor || uint32(o.Unit()) > maxUnit {
		return refuse(ErrCorrupt, where()+": unit", fmt.Sprintf("at most %d bytes", maxUnit), o.Unit())
	}
	if uint64(o.NewBlock)+uint64(o.Blocks()) > 1<<32 {
		return refuse(ErrCorrupt, where()+": last block", "below 2^32", uint64(o.NewBlock)+uint64(o.Blocks())-1)
	}
	hasData := o.Type == OpReplace || o.Type == OpXor
	if hasData != (o.DataLength > 0) {
		return refuse(ErrCorrupt, where()+": data_length", map[bool]string{true: "at least 1", false: "0"}[hasData], o.DataLength)
	}
	if o.Type == OpZero && o.Source != 0 {
		return refuse(ErrCorrupt, where()+": source", 0, o.Source)
	}
	return nil
}
