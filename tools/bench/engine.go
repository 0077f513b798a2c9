package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"time"

	"cowbird/cow"
)

// index measures what a million ops cost: to open, and to keep mapped.
func (b *bench) index() error {
	base := b.path("index.base")
	if err := sparse(base, 4*million*blockSize); err != nil {
		return err
	}
	for _, c := range []struct {
		name  string
		write func(string) error
		most  float64 // MB
	}{{"run-like", runLike, 2}, {"scattered", scattered, 18}} {
		path := b.path(c.name + ".cow")
		if err := c.write(path); err != nil {
			return err
		}
		if err := b.openRow(c.name, base, path); err != nil {
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

func (b *bench) openRow(name, base, path string) error {
	got, err := alternate(b.repeats,
		func() (float64, error) { return openOnce(base, path) },
		func() (float64, error) { return readTableOnce(path) },
	)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("open a COW of 2^20 ops, %s, against reading its op table", name)
	ms := func(v []float64) string { return spread(scaled(v, 1e3), "%.1f") + " ms" }
	b.table.ratio(what, ms(got[0]), ms(got[1]), median(got[0])/median(got[1]), atMost(3, "×"))
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

func openOnce(base, path string) (float64, error) {
	devices, err := openBoth(base, path)
	if err != nil {
		return 0, err
	}
	defer devices.close()
	start := time.Now()
	s, err := cow.Open(cow.Options{Base: devices[0], Cow: devices[1]})
	took := time.Since(start).Seconds()
	if err != nil {
		return 0, err
	}
	return took, s.Close()
}

// readTableOnce reads the op table into memory that is ready for it.
var tableBuffer = make([]byte, 16*million)

func readTableOnce(path string) (float64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	start := time.Now()
	_, err = f.ReadAt(tableBuffer, 2<<20)
	return time.Since(start).Seconds(), err
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

// viewRate reads a snapshot from the first byte to the last, in MB/s.
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
	return readRate(s, s.Size())
}

func readRate(r io.ReaderAt, size int64) (float64, error) {
	buf := make([]byte, 1<<20)
	start := time.Now()
	for off := int64(0); off < size; off += int64(len(buf)) {
		if _, err := r.ReadAt(buf[:min(int64(len(buf)), size-off)], off); err != nil {
			return 0, err
		}
	}
	return float64(size) / 1e6 / time.Since(start).Seconds(), nil
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
	if err := copies(path, moves, 0); err != nil {
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
	start := time.Now()
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
	return float64(blocks) * blockSize / 1e6 / time.Since(start).Seconds(), nil
}

// mergeCopies compares merges of a gibibyte that consist of copies with making
// the same copies with one sync for each 16 MiB.
func (b *bench) mergeCopies() error {
	const blocks = 1 << 18
	noise := b.path("copies.noise")
	if err := noiseFile(noise, blocks); err != nil {
		return err
	}
	for _, c := range []struct {
		name    string
		moves   []extent
		scratch uint32
		most    float64
	}{
		{"without overlaps", movedApart(blocks), 0, 1.2},
		{"all overlapping", movedALittle(blocks), 0, 2.2},
		{"all overlapping, 16 MiB of scratch area", movedALittle(blocks), 16 << 20, 2.2},
	} {
		path := b.path("copies.cow")
		if err := copies(path, c.moves, c.scratch); err != nil {
			return err
		}
		got, err := alternate(b.repeats,
			func() (float64, error) { return b.mergeCopiesOnce(noise, path) },
			func() (float64, error) { return b.copyExtents(noise, c.moves) },
		)
		if err != nil {
			return err
		}
		b.table.ratio(fmt.Sprintf("merge of copies %s, of 1 GiB, against making them with one fsync for 16 MiB", c.name),
			spread(got[0], "%.2f")+" s", spread(got[1], "%.2f")+" s", median(got[0])/median(got[1]), atMost(c.most, "×"))
	}
	return nil
}

func (b *bench) mergeCopiesOnce(noise, path string) (float64, error) {
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
	_, err = s.Merge(context.Background(), cow.MergeOptions{})
	return time.Since(start).Seconds(), err
}

func (b *bench) copyExtents(noise string, moves []extent) (float64, error) {
	base := b.path("copies.base")
	if err := freshCopies(noise, base); err != nil {
		return 0, err
	}
	f, err := os.OpenFile(base, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := make([]byte, 600*blockSize)
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
