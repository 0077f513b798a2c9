package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/ota/update"
)

var errFindings = errors.New("not all is as it should be")

func (r *remote) rollbackCommand() *cobra.Command {
	w := &whole{remote: r}
	return w.flags(&cobra.Command{
		Use:   "rollback",
		Short: "Have the next boot take the old system again",
		Long: `While the new system runs and is not merged: has the boot loader take the old one at
the next boot, where the update is then removed. Once the merge has begun there is no
way back.`,
		Example: `  otactl rollback && reboot`,
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return w.with(cmd, func(ctx context.Context, d *update.Device) error { return d.Rollback(ctx) })
		},
	})
}

func (r *remote) beforeWipeCommand() *cobra.Command {
	w, daemon := &whole{remote: r}, starter{}
	cmd := &cobra.Command{
		Use:   "before-wipe",
		Short: "Make the update ready for the user's data to be erased",
		Long: `For a recovery system that is about to erase the user's data, with which COWs in files
go, and that has not mapped the partitions. An update that was not booted is dropped; a
new system that is not merged is left for the old one, unless it came with the erasure; a
merge that has begun is finished. When this fails, the data must not be erased.`,
		Example: `  otactl before-wipe --daemon /sbin/snapuserd && mkfs.ext4 /dev/mmcblk0p7`,
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return w.with(cmd, func(ctx context.Context, d *update.Device) error {
				if err := w.startFor(d, daemon); err != nil {
					return err
				}
				return d.BeforeWipe(ctx)
			})
		},
	}
	cmd.Flags().StringVar(&daemon.program, "daemon", "", "snapuserd's `PROGRAM`, to be started if it is needed")
	return w.flags(cmd)
}

func (r *remote) verifyCommand() *cobra.Command {
	w := &whole{remote: r}
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Compare the running system with its verified boot metadata",
		Long: `Reads every partition of the running system that its verified boot metadata name,
through its snapshot if it has one, and compares it with its hash or hash tree. The
metadata must be signed with the key that the configuration names:

  "verified_boot": {"key": "avb.pem", "root": "vbmeta"}`,
		Example: `  otactl verify && otactl mark-successful`,
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return w.with(cmd, func(ctx context.Context, d *update.Device) error {
				return w.verify(ctx, cmd.OutOrStdout(), d)
			})
		},
	}
	w.jsonFlag(cmd)
	return w.flags(cmd)
}

func (w *whole) verify(ctx context.Context, out io.Writer, d *update.Device) error {
	found, err := d.Verify(ctx)
	for _, v := range found {
		text := v.Partition + ": good"
		if !v.Good {
			text = v.Partition + ": " + v.Error
		}
		if w.json {
			b, _ := json.Marshal(v)
			text = string(b)
		}
		if _, err := fmt.Fprintln(out, text); err != nil {
			return err
		}
	}
	return err
}

func (r *remote) doctorCommand() *cobra.Command {
	w, fix := &whole{remote: r}, false
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what is wrong, and say what would fix it",
		Long: `Reads everything that an update consists of: both copies of the partitions' metadata,
the boot loader's slots, the state, the snapshots and what is mapped. It prints what is
not as it should be and what would fix it, and changes nothing. The exit code is 1 if
there is something.

With --fix it does so itself where nothing can be lost: it makes the copies of metadata
the same, removes what is left of no update, writes a damaged state anew and tells the
boot loader what it missed.`,
		Example: `  otactl doctor
  otactl doctor --fix
  otactl doctor --json | jq -r .fix`,
		Args: cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return w.with(cmd, func(ctx context.Context, d *update.Device) error {
				examine := d.Doctor
				if fix {
					examine = d.Treat
				}
				return w.doctor(ctx, cmd.OutOrStdout(), examine)
			})
		},
	}
	cmd.Flags().BoolVar(&fix, "fix", false, "fix what can be fixed without a loss")
	w.jsonFlag(cmd)
	return w.flags(cmd)
}

func (w *whole) doctor(ctx context.Context, out io.Writer, examine func(context.Context) ([]update.Finding, error)) error {
	all, err := examine(ctx)
	if err != nil && all == nil {
		return err
	}
	problems, fixed := 0, 0
	for _, f := range all {
		text := "- " + f.What
		switch {
		case f.Fixed:
			fixed++
			text += "\n  fixed"
		case f.Fix != "":
			problems++
			text += "\n  " + f.Fix
		}
		if w.json {
			b, _ := json.Marshal(f)
			text = string(b)
		}
		if _, err := fmt.Fprintln(out, text); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	if problems > 0 {
		return fmt.Errorf("%w: %d found", errFindings, problems)
	}
	if w.json || fixed > 0 {
		return nil
	}
	_, err = fmt.Fprintln(out, "nothing is wrong")
	return err
}

func (r *remote) slotsCommand() *cobra.Command {
	w := &whole{remote: r}
	cmd := &cobra.Command{
		Use:   "slots",
		Short: "Tell what the boot loader knows of the slots",
		Long: `Prints a line for each slot: its suffix, whether it runs, whether the next boot takes
it, and whether it is successful, on trial or not bootable.`,
		Example: `  otactl slots`,
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return w.with(cmd, func(_ context.Context, d *update.Device) error { return w.showSlots(cmd.OutOrStdout(), d) })
		},
	}
	w.jsonFlag(cmd)
	return w.flags(cmd)
}

func (w *whole) showSlots(out io.Writer, d *update.Device) error {
	st, err := standingOf(d)
	if err != nil {
		return err
	}
	for slot := range d.Slots.Count() {
		suffix := d.Slots.Suffix(slot)
		line := struct {
			Slot    string `json:"slot"`
			State   string `json:"state"`
			Running bool   `json:"running"`
			Next    bool   `json:"next"`
		}{suffix, st.Slots[suffix], suffix == st.Slot, suffix == st.Next}
		if w.json {
			err = json.NewEncoder(out).Encode(line)
		} else {
			_, err = fmt.Fprintf(out, "%s  %s%s%s\n", suffix, line.State, when(line.Running, ", running"), when(line.Next, ", next boot"))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func when(is bool, text string) string {
	if is {
		return text
	}
	return ""
}
