package bsdiff

import (
	"bytes"
	"errors"
	"math/rand/v2"
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

// What is done for eight bytes at a time is what it would be for each.
func TestWords(t *testing.T) {
	r := rand.New(rand.NewChaCha8([32]byte{}))
	for n := range 200 {
		source, target := make([]byte, n), make([]byte, n)
		for i := range source {
			source[i] = byte(r.Uint32())
			target[i] = source[i]
			if r.IntN(1+n) < 20 {
				target[i] = byte(r.Uint32())
			}
		}
		diff := make([]byte, n)
		subtract(diff, target, source)
		sum, best, far := 0, 0, 0
		back, backBest, near := 0, 0, 0
		for i := range n {
			if diff[i] != target[i]-source[i] {
				t.Fatalf("byte %d of %d: expected %d - %d, found %d", i, n, target[i], source[i], diff[i])
			}
			if sum += gain(source[i], target[i]); sum > best {
				best, far = sum, i+1
			}
			if back += gain(source[n-1-i], target[n-1-i]); back > backBest {
				backBest, near = back, i+1
			}
		}
		d := differ{source: source, target: target}
		if got := d.forward(n); got != far {
			t.Errorf("%d bytes, forward: expected %d, found %d", n, far, got)
		}
		if got := d.backward(match{scan: n, pos: n}); got != near {
			t.Errorf("%d bytes, backward: expected %d, found %d", n, near, got)
		}
	}
}

func gain(a, b byte) int {
	if a == b {
		return 1
	}
	return -1
}
