package zucchini_test

import (
	"bytes"
	"slices"
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
	blob, err := zucchini.Pack(b, 9)
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
	seen := map[uint32]bool{}
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
			if seen[theirs.TargetCRC] { // several fixtures have the same files
				continue
			}
			seen[theirs.TargetCRC] = true
			ours, blob := roundTrip(t, o.Source, target)
			if want, found := kinds(theirs), kinds(ours); !slices.Equal(want, found) {
				t.Errorf("%s op %d: expected elements of kinds %v, found %v", part.Payload, i, want, found)
			}
			if len(blob) > len(o.Blob)*11/10+20 {
				t.Errorf("%s op %d: expected about %d bytes, found %d", part.Payload, i, len(o.Blob), len(blob))
			}
			t.Logf("%s op %d: %v: %d bytes, Android's %d", part.Payload, i, kinds(ours), len(blob), len(o.Blob))
		}
	}
}

func kinds(p *zucchini.Patch) (all []string) {
	for _, e := range p.Elements {
		all = append(all, e.Kind.String())
	}
	return all
}

func BenchmarkApply(b *testing.B) { benchmark(b, false) }

func BenchmarkCreate(b *testing.B) { benchmark(b, true) }

func benchmark(b *testing.B, create bool) {
	for _, part := range payloadops.All(b, payloadops.Zucchini) {
		if part.Payload != "hand_zucchini_arches" {
			continue
		}
		for i := range part.Ops {
			o := &part.Ops[i]
			p := parseBlob(b, o.Blob)
			target, err := p.Apply(o.Source, o.Size())
			if err != nil {
				b.Fatal(err)
			}
			b.Run(p.Elements[0].Kind.String(), func(b *testing.B) {
				b.SetBytes(o.Size())
				b.ReportAllocs()
				for b.Loop() {
					if create {
						_, err = zucchini.Create(o.Source, target)
					} else {
						_, err = p.Apply(o.Source, o.Size())
					}
					if err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
