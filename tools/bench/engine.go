package main

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"cowbird/cow"
)

// index measures what a million ops cost: to open, and to keep mapped.
func (b *bench) index() error {
	base := b.path("index.base")
	if err := sparse(base, 4*million*blockSize); err != nil {
		return err
	}
	for _, c := range []struct {
		name      string
		write     func(string) error
		toReading float64 // times as long as reading the table; 0: nothing is promised
		most      float64 // MB
	}{{"run-like", func(path string) error { return runLike(path, million) }, 3, 2}, {"scattered", scattered, 0, 18}} {
		path := b.path(c.name + ".cow")
		if err := c.write(path); err != nil {
			return err
		}
		if err := b.openRow(c.name, base, path, c.toReading); err != nil {
			return err
		}
		if err := b.mappedRow(c.name, base, path, c.most); err != nil {
			return err
		}
	}
	return nil
}

func sparse(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Truncate(size)
}

func (b *bench) openRow(name, base, path string, toReading float64) error {
	got, err := alternate(b.repeats,
		func() (float64, error) { return openOnce(base, path) },
		func() (float64, error) { return readTableOnce(path) },
		func() (float64, error) { return sortTableOnce(path) },
	)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("open a COW of 2^20 ops, %s, against reading its op table", name)
	ms := func(v []float64) string { return spread(scaled(v, 1e3), "%.1f") + " ms" }
	b.promise(what, ms(got[0]), ms(got[1]), median(got[0])/median(got[1]), toReading)
	b.table.ratio("the same, against reading it and sorting the ops by block", ms(got[0]), ms(got[2]), median(got[0])/median(got[2]), atMost(1, "×"))
	b.table.value("the same", median(got[0])*1e3, "", atMost(150, "ms"))
	return nil
}

func scaled(v []float64, by float64) []float64 {
	out := make([]float64, len(v))
	for i := range v {
		out[i] = v[i] * by
	}
	return out
}

// promise adds a row that must not be above most, if that is not 0.
func (b *bench) promise(what, ours, theirs string, ratio, most float64) {
	if most > 0 {
		b.table.ratio(what, ours, theirs, ratio, atMost(most, "×"))
	} else {
		b.table.info(what, ours, theirs, fmt.Sprintf("%.2f", ratio))
	}
}

// openOnce, readTableOnce and sortTableOnce tell seconds of processor time: all
// of them work in memory.
func openOnce(base, path string) (float64, error) {
	devices, err := openBoth(base, path)
	if err != nil {
		return 0, err
	}
	defer devices.close()
	start := processorTime()
	s, err := cow.Open(cow.Options{Base: devices[0], Cow: devices[1]})
	took := processorTime() - start
	if err != nil {
		return 0, err
	}
	return took, s.Close()
}

// tableOffset is that of the op tables of these files, behind header, scratch
// area and resume points.
const tableOffset = 78 + 2<<20 + 64

// tableBuffer is memory that is ready for an op table.
var tableBuffer = make([]byte, 16*million)

func readTableOnce(path string) (float64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	start := processorTime()
	_, err = f.ReadAt(tableBuffer, tableOffset)
	return processorTime() - start, err
}

// sortTableOnce also takes the ops apart and sorts them as the standard library
// does.
func sortTableOnce(path string) (float64, error) {
	start := processorTime()
	if _, err := readTableOnce(path); err != nil {
		return 0, err
	}
	type op struct{ block, number uint32 }
	ops := make([]op, million)
	for i := range ops {
		ops[i] = op{binary.LittleEndian.Uint32(tableBuffer[16*i+4:]), uint32(i)}
	}
	slices.SortFunc(ops, func(a, b op) int { return cmp.Compare(a.block, b.block) })
	return processorTime() - start, nil
}

func (b *bench) mappedRow(name, base, path string, most float64) error {
	defer b.undo(b.mark())
	d, err := b.mapWith(base, path)
	if err != nil {
		return err
	}
	time.Sleep(b.settle())
	f, err := observe(d.pid())
	if err != nil {
		return err
	}
	b.table.value(fmt.Sprintf("daemon idle, 2^20 ops mapped, %s: anonymous", name), float64(f.anonymous)/1e6, "", atMost(most, "MB"))
	return nil
}

// view measures sequential reads of snapshots in process, on one processor.
func (b *bench) view() error {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	image, base := b.path("dense.img"), b.path("dense.base")
	if err := dense(image, b.target); err != nil {
		return err
	}
	info, err := os.Stat(image)
	if err != nil {
		return err
	}
	if err := sparse(base, info.Size()); err != nil {
		return err
	}
	for _, c := range []struct {
		tool, level string
		promised    bool
	}{{"lz4", "1", true}, {"zstd", "3", false}} {
		if err := b.decodeRow(c.tool, c.level, c.promised, base, image); err != nil {
			return err
		}
	}
	return b.plainRow()
}

