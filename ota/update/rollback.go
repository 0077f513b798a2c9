package update

import (
	"context"
	"fmt"
)

// Rollback has the next boot take the old system again, from the new one that runs
// and is not merged. There Process removes the update.
func (m *Manager) Rollback(ctx context.Context) error {
	return m.locked(true, func() error {
		s, err := m.readState()
		if err != nil {
			return err
		}
		if s.State == merging || s.State == failed || s.State == needsReboot || s.State == completed {
			return fmt.Errorf("roll back: %w", ErrNeedsMerge)
		}
		o, err := m.origin()
		if err != nil {
			return err
		}
		if s.State != unverified || o != target {
			return fmt.Errorf("roll back: %w: expected a new system that is not merged to run, found the state %v", ErrState, s.State)
		}
		if err := m.remindBootLoader(s.State); err != nil {
			return err
		}
		other, err := m.otherSlot()
		if err != nil {
			return err
		}
		if err := m.Slots.SetActive(other); err != nil {
			return err
		}
		return m.Slots.SetUnbootable(1 - other)
	})
}
