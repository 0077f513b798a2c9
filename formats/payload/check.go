package payload

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"cowbird/formats/payload/pb"
)

// needs is what an operation of a type has.
type needs struct {
	blob, source bool
	minor        uint32 // of the first payloads with it
}

var types = map[pb.InstallOperation_Type]needs{
	pb.InstallOperation_REPLACE:          {blob: true},
	pb.InstallOperation_REPLACE_BZ:       {blob: true},
	pb.InstallOperation_REPLACE_XZ:       {blob: true},
	pb.InstallOperation_REPLACE_ZSTD:     {blob: true},
	pb.InstallOperation_ZERO:             {minor: 4},
	pb.InstallOperation_DISCARD:          {minor: 4},
	pb.InstallOperation_SOURCE_COPY:      {source: true, minor: 2},
	pb.InstallOperation_SOURCE_BSDIFF:    {true, true, 2},
	pb.InstallOperation_BROTLI_BSDIFF:    {true, true, 4},
	pb.InstallOperation_PUFFDIFF:         {true, true, 5},
	pb.InstallOperation_ZUCCHINI:         {true, true, 8},
	pb.InstallOperation_LZ4DIFF_BSDIFF:   {true, true, 9},
	pb.InstallOperation_LZ4DIFF_PUFFDIFF: {true, true, 9},
}

// HasBlob and HasSource tell what operations of a known type have.
func HasBlob(t pb.InstallOperation_Type) bool   { return types[t].blob }
func HasSource(t pb.InstallOperation_Type) bool { return types[t].source }

// Check finds what no payload of a producer's has: sizes that are no whole blocks,
// extents outside of their partition, blobs outside of the payload, blocks that are
// written twice or not at all, operations without what their type needs. The
// error wraps ErrManifest and says which partition and operation.
func (m *Metadata) Check() error {
	c := checker{m: m, blockSize: uint64(m.Manifest.GetBlockSize()), blobs: math.MaxInt64}
	if bs := c.blockSize; bs < 512 || bs > 1<<20 || bs&(bs-1) != 0 {
		return fmt.Errorf("%w: expected a block size of a power of two, found %d", ErrManifest, bs)
	}
	if err := c.signature(); err != nil {
		return err
	}
	if m.size > 0 {
		c.blobs = uint64(m.size - m.BlobOffset())
	}
	names := map[string]bool{}
	for _, p := range m.Manifest.GetPartitions() {
		name := p.GetPartitionName()
		if !validName(name) || names[name] {
			return fmt.Errorf("%w: expected a partition name that is a file's, and once, found %q", ErrManifest, name)
		}
		names[name] = true
		if err := c.partition(p); err != nil {
			return fmt.Errorf("partition %s: %w", name, err)
		}
	}
	return nil
}

// validName refuses what would leave a folder, or a mapper's name.
func validName(s string) bool {
	if s == "" || len(s) > 64 || s == "." || s == ".." {
		return false
	}
	for _, r := range s {
		ok := r == '_' || r == '-' || r == '.' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if !ok {
			return false
		}
	}
	return true
}

type checker struct {
	m         *Metadata
	blockSize uint64
	blobs     uint64 // bytes
}

func (c *checker) signature() error {
	off, n := c.m.Manifest.GetSignaturesOffset(), c.m.Manifest.GetSignaturesSize()
	if c.m.Manifest.SignaturesOffset == nil && c.m.Manifest.SignaturesSize == nil || c.m.size == 0 {
		return nil
	}
	if room := uint64(c.m.size - c.m.BlobOffset()); off > room || n > room-off {
		return fmt.Errorf("%w: expected the payload's signature within %d bytes of blobs, found %d bytes at %d", ErrManifest, room, n, off)
	}
	return nil
}

func (c *checker) partition(p *pb.PartitionUpdate) error {
	if p.NewPartitionInfo == nil {
		return fmt.Errorf("%w: expected the new partition's size and hash, found none", ErrManifest)
	}
	newBlocks, err := c.blocks(p.NewPartitionInfo, "new")
	if err != nil {
		return err
	}
	oldBlocks := uint64(0)
	if p.OldPartitionInfo != nil {
		if oldBlocks, err = c.blocks(p.OldPartitionInfo, "old"); err != nil {
			return err
		}
	}
	written := &coverage{}
	for i, op := range p.GetOperations() {
		if err := c.operation(op, oldBlocks, newBlocks); err != nil {
			return fmt.Errorf("operation %d (%v): %w", i, op.GetType(), err)
		}
		written.add(op.GetDstExtents())
	}
	if err := c.verity(p, newBlocks, written); err != nil {
		return err
	}
	if err := written.check(newBlocks); err != nil {
		return err
	}
	return c.merges(p, oldBlocks, newBlocks)
}

