package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/cow"
)

type convert struct {
	common         *common
	out, base      string
	form           form
	noScratch      bool
	ignoreProgress bool
	workers        int
}

func convertCommand(c *common) *cobra.Command {
	o := convert{common: c}
	cmd := &cobra.Command{
		Use:   "convert -o OUT.cow IN.cow",
		Short: "Make a COW of another format, compression or unit that means the same",
		Long: `Makes a COW that means the same as IN.cow: in the other format (v2 is for daemons
before Android 15), with another compression, or with larger or smaller units.
What is not given stays as it is in IN.cow; units of a v2 file become 64K in v3.
The same input gives the same bytes.

Ops come in merge order, so that the file needs no merge sequence; one that
IN.cow has is dropped, as are labels and resume points. New blocks that follow
each other are put into the largest units that fit. Data that would be the same
are copied; a level after the compression has all of it compressed again.

A COW whose merge has begun is refused: finish the merge (cowtool merge), or
convert the COW as it was before. --ignore-progress takes it for that, which is
right for the base as it was before only. A COW that is merged stays merged.

With --base, the target is read through both files and compared before OUT
takes its place. OUT may be a block device, as for cowtool create.`,
		Example: `  cowtool convert --format v2 -o for-android-13.cow update.cow
  cowtool convert --compression zstd,19 --unit 256K -o small.cow update.cow
  cowtool convert --compression lz4 --base old.img -o fast.cow small.cow
  cowtool convert --json --unit 4K -o update-4k.cow update.cow | tail -n 1 | jq .cow_size`,
		Args:              cli.Args("IN.cow"),
		ValidArgsFunction: fileArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd.Context(), o.common.output(cmd), args[0])
		},
	}
	outFlag(cmd, &o.out, "the COW to write")
	baseFlag(cmd, &o.base, "the partition as it is; compares what both COWs make of it")
	o.form.flags(cmd, "as in IN.cow")
	o.ownFlags(cmd)
	workersFlag(cmd, &o.workers)
	return cmd
}

// ownFlags adds the flags that no other way to make a COW has.
func (o *convert) ownFlags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.noScratch, "no-scratch", false, "no scratch area: 2 MiB less, and a merge is slower")
	cmd.Flags().BoolVar(&o.ignoreProgress, "ignore-progress", false, "take a COW whose merge has begun for one whose merge has not")
}

// options checks what was typed.
func (o *convert) options() (cow.ConvertOptions, error) {
	f, err := o.form.parse()
	if err != nil {
		return cow.ConvertOptions{}, err
	}
	if o.base != "" && o.ignoreProgress {
		return cow.ConvertOptions{}, cli.Usagef("--base: what a COW makes of it cannot be compared with --ignore-progress: give one of them")
	}
	c := cow.ConvertOptions{
		Version: f.version, MaxUnit: f.unit, Recompress: f.levelGiven, NewCompressor: f.compressor,
		NoScratch: o.noScratch, IgnoreProgress: o.ignoreProgress, Workers: o.workers,
	}
	if o.form.given("compression") {
		c.Compression = &f.compression
	}
	return c, checkWorkers(o.workers)
}

func (o *convert) run(ctx context.Context, out cli.Output, in string) error {
	options, err := o.options()
	if err != nil {
		return err
	}
	if err := cli.Distinct(o.out, in, o.base); err != nil {
		return err
	}
	inputs, err := openAll(in)
	if err != nil {
		return err
	}
	defer inputs.close()
	options.Cow = inputs[0]
	stats, err := o.convert(ctx, out, options)
	if err != nil {
		return fmt.Errorf("convert %s: %w", in, err)
	}
	return reportConvert(out, o.out, stats, inputs[0].Size())
}

func (o *convert) convert(ctx context.Context, out cli.Output, options cow.ConvertOptions) (stats cow.ConvertStats, err error) {
	err = writeCow(o.out, func(to io.WriterAt, temporary string) error {
		meter := out.Meter("converting")
		options.OnProgress = meter.Update
		stats, err = cow.Convert(ctx, to, options)
		meter.End()
		if err != nil || o.base == "" {
			return err
		}
		return o.compare(ctx, out, options.Cow, temporary)
	})
	return stats, err
}

// compare reads the target through the old COW and the new one.
func (o *convert) compare(ctx context.Context, out cli.Output, old cow.Device, path string) error {
	d, err := openAll(path, o.base)
	if err != nil {
		return err
	}
	defer d.close()
	s, err := cow.Open(cow.Options{Cow: old, Base: d[1]})
	if err != nil {
		return err
	}
	defer s.Close()
	meter := out.Meter("comparing")
	defer meter.End()
	_, err = cow.Check(ctx, cow.CheckOptions{
		Cow: d[0], Base: d[1], Target: s, TargetSize: s.Size(), Workers: o.workers, OnProgress: meter.Update,
	})
	return err
}

func reportConvert(out cli.Output, name string, s cow.ConvertStats, old int64) error {
	if out.JSON {
		return out.Emit(struct {
			Event string `json:"event"`
			cow.ConvertStats
			Compression string `json:"compression"`
		}{"result", s, s.Compression.String()})
	}
	_, err := fmt.Fprintf(out.Stdout, "%s: v%d, %v, units up to %s: %s, was %s; %d copy, %d xor, %d replace and %d zero ops; %d units kept as they were\n",
		name, s.Version, s.Compression, cli.Bytes(int64(s.MaxUnit)), cli.Bytes(s.CowSize), cli.Bytes(old), s.Copy, s.Xor, s.Replace, s.Zero, s.KeptUnits)
	if s.Merged {
		_, more := fmt.Fprintln(out.Stdout, "it is completely merged, as it was")
		return errors.Join(err, more)
	}
	return err
}
