package vbmeta

import (
	"bytes"
	"reflect"
	"testing"
)

// FuzzParse: metadata are refused, or say the same when they are written again.
func FuzzParse(f *testing.F) {
	for _, name := range []string{"all.vbmeta", "sha256_rsa2048.vbmeta"} {
		f.Add(golden(f, name))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := Parse(b)
		if err != nil {
			return
		}
		if v.Size() > int64(len(b)) || v.Size() > MaxSize {
			t.Fatalf("expected at most %d bytes, found %d", len(b), v.Size())
		}
		_, _ = v.VerifyEmbedded()
		out, err := Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(out)
		if err != nil || !reflect.DeepEqual(again.Descriptors, v.Descriptors) || !bytes.Equal(again.PublicKey, v.PublicKey) || again.Release != v.Release {
			t.Fatalf("expected the same, found %+v, %v", again, err)
		}
	})
}

// FuzzFooter: a footer is refused, or the metadata lie in the partition.
func FuzzFooter(f *testing.F) {
	f.Add((&Footer{0, 8192, 12288, 512}).encode(), int64(20480))
	f.Add((&Footer{3, 0, 0, HeaderSize}).encode(), int64(HeaderSize+FooterSize))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if len(b) < FooterSize || size < FooterSize {
			return
		}
		b = b[:FooterSize]
		footer, err := parseFooter(b, size)
		if err != nil {
			return
		}
		if footer.VBMetaOffset < 0 || footer.VBMetaSize < HeaderSize || footer.VBMetaOffset+footer.VBMetaSize > size-FooterSize || footer.OriginalImageSize > size {
			t.Fatalf("expected a footer within %d bytes, found %+v", size, footer)
		}
		if !bytes.Equal(footer.encode(), b) {
			t.Fatalf("expected %x, found %x", b, footer.encode())
		}
	})
}
