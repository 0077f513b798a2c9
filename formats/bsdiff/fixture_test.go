package bsdiff

import (
	"testing"

	"cowbird/tools/fixture"
)

// Every patch of Android's own generator makes the target, whose checksum is
// known.
func TestFixtures(t *testing.T) {
	patches, mixed, unchecked := 0, 0, 0
	for _, p := range fixture.Deltas(t) {
		here := 0
		ok := p.Check(t, func(o *fixture.DeltaOp) []byte {
			if o.Type != fixture.OpSourceBsdiff && o.Type != fixture.OpBrotliBsdiff {
				return nil
			}
			here++
			if a := string(o.Data[5:8]); a != "\x01\x01\x01" && a != "\x02\x02\x02" {
				mixed++
			}
			b, err := apply(o.Data, o.Source)
			if err != nil {
				t.Errorf("%s: %v", p.Name, err)
			}
			return b
		})
		if !ok {
			unchecked += here
		} else {
			patches += here
		}
	}
	t.Logf("%d patches, %d of mixed compression; %d more whose target the tests of puffin complete", patches, mixed, unchecked)
	if patches < 80 || mixed < 20 {
		t.Errorf("expected 80 patches or more with a known target, 20 of mixed compression")
	}
}
