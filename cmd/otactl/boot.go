package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/ota/update"
)

func (r *remote) bootCommand() *cobra.Command {
	w, daemon := &whole{remote: r}, starter{}
	cmd := &cobra.Command{
		Use:   "boot",
		Short: "Map the partitions of the slot that runs, in an initramfs",
		Long: `Maps the partitions of the running slot with device-mapper, before anything is
mounted, and prints a line for each: name and device. While an update is being tried
or merged they are snapshots, which snapuserd serves; --daemon starts it when it is
needed and does not run. With "verity" in the configuration's "verified_boot" the device
is that of dm-verity over the partition, NAME-verity. Either all are mapped or none. Done twice, it finds them
mapped.

The daemon outlives the initramfs. With --daemon-root it needs nothing of it any more:
the folder, which must move to the new root with what is above it (/run), becomes its
root, with a copy of its program, /dev, /proc, /sys and /run.

` + configHelp,
		Example: `  otactl boot --daemon /sbin/snapuserd --daemon-root /run/initramfs/cowbird
  mount -o ro /dev/mapper/system_b /sysroot`,
		Args: cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return w.with(cmd, func(ctx context.Context, d *update.Device) error {
				return w.boot(ctx, cmd.OutOrStdout(), d, daemon)
			})
		},
	}
	cmd.Flags().StringVar(&daemon.program, "daemon", "", "snapuserd's `PROGRAM`, to be started if it is needed")
	cmd.Flags().StringVar(&daemon.root, "daemon-root", "", "give the daemon a root of its own, mounted on this `FOLDER`")
	w.jsonFlag(cmd)
	return w.flags(cmd)
}

func (w *whole) boot(ctx context.Context, out io.Writer, d *update.Device, daemon starter) error {
	if err := w.startFor(d, daemon); err != nil {
		return err
	}
	all, err := d.Boot(ctx)
	if err != nil {
		return err
	}
	if w.json {
		return json.NewEncoder(out).Encode(all)
	}
	for _, p := range all {
		path := p.Path
		if p.Verity != "" {
			path = p.Verity
		}
		if _, err := fmt.Fprintln(out, p.Name, path); err != nil {
			return err
		}
	}
	return nil
}

// startFor starts the daemon if the system that boots is made of snapshots.
func (w *whole) startFor(d *update.Device, daemon starter) error {
	needed, err := d.NeedsDaemon()
	if err != nil || !needed || daemon.program == "" {
		return err
	}
	daemon.socket = w.socket
	return daemon.start()
}
