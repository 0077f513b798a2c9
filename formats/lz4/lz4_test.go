package lz4_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	pierrec "github.com/pierrec/lz4/v4"

	"cowbird/formats/lz4"
)

// encoders are one of each kind, new with every call.
func encoders(t testing.TB) map[string]*lz4.Encoder {
	t.Helper()
	all := map[string]*lz4.Encoder{}
	for _, a := range []int{1, 9, lz4.MaxAcceleration} {
		all[fmt.Sprintf("fast%d", a)] = fast(t, a)
	}
	for level := lz4.MinHigh; level <= lz4.MaxHigh; level++ {
		all[fmt.Sprintf("high%d", level)] = high(t, level)
	}
	return all
}

func fast(t testing.TB, acceleration int) *lz4.Encoder {
	t.Helper()
	e, err := lz4.NewFast(acceleration)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func high(t testing.TB, level int) *lz4.Encoder {
	t.Helper()
	e, err := lz4.NewHigh(level)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func encode(t testing.TB, e *lz4.Encoder, src []byte) []byte {
	t.Helper()
	block, err := e.Encode(nil, src)
	if err != nil {
		t.Fatal(err)
	}
	return block
}

// kinds make n bytes each.
var kinds = map[string]func(rnd *rand.Rand, n int) []byte{
	"random": func(rnd *rand.Rand, n int) []byte { return fill(rnd, n, 256, 0) },
	"bits":   func(rnd *rand.Rand, n int) []byte { return fill(rnd, n, 2, 0) },
	"zeros":  func(rnd *rand.Rand, n int) []byte { return make([]byte, n) },
	"runs":   func(rnd *rand.Rand, n int) []byte { return fill(rnd, n, 3, 400) },
	"copies": func(rnd *rand.Rand, n int) []byte { return fill(rnd, n, 256, 40) },
}

// fill makes literals of so many values, mixed with runs and copies of less
// than longest bytes.
func fill(rnd *rand.Rand, n, values, longest int) []byte {
	b := make([]byte, n)
	for i := 0; i < n; {
		if longest == 0 || i == 0 || rnd.IntN(3) == 0 {
			b[i] = byte(rnd.IntN(values))
			i++
			continue
		}
		back := 1 + rnd.IntN(i)
		if rnd.IntN(3) == 0 {
			back = 1
		}
		for left := 1 + rnd.IntN(longest); left > 0 && i < n; left-- {
			b[i] = b[i-back]
			i++
		}
	}
	return b
}

// inputs are those of every length up to 300 and some around what the search
// treats specially.
func inputs() [][]byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	var all [][]byte
	for _, kind := range []string{"random", "bits", "zeros", "runs", "copies"} {
		for n := range 301 {
			all = append(all, kinds[kind](rnd, n))
		}
		all = append(all, kinds[kind](rnd, 4096))
	}
	for _, n := range []int{65535, 65536, 65546, 65547, 65548, 140_000} {
		all = append(all, kinds["random"](rnd, n), kinds["copies"](rnd, n))
	}
	return append(all, make([]byte, 140_000))
}

func TestRoundTrip(t *testing.T) {
	all := inputs()
	for name, e := range encoders(t) {
		t.Run(name, func(t *testing.T) {
			for _, src := range all {
				out, err := e.Encode([]byte("before"), src)
				block, kept := bytes.CutPrefix(out, []byte("before"))
				if err != nil || !kept {
					t.Fatalf("%d bytes: expected to append, found %.20q, %v", len(src), out, err)
				}
				if len(block) > lz4.Bound(len(src)) {
					t.Fatalf("%d bytes: expected at most %d, found %d", len(src), lz4.Bound(len(src)), len(block))
				}
				checkBlock(t, block, src)
			}
		})
	}
}

// checkBlock decodes block and holds it to the rules for the end of one.
func checkBlock(t testing.TB, block, src []byte) {
	t.Helper()
	unit := make([]byte, len(src))
	n, err := pierrec.UncompressBlock(block, unit)
	if err != nil || n != len(src) || !bytes.Equal(unit, src) {
		t.Fatalf("%d bytes: decoded %d other ones, %v", len(src), n, err)
	}
	at := 0
	for {
		token := block[0]
		lits, rest := length(block[1:], int(token>>4))
		at += lits
		if block = rest[lits:]; len(block) == 0 {
			if at != len(src) || at > lits && lits < 5 {
				t.Fatalf("%d bytes: expected them to end with 5 literals, found %d up to %d", len(src), lits, at)
			}
			return
		}
		if at+12 > len(src) {
			t.Fatalf("%d bytes: expected no match in the last 12, found one at %d", len(src), at)
		}
		var more int
		more, block = length(block[2:], int(token&15))
		at += 4 + more
	}
}

func length(b []byte, nibble int) (n int, rest []byte) {
	if n = nibble; n < 15 {
		return n, b
	}
	for i, c := range b {
		if n += int(c); c < 255 {
			return n, b[i+1:]
		}
	}
	return n, nil
}

// What an encoder has seen before does not show.
func TestSameBytes(t *testing.T) {
	var all [][]byte
	for _, src := range inputs() {
		if n := len(src); n == 300 || n == 4096 || n == 65547 {
			all = append(all, src)
		}
	}
	used := encoders(t)
	for i, src := range all {
		for name, e := range encoders(t) {
			if !bytes.Equal(encode(t, e, src), encode(t, used[name], src)) {
				t.Errorf("%s: input %d of %d bytes: other bytes after others", name, i, len(src))
			}
		}
	}
}

// More effort is not in vain.
func TestLevelsShrink(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	var src []byte
	for range 20 {
		src = append(src, kinds["copies"](rnd, 3000)...)
		src = append(src, kinds["runs"](rnd, 3000)...)
	}
	last := len(encode(t, fast(t, 1), src))
	for _, level := range []int{3, 5, 9, 12} {
		n := len(encode(t, high(t, level), src))
		if n >= last {
			t.Errorf("level %d: expected less than %d bytes, found %d", level, last, n)
		}
		last = n
	}
}

// Fill takes a prefix, keeps to the room, and everything if there is enough.
func TestFill(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	for name, e := range encoders(t) {
		for kind, make := range kinds {
			for _, n := range []int{0, 1, 12, 13, 40, 300} {
				src := make(rnd, n)
				fillAll(t, name+" "+kind, e, src)
			}
		}
	}
}

func fillAll(t *testing.T, name string, e *lz4.Encoder, src []byte) {
	t.Helper()
	whole := encode(t, e, src)
	for room := range lz4.Bound(len(src)) + 1 {
		dst := make([]byte, room+1)
		dst[room] = 0xaa
		taken, n, err := e.Fill(dst[:room:room], src)
		if err != nil || n > room || taken > len(src) || dst[room] != 0xaa || n == 0 && room > 0 {
			t.Fatalf("%s: room for %d: expected no more, found %d bytes that hold %d, %v", name, room, n, taken, err)
		}
		if room == 0 {
			continue
		}
		unit := make([]byte, taken)
		if got, err := pierrec.UncompressBlock(dst[:n], unit); err != nil || got != taken || !bytes.Equal(unit, src[:taken]) {
			t.Fatalf("%s: room for %d: decoded %d bytes of %d, %v", name, room, got, taken, err)
		}
		if room == lz4.Bound(len(src)) && !bytes.Equal(dst[:n], whole) {
			t.Fatalf("%s: expected the whole block in %d bytes, found another", name, room)
		}
	}
}

func TestRefused(t *testing.T) {
	for _, a := range []int{-1, 0, lz4.MaxAcceleration + 1} {
		if _, err := lz4.NewFast(a); !errors.Is(err, lz4.ErrLevel) {
			t.Errorf("acceleration %d: expected ErrLevel, found %v", a, err)
		}
	}
	for _, level := range []int{-3, 0, 2, 13} {
		if _, err := lz4.NewHigh(level); !errors.Is(err, lz4.ErrLevel) {
			t.Errorf("level %d: expected ErrLevel, found %v", level, err)
		}
	}
}

func FuzzEncode(f *testing.F) {
	rnd := rand.New(rand.NewPCG(7, 8))
	for i, kind := range []string{"random", "bits", "zeros", "runs", "copies"} {
		f.Add(uint8(3*i), uint16(40*i), kinds[kind](rnd, 200))
	}
	f.Fuzz(func(t *testing.T, level uint8, room uint16, src []byte) {
		e := fast(t, 1+int(level))
		if level %= lz4.MaxHigh + 1; level >= lz4.MinHigh {
			e = high(t, int(level))
		}
		checkBlock(t, encode(t, e, src), src)
		dst := make([]byte, room)
		taken, n, err := e.Fill(dst, src)
		if err != nil || n > len(dst) || taken > len(src) {
			t.Fatalf("room for %d: expected no more, found %d bytes that hold %d of %d, %v", room, n, taken, len(src), err)
		}
		if n > 0 {
			unit := make([]byte, taken)
			if got, err := pierrec.UncompressBlock(dst[:n], unit); err != nil || got != taken || !bytes.Equal(unit, src[:taken]) {
				t.Fatalf("room for %d: decoded %d bytes of %d, %v", room, got, taken, err)
			}
		}
	})
}
