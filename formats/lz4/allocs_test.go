//go:build !race

package lz4_test

import (
	"math/rand/v2"
	"testing"

	"cowbird/formats/lz4"
)

func TestNoAllocations(t *testing.T) {
	for _, n := range []int{4096, 70_000} {
		src := kinds["copies"](rand.New(rand.NewPCG(9, 10)), n)
		dst := make([]byte, lz4.Bound(n))
		for name, e := range encoders(t) {
			found := testing.AllocsPerRun(3, func() {
				if _, err := e.Encode(dst[:0], src); err != nil {
					t.Fatal(err)
				}
				if _, _, err := e.Fill(dst[:n/3], src); err != nil {
					t.Fatal(err)
				}
			})
			if found != 0 {
				t.Errorf("%s: %d bytes: expected no allocation, found %v", name, n, found)
			}
		}
	}
}