func (b *bench) decodeRow(tool, level string, promised bool, base, image string) error {
	path := b.path("dense." + tool + ".cow")
	if _, err := output(b.tool("cowtool"), "create", "--compression", tool, "--unit", "64K", "-o", path, base, image); err != nil {
		return err
	}
	got, err := alternate(b.repeats,
		func() (float64, error) { return viewRate(base, path) },
		func() (float64, error) { return toolRate(tool, level, image) },
	)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("sequential read of a snapshot, %s 64K units, one core, against `%s -b%s -B64K` decoding", tool, tool, level)
	ours, theirs := spread(got[0], "%.0f")+" MB/s", spread(got[1], "%.0f")+" MB/s"
	if ratio := median(got[0]) / median(got[1]); promised {
		b.table.ratio(what, ours, theirs, ratio, atLeast(0.9))
	} else {
		b.table.info(what, ours, theirs, fmt.Sprintf("%.2f", ratio))
	}
	return nil
}

var decodeRate = regexp.MustCompile(`, *([0-9.]+) MB/s`)

// toolRate is what a compressor's own benchmark says of its decoder.
func toolRate(tool, level, image string) (float64, error) {
	out, err := output("sh", "-c", fmt.Sprintf("%s -b%s -B65536 -i1 %s 2>&1", tool, level, image))
	if err != nil {
		return 0, err
	}
	all := decodeRate.FindAllStringSubmatch(out, -1)
	if len(all) == 0 {
		return 0, fmt.Errorf("%s -b: expected a decoding rate, found %q", tool, lastLine(out))
	}
	return strconv.ParseFloat(all[len(all)-1][1], 64)
}

// viewRate reads a snapshot from the first byte to the last, in MB for each
// second of processor time, and tells the best of the rounds of one second, as
// the compressors' benchmarks do.
func viewRate(base, path string) (float64, error) {
	devices, err := openBoth(base, path)
	if err != nil {
		return 0, err
	}
	defer devices.close()
	s, err := cow.Open(cow.Options{Base: devices[0], Cow: devices[1]})
	if err != nil {
		return 0, err
	}
	defer s.Close()
	best := 0.0
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		rate, err := readRate(s, s.Size())
		if err != nil {
			return 0, err
		}
		best = max(best, rate)
	}
	return best, nil
}

func readRate(r io.ReaderAt, size int64) (float64, error) {
	buf := make([]byte, 1<<20)
	start := processorTime()
	for off := int64(0); off < size; off += int64(len(buf)) {
		if _, err := r.ReadAt(buf[:min(int64(len(buf)), size-off)], off); err != nil {
			return 0, err
		}
	}
	return float64(size) / 1e6 / (processorTime() - start), nil
}

// processorTime is what this process has used so far, in seconds.
func processorTime() float64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t); err != nil {
		panic(err) // the clock exists
	}
	return float64(t.Nano()) / 1e9
}

// plainRow compares reading unchanged and copied blocks with reading the same
// ranges of the base.
func (b *bench) plainRow() error {
	const blocks = 65536
	base, path := b.path("plain.base"), b.path("plain.cow")
	moves := movedApart(blocks)
	if err := noiseFile(base, blocks); err != nil {
		return err
	}
	if err := copies(path, moves); err != nil {
		return err
	}
	got, err := alternate(b.repeats,
		func() (float64, error) { return viewRate(base, path) },
		func() (float64, error) { return rangesRate(base, moves, blocks) },
	)
	if err != nil {
		return err
	}
	b.table.ratio("sequential read of a snapshot, half copied and half unchanged blocks, against pread of the same ranges",
		spread(got[0], "%.0f")+" MB/s", spread(got[1], "%.0f")+" MB/s", median(got[0])/median(got[1]), atLeast(0.9))
	return nil
}

// rangesRate reads what a reader of the snapshot needs, as often.
func rangesRate(base string, moves []extent, blocks uint32) (float64, error) {
	f, err := os.Open(base)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	start := processorTime()
	at, room := uint32(0), uint32(len(buf)/blockSize)
	left := room
	for at < blocks {
		from, n := at, blocks-at // unchanged
		if len(moves) > 0 {
			from, n = moves[0].from, moves[0].blocks
		}
		n = min(n, left)
		if _, err := f.ReadAt(buf[:n*blockSize], int64(from)*blockSize); err != nil {
			return 0, err
		}
		if len(moves) > 0 {
			if moves[0].from, moves[0].blocks = moves[0].from+n, moves[0].blocks-n; moves[0].blocks == 0 {
				moves = moves[1:]
			}
		}
		at += n
		if left -= n; left == 0 {
			left = room
		}
	}
	return float64(blocks) * blockSize / 1e6 / (processorTime() - start), nil
}

