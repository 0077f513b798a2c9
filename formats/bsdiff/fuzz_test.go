package bsdiff

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// limited is a target that has no place for more than a fuzzer should make.
type limited struct{ left, n int64 }

func (l *limited) Write(b []byte) (int, error) {
	if l.left -= int64(len(b)); l.left < 0 {
		return 0, errDevice
	}
	l.n += int64(len(b))
	return len(b), nil
}

// FuzzApply: a patch is refused, or makes as many bytes as it promised.
func FuzzApply(f *testing.F) {
	r := rand.New(rand.NewPCG(12, 13))
	for _, o := range []Options{{Legacy: true}, {Algorithms: []Algorithm{Brotli}, BrotliQuality: 9}, {Algorithms: []Algorithm{None}}} {
		source, target := pairOf(r, 200)
		f.Add(create(f, source, target, o), source)
	}
	f.Add(raw(4, [][3]int64{{0, 0, -2}, {4, 0, 0}}, "\x01\x02\x00\x00", ""), []byte("ABC"))
	f.Add(raw(2, [][3]int64{{0, 0, 1 << 62}, {1, 1, 1 << 62}}, "\x01", "x"), []byte("ABC"))
	f.Fuzz(func(t *testing.T, patch, source []byte) {
		p, err := Open(bytes.NewReader(patch), int64(len(patch)))
		if err != nil {
			return
		}
		w := limited{left: 1 << 20}
		if err := p.Apply(&w, bytes.NewReader(source), int64(len(source))); err == nil && w.n != p.TargetSize() {
			t.Fatalf("expected %d bytes, found %d", p.TargetSize(), w.n)
		}
	})
}

// FuzzCreate: any two strings have a patch, and it makes the second of the first.
func FuzzCreate(f *testing.F) {
	f.Add([]byte("the cat sat on the mat"), []byte("the mat sat on the cat"))
	f.Add([]byte{}, []byte("x"))
	f.Add(bytes.Repeat([]byte("ab"), 200), bytes.Repeat([]byte("abb"), 100))
	f.Fuzz(func(t *testing.T, source, target []byte) {
		for _, quick := range []bool{false, true} {
			patch := create(t, source, target, Options{Algorithms: []Algorithm{None}, Quick: quick})
			if got, err := apply(patch, source); err != nil || !bytes.Equal(got, target) {
				t.Fatalf("quick %v: expected %q, found %q, %v", quick, target, got, err)
			}
		}
	})
}
