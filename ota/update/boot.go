package update

import (
	"context"
	"errors"
	"fmt"

	"cowbird/formats/lpmeta"
	"cowbird/formats/snapshotpb"
)

// Mounted is a partition that Boot has mapped.
type Mounted struct {
	Name     string // with suffix
	Path     string
	ReadOnly bool
	Snapshot bool // served by the daemon
	// Verity is the path of the device of dm-verity over it, if there is one.
	Verity string `json:",omitempty"`
}

// NeedsDaemon tells whether Boot will need the daemon.
func (m *Manager) NeedsDaemon() (needs bool, err error) {
	err = m.locked(false, func() error { needs, err = m.bootsSnapshots(); return err })
	return needs, err
}

// Boot maps the partitions of the running slot, as the first stage of the boot does
// before anything is mounted: those of a system that is being tried, or merged, over
// their snapshots. Either all are mapped or none. Called again it finds them mapped,
// and takes nothing away should it fail.
func (m *Manager) Boot(ctx context.Context) (all []Mounted, err error) {
	err = m.locked(true, func() error {
		if err := m.noteRollback(); err != nil {
			return err
		}
		before, err := m.anyMapped()
		if err != nil {
			return err
		}
		if len(m.Below) > 0 {
			if _, err := m.Mapper.Map(ctx, belowName, m.Below, false); err != nil {
				return err
			}
		}
		if all, err = m.mapAll(ctx); err != nil && !before {
			err = errors.Join(err, m.unmapAll(ctx))
		}
		return err
	})
	return all, err
}

// noteRollback remembers that the boot loader went back to the old system, which it
// also does when it was never told to take the new one.
func (m *Manager) noteRollback() error {
	o, err := m.origin()
	if err != nil || o != source {
		return err
	}
	if there, err := m.has(rollbackFile); there || err != nil {
		return err
	}
	return put(m.Files, rollbackFile, []byte(indicatorText))
}

// bootsSnapshots is the table of specs/snapshot-manager.md 6.
func (m *Manager) bootsSnapshots() (bool, error) {
	o, err := m.origin()
	if err != nil || o != target {
		return false, err
	}
	s, err := m.readState()
	if err != nil {
		return false, err
	}
	return s.State == unverified || s.State == merging || s.State == failed, nil
}

func (m *Manager) mapAll(ctx context.Context) (all []Mounted, err error) {
	withSnapshots, err := m.bootsSnapshots()
	if err != nil {
		return nil, err
	}
	meta, err := m.metadata()
	if err != nil {
		return nil, err
	}
	for i := range meta.Partitions {
		p := &meta.Partitions[i]
		if !isMapped(meta, p) {
			continue
		}
		mounted, err := m.mapPartition(ctx, meta, p, withSnapshots)
		if err != nil {
			return nil, fmt.Errorf("map %s: %w", p.Name, err)
		}
		all = append(all, mounted)
	}
	return all, nil
}

// isMapped tells whether a partition is one to be mapped.
func isMapped(meta *lpmeta.Metadata, p *lpmeta.Partition) bool {
	return meta.Groups[p.Group].Name != cowGroup && p.NumExtents > 0 && p.Attributes&lpmeta.Disabled == 0
}

func (m *Manager) mapPartition(ctx context.Context, meta *lpmeta.Metadata, p *lpmeta.Partition, withSnapshots bool) (Mounted, error) {
	mounted := Mounted{Name: p.Name, ReadOnly: p.Attributes&lpmeta.ReadOnly != 0}
	var s *snapshotpb.SnapshotStatus
	var err error
	// What is not Updated was flashed since, which makes its snapshot worthless.
	if withSnapshots && p.Attributes&lpmeta.Updated != 0 {
		if s, err = m.readStatus(p.Name); err != nil {
			return mounted, err
		}
	}
	if s == nil || s.State == snapshotpb.SnapshotState_NONE || s.State == snapshotpb.SnapshotState_MERGE_COMPLETED {
		mounted.Path, err = m.Mapper.Map(ctx, p.Name, m.lines(meta, p.Name), mounted.ReadOnly)
		return mounted, err
	}
	mounted.Snapshot, mounted.ReadOnly = true, true
	mounted.Path, err = m.mapSnapshot(ctx, meta, s)
	return mounted, err
}

// mapSnapshot maps what a snapshot consists of, and the snapshot over it.
func (m *Manager) mapSnapshot(ctx context.Context, meta *lpmeta.Metadata, s *snapshotpb.SnapshotStatus) (string, error) {
	table := m.lines(meta, s.Name)
	if got, want := length(table), s.DeviceSize/sectorSize; got != want {
		return "", fmt.Errorf("expected %d sectors, found %d", want, got)
	}
	base, err := m.Mapper.Map(ctx, s.Name+"-base", table, false)
	if err != nil {
		return "", err
	}
	old, err := m.mapOld(ctx, s)
	if err != nil {
		return "", err
	}
	if old == "" {
		old = base
	}
	cow, err := m.mapCow(ctx, meta, s)
	if err != nil {
		return "", err
	}
	device, err := m.Daemon.Map(ctx, s.Name, cow, old, base)
	if err != nil {
		return "", err
	}
	return m.Mapper.Map(ctx, s.Name, []Line{{Sectors: s.DeviceSize / sectorSize, Device: device}}, true)
}

// anyMapped tells whether one of the partitions is mapped already.
func (m *Manager) anyMapped() (bool, error) {
	meta, err := m.metadata()
	if err != nil {
		return false, err
	}
	for _, p := range meta.Partitions {
		if _, mapped, err := m.Mapper.Path(p.Name); mapped || err != nil {
			return mapped, err
		}
	}
	return false, nil
}

// unmapAll takes back what mapAll did, as far as it can.
func (m *Manager) unmapAll(ctx context.Context) error {
	meta, err := m.metadata()
	if err != nil {
		return err
	}
	var errs []error
	for i := range meta.Partitions {
		if p := &meta.Partitions[i]; isMapped(meta, p) {
			errs = append(errs, m.Mapper.Unmap(ctx, p.Name+veritySuffix), m.Mapper.Unmap(ctx, p.Name), m.unmapParts(ctx, p.Name))
		}
	}
	if err := m.Mapper.Unmap(ctx, belowName); !errors.Is(err, ErrBusy) { // it may be mounted
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// unmapParts ends a snapshot that nobody uses.
func (m *Manager) unmapParts(ctx context.Context, name string) error {
	if err := m.Daemon.Delete(ctx, name); err != nil {
		return err
	}
	var errs []error
	for _, part := range []string{"-base", "-src", "-cow"} {
		errs = append(errs, m.Mapper.Unmap(ctx, name+part))
	}
	return errors.Join(errs...)
}
