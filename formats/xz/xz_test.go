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
	noise := make([]byte, 150<<10)
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
		"program": program[:min(len(program), 400<<10)]}
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

// Debian's xz takes them, and is not much better: with -6 by 5 % of the best, and 15 %
// of the fast.
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
			cmd = exec.Command("xz", "-6", "-c", "--check=crc32")
			cmd.Stdin = bytes.NewReader(data)
			theirs, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s, level %d: %d bytes, xz -6 makes %d", name, level, len(out), len(theirs))
			if most := len(theirs)*map[Level]int{Fast: 115, Best: 105}[level]/100 + 200; len(out) > most {
				t.Errorf("%s, level %d: expected at most %d bytes, found %d", name, level, most, len(out))
			}
		}
	}
}

// The dictionary is the least that holds the data, and no more than decoders have.
func TestDictionary(t *testing.T) {
	for n, want := range map[int]int{0: 4096, 4096: 4096, 4097: 6144, 6145: 8192, 2 << 20: 2 << 20, MaxDictionary: MaxDictionary} {
		if got := dictionarySize(dictionaryByte(n)); got != want {
			t.Errorf("%d bytes: expected a dictionary of %d, found %d", n, want, got)
		}
	}
}

// What lies further back than the dictionary is not used.
func TestFar(t *testing.T) {
	data := make([]byte, 200<<10)
	rand.NewChaCha8([32]byte{}).Read(data[:100<<10])
	copy(data[100<<10:], data)
	for _, level := range []Level{Fast, Best} {
		var e Encoder
		if n := len(e.lzma2(nil, data, 64<<10, level)); n < 200<<10 {
			t.Errorf("level %d: expected nothing to be found, found %d bytes", level, n)
		}
		if n := len(e.lzma2(nil, data, 128<<10, level)); n > 102<<10 {
			t.Errorf("level %d: expected half of it to be found, found %d bytes", level, n)
		}
	}
}

// FuzzAppend takes any data there and back.
func FuzzAppend(f *testing.F) {
	f.Add([]byte(nil), 1)
	f.Add([]byte("abcabcabcabcabcab"), 70000)
	f.Add([]byte{0}, 9000)
	f.Add([]byte("\x00\xff\x00\x01\x02\xff\xff\xff\xff\xff\xff\xff"), 300)
	f.Fuzz(func(t *testing.T, data []byte, times int) {
		if times < 1 || len(data) > 1<<12 || times*len(data) > 1<<17 {
			return
		}
		all := bytes.Repeat(data, times)
		for i := range len(all) / 97 { // not quite the same each time
			all[i*97] += byte(i)
		}
		var e Encoder
		for _, level := range []Level{Fast, Best} {
			r, err := xz.NewReader(bytes.NewReader(e.Append(nil, all, level)), MaxDictionary)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, all) {
				t.Errorf("level %d: expected %d bytes, found %d, %v", level, len(all), len(got), err)
			}
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	data := samples(b)["program"]
	for name, level := range map[string]Level{"fast": Fast, "best": Best} {
		b.Run(name, func(b *testing.B) {
			var e Encoder
			b.SetBytes(int64(len(data)))
			var out []byte
			for b.Loop() {
				out = e.Append(out[:0], data, level)
			}
			b.ReportMetric(float64(len(out))/float64(len(data)), "ratio")
		})
	}
}
