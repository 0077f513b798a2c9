package slots

import (
	"errors"
	"testing"

	"pgregory.net/rapid"

	"cowbird/formats/bootctl"
)

// Whatever is done to slots, in any order: the boot loader takes the slot that Active
// says, and what was asked for is so afterwards, or was refused and nothing is changed.
func TestAnyLife(t *testing.T) {
	for _, r := range rigs() {
		t.Run(r.name, func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) { anyLife(t, rt, r) })
		})
	}
}

func anyLife(t *testing.T, rt *rapid.T, r rig) {
	m, d := inMemory(t, r)
	s := m.up(0)
	slot := rapid.IntRange(0, 1)
	// ask makes a change, which may be refused for the reasons given.
	ask := func(rt *rapid.T, err error, before string, refusals ...error) bool {
		if err == nil {
			return true
		}
		for _, r := range refusals {
			if errors.Is(err, r) {
				if after := view(t, m.rig, d); after != before {
					rt.Fatalf("refused: expected %s, found %s", before, after)
				}
				return false
			}
		}
		rt.Fatalf("%s: %v", before, err)
		return false
	}
	now := func() string { return view(t, m.rig, d) }
	rt.Repeat(map[string]func(*rapid.T){
		"boot": func(rt *rapid.T) {
			want, err := s.Active()
			got := m.boot(d)
			if err == nil && got != want {
				rt.Fatalf("expected slot %d to boot, found %d", want, got)
			}
			if got >= 0 {
				m.told("androidboot.slot_suffix=" + bootctl.Suffix(got))
			}
		},
		"good": func(rt *rapid.T) {
			running, _ := s.Current()
			if !ask(rt, s.MarkSuccessful(), now()) {
				return
			}
			if good, err := s.IsSuccessful(running); err != nil || !good && (r.config.UBoot == nil || r.config.UBoot.Scheme == "") {
				rt.Fatalf("expected slot %d to be successful, found %v", running, err)
			}
		},
		"active": func(rt *rapid.T) {
			n, before := slot.Draw(rt, "slot"), now()
			running, _ := s.Current()
			was, _ := s.IsSuccessful(n)
			if !ask(rt, s.SetActive(n), before, ErrMerging) {
				return
			}
			if good, err := s.IsSuccessful(n); err != nil || was && !good && n == running || good && n != running {
				rt.Fatalf("%s: expected slot %d on trial, unless it runs and was successful, found %v, %v", before, n, good, err)
			}
			if active, err := s.Active(); err != nil || active != n {
				rt.Fatalf("%s: expected slot %d to be active, found %d, %v", before, n, active, err)
			}
		},
		"unbootable": func(rt *rapid.T) {
			n, before := slot.Draw(rt, "slot"), now()
			if !ask(rt, s.SetUnbootable(n), before, ErrMerging, ErrLast, ErrState) {
				return
			}
			if ok, err := s.IsBootable(n); err != nil || ok {
				rt.Fatalf("%s: expected slot %d not to be bootable, found %v, %v", before, n, ok, err)
			}
		},
		"merge": func(rt *rapid.T) {
			status := bootctl.MergeStatus(rapid.IntRange(0, 4).Draw(rt, "status"))
			ask(rt, s.SetMergeStatus(status), now())
			want := status
			if want == bootctl.MergeSnapshotted {
				want = bootctl.MergeNone
			}
			if got, err := s.MergeStatus(); err != nil || got != want {
				rt.Fatalf("expected %v, found %v, %v", want, got, err)
			}
		},
	})
}
