package cow

import (
	"context"
	"fmt"
	"io"
	"runtime"

	"cowbird/formats/cowfile"
)

// Image is a disk image of Size bytes, safe for concurrent reads.
type Image struct {
	R    io.ReaderAt
	Size int64
}

// blocks is the number of whole blocks.
func (i Image) blocks() int { return int(i.Size / blockSize) }

// BuildOptions say what to build.
type BuildOptions struct {
	// Base is the image that the COW will be merged into, Target the image
	// that comes out. Target is a whole number of blocks.
	Base, Target Image
	Version      int // of the format, 2 or 3; 0 means 3
	Compression  cowfile.Compression
	// NewCompressor makes a compressor for that algorithm and units of up to
	// MaxUnit bytes, one for each worker; package formats/compress has them.
	NewCompressor func() (func(dst, unit []byte) ([]byte, error), error)
	// MaxUnit is the largest unit in bytes, a power of two from 4 KiB to
	// 256 KiB; 0 means 64 KiB, or 4 KiB in version 2.
	MaxUnit int
	// ScratchSize is the size of the scratch area in bytes, a multiple of
	// 64 KiB; 0 means 2 MiB. The COW grows by it, and merges of overlapping
	// moves get faster.
	ScratchSize uint32
	// NoXor makes do without xor ops, for devices that do not know them.
	NoXor bool
	// Effort is how hard to look for deltas, Kin where to look first.
	Effort Effort
	Kin    []Kin
	// NewTrial makes compressors that only compare sources with each other; nil
	// means NewCompressor. Faster ones save time and cost some bytes.
	NewTrial func() (func(dst, unit []byte) ([]byte, error), error)
	// OnOp is called with each op that is written and the bytes that are stored
	// for it, in the order of the file, by one goroutine at a time.
	OnOp func(o cowfile.Op, stored int)
	// Workers is the number of goroutines that hash and compress; 0 means
	// one a CPU. The output does not depend on it.
	Workers int
	// OnProgress is called with work done and to do, in bytes of the target
	// counted three times: read, looked for, written.
	OnProgress func(done, total int64)
}

// BuildStats tell what was built. Ops of all kinds add up to the ops of the
// file; blocks, with those unchanged, to the blocks of the target.
type BuildStats struct {
	Contents
	UnchangedBlocks int `json:"unchanged_blocks"`
	CyclesBroken    int `json:"cycles_broken"` // blocks replaced because a merge could not order them
	// CycleBytes is what those cost, about.
	CycleBytes int64 `json:"cycle_bytes"`
}

// Build compares two images and writes the COW that turns Base into Target to
// out, from its beginning. The same input gives the same bytes. To Nowhere, it
// tells what the COW would take; an out that is Bounded and too small is
// cowfile.ErrNoSpace, with the bytes that are needed.
//
// It reads base and target about twice, new blocks and their sources some times
// more, and keeps up to 56 bytes a block plus about 4 MiB a worker. To look for
// deltas takes up to 16 MiB more, and 8 MiB a worker, but not at the same time
// as the most of that.
//
// The stages: classify (which blocks are new), findSources (whole blocks that
// the base has elsewhere), findDeltas (blocks that are a changed version of a
// stretch of the base), orderOps (a merge order, breaking cycles), emit.
func Build(ctx context.Context, out io.WriterAt, o BuildOptions) (BuildStats, error) {
	if err := o.complete(); err != nil {
		return BuildStats{}, err
	}
	b := &builder{o: o, n: o.Target.blocks()}
	b.progress.total = 3 * o.Target.Size
	b.progress.report = o.OnProgress
	for _, stage := range []func(context.Context) error{b.classify, b.findSources, b.findDeltas, b.orderOps} {
		if err := stage(ctx); err != nil {
			return b.stats, err
		}
	}
	err := b.emit(ctx, out)
	return b.stats, err
}

func (o *BuildOptions) complete() error {
	if o.Target.Size%blockSize != 0 {
		return fmt.Errorf("%w: target: expected a multiple of %d bytes, found %d", ErrSize, blockSize, o.Target.Size)
	}
	if o.Target.Size > maxSize || o.Base.Size > maxSize {
		return fmt.Errorf("%w: expected images of at most %d bytes, found %d and %d", ErrSize, int64(maxSize), o.Base.Size, o.Target.Size)
	}
	if o.Version == 0 {
		o.Version = 3
	}
	if o.MaxUnit == 0 {
		o.MaxUnit = defaultUnit(o.Version)
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	return checkUnit(o.MaxUnit, o.Version)
}

// deltaWork is what findDeltas counts as progress.
func (b *builder) deltaWork() int64 { return b.o.Target.Size }

func defaultUnit(version int) int {
	if version < 3 {
		return blockSize
	}
	return 64 << 10
}

func checkUnit(u, version int) error {
	if u < blockSize || u > cowfile.MaxUnit || u&(u-1) != 0 || version < 3 && u > blockSize {
		return fmt.Errorf("%w: unit: expected a power of two from %d to %d (in version 2: %d, larger ones need version 3), found %d", ErrSize, blockSize, cowfile.MaxUnit, blockSize, u)
	}
	return nil
}

// kind is what will happen to a block of the target.
type kind uint8

const (
	same    kind = iota // the base has it in its place
	zero                // zeros
	fresh               // replaced, or not decided yet
	copied              // from another block of the base
	changed             // xor with another block of the base
)

// ordered tells whether the block's op reads the base.
func (k kind) ordered() bool { return k == copied || k == changed }

type builder struct {
	o        BuildOptions
	n        int // blocks of the target
	progress progressCounter
	stats    BuildStats

	kind   []kind   // by target block
	source []uint32 // by target block: base block of a copied or changed one
	shifts []uint16 // by target block: bytes behind that; nil: all 0

	own, delta []uint16 // by target block: see findDeltas; nil with EffortFast

	hashes struct{ base, target []uint64 } // by block; only until findSources
	order  []uint32                        // target blocks of ordered ops, in merge order
}
