package bsdiff

import (
	"slices"
	"testing"

	"cowbird/tools/fixture"
)

// Every patch of Android's own generator makes the target, whose checksum is
// known; but the targets of payloads that have puffin patches as well are a test
// of package puffin.
func TestFixtures(t *testing.T) {
	patches := 0
	for _, p := range fixture.Deltas(t) {
		has := func(types ...int) bool {
			return slices.ContainsFunc(p.Ops, func(o fixture.DeltaOp) bool { return slices.Contains(types, o.Type) })
		}
		if has(fixture.OpPuffdiff) || !has(fixture.OpSourceBsdiff, fixture.OpBrotliBsdiff) {
			continue
		}
		here := 0
		checked := p.Check(t, func(o *fixture.DeltaOp) []byte {
			if o.Type != fixture.OpSourceBsdiff && o.Type != fixture.OpBrotliBsdiff {
				return nil
			}
			here++
			b, err := apply(o.Data, o.Source)
			if err != nil {
				t.Errorf("%s: %v", p.Name, err)
			}
			return b
		})
		if checked {
			patches += here
		}
	}
	if t.Logf("%d patches", patches); patches < 70 {
		t.Errorf("expected 70 patches or more with a known target")
	}
}