func (c *checker) blocks(i *pb.PartitionInfo, which string) (uint64, error) {
	size := i.GetSize()
	if size%c.blockSize != 0 || size > math.MaxInt64 || size/c.blockSize >= math.MaxUint32 {
		return 0, fmt.Errorf("%w: expected the %s partition to have whole blocks of %d bytes, fewer than 2^32, found %d bytes",
			ErrManifest, which, c.blockSize, size)
	}
	if n := len(i.GetHash()); n != 32 {
		return 0, fmt.Errorf("%w: expected the %s partition's hash of 32 bytes, found %d", ErrManifest, which, n)
	}
	return size / c.blockSize, nil
}

func (c *checker) operation(op *pb.InstallOperation, oldBlocks, newBlocks uint64) error {
	need, known := types[op.GetType()]
	if !known {
		return fmt.Errorf("%w: unknown type %d: a newer version may know it", ErrManifest, op.GetType())
	}
	if err := c.blob(op, need.blob); err != nil {
		return err
	}
	if has := len(op.GetSrcExtents()) > 0; has && !need.source {
		return fmt.Errorf("%w: expected no source extents, found %d", ErrManifest, len(op.GetSrcExtents()))
	}
	if err := checkExtents(op.GetSrcExtents(), oldBlocks, source); err != nil {
		return err
	}
	if len(op.GetDstExtents()) == 0 {
		return fmt.Errorf("%w: expected destination extents, found none", ErrManifest)
	}
	if err := checkExtents(op.GetDstExtents(), newBlocks, destination); err != nil {
		return err
	}
	if from, to := Blocks(op.GetSrcExtents()), Blocks(op.GetDstExtents()); op.GetType() == pb.InstallOperation_SOURCE_COPY && from != to {
		return fmt.Errorf("%w: expected as many source as destination blocks, found %d and %d", ErrManifest, from, to)
	}
	return c.lengths(op)
}

// blob checks where an operation's blob lies. Only its presence is checked when
// the payload's size is not known: reading finds out.
func (c *checker) blob(op *pb.InstallOperation, needed bool) error {
	has := op.DataOffset != nil || op.DataLength != nil
	switch off, n := op.GetDataOffset(), op.GetDataLength(); {
	case needed && (op.DataOffset == nil || op.DataLength == nil || n == 0):
		return fmt.Errorf("%w: expected a blob, found none", ErrManifest)
	case !needed && has && n > 0:
		return fmt.Errorf("%w: expected no blob, found %d bytes", ErrManifest, n)
	case off > c.blobs || n > c.blobs-off:
		return fmt.Errorf("%w: expected the blob within %d bytes, found %d bytes at %d", ErrManifest, c.blobs, n, off)
	}
	if n := len(op.GetDataSha256Hash()); n != 0 && n != 32 {
		return fmt.Errorf("%w: expected a blob hash of 32 bytes, found %d", ErrManifest, n)
	}
	if n := len(op.GetSrcSha256Hash()); n != 0 && n != 32 {
		return fmt.Errorf("%w: expected a source hash of 32 bytes, found %d", ErrManifest, n)
	}
	return nil
}

// lengths checks the byte counts that old payloads have beside the extents.
func (c *checker) lengths(op *pb.InstallOperation) error {
	for _, l := range []struct {
		what   string
		value  *uint64
		blocks uint64
	}{{source, op.SrcLength, Blocks(op.GetSrcExtents())}, {destination, op.DstLength, Blocks(op.GetDstExtents())}} {
		if l.value != nil && *l.value != 0 && *l.value != l.blocks*c.blockSize {
			return fmt.Errorf("%w: expected a %s length of %d bytes, found %d", ErrManifest, l.what, l.blocks*c.blockSize, *l.value)
		}
	}
	return nil
}

