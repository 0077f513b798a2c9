package generate

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"cowbird/cow"
	"cowbird/cow/filemap"
	"cowbird/formats/payload/pb"
)

// Range is consecutive blocks of a partition.
type Range struct {
	Start uint64 `json:"start"`
	Count uint64 `json:"count"`
}

func count(ranges []Range) (n uint64) {
	for _, r := range ranges {
		n += r.Count
	}
	return n
}

// push appends a block to ranges.
func push(ranges []Range, block uint64) []Range {
	if n := len(ranges); n > 0 && ranges[n-1].Start+ranges[n-1].Count == block {
		ranges[n-1].Count++
		return ranges
	}
	return append(ranges, Range{block, 1})
}

// Kind is what an item needs to be made.
type Kind string

const (
	Zero Kind = "zero" // nothing
	Copy Kind = "copy" // the blocks of the old partition
	Full Kind = "full" // the new blocks, to be compressed
	Diff Kind = "diff" // new and old blocks, to be compared
)

// Item is an operation before it is made.
type Item struct {
	Kind Kind    `json:"kind"`
	Dst  []Range `json:"dst"`
	Src  []Range `json:"src,omitempty"`
	// Name is the file whose blocks these are, File all of its blocks; Old are those of
	// its old version. They tell where deflate streams are.
	Name string  `json:"name,omitempty"`
	File []Range `json:"file,omitempty"`
	// New is how erofs has compressed File, Old how Src; both are nil if one is not
	// compressed.
	New     *Packing `json:"new_packing,omitempty"`
	Old     *Packing `json:"old_packing,omitempty"`
	srcHash []byte   // SHA-256 of Src's blocks; nil: not known yet

	// ID is the SHA-256 of all that the operation's data depend on: options, old and
	// new blocks. Items with the same have the same result. "": it has none. In Create
	// it stands for blocks by hashes that only that process knows.
	ID string `json:"id,omitempty"`
}

// Work tells whether an item is for a worker; others take no time.
func (i *Item) Work() bool { return i.Kind == Full || i.Kind == Diff }

// packed tells whether the item's contents can be had.
func (i *Item) packed() bool { return i.New != nil && i.Old != nil }

// reads is how much is read for the ID, in bytes.
func (i *Item) reads() int64 {
	if !i.Work() {
		return 0
	}
	n := count(i.Dst) + count(i.Src)
	if !slices.Equal(i.File, i.Dst) {
		n += count(i.File)
	}
	return int64(n) * blockSize
}

// bytes is how much of the new partition an item makes.
func (i *Item) bytes() int64 { return int64(count(i.Dst)) * blockSize }

// PartitionPlan is what will be made of a partition, in the order of the blocks.
type PartitionPlan struct {
	Name    string `json:"name"`
	OldSize int64  `json:"old_size,omitempty"`
	OldHash string `json:"old_sha256,omitempty"`
	NewSize int64  `json:"new_size"`
	NewHash string `json:"new_sha256"`
	Items   []Item `json:"items"`

	blocks, oldBlocks blockHashes // nil: not known
}

// Plan is a payload before its operations are made.
type Plan struct {
	Partitions []PartitionPlan

	o        *Options
	manifest *pb.DeltaArchiveManifest // without operations
}

// planFormat changes whenever the same images would give other items or results.
const planFormat = 4

func (o *Options) settings() string {
	return fmt.Sprintf("minor %d effort %v zstd %v", o.Minor, o.Effort, o.Zstd)
}

// NewPlan reads all images and finds out what is to be done: which blocks are zeros,
// which the old partition has, and with what the others are compared.
func NewPlan(ctx context.Context, o Options) (*Plan, error) { return newPlan(ctx, o, true) }

