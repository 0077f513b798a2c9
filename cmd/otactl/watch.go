package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/formats/snapshotpb"
	"cowbird/ota/control"
	"cowbird/ota/update"
)

// event is a line of otactl watch --json. Programs read it: fields come, but none goes
// or gets another meaning. docs/events.md describes them.
type event struct {
	Event       string  `json:"event"` // "update"
	Time        string  `json:"time"`
	State       string  `json:"state"`
	Slot        string  `json:"slot"`
	Next        string  `json:"next_slot"`
	Good        bool    `json:"successful"`
	Reboot      bool    `json:"reboot_needed"`
	Percent     float64 `json:"percent"`
	Written     int64   `json:"bytes_written"`
	Total       int64   `json:"bytes_total"`
	SecondsLeft int64   `json:"seconds_left,omitempty"`
	Paused      bool    `json:"paused,omitempty"`
	Used        int64   `json:"space_used"`
	Free        int64   `json:"space_free"`
	Phase       string  `json:"merge_phase,omitempty"`
	Failure     string  `json:"merge_failure,omitempty"`
}

// same tells whether nothing has happened between two events but that time went by.
func (e event) same(o event) bool {
	e.Time, o.Time, e.SecondsLeft, o.SecondsLeft, e.Free, o.Free = "", "", 0, 0, 0, 0
	return e == o
}

func (r *remote) watchCommand() *cobra.Command {
	w, every, follow := &whole{remote: r}, time.Second, false
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Follow the update: its state, and how far it is",
		Long: `Prints a line at once and whenever something changes, until there is no update any
more: the state, and while installing and merging the share that is done, with the time left. With
--json each line is an object, for other programs (docs/events.md). SIGINT and SIGTERM
end it with the exit code 0.`,
		Example: `  otactl watch
  otactl watch --json --follow | while read -r event; do …; done`,
		Args: cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if every < 100*time.Millisecond {
				return cli.Usagef("--every: expected 100ms or more, found %v", every)
			}
			out := cli.Output{JSON: w.json, Stdout: cmd.OutOrStdout(), Stderr: cmd.ErrOrStderr()}
			return w.with(cmd, func(ctx context.Context, d *update.Device) error { return w.watch(ctx, out, d, every, follow) })
		},
	}
	cmd.Flags().DurationVar(&every, "every", every, "time between two looks")
	cmd.Flags().BoolVar(&follow, "follow", false, "go on when there is no update any more, until interrupted")
	w.jsonFlag(cmd)
	return w.flags(cmd)
}

func (w *whole) watch(ctx context.Context, out cli.Output, d *update.Device, every time.Duration, follow bool) error {
	var last event
	for {
		e, _, err := w.now(ctx, d)
		if err != nil {
			return err
		}
		if !e.same(last) {
			if err := tellEvent(out, e); err != nil {
				return err
			}
			last = e
		}
		if !follow && e.State == snapshotpb.UpdateState_None.String() {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(every):
		}
	}
}

// now is how the update stands. Without a daemon nothing is known of the merge.
func (w *whole) now(ctx context.Context, d *update.Device) (e event, st *standing, err error) {
	if st, err = standingOf(d); err != nil {
		return e, nil, err
	}
	space, _ := d.Space() // 0 where that is not known
	e = event{Event: "update", Time: time.Now().UTC().Format(time.RFC3339), State: st.State, Slot: st.Slot, Next: st.Next,
		Good: st.Good, Reboot: st.needsReboot(), Used: space.Used, Free: space.Super + space.Files, Phase: st.Phase, Failure: st.Failure}
	quick := remote{socket: w.socket, timeout: 200 * time.Millisecond}
	_ = quick.with(ctx, func(c *control.Client) error {
		all, err := everyStatus(ctx, c)
		e.add(all)
		return err
	})
	if st.State == snapshotpb.UpdateState_Initiated.String() {
		e.show(readNote())
	}
	return e, st, nil
}

// add sums the merges up: they end when the last one does.
func (e *event) add(all []control.Status) {
	for _, s := range all {
		e.Written += s.BytesWritten
		e.Total += s.BytesTotal
		e.SecondsLeft = max(e.SecondsLeft, s.SecondsLeft)
		e.Paused = e.Paused || s.Paused
	}
	e.show(report{e.Written, e.Total, e.SecondsLeft})
}

// needsReboot tells whether the update waits for one.
func (st *standing) needsReboot() bool {
	switch st.State {
	case snapshotpb.UpdateState_Unverified.String():
		return st.Next != st.Slot
	case snapshotpb.UpdateState_MergeNeedsReboot.String():
		return true
	}
	return false
}

func tellEvent(out cli.Output, e event) error {
	if out.JSON {
		return out.Emit(e)
	}
	text := e.State
	if e.Total > 0 {
		text += fmt.Sprintf("  %5.1f %%  %s of %s", e.Percent, cli.Bytes(e.Written), cli.Bytes(e.Total))
	}
	if e.Paused {
		text += "  paused"
	}
	if e.SecondsLeft > 0 {
		text += fmt.Sprintf("  %v left", time.Duration(e.SecondsLeft)*time.Second)
	}
	if e.Reboot {
		text += "  reboot to go on"
	}
	if e.Failure != "" {
		text += "  " + e.Failure
	}
	_, err := fmt.Fprintln(out.Stdout, text)
	return err
}
