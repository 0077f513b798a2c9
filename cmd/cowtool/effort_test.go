package main

import (
	"bytes"
	"context"
	"math/rand/v2"
	"strings"
	"testing"

	"cowbird/cow"
	"cowbird/formats/cowfile"
)

// shifted are a base and a target of which the second half has moved by some bytes.
func shifted() (base, target []byte) {
	r := rand.New(rand.NewPCG(3, 4))
	base = make([]byte, 200*cowfile.BlockSize)
	for i := range base {
		base[i] = byte(r.Uint32())
	}
	half := len(base) / 2
	target = append(append(bytes.Clone(base[:half]), "inserted"...), base[half:]...)
	return base, target[:len(base)]
}

// Each effort makes a COW of the target, and more of it a smaller one.
func TestEffort(t *testing.T) {
	base, target := shifted()
	sizes := map[string]int64{}
	nothing := func(string) bool { return false }
	for _, effort := range efforts {
		f, err := (&form{compression: "zstd", format: "v3", unit: 64 << 10, given: nothing}).parse()
		if err != nil {
			t.Fatal(err)
		}
		b := cow.BuildOptions{Version: f.version, Compression: f.compression, MaxUnit: f.unit,
			Base: cow.Image{R: bytes.NewReader(base), Size: int64(len(base))}, Target: cow.Image{R: bytes.NewReader(target), Size: int64(len(target))}}
		if err := setEffort(&b, f, effort, nothing); err != nil {
			t.Fatal(err)
		}
		if want := map[string]uint32{"max": maxScratch}[effort]; b.ScratchSize != want {
			t.Errorf("%s: expected a scratch area of %d bytes, found %d", effort, want, b.ScratchSize)
		}
		x := newExplainer(useFiles(&b), b.MaxUnit)
		b.OnOp = x.op
		stats, err := cow.Build(context.Background(), cow.Nowhere, b)
		if err != nil {
			t.Fatal(err)
		}
		sizes[effort] = stats.CowSize
		e := x.finish(stats)
		if sum := e.HeaderBytes + e.TableBytes + e.DeltaBytes + e.CycleBytes + e.NewBytes; sum != stats.CowSize {
			t.Errorf("%s: expected causes of %d bytes, found %d", effort, stats.CowSize, sum)
		}
		if sum := e.OfVersions + e.OfNew + e.OfNone; sum != e.DeltaBytes+e.CycleBytes+e.NewBytes {
			t.Errorf("%s: expected files of %d bytes, found %d", effort, e.DeltaBytes+e.CycleBytes+e.NewBytes, sum)
		}
		var text strings.Builder
		if err := e.print(&text); err != nil || !strings.Contains(text.String(), "new data") {
			t.Errorf("%s: found %v, %s", effort, err, text.String())
		}
	}
	if fast, most := sizes["fast"], sizes["max"]; sizes["default"] > fast-300<<10 || most > sizes["default"] {
		t.Errorf("expected much less with more effort, found %v", sizes)
	}
	if err := setEffort(&cow.BuildOptions{}, parsedForm{}, "most", nothing); err == nil {
		t.Error("effort most: expected an error, found none")
	}
}