// newPlan makes a plan whose IDs mean something to others, or in this process only.
func newPlan(ctx context.Context, o Options, lasting bool) (*Plan, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	p := &Plan{o: &o, manifest: o.manifest()}
	report := begin(o.OnProgress, Reading, o.imageBytes())
	defer report.end()
	for _, part := range o.Partitions {
		pp, err := planPartition(ctx, &o, part, report)
		if err != nil {
			return nil, fmt.Errorf("partition %s: %w", part.Name, err)
		}
		p.Partitions = append(p.Partitions, *pp)
		u, err := newUpdate(pp, part)
		if err != nil {
			return nil, err
		}
		p.manifest.Partitions = append(p.manifest.Partitions, u)
	}
	if lasting {
		return p, p.identify(ctx, report)
	}
	return p, p.number()
}

func (o *Options) imageBytes() (n int64) {
	for _, p := range o.Partitions {
		if n += p.New.Size; p.Old != nil {
			n += p.Old.Size
		}
	}
	return n
}

// planner makes the items of one partition.
type planner struct {
	o        *Options
	part     Partition
	new, old blockHashes
	kinds    []Kind   // by new block; Diff is what is still to be decided
	from     []uint64 // by new block, for Copy
	items    []Item
}

// taken is a block that needs no operation, or has one.
const taken Kind = "taken"

// blockHash identifies a block's contents, in this process: its two halves are hashes
// that nobody can foresee. That a payload gives the right blocks is proved in the end.
type blockHash [2]uint64

var (
	seeds    = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}
	zeroHash = hashOf(make([]byte, blockSize))
)

func hashOf(block []byte) blockHash {
	return blockHash{maphash.Bytes(seeds[0], block), maphash.Bytes(seeds[1], block)}
}

// blockHashes are those of an image.
type blockHashes []blockHash

// has tells whether the image has these blocks at an offset.
func (all blockHashes) has(off int64, blocks []byte) bool {
	first := int(off / blockSize)
	for i := 0; i < len(blocks); i += blockSize {
		if n := first + i/blockSize; n >= len(all) || all[n] != hashOf(blocks[i:i+blockSize]) {
			return false
		}
	}
	return true
}

// sum is a hash of what blocks of the image have, in this process.
func (all blockHashes) sum(ranges []Range) ([]byte, error) {
	h := sha256.New()
	var b []byte
	for _, r := range ranges {
		b = b[:0]
		for _, block := range all[r.Start : r.Start+r.Count] {
			b = binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(b, block[0]), block[1])
		}
		h.Write(b)
	}
	return h.Sum(nil), nil
}

func planPartition(ctx context.Context, o *Options, part Partition, report *progress) (*PartitionPlan, error) {
	newer, old, err := o.scan(ctx, part, report)
	if err != nil {
		return nil, err
	}
	p := &planner{o: o, part: part, new: newer.blocks, old: old.blocks}
	pp := &PartitionPlan{Name: part.Name, NewSize: part.New.Size, NewHash: newer.hash, blocks: newer.blocks, oldBlocks: old.blocks}
	if part.Old != nil {
		pp.OldSize, pp.OldHash = part.Old.Size, old.hash
	}
	p.classify()
	if part.Old != nil {
		p.files()
	}
	p.zerosAndCopies()
	p.regions()
	slices.SortFunc(p.items, func(a, b Item) int { return int(a.Dst[0].Start) - int(b.Dst[0].Start) })
	pp.Items = p.items
	return pp, nil
}

// scanned is what has been found out about an image.
type scanned struct {
	blocks blockHashes
	hash   string // of the whole, SHA-256
}

// scan reads the images of a partition, both at a time if there are workers.
func (o *Options) scan(ctx context.Context, part Partition, report *progress) (newer, old scanned, err error) {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(o.Workers)
	g.Go(func() error { return newer.read(ctx, "new", part.New, report) })
	if part.Old != nil {
		g.Go(func() error { return old.read(ctx, "old", *part.Old, report) })
	}
	return newer, old, g.Wait()
}

