package update

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"cowbird/formats/lpmeta"
	"cowbird/formats/payload/pb"
	"cowbird/formats/snapshotpb"
)

// Begin begins an update: one that was not booted is cancelled, one that is being
// merged must have ended. The other slot is not booted from here on.
func (m *Manager) Begin(ctx context.Context) error {
	return m.locked(true, func() error {
		s, err := m.readState()
		if err != nil {
			return err
		}
		if s.State == merging || s.State == failed || s.State == needsReboot || s.State == completed {
			if _, err := m.process(ctx); err != nil {
				return err
			}
		}
		if err := m.cancel(ctx); err != nil {
			return fmt.Errorf("remove the update before: %w", err)
		}
		if err := m.removeStrayImages(); err != nil {
			return err
		}
		if err := m.writeState(initiated, nil); err != nil {
			return err
		}
		other, err := m.otherSlot()
		if err == nil {
			err = m.Slots.SetUnbootable(other)
		}
		if err != nil {
			return fmt.Errorf("keep the boot loader from the other slot: %w", err)
		}
		return nil
	})
}

func (m *Manager) otherSlot() (int, error) {
	if _, _, err := m.suffixes(); err != nil {
		return 0, err
	}
	slot, err := m.Slots.Current()
	return 1 - slot, err
}

// Create makes the new partitions and their COWs, which are empty. If there is not
// enough space, nothing is changed and the error is a NoSpaceError.
func (m *Manager) Create(ctx context.Context, manifest *pb.DeltaArchiveManifest) error {
	return m.locked(true, func() error {
		if _, err := m.expect("make room for the update", initiated); err != nil {
			return err
		}
		p, err := m.plan(manifest)
		if err != nil {
			return err
		}
		return m.create(ctx, p)
	})
}

func (m *Manager) plan(manifest *pb.DeltaArchiveManifest) (*plan, error) {
	from, to, err := m.suffixes()
	if err != nil {
		return nil, err
	}
	running, err := m.metadata()
	if err != nil {
		return nil, err
	}
	room := int64(0)
	if m.Images != nil {
		if room, err = m.Images.Room(); err != nil {
			return nil, fmt.Errorf("room for COWs in files: %w", err)
		}
	}
	return planUpdate(running, from, to, manifest, room)
}

// create does what is planned. A power cut at any point leaves an update that has
// begun and no more: its flags, written last, are missing.
func (m *Manager) create(ctx context.Context, p *plan) error {
	other, err := m.otherSlot()
	if err != nil {
		return err
	}
	if err := m.removeSnapshots(ctx, m.Slots.Suffix(other)); err != nil {
		return err
	}
	if err := m.Files.MakeDir(snapshotsDir); err != nil {
		return err
	}
	for _, s := range p.snapshots {
		if err := m.createCow(ctx, p.target, s); err != nil {
			return errors.Join(fmt.Errorf("COW of %s: %w", s.Name, err), m.removeSnapshots(ctx, m.Slots.Suffix(other)))
		}
	}
	if err := lpmeta.Update(m.Super.Metadata, other, p.target); err != nil {
		return fmt.Errorf("partitions of the other slot: %w", err)
	}
	var old bytes.Buffer
	if err := lpmeta.WriteImage(&old, p.old); err != nil {
		return err
	}
	if err := put(m.Files, oldMetadata, old.Bytes()); err != nil {
		return err
	}
	return m.writeState(initiated, func(s *snapshotpb.SnapshotUpdateStatus) {
		s.UsingSnapuserd, s.UserspaceSnapshots = true, true
	})
}

// createCow makes room for a COW and sees to it that what was there before is not
// taken for one.
func (m *Manager) createCow(ctx context.Context, meta *lpmeta.Metadata, s *snapshotpb.SnapshotStatus) error {
	if s.CowFileSize > 0 {
		if err := m.Images.Create(cowName(s.Name), int64(s.CowFileSize)); err != nil {
			return err
		}
	}
	if err := m.writeStatus(s); err != nil {
		return err
	}
	path, err := m.mapCow(ctx, meta, s)
	if err != nil {
		return err
	}
	d, err := m.Open(path)
	if err != nil {
		return err
	}
	_, err = d.WriteAt(make([]byte, blockSize), 0)
	if err == nil {
		err = d.Sync()
	}
	return errors.Join(err, d.Close(), m.Mapper.Unmap(ctx, cowName(s.Name)))
}

// mapCow maps a COW: its partition, and behind it its file.
func (m *Manager) mapCow(ctx context.Context, meta *lpmeta.Metadata, s *snapshotpb.SnapshotStatus) (string, error) {
	table := m.lines(meta, cowName(s.Name))
	sectors := s.CowPartitionSize / sectorSize
	if got := length(table); got != sectors {
		return "", fmt.Errorf("expected %d sectors of super for %s, found %d", sectors, cowName(s.Name), got)
	}
	if s.CowFileSize > 0 {
		if m.Images == nil {
			return "", fmt.Errorf("expected a file of %d bytes for %s, found no place for files", s.CowFileSize, cowName(s.Name))
		}
		more, err := m.Images.Table(cowName(s.Name))
		if err != nil {
			return "", err
		}
		if got, want := length(more), s.CowFileSize/sectorSize; got < want {
			return "", fmt.Errorf("expected a file of %d sectors for %s, found %d", want, cowName(s.Name), got)
		}
		for _, l := range more {
			l.Start += sectors
			table = append(table, l)
		}
	}
	return m.Mapper.Map(ctx, cowName(s.Name), table, false)
}

