package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"
)

const blockSize = 4096

// merged is what `cowtool merge --json` reports in its last line.
type merged struct {
	BlocksWritten int64 `json:"blocks_written"`
	Syncs         int64 `json:"syncs"`
}

// merge compares the offline merge with copying as many changed bytes with as
// many syncs, and with its own reads, writes and syncs done again without the
// engine. Each run starts from a fresh copy of the base (and the COW).
func (b *bench) merge() error {
	cow, err := b.needCow("zstd")
	if err != nil {
		return err
	}
	runs, err := changedRuns(b.base, b.target, blockSize)
	if err != nil {
		return err
	}
	steps, err := b.recordMerge(cow)
	if err != nil {
		return err
	}
	var last merged
	got, err := alternate(b.repeats,
		func() (s float64, err error) {
			s, last, err = b.mergeOnce(cow)
			return s, err
		},
		func() (float64, error) { return b.copyOnce(runs, last) },
		func() (float64, error) { return b.replay(cow, steps) },
	)
	if err != nil {
		return err
	}
	b.table.ratio("offline merge (zstd COW), against copying the same number of bytes with the same number of syncs",
		spread(got[0], "%.2f")+" s", spread(got[1], "%.2f")+" s", median(got[0])/median(got[1]), atMost(1.5, "×"))
	b.table.info("offline merge, against its own reads, writes and syncs done again one by one, without the engine",
		spread(got[0], "%.2f")+" s", spread(got[2], "%.2f")+" s", fmt.Sprintf("%.2f", median(got[0])/median(got[2])))
	b.table.note("The changed blocks are %d runs for the copy; in merge order they are %d writes.", len(runs), baseWrites(steps))
	b.table.note("The merge wrote %d blocks (%.1f MB) with %d syncs; %d blocks differ between the images.",
		last.BlocksWritten, float64(last.BlocksWritten*blockSize)/1e6, last.Syncs, blocksIn(runs))
	return nil
}

func baseWrites(steps []step) (n int) {
	for _, s := range steps {
		if s.kind == writeStep && !s.onCow {
			n++
		}
	}
	return n
}

func (b *bench) mergeOnce(cow string) (float64, merged, error) {
	var report merged
	base, cowCopy := b.path("merge.base"), b.path("merge.cow")
	if err := freshCopies(b.base, base, cow, cowCopy); err != nil {
		return 0, report, err
	}
	args := twoCores(b.tool("cowtool"), "merge", "--json", "--base", base, cowCopy)
	start := time.Now()
	out, err := output(args[0], args[1:]...)
	took := time.Since(start).Seconds()
	if err != nil {
		return 0, report, err
	}
	if err := json.Unmarshal([]byte(lastLine(out)), &report); err != nil || report.BlocksWritten == 0 {
		return 0, report, fmt.Errorf("cowtool merge --json: expected blocks_written and syncs in the last line, found %q", lastLine(out))
	}
	return took, report, b.mustEqualTarget(base)
}

func (b *bench) mustEqualTarget(path string) error {
	_, err := output("cmp", path, b.target)
	return err
}

// freshCopies copies pairs of (from, to) and waits until they are on disk.
func freshCopies(pairs ...string) error {
	for i := 0; i < len(pairs); i += 2 {
		if _, err := output("cp", "--reflink=never", "--sparse=never", pairs[i], pairs[i+1]); err != nil {
			return err
		}
	}
	_, err := output("sync")
	return err
}

// run is a range of consecutive blocks that differ between the images.
type run struct{ first, blocks int64 }

func blocksIn(runs []run) (n int64) {
	for _, r := range runs {
		n += r.blocks
	}
	return n
}

// changedRuns compares two images in grains of so many bytes (a multiple of
// the block size).
func changedRuns(basePath, targetPath string, grain int) ([]run, error) {
	base, err := os.ReadFile(basePath)
	if err != nil {
		return nil, err
	}
	target, err := os.ReadFile(targetPath)
	if err != nil {
		return nil, err
	}
	return diffRuns(base, target, grain), nil
}

func diffRuns(base, target []byte, grain int) (runs []run) {
	for off := 0; off < len(target); off += grain {
		t := target[off:min(off+grain, len(target))]
		if off+len(t) <= len(base) && bytes.Equal(base[off:off+len(t)], t) {
			continue
		}
		first, blocks := int64(off/blockSize), int64(len(t)/blockSize)
		if n := len(runs); n > 0 && runs[n-1].first+runs[n-1].blocks == first {
			runs[n-1].blocks += blocks
		} else {
			runs = append(runs, run{first, blocks})
		}
	}
	return runs
}

// copyOnce copies changed blocks from the target to a fresh copy of the base,
// as many blocks as the merge wrote, with as many syncs, evenly spread.
func (b *bench) copyOnce(runs []run, like merged) (float64, error) {
	base := b.path("copy.base")
	if err := freshCopies(b.base, base); err != nil {
		return 0, err
	}
	in, err := os.Open(b.target)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	out, err := os.OpenFile(base, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	start := time.Now()
	err = copyRuns(out, in, runs, like)
	return time.Since(start).Seconds(), err
}

type syncWriter interface {
	io.WriterAt
	Sync() error
}

// copyRuns writes in pieces of at most 1 MiB; it starts over with the first
// run when the merge wrote more blocks than differ.
func copyRuns(out syncWriter, in io.ReaderAt, runs []run, like merged) error {
	buf := make([]byte, 1<<20)
	var written, synced int64
	for written < like.BlocksWritten {
		for _, r := range pieces(runs, int64(len(buf)/blockSize)) {
			n := min(r.blocks, like.BlocksWritten-written)
			p := buf[:n*blockSize]
			if _, err := in.ReadAt(p, r.first*blockSize); err != nil {
				return err
			}
			if _, err := out.WriteAt(p, r.first*blockSize); err != nil {
				return err
			}
			written += n
			for ; synced < like.Syncs*written/like.BlocksWritten; synced++ {
				if err := out.Sync(); err != nil {
					return err
				}
			}
			if written == like.BlocksWritten {
				break
			}
		}
	}
	return nil
}

func pieces(runs []run, limit int64) (out []run) {
	for _, r := range runs {
		for ; r.blocks > 0; r.first, r.blocks = r.first+limit, r.blocks-limit {
			out = append(out, run{r.first, min(limit, r.blocks)})
		}
	}
	return out
}
