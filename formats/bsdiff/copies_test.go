package bsdiff

import (
	"bytes"
	"testing"
)

// Copies are in order, and say where the target is nearly the source.
func TestCopies(t *testing.T) {
	source, target := similar(64 << 10)
	patch := create(t, source, target, Options{Algorithms: []Algorithm{None}})
	p, err := Open(bytes.NewReader(patch), int64(len(patch)))
	if err != nil {
		t.Fatal(err)
	}
	end, same, all := int64(0), 0, 0
	err = p.Copies(func(c Copy) {
		if c.Target < end || c.Length <= 0 || c.Target+c.Length > int64(len(target)) {
			t.Fatalf("expected copies in order within %d bytes, found %+v after %d", len(target), c, end)
		}
		end = c.Target + c.Length
		for i := range c.Length {
			if at := c.Source + i; at >= 0 && at < int64(len(source)) && source[at] == target[c.Target+i] {
				same++
			}
		}
		all += int(c.Length)
	})
	if err != nil || all == 0 || same < all*9/10 {
		t.Errorf("expected nine of ten bytes to be the same, found %d of %d, %v", same, all, err)
	}
	if err := (&Patch{r: bytes.NewReader(nil), targetSize: 1}).Copies(func(Copy) {}); err == nil {
		t.Error("expected an error where the control stream ends, found none")
	}
}
