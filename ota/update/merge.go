package update

import (
	"context"
	"errors"
	"fmt"

	"cowbird/formats/lpmeta"
	"cowbird/formats/snapshotpb"
)

const (
	created        = snapshotpb.SnapshotState_CREATED
	snapMerging    = snapshotpb.SnapshotState_MERGING
	snapMerged     = snapshotpb.SnapshotState_MERGE_COMPLETED
	firstPhase     = snapshotpb.MergePhase_FIRST_PHASE
	secondPhase    = snapshotpb.MergePhase_SECOND_PHASE
	waitsForReboot = "reboot to end the update"
)

// InitiateMerge begins to write the new system over the old one, from which there
// is no way back. The new system must run, and have proved good. Once the merge is
// noted the error is nil: whatever fails then is tried again by Process.
func (m *Manager) InitiateMerge(ctx context.Context) error {
	return m.locked(true, func() error {
		if _, err := m.expect("merge", unverified); err != nil {
			return err
		}
		o, err := m.origin()
		if err != nil {
			return err
		}
		if o != target {
			return fmt.Errorf("merge: %w: expected the new system to run, found that this one is the update's %v", ErrState, o)
		}
		all, err := m.mergeable(ctx)
		if err != nil {
			return err
		}
		phase := phaseOf(all)
		err = m.writeState(merging, func(s *snapshotpb.SnapshotUpdateStatus) { s.MergePhase = phase })
		if err != nil {
			return err
		}
		if err := m.forbidOldSlot(); err != nil {
			return err
		}
		if err := m.startPhase(ctx, all, phase); err != nil {
			m.log().Error("merge", "error", err)
			return m.writeState(failed, func(s *snapshotpb.SnapshotUpdateStatus) { s.MergeFailureCode = codeOf(err) })
		}
		return nil
	})
}

// forbidOldSlot keeps the boot loader from the system that is being overwritten. The
// state says so already, to boot loaders that know it.
func (m *Manager) forbidOldSlot() error {
	other, err := m.otherSlot()
	if err == nil {
		err = m.Slots.SetUnbootable(other)
	}
	if err != nil {
		return fmt.Errorf("keep the boot loader from the old system: %w", err)
	}
	return nil
}

// mergeable are the snapshots of the running slot. Those whose partitions were
// flashed since are dropped.
func (m *Manager) mergeable(ctx context.Context) (kept []*snapshotpb.SnapshotStatus, err error) {
	current, _, err := m.suffixes()
	if err != nil {
		return nil, err
	}
	all, err := m.statuses(current)
	if err != nil {
		return nil, err
	}
	meta, err := m.metadata()
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		if wasFlashed(meta, s.Name) {
			m.log().Warn("the partition was written by somebody else", "snapshot", s.Name)
			if err := m.removeSnapshot(ctx, s); err != nil {
				return nil, err
			}
			continue
		}
		mapping, err := m.Mapper.Compare(s.Name, m.lines(meta, s.Name))
		if err != nil {
			return nil, err
		}
		if mapping != Different {
			return nil, fmt.Errorf("merge: %w: %s", ErrNotMapped, s.Name)
		}
		kept = append(kept, s)
	}
	return kept, nil
}

func wasFlashed(meta *lpmeta.Metadata, name string) bool {
	p := meta.Partition(name)
	return p == nil || p.Attributes&lpmeta.Updated == 0
}

// turnOf is the phase in which a snapshot's merge has its turn: a partition that
// shrinks gives blocks away into which another one's merge may write.
func turnOf(s *snapshotpb.SnapshotStatus) snapshotpb.MergePhase {
	if s.UsingSnapuserd && s.DeviceSize < s.OldPartitionSize {
		return firstPhase
	}
	return secondPhase
}

func phaseOf(all []*snapshotpb.SnapshotStatus) snapshotpb.MergePhase {
	for _, s := range all {
		if turnOf(s) == firstPhase {
			return firstPhase
		}
	}
	return secondPhase
}

