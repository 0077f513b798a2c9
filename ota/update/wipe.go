package update

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cowbird/formats/snapshotpb"
)

// mergePoll is how often a merge that is waited for is asked after; tests ask more often.
var mergePoll = 200 * time.Millisecond

// BeforeWipe makes the update ready for all of the user's data to be erased, and
// with them the files of COWs: what was not booted is dropped, the new system that
// is not merged is left for the old one, and a merge that has begun, or that came
// with the wipe, is finished first. An error forbids the wipe.
func (m *Manager) BeforeWipe(ctx context.Context) error {
	var finish bool
	err := m.locked(true, func() (err error) { finish, err = m.dropBeforeWipe(ctx); return err })
	if err != nil || !finish {
		return err
	}
	return m.finishBeforeWipe(ctx)
}

// dropBeforeWipe reports whether there is a merge to be finished.
func (m *Manager) dropBeforeWipe(ctx context.Context) (finish bool, err error) {
	s, err := m.readState()
	if err != nil {
		// What cannot be read does not boot; the wipe may help.
		m.log().Warn("before a wipe", "error", err)
		return false, nil
	}
	if s.State == merging || s.State == failed {
		return true, nil
	}
	o, err := m.origin()
	if err != nil {
		return false, err
	}
	if s.State != unverified || o != target {
		return false, m.removeUpdate(ctx)
	}
	if allowed, err := m.has(forwardFile); allowed || err != nil {
		return allowed, err
	}
	if err := m.remindBootLoader(s.State); err != nil {
		return false, err
	}
	return false, m.leaveNewSystem(ctx)
}

// leaveNewSystem goes back to the old system.
func (m *Manager) leaveNewSystem(ctx context.Context) error {
	other, err := m.otherSlot()
	if err != nil {
		return err
	}
	if err := m.Slots.SetActive(other); err != nil {
		return err
	}
	if err := m.Slots.SetUnbootable(1 - other); err != nil {
		return err
	}
	return m.removeUpdate(ctx)
}

func (m *Manager) finishBeforeWipe(ctx context.Context) error {
	if err := m.mergeUnbooted(ctx); err != nil {
		return fmt.Errorf("merge before the wipe: %w", err)
	}
	return nil
}

// Wait processes the update until there is nothing to wait for.
func (m *Manager) Wait(ctx context.Context, every time.Duration) (snapshotpb.UpdateState, error) {
	timer := time.NewTicker(every)
	defer timer.Stop()
	for {
		s, err := m.Process(ctx)
		if err != nil || s != merging {
			return s, err
		}
		select {
		case <-ctx.Done():
			return s, errors.Join(ErrNeedsMerge, ctx.Err())
		case <-timer.C:
		}
	}
}
