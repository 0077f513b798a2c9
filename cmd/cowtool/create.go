package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/cow"
	"cowbird/formats/compress"
	"cowbird/formats/cowfile"
)

type create struct {
	common      *common
	out         string
	compression string
	format      string
	unit        cli.Size
	noXor       bool
	workers     int
}

func createCommand(c *common) *cobra.Command {
	o := create{common: c, unit: 64 << 10}
	cmd := &cobra.Command{
		Use:   "create -o OUT.cow BASE TARGET",
		Short: "Make the COW that turns BASE into TARGET",
		Long: `Makes the COW that turns BASE into TARGET. The same input gives the same bytes,
on any machine and with any number of workers.

Compression is none, gz, brotli, lz4 or zstd, with a level after a comma where
the default is not wanted. Larger units (4K to 256K) compress better and make
small reads of the snapshot slower. Format v2 is for daemons before Android 15;
its unit is 4K.

The file appears under its name when it is complete. OUT may be a block device,
which is written in place.`,
		Example: `  cowtool create -o update.cow old.img new.img
  cowtool create --compression zstd,9 --unit 128K -o small.cow old.img new.img
  cowtool create --format v2 --compression gz -o update.cow old.img new.img
  cowtool create --json -o update.cow old.img new.img | tail -n 1 | jq .cow_size`,
		Args:              cli.Args("BASE", "TARGET"),
		ValidArgsFunction: fileArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd.Context(), o.common.output(cmd), args[0], args[1], cmd.Flags().Changed("unit"))
		},
	}
	flags := cmd.Flags()
	outFlag(cmd, &o.out, "the COW to write")
	flags.StringVar(&o.compression, "compression", "lz4", "`ALGORITHM[,LEVEL]`: none, gz, brotli, lz4 or zstd")
	flags.StringVar(&o.format, "format", "v3", "v3 or v2")
	flags.Var(&o.unit, "unit", "largest piece that is compressed as one: 4K, 8K, … 256K")
	flags.BoolVar(&o.noXor, "no-xor", false, "no xor ops, for daemons that do not know them")
	workersFlag(cmd, &o.workers)
	values(cmd, "compression", "none", "gz", "brotli", "lz4", "lz4,9", "zstd", "zstd,9", "zstd,19")
	values(cmd, "format", "v3", "v2")
	values(cmd, "unit", "4K", "8K", "16K", "32K", "64K", "128K", "256K")
	return cmd
}

// options checks what was typed.
func (o *create) options(unitGiven bool) (cow.BuildOptions, error) {
	b := cow.BuildOptions{Version: 3, MaxUnit: int(min(o.unit, 1<<30)), NoXor: o.noXor, Workers: o.workers}
	switch {
	case o.format == "v2" && unitGiven && o.unit != cowfile.BlockSize:
		return b, cli.Usagef("--unit: format v2 has units of 4K only: leave --unit out, or use --format v3")
	case o.format == "v2":
		b.Version, b.MaxUnit = 2, cowfile.BlockSize
	case o.format != "v3":
		return b, cli.Usagef("--format: expected v3 or v2, found %q", o.format)
	}
	if u := b.MaxUnit; u < cowfile.BlockSize || u > cowfile.MaxUnit || u&(u-1) != 0 {
		return b, cli.Usagef("--unit: expected 4K, 8K, 16K, 32K, 64K, 128K or 256K, found %s", o.unit.String())
	}
	var err error
	var level int
	if b.Compression, level, err = cowfile.ParseCompression(o.compression); err == nil {
		b.NewCompressor = func() (func(dst, unit []byte) ([]byte, error), error) {
			return compress.New(b.Compression.String(), level, b.MaxUnit)
		}
		_, err = b.NewCompressor()
	}
	if err != nil {
		return b, cli.UsageError{Err: fmt.Errorf("--compression: %w", err)}
	}
	return b, checkWorkers(o.workers)
}

func (o *create) run(ctx context.Context, out cli.Output, base, target string, unitGiven bool) error {
	build, err := o.options(unitGiven)
	if err != nil {
		return err
	}
	if err := cli.Distinct(o.out, base, target); err != nil {
		return err
	}
	images, err := openAll(base, target)
	if err != nil {
		return err
	}
	defer images.close()
	build.Base, build.Target = asImage(images[0]), asImage(images[1])
	stats, err := o.build(ctx, out, build)
	if err != nil {
		return fmt.Errorf("create %s: %w", o.out, err)
	}
	return reportCreate(out, o.out, stats, images[1].Size())
}

func (o *create) build(ctx context.Context, out cli.Output, build cow.BuildOptions) (cow.BuildStats, error) {
	file, err := cli.CreateOut(o.out)
	if err != nil {
		return cow.BuildStats{}, err
	}
	defer file.Discard()
	if err := file.Blank(cowfile.BlockSize); err != nil {
		return cow.BuildStats{}, err
	}
	meter := out.Meter("creating")
	defer meter.End()
	build.OnProgress = meter.Update
	stats, err := cow.Build(ctx, file, build)
	if err != nil {
		return stats, err
	}
	return stats, file.Commit()
}

func reportCreate(out cli.Output, name string, s cow.BuildStats, target int64) error {
	if out.JSON {
		return out.Emit(struct {
			Event string `json:"event"`
			cow.BuildStats
		}{"result", s})
	}
	share := 100 * float64(s.CowSize) / float64(max(target, 1))
	_, err := fmt.Fprintf(out.Stdout, "%s: %s, %.1f %% of the target; %d copy, %d xor, %d replace and %d zero ops; %d blocks unchanged\n",
		name, cli.Bytes(s.CowSize), share, s.Copy, s.Xor, s.Replace, s.Zero, s.UnchangedBlocks)
	return err
}
