package cow

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"

	"cowbird/formats/cowfile"
)

// ConvertOptions say what to make of a COW.
type ConvertOptions struct {
	Cow     Device
	Version int // of the format, 2 or 3; 0 means that of Cow
	// Compression nil means that of Cow.
	Compression *cowfile.Compression
	// Recompress also encodes units anew that could be kept as they are, for
	// another level of the same algorithm.
	Recompress bool
	// NewCompressor makes a compressor for units of up to maxUnit bytes, one
	// for each worker; package formats/compress has them.
	NewCompressor func(c cowfile.Compression, maxUnit int) (func(dst, unit []byte) ([]byte, error), error)
	// MaxUnit is the largest unit in bytes, a power of two from 4 KiB to
	// 256 KiB; 0 means that of Cow, or where Cow is version 2, 64 KiB.
	MaxUnit int
	// NoScratch leaves the scratch area out, which makes a merge through
	// power cuts slower.
	NoScratch bool
	// IgnoreProgress takes a COW, whose merge has begun, for one whose merge
	// has not.
	IgnoreProgress bool
	// Workers is the number of goroutines that decode and compress; 0 means
	// one a CPU. The output does not depend on it.
	Workers int
	// OnProgress is called with work done and to do, in bytes of the target.
	OnProgress func(done, total int64)
}

// ConvertStats tell what was made.
type ConvertStats struct {
	Contents
	Version     int                 `json:"version"`
	Compression cowfile.Compression `json:"-"`
	MaxUnit     int                 `json:"unit"`
	KeptUnits   int                 `json:"kept_units"` // stored as they were
	Merged      bool                `json:"merged"`     // it is, as Cow was
}

// Convert writes a COW to out that means the same as another, in other units,
// with another compression, or in another version of the format. Out is as for
// Build, and so are the bytes: for what Build has made, Convert with the same
// options gives the same file.
//
// Ops come in merge order, the ordered ones first, the others by block. That is
// the order in which daemons merge a file without a sequence, so a sequence of
// Cow is not carried over. Neither are labels and resume points: out is
// complete. Consecutive replaced blocks are cut into the largest units that
// fit, whatever they were before. Each unit of Cow is decoded once, which also
// proves it sound; one that is to be stored as it was is not encoded again.
//
// A COW that is partly merged is refused (ErrProgress), unless its progress is
// to be ignored; one that is completely merged remains so.
//
// Whatever the size of Cow, it holds the index of package cowfile, for each
// worker a compressor and at most 16 MiB, most of it the ops on their way and
// what they are made from, and 4 MiB for what is to be written.
func Convert(ctx context.Context, out io.WriterAt, o ConvertOptions) (ConvertStats, error) {
	var a arena
	defer a.close()
	f, err := openFile(o.Cow, &a)
	if err != nil {
		return ConvertStats{}, err
	}
	if err := o.complete(f); err != nil {
		return ConvertStats{}, err
	}
	c := &converter{f: f, o: o, stats: ConvertStats{Version: o.Version, Compression: *o.Compression, MaxUnit: o.MaxUnit}}
	if err := c.checkProgress(); err != nil {
		return c.stats, err
	}
	if err := c.checkScratch(); err != nil {
		return c.stats, err
	}
	err = c.emit(ctx, out)
	return c.stats, err
}

func (o *ConvertOptions) complete(f *cowfile.File) error {
	if o.Version == 0 {
		o.Version = max(2, int(f.Header().Major))
	}
	if o.Compression == nil {
		o.Compression = new(f.Compression())
	}
	if o.MaxUnit == 0 {
		o.MaxUnit = defaultUnit(o.Version)
		if o.Version > 2 && f.Header().Major > 2 {
			o.MaxUnit = f.MaxUnit()
		}
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	return checkUnit(o.MaxUnit, o.Version)
}

type converter struct {
	f        *cowfile.File
	o        ConvertOptions
	stats    ConvertStats
	progress progressCounter
	shared   sharedUnits
	kept     atomic.Int64 // units
}

// checkProgress refuses a COW that is only a part of the target's difference
// from what the base is now.
func (c *converter) checkProgress() error {
	state, err := c.f.ReadState(c.o.Cow)
	if err != nil {
		return err
	}
	merged, all := c.f.NumMergeOps(), c.f.NumOps()
	switch {
	case c.o.IgnoreProgress:
	case merged == all:
		c.stats.Merged = all > 0
	case merged > 0:
		return fmt.Errorf("%w: expected none of its %d ops to be merged, found %d", ErrProgress, all, merged)
	case state == cowfile.StateReadDone:
		return fmt.Errorf("%w: expected an empty scratch area, found the blocks of the first ops in it", ErrProgress)
	}
	return nil
}

// checkScratch refuses to leave the scratch area out where no merge could do
// without: for an op that reads the very block that it writes.
func (c *converter) checkScratch() error {
	if !c.o.NoScratch || c.f.Counts().Xor == 0 {
		return nil
	}
	for it := c.f.Merge(0); it.Pos() < c.f.OrderedOps(); {
		i, _ := it.Next()
		o := c.f.Op(i)
		if o.Type != cowfile.OpXor {
			continue
		}
		if first, last := o.SourceBlocks(); first <= uint64(o.NewBlock) && uint64(o.NewBlock) <= last {
			return refused(cowfile.ErrRequest, fmt.Sprintf("op %d (%v)", i, o), "a scratch area, since it reads the block that it writes", "NoScratch")
		}
	}
	return nil
}

func (c *converter) emit(ctx context.Context, out io.WriterAt) error {
	o := cowfile.WriterOptions{Version: c.o.Version, Compression: *c.o.Compression, MaxUnit: c.o.MaxUnit, NoScratch: c.o.NoScratch}
	ops := c.countOps()
	if uint64(ops) > 1<<32-1 {
		return refused(cowfile.ErrLimit, "ops", "at most 2^32-1", ops)
	}
	o.OpCountMax = uint32(ops)
	if c.stats.Merged {
		o.NumMergeOps = uint64(ops)
	}
	e, err := newEmission(out, o)
	if err != nil {
		return err
	}
	c.progress.report, c.progress.total = c.o.OnProgress, int64(c.f.Counts().BlocksCovered)*blockSize
	e.progress = &c.progress
	p := pipeline{newEncoder: c.newEncoder, threads: c.o.Workers, maxUnit: c.o.MaxUnit, spare: c.f.MaxStored()}
	plan := newRecut(c.f, c.o.MaxUnit)
	c.stats.Contents, err = e.run(ctx, &p, job{
		next: func() (cowfile.Op, bool) {
			o, ok := plan.next()
			if ok {
				c.share(o)
			}
			return o, ok
		},
		keep: c.keep,
		fill: c.fill,
	})
	c.stats.KeptUnits = int(c.kept.Load())
	return err
}

func (c *converter) newEncoder() (*cowfile.Encoder, error) {
	return newEncoder(c.o.Version, *c.o.Compression, func() (func(dst, unit []byte) ([]byte, error), error) {
		return c.o.NewCompressor(*c.o.Compression, c.o.MaxUnit)
	})
}

// countOps is the number of ops that the new file will have.
func (c *converter) countOps() int {
	n := c.f.OrderedOps()
	plan := newRecut(c.f, c.o.MaxUnit)
	plan.ordered = nil
	for {
		if _, ok := plan.next(); !ok {
			return n
		}
		n++
	}
}
