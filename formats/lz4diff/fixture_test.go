package lz4diff_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
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
	image, whole := make([]byte, p.Size), true
	for i := range p.Ops {
		o := &p.Ops[i]
		var out []byte
		var err error
		switch o.Type {
		case payloadops.LZ4DiffBSDiff, payloadops.LZ4DiffPuff:
			out, err = applyOp(t, o)
		default:
			out, err = o.Plain()
		}
		if errors.Is(err, payloadops.ErrNoTool) || errors.Is(err, lz4diff.ErrUnsupported) {
			whole = false
			continue
		}
		if err != nil {
			t.Fatalf("op %d of type %d: %v", i, o.Type, err)
		}
		o.Put(image, out)
	}
	if sum := sha256.Sum256(image); whole && hex.EncodeToString(sum[:]) != p.SHA256 {
		t.Fatalf("target: expected SHA-256 %s, found %x", p.SHA256, sum)
	}
	if !whole {
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
