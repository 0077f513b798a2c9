package zucchini_test

import (
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
	compared := p.Check(t, func(o *payloadops.Op) []byte {
		if o.Type != payloadops.Zucchini {
			return nil
		}
		patch := parseBlob(t, o.Blob)
		for _, e := range patch.Elements {
			kinds[e.Kind]++
		}
		out, err := patch.Apply(o.Source, o.Size())
		if err != nil {
			t.Error(err)
		}
		return out
	})
	if !compared {
		t.Log("target not compared: some operations are not done here")
	}
}
