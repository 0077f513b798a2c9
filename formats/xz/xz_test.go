package xz

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"

	"github.com/mikelolasagasti/xz"
)

func samples(t testing.TB) map[string][]byte {
	noise := make([]byte, 300<<10)
	rand.NewChaCha8([32]byte{}).Read(noise)
	text := bytes.Repeat([]byte("what is coded as a match, and what as a repeat? "), 3000)
	mixed := bytes.Clone(text)
	r := rand.New(rand.NewPCG(1, 2))
	for range 4000 {
		mixed[r.IntN(len(mixed))] = byte(r.Uint32())
	}
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{"nothing": nil, "a byte": {7}, "two": {7, 7}, "few": []byte("abcabcabc"), "zeros": make([]byte, 3<<20), "noise": noise,
		"text": text, "mixed": mixed, "noise in text": append(append(bytes.Clone(text), noise...), mixed...), "noise first": append(bytes.Clone(noise), text...),
		"program": program[:min(len(program), 3<<20)]}
}

func TestRoundTrip(t *testing.T) {
	var e Encoder
	for name, data := range samples(t) {
		for _, level := range []Level{Fast, Best} {
			out := e.Append([]byte("before"), data, level)[6:]
			r, err := xz.NewReader(bytes.NewReader(out), MaxDictionary)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s, level %d: expected the %d bytes back, found %d, %v", name, level, len(data), len(got), err)
			}
			if again := new(Encoder).Append(nil, data, level); !bytes.Equal(again, out) {
				t.Errorf("%s, level %d: expected the same bytes from another encoder", name, level)
			}
			if most := len(data) + len(data)/65536*3 + 80; len(out) > most {
				t.Errorf("%s, level %d: expected at most %d bytes, found %d", name, level, most, len(out))
			}
		}
	}
}

// Debian's xz takes them, and is not much better.
func TestTool(t *testing.T) {
	if _, err := exec.LookPath("xz"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("no xz")
	}
	var e Encoder
	for name, data := range samples(t) {
		for _, level := range []Level{Fast, Best} {
			out := e.Append(nil, data, level)
			cmd := exec.Command("xz", "-dc")
			cmd.Stdin = bytes.NewReader(out)
			got, err := cmd.Output()
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s, level %d: expected the %d bytes back, found %d, %v", name, level, len(data), len(got), err)
			}
		}
	}
}
