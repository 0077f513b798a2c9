package update

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Policy says when an update is merged without being asked to.
type Policy struct {
	// Auto merges as soon as the rest allows it; without it, only on request.
	Auto bool `json:"auto,omitempty"`
	// After is how long the new system must have been up.
	After Duration `json:"after,omitempty"`
	// OnPower merges only while the device is not on its battery. A merge that has
	// begun is paused when it is.
	OnPower bool `json:"on_power,omitempty"`
	// Rate is how many bytes a second each merge writes at most; 0: no limit.
	Rate int64 `json:"rate,omitempty"`
}

// Duration is a time.Duration that is written as "90s" in JSON.
type Duration time.Duration

// UnmarshalJSON implements json.Unmarshaler.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return fmt.Errorf("%w: expected a duration such as \"90s\", found %s", ErrConfig, b)
	}
	v, err := time.ParseDuration(text)
	if err != nil || v < 0 {
		return fmt.Errorf("%w: expected a duration such as \"90s\", found %q", ErrConfig, text)
	}
	*d = Duration(v)
	return nil
}

// MarshalJSON implements json.Marshaler.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// Surroundings are what a Policy looks at.
type Surroundings interface {
	Uptime() (time.Duration, error)
	// OnPower is true if the device is not on its battery, also if it has none.
	OnPower() (bool, error)
}

// MergeBy waits until the policy lets the update be merged, merges it, and returns
// when it is over. Without an update, or if the policy wants to be asked, it returns
// at once. The running system must have been marked as successful.
func (m *Manager) MergeBy(ctx context.Context, p Policy, around Surroundings, every time.Duration) error {
	if s, err := m.Process(ctx); err != nil || s != unverified && s != merging && s != failed {
		return err
	} else if s == unverified && !p.Auto {
		return nil
	}
	paused := false
	for {
		allowed, err := p.allows(around)
		if err != nil {
			return err
		}
		over, err := m.mergeStep(ctx, allowed, &paused)
		if err != nil || over {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(every):
		}
	}
}

func (p Policy) allows(around Surroundings) (bool, error) {
	up, err := around.Uptime()
	if err != nil || up < time.Duration(p.After) {
		return false, err
	}
	if !p.OnPower {
		return true, nil
	}
	return around.OnPower()
}

// mergeStep goes on with the merge, or holds it. over is true when it has ended, or
// failed; a failed one is tried again at the next boot.
func (m *Manager) mergeStep(ctx context.Context, allowed bool, paused *bool) (over bool, err error) {
	s, err := m.Process(ctx)
	if err != nil {
		return false, err
	}
	switch {
	case s == unverified && !allowed:
		return false, nil
	case s == unverified:
		return false, m.startBy(ctx)
	case s == failed:
		return true, fmt.Errorf("%w: it failed, and is tried again at the next boot", ErrNeedsMerge)
	case s != merging:
		return true, nil
	}
	if *paused == allowed {
		if err := m.Daemon.Pause(ctx, !allowed); err != nil {
			return false, err
		}
		*paused = !allowed
	}
	return false, nil
}

// startBy begins the merge of a system that is known to be good.
func (m *Manager) startBy(ctx context.Context) error {
	slot, err := m.Slots.Current()
	if err != nil {
		return err
	}
	good, err := m.Slots.IsSuccessful(slot)
	if err != nil {
		return err
	}
	if !good {
		return nil // not yet
	}
	err = m.InitiateMerge(ctx)
	if errors.Is(err, ErrState) { // the old system runs; the update waits for a reboot
		return nil
	}
	return err
}
