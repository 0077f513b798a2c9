package puffin

import (
	"bytes"
	"image"
	"image/color"
	"image/png"
	"testing"
)

// The stream of a PNG image is found where it is one chunk.
func TestFindPNG(t *testing.T) {
	picture := func(n int) []byte {
		m := image.NewGray(image.Rect(0, 0, n, n))
		for i := range m.Pix {
			m.Pix[i] = uint8(uint32(i*i) * 2654435761 >> 28)
		}
		m.Set(1, 1, color.White)
		var b bytes.Buffer
		if err := png.Encode(&b, m); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	small := picture(40)
	blocks := FindPNG(small)
	if len(blocks) == 0 {
		t.Fatal("expected blocks, found none")
	}
	for _, e := range blocks {
		if !Reproducible(small, e) {
			t.Errorf("%+v: expected it to be made again, found that it is not", e)
		}
		if at := bytes.Index(small, []byte("IDAT")); e.Offset < uint64(at+4)*8 || e.End() > uint64(len(small))*8 {
			t.Errorf("expected the blocks behind byte %d, found %+v", at+4, e)
		}
	}
	for what, b := range map[string][]byte{"several chunks": picture(700), "nothing": nil, "no picture": []byte("PNG"), "cut": small[:60], "magic": small[:8]} {
		if got := FindPNG(b); len(got) != 0 {
			t.Errorf("%s: expected no blocks, found %v", what, got)
		}
	}
}
