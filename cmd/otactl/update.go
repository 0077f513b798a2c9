package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/formats/snapshotpb"
	"cowbird/ota/slots"
	"cowbird/ota/update"
)

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
	w, verify := &whole{remote: r}, false
	cmd := &cobra.Command{
		Use:   "mark-successful",
		Short: "Tell the boot loader that the running system is good",
		Long: `Ends the trial of the running slot. Until then the boot loader counts its boots and
falls back to the other slot when none is left. Call it after every boot, when all
that matters has come up. With --verify a system that is an update, and not merged,
is read as a whole first (see otactl verify), and left on trial if it is not right.
Without, what the care map of the update's package names is read, if it had one: what
dm-verity finds bad leaves the system on trial.`,
		Example: `  otactl mark-successful && otactl merge --wait`,
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return w.with(cmd, func(ctx context.Context, d *update.Device) error { return mark(ctx, d, verify) })
		},
	}
	cmd.Flags().BoolVar(&verify, "verify", false, "verify a new system first")
	return w.flags(cmd)
}

func mark(ctx context.Context, d *update.Device, verify bool) error {
	s, err := d.Status()
	switch {
	case err != nil:
	case !verify:
		_, err = d.ReadCareMap(ctx)
	case s.State == snapshotpb.UpdateState_Unverified:
		_, err = d.Verify(ctx)
	}
	if err != nil {
		return err
	}
	return d.Slots.MarkSuccessful()
}

func (r *remote) cancelCommand() *cobra.Command {
	w := &whole{remote: r}
	cmd := &cobra.Command{
		Use:   "cancel",
		Short: "Remove an update that is not booted",
		Long: `Removes an update that is being written, or waits for the reboot. One that runs
already is left by rebooting to the other slot; one that is being merged must be
finished. With --recovery files of COWs are left, which may be where the user's data are
locked; the system itself removes them at its next otactl update --process.`,
		Example: `  otactl cancel`,
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return w.with(cmd, func(ctx context.Context, d *update.Device) error { return d.Cancel(ctx) })
		},
	}
	w.recoveryFlag(cmd, "this is a recovery system")
	return w.flags(cmd)
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
	switch s.State {
	case snapshotpb.UpdateState_Unverified:
		err = d.InitiateMerge(ctx)
	case snapshotpb.UpdateState_MergeFailed:
		err = d.Retry(ctx)
	}
	if err != nil {
		return err
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

// mergeInRecovery finishes what a system that does not stay up has begun.
func (w *whole) mergeInRecovery(ctx context.Context, d *update.Device, daemon starter) error {
	if err := w.startFor(d, daemon); err != nil {
		return err
	}
	return d.FinishInRecovery(ctx)
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
