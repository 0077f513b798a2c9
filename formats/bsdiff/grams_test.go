package bsdiff

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// Quick patches are right, and hardly larger.
func TestQuick(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 1))
	program, next := similar(300 << 10)
	noise := make([]byte, 100<<10)
	rand.NewChaCha8([32]byte{}).Read(noise)
	cases := map[string][2][]byte{"nothing": {nil, nil}, "no source": {nil, noise}, "no target": {noise, nil}, "seven bytes": {noise[:7], noise[:7]}, "same": {noise, noise},
		"zeros": {make([]byte, 1<<20), make([]byte, 1<<20+3)}, "program": {program, next}, "all of it once more": {noise, append(bytes.Clone(noise[5000:]), noise...)},
		"periods": {bytes.Repeat([]byte("abc"), 100_000), bytes.Repeat([]byte("abcabd"), 60_000)}}
	for i := range 5 {
		source, target := pairOf(r, 1000<<i)
		cases[string(rune('0'+i))] = [2][]byte{source, target}
	}
	for name, c := range cases {
		quick, best := create(t, c[0], c[1], Options{Quick: true, BrotliQuality: 5}), create(t, c[0], c[1], Options{BrotliQuality: 5})
		if got, err := apply(quick, c[0]); err != nil || !bytes.Equal(got, c[1]) {
			t.Errorf("%s: expected the target of %d bytes, found %d, %v", name, len(c[1]), len(got), err)
		}
		if most := len(best)*5/4 + 100; len(quick) > most {
			t.Errorf("%s: expected at most %d bytes, found %d; the best is %d", name, most, len(quick), len(best))
		}
	}
}
