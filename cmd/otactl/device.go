package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/formats/snapshotpb"
	"cowbird/ota/slots"
	"cowbird/ota/update"
)

// defaultConfig is where a device's configuration is unless --config says otherwise.
const defaultConfig = "/etc/cowbird/update.json"

// processEvery is the time between two looks at the merge of an update.
const processEvery = 2 * time.Second

const configHelp = `The configuration is JSON; paths in it are relative to its folder:

  {
    "state": "/metadata/ota",
    "super": "/dev/disk/by-partlabel/super",
    "static": "/dev/disk/by-partlabel/*",
    "slots": {"misc": {"path": "/dev/disk/by-partlabel/misc"}},
    "keys": "otacerts.zip",
    "device": {"timestamp": 1767225600, "security_patch_level": "2026-01-01"}
  }

Other boot loaders and devices without a super partition: see docs/update.md.`

// whole is a command about the device's update, not about one snapshot.
type whole struct {
	*remote
	config string
	json   bool
}

func (w *whole) flags(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&w.config, "config", defaultConfig, "what the device consists of, a `FILE`")
	_ = cmd.MarkFlagFilename("config", "json")
	return cmd
}

func (w *whole) jsonFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&w.json, "json", false, "print JSON")
}

// with opens the device and calls f.
func (w *whole) with(cmd *cobra.Command, f func(context.Context, *update.Device) error) error {
	c, err := update.ReadConfig(w.config)
	if err != nil {
		return err
	}
	return w.withConfig(cmd, c, f)
}

func (w *whole) withConfig(cmd *cobra.Command, c *update.Config, f func(context.Context, *update.Device) error) error {
	if c.Socket != "" && !cmd.Flags().Changed("socket") {
		w.socket = c.Socket
	}
	m, done, err := newMapper()
	if err != nil {
		return err
	}
	defer done()
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	d, err := update.Open(c, m, update.Snapuserd{Socket: w.socket, Timeout: w.timeout}, log)
	if err != nil {
		return err
	}
	return errors.Join(f(cmd.Context(), d), d.Close())
}

// isDevice tells a device's configuration from one that lists partitions.
func isDevice(b []byte) bool {
	var c struct {
		Super string `json:"super"`
	}
	return json.NewDecoder(bytes.NewReader(b)).Decode(&c) == nil && c.Super != ""
}