// mergeCopies compares merges of updates of a gibibyte, which only move extents,
// with making the same copies with one sync for each 16 MiB.
func (b *bench) mergeCopies() error {
	const blocks = 1 << 18
	noise, target, path := b.path("copies.noise"), b.path("copies.target"), b.path("copies.cow")
	if err := noiseFile(noise, blocks); err != nil {
		return err
	}
	for _, c := range []struct {
		name    string
		moves   []extent
		scratch string
		most    float64 // 0: nothing is promised
	}{
		{"without overlaps", movedApart(blocks), "2M", 1.2},
		{"all overlapping", movedALittle(blocks), "2M", 2.2},
		{"in one chain, each block by one", movedByOne(blocks), "2M", 0},
		{"in one chain, 16 MiB of scratch area", movedByOne(blocks), "16M", 0},
	} {
		if _, err := copyExtents(noise, target, c.moves); err != nil {
			return err
		}
		if _, err := output(b.tool("cowtool"), "create", "--scratch", c.scratch, "-o", path, noise, target); err != nil {
			return err
		}
		got, err := alternate(b.repeats,
			func() (float64, error) { return b.mergeCopiesOnce(noise, target, path) },
			func() (float64, error) { return copyExtents(noise, b.path("copies.base"), c.moves) },
		)
		if err != nil {
			return err
		}
		what := fmt.Sprintf("merge of copies %s, of 1 GiB, against making them with one fsync for 16 MiB", c.name)
		b.promise(what, spread(got[0], "%.2f")+" s", spread(got[1], "%.2f")+" s", median(got[0])/median(got[1]), c.most)
	}
	return nil
}

func (b *bench) mergeCopiesOnce(noise, target, path string) (float64, error) {
	base, delta := b.path("copies.base"), b.path("copies.delta")
	if err := freshCopies(noise, base, path, delta); err != nil {
		return 0, err
	}
	devices, err := openBoth(base, delta)
	if err != nil {
		return 0, err
	}
	defer devices.close()
	s, err := cow.Open(cow.Options{Base: devices[0], Cow: devices[1]})
	if err != nil {
		return 0, err
	}
	defer s.Close()
	start := time.Now()
	if _, err := s.Merge(context.Background(), cow.MergeOptions{}); err != nil {
		return 0, err
	}
	took := time.Since(start).Seconds()
	_, err = output("cmp", base, target)
	return took, err
}

// copyExtents makes the moves in a fresh copy, and tells how many seconds that
// took without the fresh copy.
func copyExtents(noise, base string, moves []extent) (float64, error) {
	if err := freshCopies(noise, base); err != nil {
		return 0, err
	}
	f, err := os.OpenFile(base, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := make([]byte, longestMove*blockSize)
	unsynced := uint32(0)
	start := time.Now()
	for _, m := range moves {
		p := buf[:m.blocks*blockSize]
		if _, err := f.ReadAt(p, int64(m.from)*blockSize); err != nil {
			return 0, err
		}
		if _, err := f.WriteAt(p, int64(m.to)*blockSize); err != nil {
			return 0, err
		}
		if unsynced += m.blocks; unsynced >= 16<<20/blockSize {
			unsynced = 0
			if err := f.Sync(); err != nil {
				return 0, err
			}
		}
	}
	err = f.Sync()
	return time.Since(start).Seconds(), err
}

// peak measures what a merge adds to the daemon's memory, and what stays.
func (b *bench) peak() error {
	defer b.undo(b.mark())
	base, delta := b.path("peak.base"), b.path("peak.cow")
	zstd, err := b.needCow("zstd")
	if err != nil {
		return err
	}
	if err := freshCopies(b.base, base, zstd, delta); err != nil {
		return err
	}
	d, err := b.mapWith(base, delta)
	if err != nil {
		return err
	}
	if err := warm(d.device); err != nil {
		return err
	}
	time.Sleep(b.settle())
	before, err := observe(d.pid())
	if err != nil {
		return err
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", d.pid()), []byte("5"), 0); err != nil {
		return err // 5 resets the high-water mark
	}
	if _, err := d.otactl("merge", "--wait", "bench"); err != nil {
		return err
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.pid()))
	if err != nil {
		return err
	}
	time.Sleep(5 * time.Second)
	after, err := observe(d.pid())
	if err != nil {
		return err
	}
	mib := func(n int64) float64 { return float64(n) / (1 << 20) }
	b.table.value("daemon merging, highest RSS over idle", mib(fields(status)["VmHWM"]<<10-before.rss), "", atMost(24, "MiB"))
	b.table.info("daemon 5 s after the merge, anonymous", fmt.Sprintf("%.2f MiB", mib(after.anonymous)),
		fmt.Sprintf("%.2f MiB before it", mib(before.anonymous)), fmt.Sprintf("%.2f", float64(after.anonymous)/float64(before.anonymous)))
	return nil
}
