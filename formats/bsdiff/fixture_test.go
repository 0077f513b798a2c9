package bsdiff

import (
	"slices"
	"testing"

	"cowbird/tools/fixture/payloadops"
)

// Every patch of Android's own generator makes the target, whose checksum is
// known; but the targets of payloads that have puffin patches as well are a test
// of package puffin.
func TestFixtures(t *testing.T) {
	patches := 0
	for _, p := range payloadops.All(t, payloadops.SourceBSDiff, payloadops.BrotliBSDiff) {
		if slices.ContainsFunc(p.Ops, func(o payloadops.Op) bool { return o.Type == payloadops.PuffDiff }) {
			continue
		}
		here := 0
		checked := p.Check(t, func(o *payloadops.Op) []byte {
			if o.Type != payloadops.SourceBSDiff && o.Type != payloadops.BrotliBSDiff {
				return nil
			}
			here++
			b, err := apply(o.Blob, o.Source)
			if err != nil {
				t.Errorf("%s/%s: %v", p.Payload, p.Name, err)
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
