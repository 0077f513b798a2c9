package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/ota/control"
)

// undoTimeout bounds how long a failed map takes to clean up.
const undoTimeout = 5 * time.Second

type mapping struct{ base, cow, source string }

func (r *remote) mapCommand() *cobra.Command {
	var m mapping
	cmd := &cobra.Command{
		Use:   "map NAME --base BASE --cow COW [--source SOURCE]",
		Short: "Serve base + COW as a block device and print its path",
		Long: `Serves the base and the COW as one read-only block device with the contents of
the target, and prints the device's path. When a step fails, those before it are
undone.

BASE, COW and SOURCE are files or block devices. A COW whose merge was
interrupted is served as well, and reads as the same target.`,
		Example: `  otactl map system --base system.img --cow update.cow
  dev=$(otactl map vendor --base /dev/sda4 --cow /dev/sda7) && mount -o ro "$dev" /mnt`,
		Args: cli.Args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return r.with(cmd.Context(), func(c *control.Client) error {
				device, err := m.do(cmd.Context(), r, c, args[0])
				if err == nil {
					fmt.Fprintln(cmd.OutOrStdout(), device)
				}
				return err
			})
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := cmd.Flags()
	flags.StringVar(&m.base, "base", "", "the partition as it is; a merge overwrites it")
	flags.StringVar(&m.cow, "cow", "", "the difference to the target")
	flags.StringVar(&m.source, "source", "", "where the old contents are read, if not in BASE")
	_ = cmd.MarkFlagRequired("base")
	_ = cmd.MarkFlagRequired("cow")
	for _, name := range []string{"base", "cow", "source"} {
		_ = cmd.MarkFlagFilename(name)
	}
	return cmd
}

// do maps the snapshot and returns the block device's path.
func (m mapping) do(ctx context.Context, r *remote, c *control.Client, name string) (string, error) {
	if m.source == "" {
		m.source = m.base
	}
	for _, p := range []*string{&m.base, &m.cow, &m.source} {
		full, err := filepath.Abs(*p)
		if err != nil {
			return "", err
		}
		*p = full
	}
	if _, err := c.Init(ctx, name, m.cow, m.source, m.base); err != nil {
		return "", err
	}
	device, err := startDevice(ctx, c, name)
	if err != nil {
		r.undo(name)
	}
	return device, err
}

func startDevice(ctx context.Context, c *control.Client, name string) (string, error) {
	if err := c.Do(ctx, control.Start, name); err != nil {
		return "", err
	}
	return c.Device(ctx, name)
}

// undo forgets a snapshot that could not be started, on a connection of its own:
// the command's context, and its connection with it, may have ended.
func (r *remote) undo(name string) {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	_ = r.with(ctx, func(c *control.Client) error { return c.Do(ctx, control.Delete, name) })
}
