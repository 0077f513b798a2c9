package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/ota/control"
)

func (r *remote) statusCommand() *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "status [NAME]",
		Short: "Tell what is mapped and how far merges are",
		Long: `Prints a table of all snapshots, or all about one. With --json, an array of
objects, or one object.

States: snapshot (not being merged), snapshot-merge (running or waiting its
turn), snapshot-merge-complete (the base is the target), snapshot-merge-failed
(still served; see the error, then merge again).`,
		Example: `  otactl status
  otactl status system
  otactl status system --json | jq .percent`,
		Args:              cli.Args("[NAME]"),
		ValidArgsFunction: r.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			return r.with(cmd.Context(), func(c *control.Client) error {
				if len(args) == 1 {
					return showOne(cmd.Context(), cmd.OutOrStdout(), c, args[0], asJSON)
				}
				return showAll(cmd.Context(), cmd.OutOrStdout(), c, asJSON)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func showOne(ctx context.Context, w io.Writer, c *control.Client, name string, asJSON bool) error {
	s, err := c.Status(ctx, name)
	if err != nil {
		return err
	}
	if asJSON {
		return json.NewEncoder(w).Encode(s)
	}
	return printDetails(w, s)
}

func showAll(ctx context.Context, w io.Writer, c *control.Client, asJSON bool) error {
	all, err := everyStatus(ctx, c)
	if err != nil {
		return err
	}
	if asJSON {
		return json.NewEncoder(w).Encode(all)
	}
	return printTable(w, all)
}

func everyStatus(ctx context.Context, c *control.Client) ([]control.Status, error) {
	names, err := c.Names(ctx)
	if err != nil {
		return nil, err
	}
	all := []control.Status{} // an empty array in JSON, not null
	for _, name := range names {
		s, err := c.Status(ctx, name)
		if errors.Is(err, control.ErrRefused) {
			continue // unmapped since it was listed
		}
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

func printTable(w io.Writer, all []control.Status) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(w, "no snapshots; otactl map makes one")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tDEVICE\tSIZE\tSTATE\tMERGED\tNOTE")
	for _, s := range all {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%.1f %%\t%s\n", s.Name, orDash(s.Device), cli.Bytes(s.Size), s.State, s.Percent, note(s))
	}
	return t.Flush()
}

// note is what stands out about a snapshot.
func note(s control.Status) string {
	var notes []string
	if s.Queued {
		notes = append(notes, "waiting for other merges")
	}
	if s.Paused {
		notes = append(notes, "paused")
	}
	if s.ReadErrors > 0 {
		notes = append(notes, fmt.Sprintf("%d failed reads", s.ReadErrors))
	}
	if s.Error != "" {
		notes = append(notes, s.Error)
	}
	return strings.Join(notes, ", ")
}

func printDetails(w io.Writer, s control.Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, name+"\t"+format+"\n", args...) }
	row("name", "%s", s.Name)
	row("state", "%s", s.State)
	row("device", "%s", orDash(s.Device))
	row("carrier", "%s", s.Carrier)
	row("base", "%s", s.Base)
	row("cow", "%s", s.Cow)
	if s.Source != s.Base {
		row("source", "%s", s.Source)
	}
	row("size", "%s (%d bytes)", cli.Bytes(s.Size), s.Size)
	row("merged", "%.1f %%: %d of %d ops, %d of them ordered", s.Percent, s.MergedOps, s.TotalOps, s.OrderedOps)
	row("written", "%s of %s", cli.Bytes(s.BytesWritten), cli.Bytes(s.BytesTotal))
	if s.SecondsLeft > 0 {
		row("left", "about %v", time.Duration(s.SecondsLeft)*time.Second)
	}
	if s.Rate > 0 {
		row("rate", "at most %s/s", cli.Bytes(s.Rate))
	}
	if n := note(s); n != "" {
		row("note", "%s", n)
	}
	return t.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
