package update

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"
)

// weather is what a policy sees, and what happens with each look.
type weather struct {
	up    time.Duration
	power bool
	looks int
	each  func()
}

func (w *weather) Uptime() (time.Duration, error) {
	w.looks++
	if w.each != nil {
		w.each()
	}
	return w.up, nil
}

func (w *weather) OnPower() (bool, error) { return w.power, nil }

func TestMergeBy(t *testing.T) {
	w, u := tried(t, swapped())
	policy := Policy{Auto: true, After: Duration(time.Minute), OnPower: true}
	around := &weather{}
	around.each = func() {
		s, err := w.m.Status()
		must(t, err)
		switch around.looks {
		case 3:
			around.up = time.Minute
		case 6:
			around.power = true
		case 8:
			if s.State != unverified {
				t.Errorf("expected nothing to begin before the slot is good, found %v", s.State)
			}
			must(t, w.m.Slots.MarkSuccessful())
		case 10:
			if s.State != merging {
				t.Errorf("expected the merge to have begun, found %v", s.State)
			}
			around.power = false
		case 12:
			if !w.daemon.paused {
				t.Error("expected a pause without power")
			}
			around.power = true
		case 14, 16, 18:
			must(t, w.daemon.work())
		}
		if around.looks < 8 && s.State != unverified || around.looks > 50 {
			t.Fatalf("look %d: state %v", around.looks, s.State)
		}
	}
	must(t, w.m.MergeBy(ctx, policy, around, time.Millisecond))
	w.wantState(none)
	u.isOver(w)
	if w.daemon.pauses != 2 {
		t.Errorf("expected one pause and its end, found %d", w.daemon.pauses)
	}
}

func TestMergeByReturns(t *testing.T) {
	around := &weather{}
	none := newWorld(t, 1, plain())
	must(t, none.m.MergeBy(ctx, Policy{Auto: true}, around, time.Millisecond))
	asked, _ := tried(t, plain())
	must(t, asked.m.MergeBy(ctx, Policy{}, around, time.Millisecond))
	asked.wantState(unverified)
	if around.looks != 0 {
		t.Errorf("expected no looks, found %d", around.looks)
	}
	w, _ := tried(t, plain())
	must(t, w.m.Slots.MarkSuccessful())
	w.daemon.fails["system_b"] = true
	around.each = func() { must(t, w.daemon.work()) }
	w.wantError(w.m.MergeBy(ctx, Policy{Auto: true}, around, time.Millisecond), ErrNeedsMerge)
	soon, stop := context.WithTimeout(ctx, 10*time.Millisecond)
	defer stop()
	waits, _ := tried(t, plain())
	waits.wantError(waits.m.MergeBy(soon, Policy{Auto: true, OnPower: true}, &weather{}, time.Millisecond), context.DeadlineExceeded)
}

func TestPolicyJSON(t *testing.T) {
	var p Policy
	must(t, json.Unmarshal([]byte(`{"auto": true, "after": "90s", "rate": 1000}`), &p))
	if p != (Policy{Auto: true, After: Duration(90 * time.Second), Rate: 1000}) {
		t.Errorf("found %+v", p)
	}
	for _, bad := range []string{`{"after": 90}`, `{"after": "soon"}`, `{"after": "-1s"}`} {
		if err := json.Unmarshal([]byte(bad), &p); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: expected ErrConfig, found %v", bad, err)
		}
	}
}
