package bsdiff

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"sort"
	"testing"
)

func checkSuffixes[T index](t *testing.T, text []byte) {
	t.Helper()
	got := suffixes[T](text)
	want := make([]T, len(text))
	for i := range want {
		want[i] = T(i)
	}
	sort.Slice(want, func(a, b int) bool { return bytes.Compare(text[want[a]:], text[want[b]:]) < 0 })
	if !slices.Equal(got, want) {
		t.Fatalf("%q (%d bytes): expected %v, found %v", text[:min(len(text), 100)], len(text), want[:min(len(want), 50)], got[:min(len(got), 50)])
	}
}

func TestSuffixes(t *testing.T) {
	for _, s := range []string{"", "a", "ab", "ba", "aa", "aba", "bab", "mississippi", "aaaaaaaaaa", "abababababab", "abcabcabcab", "\x00\x00\xff\x00"} {
		checkSuffixes[int32](t, []byte(s))
		checkSuffixes[int64](t, []byte(s))
	}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 3000 {
		text := make([]byte, r.IntN(300))
		letters := 1 + i%5
		if i%7 == 0 {
			letters = 256
		}
		for j := range text {
			text[j] = byte(r.IntN(letters))
		}
		if n := len(text); n > 20 && i%3 == 0 { // repeats make it recurse deeply
			for j := n / 8; j < n; j++ {
				text[j] = text[j-n/8]
			}
		}
		checkSuffixes[int32](t, text)
		checkSuffixes[int64](t, text)
	}
}
