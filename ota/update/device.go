package update

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"cowbird/cow"
	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
	"cowbird/ota/install"
	"cowbird/ota/slots"
	"cowbird/ota/verify"
)

// progressFile is where package install keeps how far it is, beside Android's files.
const progressFile = "cowbird-install"

// Device is a Manager with all that a configuration names.
type Device struct {
	*Manager
	config *Config
	close  []func() error
}

// Open opens what a device consists of. mapper may be nil if nothing is to be
// mapped.
func Open(c *Config, mapper Mapper, daemon Daemon, log *slog.Logger) (*Device, error) {
	s, err := slots.Open(c.slots)
	if err != nil {
		return nil, err
	}
	if c.Plain != nil {
		slot, err := s.Current()
		if err == nil {
			err = c.Plain.create(c.Super, slot)
		}
		if err != nil {
			return nil, err
		}
	}
	d := &Device{config: c, Manager: &Manager{
		Slots: s, Mapper: mapper, Daemon: daemon, Log: log, Build: c.Build, Recovery: c.Recovery,
		Open: func(path string) (WriteDevice, error) { return cow.OpenDevice(path, true) },
	}}
	if err := d.open(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *Device) open() error {
	super, err := cow.OpenDevice(d.config.Super, true)
	if err != nil {
		return fmt.Errorf("super: %w", err)
	}
	d.close = append(d.close, super.Close)
	d.Super = Super{Metadata: super, Device: d.config.device}
	dir, err := OpenDir(d.config.State)
	if err != nil {
		return err
	}
	d.close = append(d.close, dir.Close)
	d.Files = dir
	return d.openImages()
}

func (d *Device) openImages() error {
	c := d.config
	if c.ImagesDevice != "" {
		return d.openExtents()
	}
	if _, err := os.Stat(c.Images); c.Images == "" || d.Recovery && errors.Is(err, fs.ErrNotExist) {
		return nil // the user's data are locked, or gone
	}
	images, err := OpenImages(c.Images, c.ImagesKeep)
	if err != nil {
		return err
	}
	d.close = append(d.close, images.Close)
	d.Images = images
	return nil
}

func (d *Device) openExtents() (err error) {
	c := d.config
	dir := c.State
	if filepath.Base(dir) == "ota" { // as Android has it
		dir = filepath.Join(filepath.Dir(dir), "gsi", "ota")
	}
	record, err := OpenDir(dir)
	if err != nil {
		return err
	}
	d.close = append(d.close, record.Close)
	images := OpenExtentImages(c.Images, c.ImagesKeep, c.ImagesDevice, record)
	d.close = append(d.close, images.Close)
	d.Images = images
	d.Below, err = images.below()
	return err
}

// Close closes what Open has opened. What is mapped stays.
func (d *Device) Close() (err error) {
	for _, f := range d.close {
		err = errors.Join(err, f())
	}
	return err
}

// MergePolicy is what the configuration says of merges.
func (d *Device) MergePolicy() Policy { return d.config.Merge }

// Policy is what the configuration says of payloads that may be installed.
func (d *Device) Policy() (*verify.Policy, error) { return d.installConfig().Policy() }

func (d *Device) installConfig() *install.Config {
	c := d.config
	return &install.Config{
		State: filepath.Join(c.State, progressFile), Partitions: map[string]install.Partition{},
		Keys: c.Keys, Device: c.Device, Version: c.Version, Compression: c.Compression, MaxUnit: c.MaxUnit,
	}
}

// Install installs a payload, or goes on with it, so that the next boot tries the new
// system. o.Config is not looked at.
func (d *Device) Install(ctx context.Context, o install.Options) (err error) {
	var m *payload.Metadata
	var c *install.Config
	o.Prepare = func(found *payload.Metadata) (_ *install.Config, err error) {
		m = found
		c, err = d.prepare(ctx, m, o.Restart)
		return c, err
	}
	if err = install.Run(ctx, o); err != nil {
		return errors.Join(err, d.Release(context.WithoutCancel(ctx)))
	}
	return d.afterInstall(ctx, o, m, c)
}

// afterInstall is what comes between the last byte and the boot loader.
func (d *Device) afterInstall(ctx context.Context, o install.Options, m *payload.Metadata, c *install.Config) error {
	err := d.checkNewSystem(m, c, o.Policy.AllowDowngrade)
	if err == nil {
		err = d.keepCareMap(o.CareMap)
	}
	if err != nil {
		return errors.Join(err, d.Release(context.WithoutCancel(ctx)))
	}
	return d.Finish(ctx, wipes(o.Policy.Properties))
}

// wipes tells whether the user's data go with the update.
func wipes(p *payload.Properties) bool { return p != nil && p.More["POWERWASH"] == "1" }

// prepare makes room for a payload, unless that was done for this one before.
func (d *Device) prepare(ctx context.Context, m *payload.Metadata, restart bool) (*install.Config, error) {
	c := d.installConfig()
	s, err := d.Status()
	if err != nil {
		return nil, err
	}
	began, err := install.Began(c.State)
	if err != nil {
		return nil, err
	}
	if goesOn := s.State == initiated && s.UserspaceSnapshots && began == install.Identity(m); !goesOn {
		if s.State == initiated && began != "" && began != install.Identity(m) && !restart {
			return nil, fmt.Errorf("%w: expected the one whose metadata have SHA-256 %s, found %s", install.ErrOther, began, install.Identity(m))
		}
		if err := d.begin(ctx, m.Manifest, restart); err != nil {
			return nil, err
		}
	}
	targets, err := d.Targets(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range targets {
		c.Partitions[t.Partition] = install.Partition{Old: t.Old, Cow: t.Cow}
	}
	return c, d.addStatic(c, m.Manifest)
}

func (d *Device) begin(ctx context.Context, manifest *pb.DeltaArchiveManifest, restart bool) error {
	s, err := d.Status()
	if err != nil {
		return err
	}
	if s.State == unverified && !restart {
		return fmt.Errorf("%w: an update waits for the reboot", install.ErrPending)
	}
	if err := d.Begin(ctx); err != nil {
		return err
	}
	if err := drop(d.Files, progressFile); err != nil {
		return err
	}
	if err := d.Create(ctx, manifest); err != nil {
		// Of an update for which there is no room nothing is to be left.
		return errors.Join(err, d.Cancel(context.WithoutCancel(ctx)))
	}
	return nil
}

// addStatic finds the partitions of a payload that are not in super.
func (d *Device) addStatic(c *install.Config, manifest *pb.DeltaArchiveManifest) error {
	from, to, err := d.suffixes()
	if err != nil {
		return err
	}
	for _, p := range manifest.GetPartitions() {
		name := p.GetPartitionName()
		if _, inSuper := c.Partitions[name]; inSuper {
			continue
		}
		if d.config.Static == "" {
			return fmt.Errorf("%w: expected static, for partition %s of the payload, which is not in super", ErrConfig, name)
		}
		c.Partitions[name] = install.Partition{Old: d.config.static(name, from), New: d.config.static(name, to)}
	}
	return nil
}
