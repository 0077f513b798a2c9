package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/cow"
	"cowbird/formats/cowfile"
)

type estimate struct {
	create  create
	convert convert
	cow     string
}

func estimateCommand(c *common) *cobra.Command {
	o := estimate{create: create{common: c}, convert: convert{common: c}}
	cmd := &cobra.Command{
		Use:   "estimate {BASE TARGET | --cow IN.cow}",
		Short: "Tell how many bytes a COW will take, without writing it",
		Long: `Tells how many bytes and ops the COW takes that cowtool create makes from BASE and
TARGET with the same flags, or with --cow the one that cowtool convert makes
from IN.cow. The numbers are exact, since everything is done but the writing;
it takes as long. A block device of so many bytes is large enough.`,
		Example: `  cowtool estimate old.img new.img
  cowtool estimate --compression zstd,9 --unit 128K old.img new.img
  cowtool estimate --cow update.cow --format v2 --compression gz
  cowtool estimate --json old.img new.img | tail -n 1 | jq .cow_size`,
		Args: func(cmd *cobra.Command, args []string) error {
			if o.cow != "" {
				return cli.Args()(cmd, args)
			}
			return cli.Args("BASE", "TARGET")(cmd, args)
		},
		ValidArgsFunction: fileArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd.Context(), c.output(cmd), args)
		},
	}
	cmd.Flags().StringVar(&o.cow, "cow", "", "`FILE`, the COW that is to be converted")
	_ = cmd.MarkFlagFilename("cow")
	o.convert.form.flags(cmd, "that of create or convert")
	noXorFlag(cmd, &o.create.noXor)
	scratchFlag(cmd, &o.create.scratch)
	effortFlag(cmd, &o.create.effort)
	o.convert.ownFlags(cmd)
	workersFlag(cmd, &o.convert.workers)
	return cmd
}

func (o *estimate) run(ctx context.Context, out cli.Output, args []string) error {
	var err error
	var c cow.Contents
	if o.cow != "" {
		c, err = o.ofConvert(ctx, out)
	} else {
		c, err = o.ofCreate(ctx, out, args[0], args[1])
	}
	if err != nil {
		return fmt.Errorf("estimate: %w", err)
	}
	return reportEstimate(out, c)
}

func (o *estimate) ofCreate(ctx context.Context, out cli.Output, base, target string) (cow.Contents, error) {
	if o.convert.noScratch || o.convert.ignoreProgress {
		return cow.Contents{}, cli.Usagef("--no-scratch and --ignore-progress are for conversions: give --cow too")
	}
	o.create.form, o.create.workers = o.convert.form.or(createForm), o.convert.workers
	build, err := o.create.options()
	if err != nil {
		return cow.Contents{}, err
	}
	images, err := openPair(base, target, &build)
	if err != nil {
		return cow.Contents{}, err
	}
	defer images.close()
	useFiles(&build)
	meter := out.Meter("estimating")
	defer meter.End()
	build.OnProgress = meter.Update
	stats, err := cow.Build(ctx, cow.Nowhere, build)
	return stats.Contents, err
}

func (o *estimate) ofConvert(ctx context.Context, out cli.Output) (cow.Contents, error) {
	if o.create.noXor {
		return cow.Contents{}, cli.Usagef("--no-xor: a conversion keeps the ops that there are: leave --no-xor or --cow out")
	}
	if o.create.effort != "default" {
		return cow.Contents{}, cli.Usagef("--effort: a conversion keeps the ops that there are: leave --effort or --cow out")
	}
	if o.create.scratch != cowfile.DefaultScratch {
		return cow.Contents{}, cli.Usagef("--scratch: a conversion writes the usual area: leave --scratch or --cow out")
	}
	options, err := o.convert.options()
	if err != nil {
		return cow.Contents{}, err
	}
	inputs, err := openAll(o.cow)
	if err != nil {
		return cow.Contents{}, err
	}
	defer inputs.close()
	meter := out.Meter("estimating")
	defer meter.End()
	options.Cow, options.OnProgress = inputs[0], meter.Update
	stats, err := cow.Convert(ctx, cow.Nowhere, options)
	return stats.Contents, err
}

func reportEstimate(out cli.Output, c cow.Contents) error {
	if out.JSON {
		return out.Emit(struct {
			Event string `json:"event"`
			Ops   int    `json:"ops"`
			cow.Contents
		}{"result", c.Ops(), c})
	}
	table := ""
	if c.OpCapacity > 0 {
		table = fmt.Sprintf(" in a table for %d", c.OpCapacity)
	}
	_, err := fmt.Fprintf(out.Stdout, `%d bytes (%s), %d ops%s
%12d  header and scratch area
%12d  ops: %d copy, %d zero, %d xor, %d replace
%12d  data of xor ops
%12d  data of replace ops, for %d blocks
`,
		c.CowSize, cli.Bytes(c.CowSize), c.Ops(), table, c.HeaderBytes, c.OpBytes, c.Copy, c.Zero, c.Xor, c.Replace,
		c.XorBytes, c.ReplaceBytes, c.ReplaceBlocks)
	return err
}