// verity checks the hash tree and error correction that are made on the device, and
// counts their blocks as written.
func (c *checker) verity(p *pb.PartitionUpdate, blocks uint64, written *coverage) error {
	for _, v := range []struct {
		what       string
		data, area *pb.Extent
	}{{"hash tree", p.HashTreeDataExtent, p.HashTreeExtent}, {"FEC", p.FecDataExtent, p.FecExtent}} {
		if v.area.GetNumBlocks() == 0 {
			continue
		}
		if err := checkExtents([]*pb.Extent{v.area}, blocks, v.what); err != nil {
			return err
		}
		if err := checkExtents([]*pb.Extent{v.data}, blocks, v.what+" data"); err != nil {
			return err
		}
		if v.data.GetStartBlock()+v.data.GetNumBlocks() > v.area.GetStartBlock() {
			return fmt.Errorf("%w: expected the %s behind its data, found it at block %d", ErrManifest, v.what, v.area.GetStartBlock())
		}
		written.add([]*pb.Extent{v.area})
	}
	if r := p.GetFecRoots(); p.GetFecExtent().GetNumBlocks() > 0 && (r < 2 || r > 24) {
		return fmt.Errorf("%w: expected 2 to 24 FEC roots, found %d", ErrManifest, r)
	}
	return nil
}

// merges checks the operations by which a merge order and xor data are made.
func (c *checker) merges(p *pb.PartitionUpdate, oldBlocks, newBlocks uint64) error {
	for i, m := range p.GetMergeOperations() {
		src, dst := m.GetSrcExtent(), m.GetDstExtent()
		err := checkExtent(dst, newBlocks)
		if err == nil {
			err = checkExtent(src, oldBlocks)
		}
		more := uint64(0)
		if m.GetSrcOffset() > 0 {
			more = 1 // specs/payload.md 12.2
		}
		switch {
		case err != nil:
		case m.GetType() == pb.CowMergeOperation_COW_COPY && m.GetSrcOffset() != 0, uint64(m.GetSrcOffset()) >= c.blockSize:
			err = fmt.Errorf("%w: expected an offset within a block, and of an xor, found %d", ErrManifest, m.GetSrcOffset())
		case src.GetNumBlocks() != dst.GetNumBlocks()+more:
			err = fmt.Errorf("%w: expected %d source blocks, found %d", ErrManifest, dst.GetNumBlocks()+more, src.GetNumBlocks())
		case src.GetStartBlock() == Hole || dst.GetStartBlock() == Hole:
			err = fmt.Errorf("%w: expected blocks, found a hole", ErrManifest)
		}
		if err != nil {
			return fmt.Errorf("merge operation %d (%v): %w", i, m.GetType(), err)
		}
	}
	return nil
}

// coverage collects what is written.
type coverage struct{ extents []*pb.Extent }

func (c *coverage) add(extents []*pb.Extent) {
	for _, e := range extents {
		if e.GetStartBlock() != Hole {
			c.extents = append(c.extents, e)
		}
	}
}

// check finds blocks that are written twice. Those that nobody writes are allowed:
// a producer leaves out what a hole covers, and the partition's hash tells.
func (c *coverage) check(blocks uint64) error {
	slices.SortFunc(c.extents, func(a, b *pb.Extent) int { return cmp.Compare(a.GetStartBlock(), b.GetStartBlock()) })
	end := uint64(0)
	for _, e := range c.extents {
		if e.GetStartBlock() < end {
			return fmt.Errorf("%w: expected each block to be written once, found block %d twice", ErrManifest, e.GetStartBlock())
		}
		end = e.GetStartBlock() + e.GetNumBlocks()
	}
	if end > blocks {
		return fmt.Errorf("%w: expected %d blocks, found block %d", ErrManifest, blocks, end-1)
	}
	return nil
}

// InOrder reports whether the blobs lie one behind the other in the order of
// the operations, without gaps, so that the payload can be applied as it comes.
func (m *Metadata) InOrder() bool {
	next := uint64(0)
	for _, p := range m.Manifest.GetPartitions() {
		for _, op := range p.GetOperations() {
			if !HasBlob(op.GetType()) {
				continue
			}
			if op.GetDataOffset() != next {
				return false
			}
			next += op.GetDataLength()
		}
	}
	return m.Manifest.SignaturesOffset == nil || m.Manifest.GetSignaturesOffset() == next
}

// EarlyTypes lists the types that producers of this minor version do not use. A
// client applies them all the same.
func (m *Metadata) EarlyTypes() (early []pb.InstallOperation_Type) {
	minor := m.Manifest.GetMinorVersion()
	for _, p := range m.Manifest.GetPartitions() {
		for _, op := range p.GetOperations() {
			if t := op.GetType(); types[t].minor > minor && !slices.Contains(early, t) {
				early = append(early, t)
			}
		}
	}
	slices.Sort(early)
	return early
}
