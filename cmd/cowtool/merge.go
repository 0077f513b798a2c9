package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/cow"
)

type merge struct {
	common *common
	base   string
	rate   cli.Size
	batch  cli.Size
	prio   cow.Priority
}

func mergeCommand(c *common) *cobra.Command {
	o := merge{common: c}
	cmd := &cobra.Command{
		Use:   "merge --base BASE COW",
		Short: "Write the target into BASE",
		Long: `Writes the target into BASE, in place. Progress is kept in the COW: whatever
interrupts the merge, a power cut included, the same command takes it up. Once
all is merged it does nothing. A BASE that is a file grows if the target is
larger.

While snapuserd serves the COW, merge through it: otactl merge.`,
		Example: `  cowtool merge --base system.img update.cow
  cowtool merge --base /dev/sda3 --rate 32M update.cow
  cowtool merge --base /dev/sda3 --idle-io --nice 10 update.cow   # while others work
  cowtool merge --json --base system.img update.cow | tail -n 1 | jq .blocks_written`,
		Args:              cli.Args("COW"),
		ValidArgsFunction: fileArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			return o.run(cmd.Context(), o.common.output(cmd), args[0])
		},
	}
	baseFlag(cmd, &o.base, "the image or partition to overwrite")
	_ = cmd.MarkFlagRequired("base")
	cmd.Flags().Var(&o.rate, "rate", "at most so many bytes a second; 0 is no limit")
	o.batch = 16 << 20
	cmd.Flags().Var(&o.batch, "batch", "bytes written between two commits, at most")
	cmd.Flags().BoolVar(&o.prio.IdleIO, "idle-io", false, "use the storage when nobody else does (I/O class idle)")
	cmd.Flags().IntVar(&o.prio.Nice, "nice", 0, "run at a nice value higher by so much, 0 to 19")
	return cmd
}

func (o *merge) check() error {
	if o.batch < 4096 || o.batch%4096 != 0 {
		return cli.Usagef("--batch: expected a multiple of 4096 bytes, found %d", o.batch)
	}
	if err := o.prio.Check(); err != nil {
		return cli.Usagef("--nice: %v", err)
	}
	return nil
}

func (o *merge) run(ctx context.Context, out cli.Output, cowPath string) error {
	c, base, err := openForMerge(cowPath, o.base)
	if err != nil {
		return err
	}
	defer devices{c, base}.close()
	s, err := openSnapshot(devices{c, base}, 0)
	if err != nil {
		return err
	}
	defer s.Close()
	stats, err := o.merge(ctx, out, s)
	if err == nil {
		return reportMerge(out, o.base, s.Progress(), stats)
	}
	if errors.Is(err, context.Canceled) {
		p := s.Progress()
		return fmt.Errorf("interrupted with %d of %d ops merged: the same command goes on from there", p.MergedOps, p.TotalOps)
	}
	return fmt.Errorf("merge %s into %s: %w", cowPath, o.base, err)
}

func (o *merge) merge(ctx context.Context, out cli.Output, s *cow.Snapshot) (cow.MergeStats, error) {
	meter := out.Meter("merging")
	defer meter.End()
	return s.Merge(ctx, cow.MergeOptions{
		Rate: int64(o.rate), BatchBytes: int64(o.batch), Priority: o.prio,
		OnProgress: func(p cow.Progress) { meter.Update(p.BytesWritten, p.BytesTotal) },
	})
}

func reportMerge(out cli.Output, base string, p cow.Progress, s cow.MergeStats) error {
	if out.JSON {
		return out.Emit(struct {
			Event string `json:"event"`
			cow.MergeStats
		}{"result", s})
	}
	if s == (cow.MergeStats{}) {
		_, err := fmt.Fprintf(out.Stdout, "%s: nothing to do, all %d ops are merged\n", base, p.TotalOps)
		return err
	}
	_, err := fmt.Fprintf(out.Stdout, "%s: merged; %d blocks written in %d batches and %d windows, %d syncs\n",
		base, s.BlocksWritten, s.Batches, s.Windows, s.Syncs)
	return err
}
