package bsdiff

import (
	"bytes"
	"errors"
	"testing"
)

// Who does not want a patch is told what would be in it, and gets none.
func TestWorth(t *testing.T) {
	source, target := bytes.Repeat([]byte("old and gone"), 1000), bytes.Repeat([]byte("new and here"), 1000)
	for _, worth := range []bool{true, false} {
		asked := 0
		var out bytes.Buffer
		err := Create(&out, source, target, Options{Worth: func(control, diff, extra []byte) bool {
			asked++
			if len(control)%24 != 0 || len(control) == 0 || len(diff)+len(extra) != len(target) {
				t.Errorf("expected triples and %d bytes, found %d bytes of control, %d and %d", len(target), len(control), len(diff), len(extra))
			}
			return worth
		}})
		if worth != (err == nil) || !worth && !errors.Is(err, ErrNotWorth) {
			t.Errorf("worth %v: found the error %v", worth, err)
		}
		if asked != 1 || (out.Len() > 0) != worth {
			t.Errorf("worth %v: asked %d times, %d bytes of patch", worth, asked, out.Len())
		}
	}
}
