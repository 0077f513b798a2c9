package puffin

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"testing"

	"cowbird/formats/bsdiff"
	"cowbird/tools/fixture/payloadops"
)

func apply(patch, source []byte) ([]byte, error) {
	p, err := Open(bytes.NewReader(patch), int64(len(patch)))
	if err != nil {
		return nil, err
	}
	var target bytes.Buffer
	err = p.Apply(&target, bytes.NewReader(source), int64(len(source)), ApplyOptions{})
	return target.Bytes(), err
}

func applyBsdiff(patch, source []byte) ([]byte, error) {
	p, err := bsdiff.Open(bytes.NewReader(patch), int64(len(patch)))
	if err != nil {
		return nil, err
	}
	var target bytes.Buffer
	err = p.Apply(&target, bytes.NewReader(source), int64(len(source)))
	return target.Bytes(), err
}

// Every patch of Android's own generator makes the target, whose checksum is
// known.
func TestFixtures(t *testing.T) {
	patches, bsdiffs, mixed, unchecked := 0, 0, 0, 0
	results := map[[2][32]byte][]byte{} // payloads share many of their patches
	for _, p := range payloadops.All(t) {
		here, bsdiffsHere := 0, 0
		checked := p.Check(t, func(o *payloadops.Op) (b []byte) {
			f := applyBsdiff
			switch {
			case o.Type == payloadops.SourceBSDiff || o.Type == payloadops.BrotliBSDiff:
				bsdiffsHere++
				if string(o.Blob[:5]) == "BSDF2" && (o.Blob[5] != o.Blob[6] || o.Blob[6] != o.Blob[7]) {
					mixed++
				}
			case o.Type == payloadops.PuffDiff && innerOf(t, o.Blob) == Bsdiff:
				here++
				f = apply
			default:
				return nil
			}
			key := [2][32]byte{sha256.Sum256(o.Blob), sha256.Sum256(o.Source)}
			if b, ok := results[key]; ok {
				return b
			}
			b, err := f(o.Blob, o.Source)
			if err != nil {
				t.Errorf("%s/%s: %v", p.Payload, p.Name, err)
			}
			results[key] = b
			return b
		})
		if !checked {
			unchecked += here
			t.Logf("%s/%s: %d puffin and %d bsdiff patches without a known target", p.Payload, p.Name, here, bsdiffsHere)
			continue
		}
		patches += here
		bsdiffs += bsdiffsHere
	}
	t.Logf("%d puffin and %d bsdiff patches, %d of these of mixed compression", patches, bsdiffs, mixed)
	if patches < 800 || mixed < 10 || unchecked > 0 {
		t.Errorf("expected 800 patches or more, 10 of mixed compression, and none without a target")
	}
}

func innerOf(t *testing.T, patch []byte) Inner {
	t.Helper()
	p, err := Open(bytes.NewReader(patch), int64(len(patch)))
	if err != nil {
		t.Fatal(err)
	}
	return p.Inner()
}

// A zucchini patch is not ours. The caller's function gets it decompressed, and
// views of source and target between which it belongs.
func TestFixtureZucchini(t *testing.T) {
	found := 0
	for _, p := range payloadops.All(t, payloadops.PuffDiff) {
		for _, o := range p.Ops {
			if o.Type != payloadops.PuffDiff || innerOf(t, o.Blob) != Zucchini {
				continue
			}
			found++
			checkZucchini(t, o)
		}
	}
	if found == 0 {
		t.Error("expected a puffin patch with a zucchini patch inside, found none")
	}
}

func checkZucchini(t *testing.T, o payloadops.Op) {
	t.Helper()
	p, err := Open(bytes.NewReader(o.Blob), int64(len(o.Blob)))
	if err != nil {
		t.Fatal(err)
	}
	source := bytes.NewReader(o.Source)
	called := false
	err = p.Apply(io.Discard, source, source.Size(), ApplyOptions{Zucchini: func(target io.Writer, targetSize int64, patch io.Reader, source io.ReaderAt, size int64) error {
		called = true
		b, err := io.ReadAll(patch)
		if err != nil || string(b[:4]) != "Zucc" {
			t.Errorf("expected a zucchini patch, found %d bytes, %v", len(b), err)
		}
		if n, err := io.Copy(io.Discard, io.NewSectionReader(source, 0, size)); n != size || err != nil {
			t.Errorf("puffed source: expected %d bytes, found %d, %v", size, n, err)
		}
		return errDevice
	}})
	if !called || !errors.Is(err, errDevice) {
		t.Errorf("expected the function's error, found %v", err)
	}
	if err := p.Apply(io.Discard, source, source.Size(), ApplyOptions{}); err == nil {
		t.Error("expected an error without a function, found none")
	}
}
