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

// All of a crew take part, and it does not show: texts longer than several blocks, among
// them such as have runs of one type, or of one character, over the ends of blocks.
func TestSuffixesOfCrews(t *testing.T) {
	const n = 5*block + 1234
	r := rand.New(rand.NewPCG(3, 4))
	random, runs, falling, period := make([]byte, n), make([]byte, n), make([]byte, n), make([]byte, n)
	for i := range n {
		random[i] = byte(r.IntN(7))
		falling[i] = byte(255 - i*255/n)
		period[i] = byte(i % 3 * 7)
	}
	for i := 0; i < n; {
		c := byte(r.IntN(3))
		for range 1 + r.IntN(2*block) {
			if i < n {
				runs[i] = c
				i++
			}
		}
	}
	for name, text := range map[string][]byte{
		"random": random, "zeros": make([]byte, n), "runs": runs, "falling": falling, "period": period,
		"rising": falling[:block+1], "blocks": bytes.Repeat(random[:4096], n/4096),
	} {
		if name == "rising" {
			slices.Reverse(text)
		}
		for _, w := range []crew{1, 2, 3, 7} {
			sa := make([]int32, len(text))
			induce(text, sa, 256, w)
			areSorted(t, text, sa)
			if t.Failed() {
				t.Fatalf("%s, a crew of %d", name, w)
			}
		}
	}
}

// areSorted checks in linear time: a suffix sorts before another if its first character
// is less, or the same and what follows it sorts before.
func areSorted(t *testing.T, text []byte, sa []int32) {
	t.Helper()
	rank := make([]int, len(text)+1)
	for i := range rank {
		rank[i] = -1
	}
	for i, j := range sa {
		if j < 0 || int(j) >= len(text) || rank[j] >= 0 {
			t.Errorf("place %d: expected a position that was not there yet, found %d", i, j)
			return
		}
		rank[j] = i
	}
	for i := 1; i < len(sa); i++ {
		a, b := sa[i-1], sa[i]
		if text[a] > text[b] || text[a] == text[b] && rank[a+1] >= rank[b+1] {
			t.Errorf("places %d and %d: expected order, found positions %d and %d", i-1, i, a, b)
			return
		}
	}
}
