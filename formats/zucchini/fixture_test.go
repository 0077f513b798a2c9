package zucchini_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"testing"

	"cowbird/formats/zucchini"
	"cowbird/tools/fixture/payloadops"
)

func parseBlob(t testing.TB, blob []byte) *zucchini.Patch {
	t.Helper()
	b, err := zucchini.Unpack(blob, 1<<26)
	if err != nil {
		t.Fatal(err)
	}
	p, err := zucchini.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Every ZUCCHINI operation of the fixtures is applied, and gives the target as
// the sidecar has it.
func TestFixtures(t *testing.T) {
	kinds := map[zucchini.Kind]int{}
	for _, p := range payloadops.All(t, payloadops.Zucchini) {
		t.Run(p.Payload+"/"+p.Name, func(t *testing.T) { applyAll(t, &p, kinds) })
	}
	for _, k := range []zucchini.Kind{zucchini.NoOp, zucchini.ElfX86, zucchini.ElfX64, zucchini.ElfARM, zucchini.ElfARM64} {
		if kinds[k] == 0 {
			t.Errorf("no element of kind %v", k)
		}
	}
	t.Log(kinds)
}

func applyAll(t *testing.T, p *payloadops.Partition, kinds map[zucchini.Kind]int) {
	image, whole := make([]byte, p.Size), true
	for i := range p.Ops {
		o := &p.Ops[i]
		var out []byte
		var err error
		if o.Type == payloadops.Zucchini {
			patch := parseBlob(t, o.Blob)
			for _, e := range patch.Elements {
				kinds[e.Kind]++
			}
			out, err = patch.Apply(o.Source, o.Size())
		} else {
			out, err = o.Plain()
		}
		if errors.Is(err, payloadops.ErrNoTool) {
			whole = false
			continue
		}
		if err != nil {
			t.Errorf("op %d of type %d: %v", i, o.Type, err)
			continue
		}
		o.Put(image, out)
	}
	if sum := sha256.Sum256(image); whole && hex.EncodeToString(sum[:]) != p.SHA256 {
		t.Errorf("target: expected SHA-256 %s, found %x", p.SHA256, sum)
	}
	if !whole {
		t.Log("target not compared: some operations are not done here")
	}
}