func length(table []Line) uint64 {
	if len(table) == 0 {
		return 0
	}
	last := table[len(table)-1]
	return last.Start + last.Sectors
}

// Target is a new partition to be written: a COW over an old partition.
type Target struct {
	Partition string // as payloads name it
	Old       string // device to read the old partition from; "" if there is none
	Cow       string // device for the COW
}

// Targets maps what an installation reads and writes. Release unmaps it.
func (m *Manager) Targets(ctx context.Context) (targets []Target, err error) {
	err = m.locked(true, func() error {
		s, err := m.expect("write the update", initiated)
		if err != nil {
			return err
		}
		if !s.UserspaceSnapshots {
			return fmt.Errorf("write the update: %w: expected the room for it to be made, found that it was not", ErrState)
		}
		if targets, err = m.mapTargets(ctx); err != nil {
			return errors.Join(err, m.release(ctx))
		}
		return nil
	})
	return targets, err
}

func (m *Manager) mapTargets(ctx context.Context) (targets []Target, err error) {
	all, meta, err := m.written()
	if err != nil {
		return nil, err
	}
	// What a killed installation has left mapped may not be what would be mapped now.
	if err := m.release(ctx); err != nil {
		return nil, err
	}
	for _, s := range all {
		t := Target{Partition: s.Name[:len(s.Name)-len(lpmeta.Suffix(s.Name))]}
		if t.Old, err = m.mapOld(ctx, s); err != nil {
			return nil, err
		}
		if t.Cow, err = m.mapCow(ctx, meta, s); err != nil {
			return nil, err
		}
		targets = append(targets, t)
	}
	return targets, nil
}

// written are the snapshots that are being written, and the metadata with them.
func (m *Manager) written() ([]*snapshotpb.SnapshotStatus, *lpmeta.Metadata, error) {
	other, err := m.otherSlot()
	if err != nil {
		return nil, nil, err
	}
	all, err := m.statuses(m.Slots.Suffix(other))
	if err != nil {
		return nil, nil, err
	}
	meta, err := m.metadataOf(other)
	return all, meta, err
}

// mapOld maps the partition that a snapshot is made from, as it was when the update
// began; "" if there was none.
func (m *Manager) mapOld(ctx context.Context, s *snapshotpb.SnapshotStatus) (string, error) {
	if s.OldPartitionSize == 0 {
		return "", nil
	}
	b, err := m.Files.Read(oldMetadata)
	if err != nil {
		return "", fmt.Errorf("partitions before the update: %w", err)
	}
	old, err := lpmeta.ReadImage(bytes.NewReader(b))
	if err != nil {
		return "", fmt.Errorf("partitions before the update, file %s: %w", oldMetadata, err)
	}
	name := oldName(s.Name)
	table := m.lines(old, name)
	if got, want := length(table), s.OldPartitionSize/sectorSize; got != want {
		return "", fmt.Errorf("expected %d sectors of %s before the update, found %d", want, name, got)
	}
	return m.Mapper.Map(ctx, s.Name+"-src", table, true)
}

// oldName is the name of a partition in the other slot.
func oldName(name string) string {
	suffix := lpmeta.Suffix(name)
	return name[:len(name)-len(suffix)] + lpmeta.SuffixOf(1-lpmeta.SlotOf(suffix))
}

// Release unmaps what Targets has mapped.
func (m *Manager) Release(ctx context.Context) error {
	return m.locked(true, func() error { return m.release(ctx) })
}

func (m *Manager) release(ctx context.Context) error {
	other, err := m.otherSlot()
	if err != nil {
		return err
	}
	all, err := m.statuses(m.Slots.Suffix(other))
	for _, s := range all {
		err = errors.Join(err, m.Mapper.Unmap(ctx, cowName(s.Name)), m.Mapper.Unmap(ctx, s.Name+"-src"))
	}
	return err
}

// Finish says that all is written: from the next boot on the other slot is the
// device's system, if it proves good. wipe says that the update comes with an
// erasure of the user's data, for which the merge may run early. It is for the
// caller to have verified what is written.
func (m *Manager) Finish(ctx context.Context, wipe bool) error {
	return m.locked(true, func() error {
		s, err := m.expect("finish the update", initiated, unverified)
		if err != nil {
			return err
		}
		other, err := m.otherSlot()
		if err != nil {
			return err
		}
		if o, err := m.origin(); s.State == unverified && (err != nil || o != source) {
			return errors.Join(err, fmt.Errorf("finish the update: %w: it runs already", ErrState))
		}
		if s.State == initiated {
			if !s.UserspaceSnapshots {
				return fmt.Errorf("finish the update: %w: expected something to be written, found nothing", ErrState)
			}
			if err := m.release(ctx); err != nil {
				return err
			}
			if err := m.mark(wipe); err != nil {
				return err
			}
			if err := m.writeState(unverified, nil); err != nil {
				return err
			}
		}
		if err := m.Slots.SetActive(other); err != nil {
			return fmt.Errorf("have the boot loader try slot %s: %w", m.Slots.Suffix(other), err)
		}
		return nil
	})
}

// mark writes what the next boot looks at. The boot loader does not know the new
// slot yet.
func (m *Manager) mark(wipe bool) error {
	current, _, err := m.suffixes()
	if err != nil {
		return err
	}
	if wipe {
		err = put(m.Files, forwardFile, []byte(indicatorText))
	} else {
		err = drop(m.Files, forwardFile)
	}
	if err != nil {
		return err
	}
	if err := drop(m.Files, rollbackFile); err != nil {
		return err
	}
	return put(m.Files, bootFile, []byte(current))
}
