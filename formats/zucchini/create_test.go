package zucchini_test

import (
	"bytes"
	"testing"

	"cowbird/formats/zucchini"
	"cowbird/tools/fixture/payloadops"
)

// roundTrip makes a patch and applies it. It returns the patch packed.
func roundTrip(t testing.TB, source, target []byte) (*zucchini.Patch, []byte) {
	t.Helper()
	made, err := zucchini.Create(source, target)
	if err != nil {
		t.Fatal(err)
	}
	b := made.AppendTo(nil)
	blob, err := zucchini.Pack(b)
	if err != nil {
		t.Fatal(err)
	}
	p := parseBlob(t, blob)
	if again := p.AppendTo(nil); !bytes.Equal(again, b) {
		t.Fatalf("patch of %d bytes became %d", len(b), len(again))
	}
	got, err := p.Apply(source, int64(len(target)))
	if err != nil || !bytes.Equal(got, target) {
		t.Fatalf("target of %d bytes became %d, %v", len(target), len(got), err)
	}
	return p, blob
}

// What Android's generator has made patches of, ours can make patches of, for
// the same kinds of elements and of about the same size.
func TestCreateAsFixtures(t *testing.T) {
	for _, part := range payloadops.All(t, payloadops.Zucchini) {
		for i := range part.Ops {
			o := &part.Ops[i]
			if o.Type != payloadops.Zucchini {
				continue
			}
			theirs := parseBlob(t, o.Blob)
			target, err := theirs.Apply(o.Source, o.Size())
			if err != nil {
				t.Fatal(err)
			}
			ours, blob := roundTrip(t, o.Source, target)
			t.Logf("%s op %d: %v %d bytes as %v %d", part.Payload, i, kinds(theirs), len(o.Blob), kinds(ours), len(blob))
		}
	}
}

func kinds(p *zucchini.Patch) (all []string) {
	for _, e := range p.Elements {
		all = append(all, e.Kind.String())
	}
	return all
}
