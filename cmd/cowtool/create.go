package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/cow"
	"cowbird/formats/cowfile"
)

type create struct {
	common  *common
	out     string
	form    form
	noXor   bool
	scratch cli.Size
	workers int
	effort  string
	explain bool
}

func createCommand(c *common) *cobra.Command {
	o := create{common: c, form: createForm}
	cmd := &cobra.Command{
		Use:   "create -o OUT.cow BASE TARGET",
		Short: "Make the COW that turns BASE into TARGET",
		Long: `Makes the COW that turns BASE into TARGET. The same input gives the same bytes,
on any machine and with any number of workers.

Compression is none, gz, brotli, lz4 or zstd, with a level after a comma where
the default is not wanted. Larger units (4K to 256K) compress better and make
small reads of the snapshot slower. Format v2 is for daemons before Android 15;
its unit is 4K.

Data that the base does not have as whole blocks become xor ops where that saves
bytes: the difference to 4 KiB of the base from any byte on. How hard it looks:

  --effort fast     whole blocks: copies, and xor with the block that lies between
                    the sources of a block's copied neighbours
  --effort default  also the files of both images that are versions of each other
                    (ext4, erofs), by path or nearly so, and then the whole base, by
                    contents, at any byte; a run of blocks is stored as it is
                    where that is smaller
  --effort max      four times as many sources tried; each unit compressed with
                    several levels unless one is given; units of 256K and a
                    scratch area of 1M unless --unit and --scratch say otherwise

--explain tells what the bytes are for, by cause and by file, and what a merge
will read, write and need.

The file appears under its name when it is complete. OUT may be a block device,
which is written in place; one that is mounted, in use by another device or too
small is refused. How much a COW takes, cowtool estimate tells beforehand.`,
		Example: `  cowtool create -o update.cow old.img new.img
  cowtool create --compression zstd,9 --unit 128K -o small.cow old.img new.img
  cowtool create --format v2 --compression gz -o update.cow old.img new.img
  cowtool create --effort max --compression zstd --explain -o small.cow old.img new.img
  cowtool create --json -o update.cow old.img new.img | tail -n 1 | jq .cow_size`,
		Args:              cli.Args("BASE", "TARGET"),
		ValidArgsFunction: fileArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd.Context(), o.common.output(cmd), args[0], args[1])
		},
	}
	outFlag(cmd, &o.out, "the COW to write")
	o.form.flags(cmd, "")
	noXorFlag(cmd, &o.noXor)
	scratchFlag(cmd, &o.scratch)
	workersFlag(cmd, &o.workers)
	effortFlag(cmd, &o.effort)
	cmd.Flags().BoolVar(&o.explain, "explain", false, "tell what the bytes are for, by cause and by file")
	return cmd
}

func noXorFlag(cmd *cobra.Command, noXor *bool) {
	cmd.Flags().BoolVar(noXor, "no-xor", false, "no xor ops, for daemons that do not know them")
}

func scratchFlag(cmd *cobra.Command, scratch *cli.Size) {
	*scratch = cowfile.DefaultScratch
	cmd.Flags().Var(scratch, "scratch", "scratch area in the COW; a larger one merges overlapping moves faster")
}

// checkScratch checks what was typed for the scratch area.
func checkScratch(scratch cli.Size) error {
	if scratch <= 0 || scratch > cowfile.MaxScratch || scratch%(64<<10) != 0 {
		return cli.Usagef("--scratch: expected a multiple of 64K, at most %s, found %s", cli.Bytes(cowfile.MaxScratch), scratch.String())
	}
	return nil
}

// options checks what was typed.
func (o *create) options() (cow.BuildOptions, error) {
	f, err := o.form.parse()
	if err == nil {
		err = checkScratch(o.scratch)
	}
	if err != nil {
		return cow.BuildOptions{}, err
	}
	b := cow.BuildOptions{Version: f.version, Compression: f.compression, MaxUnit: f.unit, NoXor: o.noXor, Workers: o.workers, ScratchSize: uint32(o.scratch)}
	if err := checkWorkers(o.workers); err != nil {
		return b, err
	}
	return b, setEffort(&b, f, o.effort, o.form.given)
}

func (o *create) run(ctx context.Context, out cli.Output, base, target string) error {
	build, err := o.options()
	if err != nil {
		return err
	}
	if err := cli.Distinct(o.out, base, target); err != nil {
		return err
	}
	images, err := openPair(base, target, &build)
	if err != nil {
		return err
	}
	defer images.close()
	known := useFiles(&build)
	var x *explainer
	if o.explain {
		x = newExplainer(known, build.MaxUnit)
		build.OnOp = x.op
	}
	stats, err := o.build(ctx, out, build)
	if err != nil {
		return fmt.Errorf("create %s: %w", o.out, err)
	}
	var explained *explanation
	if x != nil {
		e := x.finish(stats)
		explained = &e
	}
	return reportCreate(out, o.out, stats, build.Target.Size, explained)
}

// openPair opens the two images of a build.
func openPair(base, target string, b *cow.BuildOptions) (devices, error) {
	images, err := openAll(base, target)
	if err == nil {
		b.Base, b.Target = asImage(images[0]), asImage(images[1])
	}
	return images, err
}

func (o *create) build(ctx context.Context, out cli.Output, build cow.BuildOptions) (stats cow.BuildStats, err error) {
	meter := out.Meter("creating")
	defer meter.End()
	build.OnProgress = meter.Update
	err = writeCow(o.out, func(to io.WriterAt, _ string) error {
		stats, err = cow.Build(ctx, to, build)
		return err
	})
	return stats, err
}

// writeCow has a COW written to path, where it appears when it is complete.
// Until then it is at the second argument of write.
func writeCow(path string, write func(to io.WriterAt, temporary string) error) error {
	file, err := cli.CreateOut(path)
	if err != nil {
		return err
	}
	defer file.Discard()
	if err := file.Blank(cowfile.BlockSize); err != nil {
		return err
	}
	var to io.WriterAt = file
	if file.IsBlockDevice() {
		d, err := cow.NewFileDevice(file.File)
		if err != nil {
			return err
		}
		to = d.Output() // which knows where it ends
	}
	if err := write(to, file.Name()); err != nil {
		return errors.Join(err, file.Blank(cowfile.BlockSize))
	}
	return file.Commit()
}

func reportCreate(out cli.Output, name string, s cow.BuildStats, target int64, e *explanation) error {
	if out.JSON {
		return out.Emit(struct {
			Event string `json:"event"`
			cow.BuildStats
			Explanation *explanation `json:"explanation,omitempty"`
		}{"result", s, e})
	}
	share := 100 * float64(s.CowSize) / float64(max(target, 1))
	_, err := fmt.Fprintf(out.Stdout, "%s: %s, %.1f %% of the target; %d copy, %d xor, %d replace and %d zero ops; %d blocks unchanged\n",
		name, cli.Bytes(s.CowSize), share, s.Copy, s.Xor, s.Replace, s.Zero, s.UnchangedBlocks)
	if err != nil || e == nil {
		return err
	}
	return e.print(out.Stdout)
}
