//go:build !race

package bsdiff

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// What an encoder did before does not show: streams shorter and longer than those for
// which it chooses other tables.
func TestEncodersForget(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 9))
	var streams [][]byte
	for _, n := range []int{0, 1, 100, 3000, 70_000, largeStream - 1, largeStream, largeStream + 5000, 200} {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.IntN(4) * r.IntN(2) * r.IntN(70))
		}
		streams = append(streams, b)
	}
	for _, a := range []Algorithm{Brotli, Bzip2} {
		const quality = 5
		o := Options{BrotliQuality: quality}
		for _, i := range r.Perm(len(streams)) {
			b := streams[i]
			kept, err := o.pack(a, b)
			if err != nil {
				t.Fatal(err)
			}
			w, err := encoderKind{a, quality, len(b) >= largeStream}.open()
			if err != nil {
				t.Fatal(err)
			}
			var fresh bytes.Buffer
			w.Reset(&fresh)
			if _, err := w.Write(b); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(kept, fresh.Bytes()) {
				t.Fatalf("%v, quality %d, %d bytes: expected the bytes of a new encoder, found others", a, quality, len(b))
			}
		}
	}
}
