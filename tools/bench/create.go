package main

import (
	"fmt"
	"os"
)

// Promised sizes of the fixture pair's COW with 64 KiB units, in MB.
var promisedMB = map[string]float64{"lz4": 22.5, "zstd": 18.0}

// create compares the wall time of building a COW from whole blocks with that of
// hashing both images once. (What more effort costs and saves: deltas.)
func (b *bench) create() error {
	got, err := alternate(b.repeats,
		func() (float64, error) { return b.createOnce("lz4") },
		func() (float64, error) { return b.hashOnce() },
		func() (float64, error) { return b.createOnce("zstd") },
		func() (float64, error) { return b.hashOnce() },
	)
	if err != nil {
		return err
	}
	reference := append(got[1], got[3]...)
	for i, c := range []string{"lz4", "zstd"} {
		ours := got[2*i]
		b.table.ratio(fmt.Sprintf("`cowtool create --effort fast`, %s, 64K units, against `sha256sum` of both images", c),
			spread(ours, "%.2f")+" s", spread(reference, "%.2f")+" s",
			median(ours)/median(reference), atMost(map[string]float64{"lz4": 0.4, "zstd": 0.6}[c], "×"))
	}
	return nil
}

func (b *bench) hashOnce() (float64, error) {
	args := twoCores("sha256sum", b.base, b.target)
	return seconds(args[0], args[1:]...)
}

func (b *bench) createOnce(compression string) (float64, error) {
	return b.createEffort(compression, "fast")
}

func (b *bench) createEffort(compression, effort string) (float64, error) {
	args := twoCores(b.tool("cowtool"), "create", "--effort", effort, "--compression", compression, "--unit", "64K",
		"-o", b.cow(compression), b.base, b.target)
	_ = os.Remove(b.cow(compression))
	return seconds(args[0], args[1:]...)
}

func (b *bench) cow(compression string) string { return b.path(compression + ".cow") }

// needCow makes the COW unless an earlier part has made it.
func (b *bench) needCow(compression string) (string, error) {
	path := b.cow(compression)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	_, err := b.createOnce(compression)
	return path, err
}

// sizes lists the COW sizes. The promise is for the fixture pair only.
func (b *bench) sizes() error {
	for _, c := range []string{"lz4", "zstd"} {
		path, err := b.needCow(c)
		if err != nil {
			return err
		}
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		mb := float64(info.Size()) / 1e6
		what := fmt.Sprintf("COW size, %s, 64K units, `--effort fast`", c)
		if b.fixture {
			b.table.value(what, mb, "", atMost(promisedMB[c], "MB"))
		} else {
			b.table.info(what, fmt.Sprintf("%.2f MB", mb), "", "")
		}
	}
	return nil
}
