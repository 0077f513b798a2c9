package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"cowbird/ota/update"
)

// defaultConfig is where a device's configuration is unless --config says otherwise.
const defaultConfig = "/etc/cowbird/update.json"

// openMapper opens device-mapper; tests have one of their own.
var openMapper = newMapper

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
	config   string
	json     bool
	recovery bool // what runs is a recovery system
}

func (w *whole) flags(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&w.config, "config", defaultConfig, "what the device consists of, a `FILE`")
	_ = cmd.MarkFlagFilename("config", "json")
	return cmd
}

func (w *whole) jsonFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&w.json, "json", false, "print JSON")
}

// recoveryFlag is of commands that a recovery system may call as well.
func (w *whole) recoveryFlag(cmd *cobra.Command, usage string) {
	cmd.Flags().BoolVar(&w.recovery, "recovery", false, usage)
}

// with opens the device and calls f.
func (w *whole) with(cmd *cobra.Command, f func(context.Context, *update.Device) error) error {
	return w.within(cmd.Context(), cmd, f)
}

// within is with until ctx ends, for a command that does several things at a time.
func (w *whole) within(ctx context.Context, cmd *cobra.Command, f func(context.Context, *update.Device) error) error {
	c, err := update.ReadConfig(w.config)
	if err != nil {
		return err
	}
	return w.withConfig(ctx, cmd, c, f)
}

func (w *whole) withConfig(ctx context.Context, cmd *cobra.Command, c *update.Config, f func(context.Context, *update.Device) error) error {
	if c.Socket != "" && !cmd.Flags().Changed("socket") {
		w.socket = c.Socket
	}
	m, done, err := openMapper()
	if err != nil {
		return err
	}
	defer done()
	c.Recovery = w.recovery
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	d, err := update.Open(c, m, update.Snapuserd{Socket: w.socket, Timeout: w.timeout, Rate: c.Merge.Rate}, log)
	if err != nil {
		return err
	}
	return errors.Join(f(ctx, d), d.Close())
}

// clone is w for another goroutine.
func (w *whole) clone() *whole {
	r, c := *w.remote, *w
	c.remote = &r
	return &c
}

// isDevice tells a device's configuration from one that lists partitions.
func isDevice(b []byte) bool {
	var c struct {
		Super string `json:"super"`
	}
	return json.NewDecoder(bytes.NewReader(b)).Decode(&c) == nil && c.Super != ""
}
