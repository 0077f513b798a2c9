package update

import (
	"context"
	"fmt"

	"cowbird/formats/snapshotpb"
)

// FinishInRecovery does the rest of a merge in a recovery system, for a device that
// does not stay up for long enough: it maps the partitions, merges, and takes them away
// again if they were not mapped before. The state is MergeCompleted afterwards, since
// user's data may be locked; the device's own system removes what is left.
func (m *Manager) FinishInRecovery(ctx context.Context) error {
	var s *snapshotpb.SnapshotUpdateStatus
	var mapped bool
	err := m.locked(false, func() (err error) {
		if s, err = m.expect("finish the merge", merging, failed, needsReboot, completed); err == nil {
			mapped, err = m.anyMapped()
		}
		return err
	})
	if err != nil || s.State == completed {
		return err
	}
	if err := m.mergeUnbooted(ctx); err != nil {
		return fmt.Errorf("merge in the recovery system: %w", err)
	}
	if mapped {
		return nil
	}
	return m.locked(true, func() error { return m.unmapAll(ctx) })
}

// mergeUnbooted maps the partitions of a system that does not run, and merges them.
func (m *Manager) mergeUnbooted(ctx context.Context) error {
	if _, err := m.Boot(ctx); err != nil {
		return err
	}
	if s, err := m.Status(); err == nil && s.State == unverified {
		if err := m.InitiateMerge(ctx); err != nil {
			return err
		}
	}
	s, err := m.Wait(ctx, mergePoll)
	if err == nil && s == failed {
		err = fmt.Errorf("%w: it failed", ErrNeedsMerge)
	}
	return err
}

// dropImage removes the file of a COW, or has it be removed later.
func (m *Manager) dropImage(name string) error {
	if m.Images == nil {
		return nil
	}
	drop, what := m.Images.Delete, "remove"
	if m.Recovery {
		drop, what = m.Images.Disable, "disable"
	}
	if err := drop(name); err != nil {
		return fmt.Errorf("%s the file of %s: %w", what, name, err)
	}
	return nil
}