// read hashes each block and the whole, in one go.
func (s *scanned) read(ctx context.Context, what string, img cow.Image, report *progress) error {
	const piece = 64
	s.blocks = make(blockHashes, 0, img.Size/blockSize)
	whole := sha256.New()
	b := make([]byte, piece*blockSize)
	for off := int64(0); off < img.Size; off += int64(len(b)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		b = b[:min(int64(len(b)), img.Size-off)]
		if k, err := img.R.ReadAt(b, off); k < len(b) {
			return fmt.Errorf("%s image: read %d bytes at %d: %w", what, len(b), off, err)
		}
		whole.Write(b)
		for i := 0; i < len(b); i += blockSize {
			s.blocks = append(s.blocks, hashOf(b[i:i+blockSize]))
		}
		report.add(int64(len(b)))
	}
	s.hash = hex.EncodeToString(whole.Sum(nil))
	return nil
}

// readRanges reads blocks, one range behind the other.
func readRanges(img cow.Image, ranges []Range) ([]byte, error) {
	b := make([]byte, count(ranges)*blockSize)
	at := 0
	for _, r := range ranges {
		n := int(r.Count) * blockSize
		k, err := img.R.ReadAt(b[at:at+n], int64(r.Start)*blockSize)
		if k < n {
			return nil, fmt.Errorf("read %d bytes at block %d: %w", n, r.Start, err)
		}
		at += n
	}
	return b, nil
}

// classify finds zeros and what the old partition has. Of several places it takes the
// block's own, else the one that continues the copy before it, else the first.
func (p *planner) classify() {
	p.kinds, p.from = make([]Kind, len(p.new)), make([]uint64, len(p.new))
	if v := p.part.Verity; v != nil {
		for _, r := range []Range{v.Tree, v.FEC} {
			for b := r.Start; b < r.Start+r.Count; b++ {
				p.kinds[b] = taken
			}
		}
	}
	first := make(map[blockHash]uint32, len(p.old))
	for i, h := range p.old {
		if _, seen := first[h]; !seen {
			first[h] = uint32(i)
		}
	}
	for i, h := range p.new {
		next := uint64(0)
		if i > 0 && p.kinds[i-1] == Copy {
			next = p.from[i-1] + 1
		}
		at, found := first[h]
		switch {
		case p.kinds[i] == taken:
		case h == zeroHash && p.o.Minor >= 4:
			p.kinds[i] = Zero
		case !found:
			p.kinds[i] = Diff
		default:
			p.kinds[i], p.from[i] = Copy, uint64(at)
			if i < len(p.old) && p.old[i] == h {
				p.from[i] = uint64(i)
			} else if next > 0 && next < uint64(len(p.old)) && p.old[next] == h {
				p.from[i] = next
			}
		}
	}
}

// zerosAndCopies makes operations of one stretch of the new partition each.
func (p *planner) zerosAndCopies() {
	most := uint64(p.o.Chunk / blockSize)
	for i := 0; i < len(p.kinds); {
		kind, first := p.kinds[i], i
		it := Item{Kind: kind}
		for i < len(p.kinds) && p.kinds[i] == kind && uint64(i-first) < most {
			if kind == Copy {
				it.Src = push(it.Src, p.from[i])
			}
			i++
		}
		if kind == Zero || kind == Copy {
			it.Dst = []Range{{uint64(first), uint64(i - first)}}
			p.items = append(p.items, it)
		}
	}
}

// files makes an operation of what is left of each file whose old version is known.
func (p *planner) files() {
	before, err := filemap.Files(p.part.Old.R, p.part.Old.Size)
	if err != nil {
		return // what cannot be understood is compared by place
	}
	after, err := filemap.Files(p.part.New.R, p.part.New.Size)
	if err != nil {
		return
	}
	for _, pair := range filemap.Pairs(before.Files, after.Files) {
		was, is := before.Files[pair.Base], after.Files[pair.Target]
		it := Item{Kind: Diff, Name: is.Path, File: blocksOf(is, len(p.new)), Src: blocksOf(was, len(p.old))}
		if p.o.Minor >= lz4diffMinor {
			it.New, it.Old = packingOf(is, after.Padded), packingOf(was, before.Padded)
		}
		p.file(it)
	}
}

