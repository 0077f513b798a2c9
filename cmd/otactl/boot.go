package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/ota/control"
	"cowbird/ota/update"
)

func (r *remote) bootCommand() *cobra.Command {
	w, daemon := &whole{remote: r}, ""
	cmd := &cobra.Command{
		Use:   "boot",
		Short: "Map the partitions of the slot that runs, in an initramfs",
		Long: `Maps the partitions of the running slot with device-mapper, before anything is
mounted, and prints a line for each: name and device. While an update is being tried
or merged they are snapshots, which snapuserd serves; --daemon starts it when it is
needed and does not run. Either all are mapped or none. Done twice, it finds them
mapped.

` + configHelp,
		Example: `  otactl boot --daemon /sbin/snapuserd
  mount -o ro /dev/mapper/system_b /sysroot`,
		Args: cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return w.with(cmd, func(ctx context.Context, d *update.Device) error {
				return w.boot(ctx, cmd.OutOrStdout(), d, daemon)
			})
		},
	}
	cmd.Flags().StringVar(&daemon, "daemon", "", "snapuserd's `PROGRAM`, to be started if it is needed")
	w.jsonFlag(cmd)
	return w.flags(cmd)
}

func (w *whole) boot(ctx context.Context, out io.Writer, d *update.Device, daemon string) error {
	needed, err := d.NeedsDaemon()
	if err != nil {
		return err
	}
	if needed && daemon != "" {
		if err := w.startDaemon(daemon); err != nil {
			return err
		}
	}
	all, err := d.Boot(ctx)
	if err != nil {
		return err
	}
	if w.json {
		return json.NewEncoder(out).Encode(all)
	}
	for _, p := range all {
		if _, err := fmt.Fprintln(out, p.Name, p.Path); err != nil {
			return err
		}
	}
	return nil
}

// startDaemon leaves a daemon behind that does not end with this program.
func (w *whole) startDaemon(program string) error {
	quick := remote{socket: w.socket, timeout: 50 * time.Millisecond}
	if quick.with(context.Background(), func(*control.Client) error { return nil }) == nil {
		return nil // it runs
	}
	cmd := exec.Command(program, "--socket", w.socket, "--serves-root")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		defer f.Close()
		cmd.Stdout, cmd.Stderr = f, f
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	return cmd.Process.Release()
}
