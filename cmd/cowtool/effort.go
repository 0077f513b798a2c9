package main

import (
	"slices"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/cow"
	"cowbird/cow/filemap"
	"cowbird/formats/compress"
	"cowbird/formats/cowfile"
)

var efforts = []string{"fast", "default", "max"}

func effortFlag(cmd *cobra.Command, effort *string) {
	*effort = "default"
	cmd.Flags().StringVar(effort, "effort", *effort, "fast, default or max: how hard to look for what need not be stored")
	values(cmd, "effort", efforts...)
}

const (
	// maxUnit is the unit of the most effort, where none is given.
	maxUnit = cowfile.MaxUnit
	// maxScratch is its scratch area: half the usual one, which costs a few more syncs
	// where moves overlap.
	maxScratch = cowfile.DefaultScratch / 2
)

// setEffort sets what an effort means, as far as given does not say that a flag does.
func setEffort(b *cow.BuildOptions, f parsedForm, effort string, given func(flag string) bool) error {
	if !slices.Contains(efforts, effort) {
		return cli.Usagef("--effort: expected fast, default or max, found %q", effort)
	}
	b.NewCompressor = func() (func(dst, unit []byte) ([]byte, error), error) { return f.compressor(f.compression, b.MaxUnit) }
	trial := f
	trial.level, trial.levelGiven = trialLevel(f), true
	b.NewTrial = func() (func(dst, unit []byte) ([]byte, error), error) {
		return trial.compressor(f.compression, b.MaxUnit)
	}
	switch effort {
	case "fast":
		b.Effort = cow.EffortFast
	case "max":
		b.Effort = cow.EffortMax
		if !given("unit") && f.version == 3 {
			b.MaxUnit = maxUnit
		}
		if !given("scratch") {
			b.ScratchSize = maxScratch
		}
		if !f.levelGiven {
			b.NewCompressor = func() (func(dst, unit []byte) ([]byte, error), error) { return smallest(f.compression, b.MaxUnit) }
		}
	}
	return nil
}

// trialLevel is a level that compares deltas quickly and is no better than the one
// that is used in the end.
func trialLevel(f parsedForm) int {
	quick := map[cowfile.Compression]int{cowfile.GZ: 4, cowfile.Brotli: 3, cowfile.LZ4: 0, cowfile.Zstd: 3}[f.compression]
	if f.levelGiven {
		return min(quick, f.level)
	}
	return quick
}

// levels are those of each algorithm of which one or the other is the smallest.
var levels = map[cowfile.Compression][]int{
	cowfile.GZ: {6, 9}, cowfile.Brotli: {11}, cowfile.LZ4: {0, 9, 12}, cowfile.Zstd: {3, 7, 19},
}

func smallest(c cowfile.Compression, unit int) (compress.Func, error) {
	var all []compress.Func
	for _, level := range levels[c] {
		f, err := compress.New(c.String(), level, unit)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return compress.Smallest(all...), nil
}

// files are what is known of the files of two images.
type files struct {
	base, target filemap.Map
	pairs        []filemap.Pair
	note         error // why nothing is, if an image is damaged
}

func findFiles(b *cow.BuildOptions) (f files) {
	if f.base, f.note = filemap.Files(b.Base.R, b.Base.Size); f.note == nil {
		f.target, f.note = filemap.Files(b.Target.R, b.Target.Size)
	}
	if f.note == nil {
		f.pairs = filemap.Pairs(f.base.Files, f.target.Files)
	}
	return f
}

// useFiles tells a build which parts of its images are kin, unless it is not to
// look.
func useFiles(b *cow.BuildOptions) files {
	if b.Effort == cow.EffortFast || b.NoXor {
		return files{}
	}
	f := findFiles(b)
	b.Kin = filemap.Kin(f.base.Files, f.target.Files, f.pairs)
	return f
}