// file makes the operation of a file, if anything of it is left.
func (p *planner) file(it Item) {
	if len(it.File) == 0 || len(it.Src) == 0 {
		return
	}
	ok := false
	if it.packed() {
		it.Dst, ok = p.leftClusters(&it)
	}
	if !ok {
		it.New, it.Old, it.Dst = nil, nil, p.left(it.File)
	}
	if len(it.Dst) == 0 || max(count(it.Dst), count(it.Src), count(it.File)) > largestDiff/blockSize || repeats(it.Dst) {
		return
	}
	for _, b := range flat(it.Dst) {
		p.kinds[b] = taken
	}
	p.items = append(p.items, it)
}

// left are the blocks that have no operation yet.
func (p *planner) left(file []Range) (dst []Range) {
	for _, b := range flat(file) {
		if p.kinds[b] == Diff {
			dst = push(dst, b)
		}
	}
	return dst
}

// leftClusters is left with all of each compressed cluster of which a block is left,
// also what could be copied. It fails if another operation makes a part of one.
func (p *planner) leftClusters(it *Item) (dst []Range, ok bool) {
	blocks := flat(it.File)
	for _, c := range it.New.Clusters {
		here := blocks[:c.Blocks]
		blocks = blocks[c.Blocks:]
		isLeft := func(b uint64) bool { return p.kinds[b] == Diff }
		all := c.compressed() && slices.ContainsFunc(here, isLeft)
		for _, b := range here {
			if all && p.kinds[b] == taken {
				return nil, false
			}
			if all || isLeft(b) {
				dst = push(dst, b)
			}
		}
	}
	return dst, true
}

// blocksOf is where a file lies, in whole blocks and in the file's order; nil if it
// does not begin at blocks, or not lie within so many.
func blocksOf(f filemap.File, blocks int) (ranges []Range) {
	for _, e := range f.Extents {
		if e.Physical%blockSize != 0 {
			return nil
		}
		n := (e.Stored + blockSize - 1) / blockSize
		if e.Physical/blockSize+n > int64(blocks) {
			return nil
		}
		for b := range n {
			ranges = push(ranges, uint64(e.Physical/blockSize+b))
		}
	}
	return ranges
}

// repeats tells whether a block is there twice, as in images that share blocks.
func repeats(ranges []Range) bool {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, func(a, b Range) int { return int(a.Start) - int(b.Start) })
	for i := 1; i < len(sorted); i++ {
		if sorted[i].Start < sorted[i-1].Start+sorted[i-1].Count {
			return true
		}
	}
	return false
}

// regions makes operations of what is left.
func (p *planner) regions() {
	most := int(p.o.Chunk / blockSize)
	for i := 0; i < len(p.kinds); {
		first := i
		for i < len(p.kinds) && p.kinds[i] == Diff && (i-first < most) {
			i++
		}
		if i == first {
			i++
			continue
		}
		it := Item{Kind: Full, Dst: []Range{{uint64(first), uint64(i - first)}}}
		if it.Src = p.likely(first, i); len(it.Src) > 0 {
			it.Kind = Diff
		}
		p.items = append(p.items, it)
	}
}

// likely is where the old partition may have another version of blocks: around what
// their neighbours were copied from, or else around their own place.
func (p *planner) likely(first, end int) (src []Range) {
	const near = 64
	around := min(16, end-first)
	var starts []int
	for i := first - 1; i >= max(0, first-near); i-- {
		if p.kinds[i] == Copy {
			starts = append(starts, int(p.from[i])-i+first)
			break
		}
	}
	for i := end; i < min(len(p.kinds), end+near); i++ {
		if p.kinds[i] == Copy {
			starts = append(starts, int(p.from[i])-i+first)
			break
		}
	}
	if len(starts) == 0 {
		starts = []int{first}
	}
	slices.Sort(starts)
	for _, s := range starts {
		from, to := max(0, s-around), min(len(p.old), s+end-first+around)
		if n := len(src); n > 0 {
			from = max(from, int(src[n-1].Start+src[n-1].Count))
		}
		if from < to {
			src = append(src, Range{uint64(from), uint64(to - from)})
		}
	}
	return src
}