// startPhase has the merges of a phase begin. One that does not keeps no other back.
func (m *Manager) startPhase(ctx context.Context, all []*snapshotpb.SnapshotStatus, phase snapshotpb.MergePhase) error {
	var errs []error
	for _, s := range all {
		if turnOf(s) == phase && s.State == created {
			errs = append(errs, m.startMerge(ctx, s))
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) startMerge(ctx context.Context, s *snapshotpb.SnapshotStatus) error {
	if err := m.Daemon.Merge(ctx, s.Name); err != nil {
		return fail(snapshotpb.MergeFailureCode_ActivateNewTable, "merge of %s: %w", s.Name, err)
	}
	if err := m.setStatus(s, snapMerging); err != nil {
		return fail(snapshotpb.MergeFailureCode_WriteStatus, "%w", err)
	}
	return nil
}

// Retry has the merges that failed begin again, which Process does at the next boot
// only: the cause may be gone.
func (m *Manager) Retry(ctx context.Context) error {
	return m.locked(true, func() error {
		if _, err := m.expect("try the merge again", failed); err != nil {
			return err
		}
		current, _, err := m.suffixes()
		if err != nil {
			return err
		}
		all, err := m.statuses(current)
		if err != nil {
			return err
		}
		var errs []error
		for _, s := range all {
			if state, err := m.Daemon.State(ctx, s.Name); s.State == snapMerging && err == nil && state == snapshotFailed {
				errs = append(errs, m.startMerge(ctx, s))
			}
		}
		return errors.Join(errs...)
	})
}

// Process does what there is to do next for an update, and gives its state, which
// is also Cancelled if it was removed since the device went back to the old system,
// or was flashed. Call it at each boot, and while the state is Merging again every
// few seconds. A daemon that serves the snapshots must run.
func (m *Manager) Process(ctx context.Context) (s snapshotpb.UpdateState, err error) {
	err = m.locked(true, func() error { s, err = m.process(ctx); return err })
	return s, err
}

func (m *Manager) process(ctx context.Context) (snapshotpb.UpdateState, error) {
	s, err := m.readState()
	if err != nil {
		return none, err
	}
	if err := m.remindBootLoader(s.State); err != nil {
		return none, err
	}
	switch s.State {
	case unverified:
		return m.processUnverified(ctx)
	case merging, failed, needsReboot:
		return m.processMerge(ctx, s)
	case completed:
		return m.end(ctx)
	case none, cancelled:
		return s.State, m.removeStrayImages() // which a recovery system left
	}
	return s.State, nil
}

// processUnverified removes an update that came to nothing.
func (m *Manager) processUnverified(ctx context.Context) (snapshotpb.UpdateState, error) {
	gone, err := m.cameToNothing()
	if err != nil || !gone {
		return unverified, err
	}
	return cancelled, m.removeUpdate(ctx)
}

func (m *Manager) cameToNothing() (bool, error) {
	o, err := m.origin()
	if err != nil {
		return false, err
	}
	if o == unknown {
		return true, nil // no boot finds it
	}
	rolledBack, err := m.has(rollbackFile)
	if err != nil || o == source && rolledBack {
		return rolledBack, err
	}
	return m.allFlashed(o)
}

// allFlashed tells whether no partition of the update is the update's any more.
func (m *Manager) allFlashed(o origin) (bool, error) {
	slot, err := m.Slots.Current()
	if err != nil {
		return false, err
	}
	if o == source {
		slot = 1 - slot
	}
	meta, err := m.metadataOf(slot)
	if err != nil {
		return false, err
	}
	all, err := m.statuses(m.Slots.Suffix(slot))
	if err != nil {
		return false, err
	}
	for _, s := range all {
		if !wasFlashed(meta, s.Name) {
			return false, nil
		}
	}
	return true, nil
}

// outcome is how one snapshot stands; of several, the largest decides.
type outcome int

const (
	isDone outcome = iota
	isGone
	isBusy // merged, but waits for a reboot
	isWaiting
	isFailed
	isMerging
)

func (m *Manager) processMerge(ctx context.Context, update *snapshotpb.SnapshotUpdateStatus) (snapshotpb.UpdateState, error) {
	worst, all, cause, err := m.look(ctx, update)
	if err != nil {
		return none, err
	}
	if worst == isWaiting {
		if err := m.nextPhase(ctx, update, all); err != nil {
			worst, cause = isFailed, err
		} else {
			worst = isMerging
		}
	}
	switch worst {
	case isMerging:
		return merging, m.ensureState(update, merging, nil)
	case isFailed:
		m.log().Error("merge", "error", cause)
		return failed, m.ensureState(update, failed, cause)
	case isBusy:
		m.log().Warn("merge", "result", waitsForReboot)
		return needsReboot, m.ensureState(update, needsReboot, nil)
	case isGone:
		return cancelled, m.removeUpdate(ctx)
	}
	return m.end(ctx)
}

// ensureState writes a state that is not the one there is.
func (m *Manager) ensureState(update *snapshotpb.SnapshotUpdateStatus, s snapshotpb.UpdateState, cause error) error {
	if update.State == s && update.MergeFailureCode == codeOf(cause) {
		return nil
	}
	return m.writeState(s, func(n *snapshotpb.SnapshotUpdateStatus) { n.MergeFailureCode = codeOf(cause) })
}

// look deals with each snapshot of the running slot.
func (m *Manager) look(ctx context.Context, update *snapshotpb.SnapshotUpdateStatus) (worst outcome, all []*snapshotpb.SnapshotStatus, cause, err error) {
	current, _, err := m.suffixes()
	if err != nil {
		return 0, nil, nil, err
	}
	if all, err = m.statuses(current); err != nil {
		return 0, nil, nil, err
	}
	meta, err := m.metadata()
	if err != nil {
		return 0, nil, nil, err
	}
	for _, s := range all {
		o, err := m.lookAt(ctx, meta, update, s)
		if err != nil {
			o = isFailed
			cause = cmpErr(cause, err)
		}
		worst = max(worst, o)
	}
	return worst, all, cause, nil
}

func cmpErr(first, second error) error {
	if first != nil {
		return first
	}
	return second
}

// lookAt is the table of specs/snapshot-manager.md 8.
func (m *Manager) lookAt(ctx context.Context, meta *lpmeta.Metadata, update *snapshotpb.SnapshotUpdateStatus, s *snapshotpb.SnapshotStatus) (outcome, error) {
	mapping, err := m.Mapper.Compare(s.Name, m.lines(meta, s.Name))
	if err != nil {
		return 0, fail(snapshotpb.MergeFailureCode_GetTableInfo, "%s: %w", s.Name, err)
	}
	switch {
	case mapping != Different && s.State == snapMerged:
		return m.clean(ctx, s)
	case wasFlashed(meta, s.Name):
		return isGone, m.removeSnapshot(ctx, s)
	case mapping != Different:
		return 0, fail(snapshotpb.MergeFailureCode_UnknownTargetType, "%s: expected a snapshot, found another device or none", s.Name)
	case s.State == created && turnOf(s) == secondPhase && update.MergePhase == firstPhase:
		return isWaiting, nil
	case s.State == created:
		return isMerging, m.startMerge(ctx, s)
	}
	return m.follow(ctx, meta, s)
}

// follow asks the daemon how a merge goes.
func (m *Manager) follow(ctx context.Context, meta *lpmeta.Metadata, s *snapshotpb.SnapshotStatus) (outcome, error) {
	state, err := m.Daemon.State(ctx, s.Name)
	if err != nil {
		return 0, fail(snapshotpb.MergeFailureCode_QuerySnapshotStatus, "%s: %w", s.Name, err)
	}
	switch state {
	case snapshotMerged:
		return m.finishMerge(ctx, meta, s)
	case snapshotIdle, snapshotMerging:
		if s.State == snapMerged {
			return 0, fail(snapshotpb.MergeFailureCode_UnmergedSectorsAfterCompletion, "%s: expected it to be merged, found %s", s.Name, state)
		}
		if state == snapshotMerging {
			return isMerging, nil
		}
		return isMerging, m.startMerge(ctx, s) // after a reboot
	}
	return 0, fail(snapshotpb.MergeFailureCode_UnexpectedMergeState, "%s: the daemon says %s", s.Name, state)
}

// finishMerge takes the daemon out of the way of a partition that is merged.
func (m *Manager) finishMerge(ctx context.Context, meta *lpmeta.Metadata, s *snapshotpb.SnapshotStatus) (outcome, error) {
	if err := m.setStatus(s, snapMerged); err != nil {
		return 0, fail(snapshotpb.MergeFailureCode_WriteStatus, "%w", err)
	}
	readOnly := meta.Partition(s.Name).Attributes&lpmeta.ReadOnly != 0
	if err := m.Mapper.Swap(ctx, s.Name, m.lines(meta, s.Name), readOnly); err != nil {
		return 0, fail(snapshotpb.MergeFailureCode_ActivateNewTable, "%s: %w", s.Name, err)
	}
	return m.clean(ctx, s)
}

// clean removes what is left of a snapshot that is merged.
func (m *Manager) clean(ctx context.Context, s *snapshotpb.SnapshotStatus) (outcome, error) {
	remove := m.removeSnapshot
	if m.Recovery {
		remove = func(ctx context.Context, s *snapshotpb.SnapshotStatus) error { return m.unmapParts(ctx, s.Name) }
	}
	if err := remove(ctx, s); err != nil {
		m.log().Warn("merged, but not removed", "snapshot", s.Name, "error", err)
		return isBusy, nil
	}
	return isDone, nil
}

// nextPhase begins the second phase, or goes on with it.
func (m *Manager) nextPhase(ctx context.Context, update *snapshotpb.SnapshotUpdateStatus, all []*snapshotpb.SnapshotStatus) error {
	err := m.writeState(merging, func(s *snapshotpb.SnapshotUpdateStatus) { s.MergePhase = secondPhase })
	if err != nil {
		return fail(snapshotpb.MergeFailureCode_WriteStatus, "%w", err)
	}
	update.State, update.MergePhase, update.MergeFailureCode = merging, secondPhase, snapshotpb.MergeFailureCode_Ok
	return m.startPhase(ctx, all, secondPhase)
}

// end removes what is left of an update that is merged, but not in a recovery system.
func (m *Manager) end(ctx context.Context) (snapshotpb.UpdateState, error) {
	if m.Recovery {
		return completed, m.writeState(completed, nil)
	}
	if err := m.removeUpdate(ctx); err != nil {
		if errors.Is(err, ErrBusy) {
			return needsReboot, m.writeState(needsReboot, nil)
		}
		return merging, err
	}
	return none, nil
}
