package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/ota/control"
	"cowbird/ota/update"
)

// pollEvery is the time between two looks at a merge that is waited for.
const pollEvery = 200 * time.Millisecond

var errMerge = errors.New("merge failed")

func (r *remote) mergeCommand() *cobra.Command {
	w, wait, quiet, auto, ifAny := &whole{remote: r}, false, false, false, false
	daemon := starter{}
	var rate cli.Size
	cmd := &cobra.Command{
		Use:   "merge [NAME]",
		Short: "Write the target into the base",
		Long: `Asks the daemon to write the target into the base, and returns at once; with
--wait, when the merge has ended. The device goes on being served. Two merges
run at a time, others wait their turn. A merge that has been done before is a
success.

Without NAME it is the update of the whole device that is merged, which --config
describes, and from which there is no way back then; with --wait until all of it is.
With --if-any it is no error that the system which runs is not an update's.
With --auto it is merged if and when the configuration says so, and otactl returns when
that has ended, or at once if it does not:

  "merge": {"auto": true, "after": "120s", "on_power": true, "rate": 33554432}

With --recovery a recovery system finishes the merge of a device that does not stay up
for long enough to do so: it maps the partitions, merges, and takes them away again. The
merge must have begun. The system itself removes what is left, when it boots.

Interrupting otactl --wait does not interrupt the merge: see otactl pause. After
a restart of the daemon, map and merge again; the merge goes on where it was.`,
		Example: `  otactl merge system --wait             # with a progress bar on a terminal
  otactl merge system --rate 64M         # at most 64 MiB a second
  otactl merge system && otactl status system
  otactl merge --recovery --daemon /sbin/snapuserd`,
		Args:              cli.Args("[NAME]"),
		ValidArgsFunction: r.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return w.with(cmd, func(ctx context.Context, d *update.Device) error {
					switch {
					case w.recovery:
						return w.mergeInRecovery(ctx, d, daemon)
					case auto:
						return d.MergeBy(ctx, d.MergePolicy(), here(), processEvery)
					case ifAny:
						return w.mergeAny(ctx, d, wait)
					}
					return w.mergeUpdate(ctx, d, wait)
				})
			}
			out := cli.Output{Quiet: quiet, Stdout: cmd.OutOrStdout(), Stderr: cmd.ErrOrStderr()}
			return r.with(cmd.Context(), func(c *control.Client) error {
				err := c.Merge(cmd.Context(), args[0], int64(rate))
				if err == nil && wait {
					err = waitMerge(cmd.Context(), c, args[0], out)
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the merge has ended; fail if it failed")
	cmd.Flags().BoolVar(&auto, "auto", false, "merge the update of the device as its configuration says")
	cmd.Flags().BoolVar(&ifAny, "if-any", false, "without NAME: do nothing when there is no update to merge")
	w.recoveryFlag(cmd, "without NAME: finish a merge in a recovery system")
	cmd.Flags().StringVar(&daemon.program, "daemon", "", "with --recovery: snapuserd's `PROGRAM`, to be started if it is needed")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "no progress bar")
	cmd.Flags().Var(&rate, "rate", "at most so many bytes a second, such as 64M; 0 is no limit")
	return w.flags(cmd)
}

// waitMerge returns when the merge has ended, with an error if it failed.
func waitMerge(ctx context.Context, c *control.Client, name string, out cli.Output) error {
	meter := out.Meter("merging " + name)
	defer meter.End()
	for {
		s, err := c.Status(ctx, name)
		if err != nil {
			return fmt.Errorf("lost sight of the merge of %s: %w", name, err)
		}
		meter.Describe(describe(s))
		meter.Update(s.BytesWritten, s.BytesTotal)
		switch s.State {
		case control.StateComplete:
			return nil
		case control.StateFailed:
			return fmt.Errorf("%w: %s: %s: the snapshot is still served; merge again when the cause is gone", errMerge, name, s.Error)
		case control.StateSnapshot:
			return fmt.Errorf("%w: %s: it was stopped at %.1f %%", errMerge, name, s.Percent)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no longer waiting: the merge of %s goes on in the daemon: %w", name, ctx.Err())
		case <-time.After(pollEvery):
		}
	}
}

func describe(s control.Status) string {
	switch {
	case s.Queued:
		return "waiting " + s.Name
	case s.Paused:
		return "paused  " + s.Name
	}
	return "merging " + s.Name
}

func (r *remote) pauseCommand(pause bool) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pause [NAME]",
		Short: "Pause one merge, or all",
		Long: `Pauses the merge of NAME after the batch that is under way; without NAME all
merges, also those that have not begun. The devices are still served.`,
		Example: `  otactl pause            # before a reboot, or while something else needs the disk
  otactl pause system`,
		Args: cli.Args("[NAME]"), ValidArgsFunction: r.completeNames,
	}
	one, all := control.Pause, control.PauseMerge
	if !pause {
		cmd.Use, cmd.Short = "resume [NAME]", "Let one merge go on, or all"
		cmd.Long = "Lets the merge of NAME go on; without NAME all that are paused, one by one or together."
		cmd.Example = "  otactl resume\n  otactl resume system"
		one, all = control.Resume, control.ResumeMerge
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return r.with(cmd.Context(), func(c *control.Client) error {
			if len(args) == 0 {
				return c.Do(cmd.Context(), all)
			}
			return c.Do(cmd.Context(), one, args[0])
		})
	}
	return cmd
}

func (r *remote) unmapCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "unmap NAME",
		Short: "Take the block device away and forget the snapshot",
		Long: `Takes the block device away and lets the daemon forget the snapshot. A merge
that is under way commits what it is at and can be taken up later. While
something uses the device nothing changes, and the error names who it is. A
snapshot that does not exist is a success.`,
		Example:           `  otactl unmap system`,
		Args:              cli.Args("NAME"),
		ValidArgsFunction: r.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			return r.with(cmd.Context(), func(c *control.Client) error {
				return c.Do(cmd.Context(), control.Delete, args[0])
			})
		},
	}
}
