package update

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"cowbird/formats/lpmeta"
	"cowbird/formats/snapshotpb"
)

// Cancel removes an update that was not booted. One that runs is refused with
// ErrLive, one that is being merged with ErrNeedsMerge.
func (m *Manager) Cancel(ctx context.Context) error {
	return m.locked(true, func() error { return m.cancel(ctx) })
}

func (m *Manager) cancel(ctx context.Context) error {
	s, err := m.readState()
	if err != nil {
		return err
	}
	if there, err := m.has(noSwitchFile); there || err != nil {
		return errors.Join(err, ErrLive)
	}
	switch s.State {
	case none, initiated, cancelled:
		return m.removeUpdate(ctx)
	case unverified:
		o, err := m.origin()
		if err == nil && o == target {
			err = ErrLive
		}
		if err != nil {
			return err
		}
		return m.removeUpdate(ctx)
	}
	return ErrNeedsMerge
}

// removeUpdate removes all that an update consists of. The boot loader forgets it
// first, and the boot markers go before the state becomes None, so that no boot
// finds half of it.
func (m *Manager) removeUpdate(ctx context.Context) error {
	if err := m.giveBackSlot(); err != nil {
		return err
	}
	for slot := range m.Slots.Count() {
		if err := m.removeSnapshots(ctx, m.Slots.Suffix(slot)); err != nil {
			return fmt.Errorf("remove the snapshots: %w", err)
		}
	}
	if err := m.removeStrayImages(); err != nil {
		return err
	}
	// In this order: a boot that finds some of them finds a consistent set.
	for _, file := range []string{bootFile, rollbackFile, forwardFile, oldMetadata, noSwitchFile, fromSystem, reportFile, careFile, progressFile} {
		if err := drop(m.Files, file, file+temporary); err != nil {
			return err
		}
	}
	s, err := m.readState()
	if err != nil {
		return err
	}
	if s.State == none {
		return nil
	}
	return m.writeState(none, nil)
}

// giveBackSlot has the boot loader take the running system again, if it was told to
// try one that is being removed.
func (m *Manager) giveBackSlot() error {
	o, err := m.origin()
	if err != nil || o != source {
		return err
	}
	slot, err := m.Slots.Current()
	if err == nil {
		err = m.Slots.SetActive(slot)
	}
	if err == nil {
		err = m.Slots.SetUnbootable(1 - slot)
	}
	if err != nil {
		return fmt.Errorf("have the boot loader take this system again: %w", err)
	}
	return nil
}

// removeSnapshots removes the snapshots of a slot, and their statuses also where
// these cannot be read.
func (m *Manager) removeSnapshots(ctx context.Context, suffix string) error {
	names, err := list(m.Files, snapshotsDir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if lpmeta.Suffix(name) != suffix {
			continue
		}
		if err := m.removeNamed(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) removeSnapshot(ctx context.Context, s *snapshotpb.SnapshotStatus) error {
	return m.removeNamed(ctx, s.Name)
}

// removeNamed ends a snapshot and removes all of it. What the running system is
// mapped to stays: a snapshot that is in use is an error.
func (m *Manager) removeNamed(ctx context.Context, name string) error {
	current, _, err := m.suffixes()
	if err != nil {
		return err
	}
	if lpmeta.Suffix(name) == current {
		meta, err := m.metadata()
		if err != nil {
			return err
		}
		mapping, err := m.Mapper.Compare(name, m.lines(meta, name))
		if err != nil {
			return err
		}
		if mapping == Different && meta.Partition(name) != nil {
			return fmt.Errorf("%s: %w", name, ErrLive)
		}
	}
	if err := m.unmapParts(ctx, name); err != nil {
		return fmt.Errorf("unmap the parts of %s: %w", name, err)
	}
	if err := m.dropImage(cowName(name)); err != nil {
		return err
	}
	return drop(m.Files, statusFile(name), statusFile(name)+temporary)
}

// removeStrayImages removes files of COWs that no snapshot has.
func (m *Manager) removeStrayImages() error {
	if m.Images == nil || m.Recovery {
		return nil
	}
	images, err := m.Images.List()
	if err != nil {
		return fmt.Errorf("list the files of COWs: %w", err)
	}
	snapshots, err := list(m.Files, snapshotsDir)
	if err != nil {
		return err
	}
	for _, image := range images {
		if slices.ContainsFunc(snapshots, func(s string) bool { return cowName(s) == image }) {
			continue
		}
		if err := m.Images.Delete(image); err != nil {
			return fmt.Errorf("remove the file %s, which is nobody's: %w", image, err)
		}
	}
	return nil
}