func (r *remote) bootCommand() *cobra.Command {
	w, daemon := &whole{remote: r}, starter{}
	cmd := &cobra.Command{
		Use:   "boot",
		Short: "Map the partitions of the slot that runs, in an initramfs",
		Long: `Maps the partitions of the running slot with device-mapper, before anything is
mounted, and prints a line for each: name and device. While an update is being tried
or merged they are snapshots, which snapuserd serves; --daemon starts it when it is
needed and does not run. Either all are mapped or none. Done twice, it finds them
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
	needed, err := d.NeedsDaemon()
	if err != nil {
		return err
	}
	if needed && daemon.program != "" {
		daemon.socket = w.socket
		if err := daemon.start(); err != nil {
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

// standing is what otactl update prints.
type standing struct {
	State     string            `json:"state"`
	Slot      string            `json:"slot"`
	Next      string            `json:"next_slot"`
	Good      bool              `json:"successful"`
	Phase     string            `json:"merge_phase,omitempty"`
	Failure   string            `json:"merge_failure,omitempty"`
	Snapshots []standingSnap    `json:"snapshots"`
	Slots     map[string]string `json:"slots"`
}

type standingSnap struct {
	Name  string `json:"name"`
	State string `json:"state"`
	Size  uint64 `json:"size"`
	Cow   uint64 `json:"cow_size"`
}

func (r *remote) updateCommand() *cobra.Command {
	w, process := &whole{remote: r}, false
	cmd := &cobra.Command{
		Use:   "update",
		Short: "Tell how far the update of this device is, or go on with it",
		Long: `Prints the state of the device's update, its snapshots and the slots. With --process
it also does what there is to do next: ends a merge that is complete, starts the
second phase of one, removes an update from which the device went back. That is to be
done at every boot.

States: None; Initiated (being written); Unverified (complete, not merged);
Merging; MergeFailed (tried again); MergeNeedsReboot.`,
		Example: `  otactl update
  otactl update --process      # at every boot, when snapuserd runs
  otactl update --json | jq -r .state`,
		Args: cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return w.with(cmd, func(ctx context.Context, d *update.Device) error {
				if process {
					if _, err := d.Process(ctx); err != nil {
						return err
					}
				}
				return w.show(cmd.OutOrStdout(), d)
			})
		},
	}
	cmd.Flags().BoolVar(&process, "process", false, "do what there is to do next")
	w.jsonFlag(cmd)
	return w.flags(cmd)
}

func standingOf(d *update.Device) (*standing, error) {
	s, err := d.Status()
	if err != nil {
		return nil, err
	}
	current, err := d.Slots.Current()
	if err != nil {
		return nil, err
	}
	st := &standing{State: s.State.String(), Slot: d.Slots.Suffix(current), Snapshots: []standingSnap{}, Slots: map[string]string{}}
	if next, err := d.Slots.Active(); err == nil {
		st.Next = d.Slots.Suffix(next)
	}
	st.Good, _ = d.Slots.IsSuccessful(current)
	if s.MergePhase != snapshotpb.MergePhase_NO_MERGE {
		st.Phase = s.MergePhase.String()
	}
	if s.MergeFailureCode != snapshotpb.MergeFailureCode_Ok {
		st.Failure = s.MergeFailureCode.String()
	}
	for slot := range d.Slots.Count() {
		st.Slots[d.Slots.Suffix(slot)] = slotState(d.Slots, slot)
	}
	all, err := d.Snapshots()
	for _, s := range all {
		st.Snapshots = append(st.Snapshots, standingSnap{s.Name, s.State.String(), s.DeviceSize, s.CowPartitionSize + s.CowFileSize})
	}
	return st, err
}

func slotState(s slots.Slots, slot int) string {
	if good, err := s.IsSuccessful(slot); err == nil && good {
		return "successful"
	}
	if bootable, err := s.IsBootable(slot); err == nil && bootable {
		return "on trial"
	}
	return "not bootable"
}

func (w *whole) show(out io.Writer, d *update.Device) error {
	st, err := standingOf(d)
	if err != nil {
		return err
	}
	if w.json {
		return json.NewEncoder(out).Encode(st)
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "state\t%s\n", st.State)
	if st.Failure != "" {
		fmt.Fprintf(t, "failure\t%s\n", st.Failure)
	}
	fmt.Fprintf(t, "running\t%s, %s\nnext boot\t%s\n", st.Slot, st.Slots[st.Slot], st.Next)
	for _, s := range st.Snapshots {
		fmt.Fprintf(t, "%s\t%s, %s, COW %s\n", s.Name, s.State, cli.Bytes(int64(s.Size)), cli.Bytes(int64(s.Cow)))
	}
	return t.Flush()
}

func (r *remote) markCommand() *cobra.Command {
	w := &whole{remote: r}
	return w.flags(&cobra.Command{
		Use:   "mark-successful",
		Short: "Tell the boot loader that the running system is good",
		Long: `Ends the trial of the running slot. Until then the boot loader counts its boots and
falls back to the other slot when none is left. Call it after every boot, when all
that matters has come up.`,
		Example: `  otactl mark-successful && otactl merge --wait`,
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return w.with(cmd, func(_ context.Context, d *update.Device) error { return d.Slots.MarkSuccessful() })
		},
	})
}

func (r *remote) cancelCommand() *cobra.Command {
	w := &whole{remote: r}
	return w.flags(&cobra.Command{
		Use:   "cancel",
		Short: "Remove an update that is not booted",
		Long: `Removes an update that is being written, or waits for the reboot. One that runs
already is left by rebooting to the other slot; one that is being merged must be
finished.`,
		Example: `  otactl cancel`,
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return w.with(cmd, func(ctx context.Context, d *update.Device) error { return d.Cancel(ctx) })
		},
	})
}

// mergeAny is mergeUpdate when there is something to merge: the system that runs is an
// update's.
func (w *whole) mergeAny(ctx context.Context, d *update.Device, wait bool) error {
	if any, err := d.NeedsDaemon(); err != nil || !any {
		return err
	}
	return w.mergeUpdate(ctx, d, wait)
}

// mergeUpdate begins the merge of the update, or goes on with it.
func (w *whole) mergeUpdate(ctx context.Context, d *update.Device, wait bool) error {
	s, err := d.Status()
	if err != nil {
		return err
	}
	if s.State == snapshotpb.UpdateState_Unverified {
		if err := d.InitiateMerge(ctx); err != nil {
			return err
		}
	}
	if !wait {
		_, err := d.Process(ctx)
		return err
	}
	state, err := d.Wait(ctx, processEvery)
	switch {
	case err != nil:
		return err
	case state != snapshotpb.UpdateState_None:
		return fmt.Errorf("%w: expected the update to end, found it %v", errMerge, state)
	}
	return nil
}

// readInstallConfig gives one of the two kinds of configurations.
func readDeviceConfig(path string) (*update.Config, error) {
	b, err := os.ReadFile(path)
	if err != nil || !isDevice(b) {
		return nil, err
	}
	c, err := update.ParseConfig(b, filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// deviceAdvice says what to do about an error of an update.
func deviceAdvice(err error) string {
	var missing *os.PathError
	switch {
	case errors.As(err, &missing) && missing.Path == defaultConfig:
		return "the configuration is not there: name it with --config"
	case errors.Is(err, update.ErrNoSpace):
		return "nothing was changed; make super or the place for COWs larger"
	case errors.Is(err, update.ErrLive):
		return "the system that runs is the update: reboot to the other slot to leave it, or merge it"
	case errors.Is(err, update.ErrNeedsMerge):
		return "otactl merge --wait finishes it"
	case errors.Is(err, update.ErrNotMapped):
		return "it is mapped at boot, by otactl boot; reboot"
	}
	return ""
}