// identify gives items their IDs.
func (p *Plan) identify(ctx context.Context, report *progress) error {
	total := int64(0)
	for i := range p.Partitions {
		for j := range p.Partitions[i].Items {
			total += p.Partitions[i].Items[j].reads()
		}
	}
	report.next(Naming, total)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(p.o.Workers)
	for i := range p.Partitions {
		for j := range p.Partitions[i].Items {
			it := &p.Partitions[i].Items[j]
			if !it.Work() {
				continue
			}
			g.Go(func() (err error) {
				if err = ctx.Err(); err == nil {
					it.ID, it.srcHash, err = p.o.id(it, p.o.Partitions[i].hashes(report))
				}
				return err
			})
		}
	}
	return g.Wait()
}

// number gives items IDs by what is known of their blocks already.
func (p *Plan) number() error {
	for i := range p.Partitions {
		pp := &p.Partitions[i]
		for j := range pp.Items {
			if it := &pp.Items[j]; it.Work() {
				id, _, err := p.o.id(it, contents{pp.blocks.sum, pp.oldBlocks.sum})
				if err != nil {
					return err
				}
				it.ID = id
			}
		}
	}
	return nil
}

// contents give a hash of blocks of the new partition, and of the old one.
type contents struct{ new, old func([]Range) ([]byte, error) }

// hashes are SHA-256 of the blocks themselves.
func (p *Partition) hashes(report *progress) contents {
	of := func(what string, img *cow.Image) func([]Range) ([]byte, error) {
		return func(ranges []Range) ([]byte, error) {
			b, err := hashRanges(*img, ranges, report)
			if err != nil {
				err = fmt.Errorf("%s image: %w", what, err)
			}
			return b, err
		}
	}
	return contents{of("new", &p.New), of("old", p.Old)}
}

// id hashes what an item's result depends on, and its source by itself. The blocks'
// numbers are not among that.
func (o *Options) id(it *Item, c contents) (id string, src []byte, err error) {
	h := sha256.New()
	fmt.Fprintf(h, "cowbird payload item %d\n%s\n%s %s\n", planFormat, o.settings(), it.Kind, extension(it.Name))
	dst, err := c.new(it.Dst)
	if err != nil {
		return "", nil, err
	}
	file := dst
	if !slices.Equal(it.File, it.Dst) {
		if file, err = c.new(it.File); err != nil {
			return "", nil, err
		}
	}
	if it.Kind == Diff {
		if src, err = c.old(it.Src); err != nil {
			return "", nil, err
		}
	}
	fmt.Fprintf(h, "%x %x %x\n%v\n", dst, file, src, it.shape())
	return hex.EncodeToString(h.Sum(nil)), src, nil
}

// extension is what of a name counts.
func extension(name string) string {
	if i := strings.LastIndexByte(name, '.'); i > strings.LastIndexByte(name, '/') {
		return name[i:]
	}
	return ""
}

// shape is how an item's blocks lie to each other: where ranges end, which blocks of
// the file it makes, and how the files are compressed.
func (it *Item) shape() (s []uint64) {
	for _, ranges := range [][]Range{it.Dst, it.Src} {
		for _, r := range ranges {
			s = append(s, r.Count)
		}
		s = append(s, 0)
	}
	for _, n := range it.inFile() {
		s = append(s, uint64(n+1))
	}
	return it.Old.appendShape(it.New.appendShape(s))
}

// inFile is for each block of the file its place among the item's, or −1.
func (it *Item) inFile() []int {
	place := map[uint64]int{}
	n := 0
	for _, r := range it.Dst {
		for b := r.Start; b < r.Start+r.Count; b++ {
			place[b] = n
			n++
		}
	}
	var in []int
	for _, r := range it.File {
		for b := r.Start; b < r.Start+r.Count; b++ {
			at, ok := place[b]
			if !ok {
				at = -1
			}
			in = append(in, at)
		}
	}
	return in
}
