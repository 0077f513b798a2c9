package puffin

import (
	"bytes"
	"io"
	"testing"

	"github.com/andybalholm/brotli"
)

// A zucchini patch without deflates around it is handed on with the files as they are.
func TestWrapZucchini(t *testing.T) {
	var packed, patch bytes.Buffer
	w := brotli.NewWriter(&packed)
	if _, err := io.WriteString(w, "Zucc, as it were"); err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	if err := WrapZucchini(&patch, 6, 11, packed.Bytes()); err != nil {
		t.Fatal(err)
	}
	p, err := Open(bytes.NewReader(patch.Bytes()), int64(patch.Len()))
	if err != nil || p.Inner() != Zucchini || p.SourceSize() != 6 || p.TargetSize() != 11 {
		t.Fatalf("expected a zucchini patch from 6 to 11 bytes, found %+v, %v", p, err)
	}
	var target bytes.Buffer
	err = p.Apply(&target, bytes.NewReader([]byte("source")), 6, ApplyOptions{Zucchini: func(target io.Writer, size int64, patch io.Reader, source io.ReaderAt, n int64) error {
		b, err := io.ReadAll(patch)
		if err != nil || string(b) != "Zucc, as it were" || size != 11 || n != 6 {
			t.Errorf("expected the patch, 11 and 6, found %q, %d, %d, %v", b, size, n, err)
		}
		_, err = io.WriteString(target, "the target.")
		return err
	}})
	if err != nil || target.String() != "the target." {
		t.Errorf("expected the target, found %q, %v", target.String(), err)
	}
	if err := WrapZucchini(broken{}, 6, 11, nil); err == nil {
		t.Error("a writer that fails: expected an error, found none")
	}
}
