package lz4diff_test

import (
	"bytes"
	"errors"
	"testing"

	"cowbird/formats/lz4diff"
	"cowbird/tools/fixture/payloadops"
)

var options = lz4diff.Options{BSDiff: payloadops.BSPatch}

// Every LZ4DIFF operation of the fixtures with a bsdiff inside is applied, and
// gives the target as the sidecar has it. Those with a puffdiff inside are done
// up to there.
func TestFixtures(t *testing.T) {
	for _, p := range payloadops.All(t, payloadops.LZ4DiffBSDiff, payloadops.LZ4DiffPuff) {
		t.Run(p.Payload+"/"+p.Name, func(t *testing.T) { applyAll(t, &p) })
	}
}

func applyAll(t *testing.T, p *payloadops.Partition) {
	compared := p.Check(t, func(o *payloadops.Op) []byte {
		if o.Type != payloadops.LZ4DiffBSDiff && o.Type != payloadops.LZ4DiffPuff {
			return nil
		}
		out, err := applyOp(t, o)
		if err != nil && !errors.Is(err, lz4diff.ErrUnsupported) {
			t.Error(err)
		}
		return out
	})
	if !compared {
		t.Log("target not compared: some operations are not done here")
	}
}

func applyOp(t *testing.T, o *payloadops.Op) ([]byte, error) {
	patch, err := lz4diff.Parse(o.Blob)
	if err != nil {
		return nil, err
	}
	if again, err := patch.AppendTo(nil); err != nil || !bytes.Equal(again, o.Blob) {
		t.Errorf("patch of %d bytes became %d, %v", len(o.Blob), len(again), err)
	}
	want := lz4diff.BSDiff
	if o.Type == payloadops.LZ4DiffPuff {
		want = lz4diff.PuffDiff
	}
	if patch.Inner != want {
		t.Errorf("operation of type %d: expected %v, found %v", o.Type, want, patch.Inner)
	}
	return patch.Apply(o.Source, o.Size(), options)
}
