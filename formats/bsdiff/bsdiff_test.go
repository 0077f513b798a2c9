package bsdiff

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"runtime"
	"testing"

	"pgregory.net/rapid"
)

func apply(patch, source []byte) ([]byte, error) {
	p, err := Open(bytes.NewReader(patch), int64(len(patch)))
	if err != nil {
		return nil, err
	}
	var target bytes.Buffer
	err = p.Apply(&target, bytes.NewReader(source), int64(len(source)))
	if err == nil && int64(target.Len()) != p.TargetSize() {
		err = fmt.Errorf("%d bytes written, %d promised", target.Len(), p.TargetSize())
	}
	return target.Bytes(), err
}

func create(t testing.TB, source, target []byte, o Options) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Create(&b, source, target, o); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// pairOf makes a source and a target that is like it: moved, edited, longer.
func pairOf(r *rand.Rand, size int) (source, target []byte) {
	source = make([]byte, size)
	letters := 2 + r.IntN(255)
	for i := range source {
		source[i] = byte(r.IntN(letters))
	}
	for len(target) < size {
		switch n := 1 + r.IntN(size/4+1); r.IntN(4) {
		case 0:
			for range n / 8 {
				target = append(target, byte(r.IntN(256)))
			}
		default:
			from := r.IntN(size)
			piece := bytes.Clone(source[from:min(size, from+n)])
			for range r.IntN(len(piece)/16 + 2) {
				piece[r.IntN(len(piece))] += byte(r.IntN(3))
			}
			target = append(target, piece...)
		}
	}
	return source, target
}

func TestRoundTrip(t *testing.T) {
	options := []Options{{Legacy: true}, {BrotliQuality: 3}, {Algorithms: []Algorithm{Brotli}, BrotliQuality: 1},
		{Algorithms: []Algorithm{None}}, {Algorithms: []Algorithm{Bzip2, None, Brotli}, BrotliQuality: 2}}
	r := rand.New(rand.NewPCG(3, 4))
	check := func(source, target []byte, o Options) []byte {
		t.Helper()
		patch := create(t, source, target, o)
		got, err := apply(patch, source)
		if err != nil || !bytes.Equal(got, target) {
			t.Fatalf("%d to %d bytes, %+v: %v", len(source), len(target), o, err)
		}
		if !bytes.Equal(patch, create(t, source, target, o)) {
			t.Fatal("two patches of the same input differ")
		}
		return patch
	}
	for i := range 30 {
		source, target := pairOf(r, 1+r.IntN(10000))
		check(source, target, options[i%len(options)])
	}
	for _, o := range options {
		source, target := pairOf(r, 3000)
		check(nil, nil, o)
		check(nil, target, o)
		check(source, nil, o)
		check(source, source, o)
		check(source[:1], source[:1], o)
		check(make([]byte, 50000), make([]byte, 50001), o)
	}
	source, target := pairOf(r, 1<<18)
	if patch := check(source, target, options[1]); len(patch) > len(target)/2 {
		t.Errorf("expected a patch much smaller than its target, found %d of %d bytes", len(patch), len(target))
	}
}

// What Create makes keeps every range inside of the source: Android's bspatch
// fails on others (specs/payload.md 7).
func TestCreateStaysInside(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		source, target := pairOf(rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 5)), rapid.IntRange(1, 3000).Draw(t, "size"))
		var b bytes.Buffer
		if err := Create(&b, source, target, Options{Algorithms: []Algorithm{None}}); err != nil {
			t.Fatal(err)
		}
		control := b.Bytes()[HeaderSize:][:parseInt(b.Bytes()[8:])]
		var pos int64
		for ; len(control) > 0; control = control[24:] {
			if pos += parseInt(control); pos > int64(len(source)) {
				t.Fatalf("a range ends at %d of %d", pos, len(source))
			}
			if pos += parseInt(control[16:]); pos < 0 || pos > int64(len(source)) {
				t.Fatalf("a triple begins at %d of %d", pos, len(source))
			}
		}
		if got, err := apply(b.Bytes(), source); err != nil || !bytes.Equal(got, target) {
			t.Fatal("the target is not reproduced", err)
		}
	})
}

// raw is a patch without compression.
func raw(targetSize int64, triples [][3]int64, diff, extra string) []byte {
	b := []byte(magic2 + "\x00\x00\x00")
	for _, n := range []int64{int64(len(triples)) * 24, int64(len(diff)), targetSize} {
		b = appendInt(b, n)
	}
	for _, t := range triples {
		for _, v := range t {
			b = appendInt(b, v)
		}
	}
	return append(append(b, diff...), extra...)
}

func TestApply(t *testing.T) {
	const source = "ABCDEFGH"
	for _, c := range []struct {
		name, want string
		patch      []byte
		err        error
	}{
		{"nothing", "", raw(0, nil, "", ""), nil},
		{"diff and extra", "ABDxyCD", raw(7, [][3]int64{{3, 2, -1}, {2, 0, 0}}, "\x00\x00\x01\x00\x00", "xy"), nil},
		{"sum modulo 256", "@", raw(1, [][3]int64{{1, 0, 0}}, "\xff", ""), nil},
		{"over the end", "GH\x01\x02", raw(4, [][3]int64{{0, 0, 6}, {4, 0, 0}}, "\x00\x00\x01\x02", ""), nil},
		{"from before", "\x01\x02AB", raw(4, [][3]int64{{0, 0, -2}, {4, 0, 0}}, "\x01\x02\x00\x00", ""), nil},
		{"behind the end", "\x01\x02", raw(2, [][3]int64{{0, 0, 100}, {2, 0, 0}}, "\x01\x02", ""), nil},
		{"far before", "\x01", raw(1, [][3]int64{{0, 0, -math.MaxInt64}, {1, 0, 0}}, "\x01", ""), nil},
		{"outside and back", "\x01B", raw(2, [][3]int64{{0, 0, -9}, {1, 0, 9}, {1, 0, 0}}, "\x01\x00", ""), nil},
		{"last move is free", "A", raw(1, [][3]int64{{1, 0, math.MaxInt64 - 1}}, "\x00", ""), nil},
		{"too far", "", raw(2, [][3]int64{{0, 0, math.MaxInt64}, {0, 1, 1}, {1, 0, 0}}, "\x00", "x"), ErrCorrupt},
		{"too far by a range", "", raw(2, [][3]int64{{0, 0, math.MaxInt64}, {1, 1, 0}}, "\x00", "x"), ErrCorrupt},
		{"too far back", "", raw(2, [][3]int64{{0, 0, -math.MaxInt64}, {0, 1, -2}, {1, 0, 0}}, "\x00", "x"), ErrCorrupt},
		{"diff longer than target", "", raw(2, [][3]int64{{3, 0, 0}}, "\x00\x00\x00", ""), ErrCorrupt},
		{"extra longer than target", "", raw(2, [][3]int64{{1, 2, 0}}, "\x00", "xy"), ErrCorrupt},
		{"negative diff", "", raw(2, [][3]int64{{-1, 3, 0}}, "", "xyz"), ErrCorrupt},
		{"negative extra", "", raw(2, [][3]int64{{1, -1, 0}, {1, 0, 0}}, "\x00\x00", ""), ErrCorrupt},
		{"control ends", "", raw(2, [][3]int64{{1, 0, 0}}, "\x00\x00", ""), ErrCorrupt},
		{"diff ends", "", raw(2, [][3]int64{{2, 0, 0}}, "\x00", ""), ErrCorrupt},
		{"extra ends", "", raw(2, [][3]int64{{0, 2, 0}}, "", "x"), ErrCorrupt},
		{"control goes on", "", raw(1, [][3]int64{{1, 0, 0}, {1, 0, 0}}, "\x00", ""), ErrCorrupt},
		{"diff goes on", "", raw(1, [][3]int64{{1, 0, 0}}, "\x00\x00", ""), ErrCorrupt},
		{"extra goes on", "", raw(1, [][3]int64{{1, 0, 0}}, "\x00", "x"), ErrCorrupt},
		{"empty triples", "", raw(1, make([][3]int64, 2000), "\x00", ""), ErrCorrupt},
		{"negative size", "", raw(-1, nil, "", ""), ErrCorrupt},
		{"too short", "", []byte(magicLegacy), ErrCorrupt},
		{"no magic", "", make([]byte, 40), ErrNotPatch},
		{"algorithm", "", append([]byte("BSDF2\x01\x02\x03"), make([]byte, 24)...), ErrAlgorithm},
		{"not bzip2", "", append([]byte("BSDIFF40\x01"), append(make([]byte, 15), "\x01\x00\x00\x00\x00\x00\x00\x00x"...)...), ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := apply(c.patch, []byte(source))
			if !errors.Is(err, c.err) || c.err == nil && (err != nil || string(got) != c.want) {
				t.Errorf("expected %q and %v, found %q and %v", c.want, c.err, got, err)
			}
		})
	}
}

func TestLengths(t *testing.T) {
	good := raw(3, [][3]int64{{1, 2, 0}}, "\x00", "xy")
	for at, values := range map[int][]int64{8: {-1, 28, math.MaxInt64, math.MinInt64 + 1}, 16: {-1, 4, math.MaxInt64}} {
		for _, v := range values {
			b := bytes.Clone(good)
			copy(b[at:], appendInt(nil, v))
			if _, err := Open(bytes.NewReader(b), int64(len(b))); !errors.Is(err, ErrCorrupt) {
				t.Errorf("length %d at byte %d: expected %v, found %v", v, at, ErrCorrupt, err)
			}
		}
	}
}

func TestInt(t *testing.T) {
	for _, v := range []int64{0, 1, -1, 255, -256, math.MaxInt64, -math.MaxInt64} {
		if got := parseInt(appendInt(nil, v)); got != v {
			t.Errorf("expected %d, found %d", v, got)
		}
	}
	if got := parseInt([]byte{0, 0, 0, 0, 0, 0, 0, 0x80}); got != 0 {
		t.Errorf("minus zero: expected 0, found %d", got)
	}
	if b := appendInt(nil, -2); binary.LittleEndian.Uint64(b) != 1<<63|2 {
		t.Errorf("expected sign and magnitude, found %x", b)
	}
}

func TestAddBytes(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 7))
	for n := range 100 {
		a, b, want := make([]byte, n), make([]byte, n), make([]byte, n)
		for i := range a {
			a[i], b[i] = byte(r.Uint32()), byte(r.Uint32())
			want[i] = a[i] + b[i]
		}
		if addBytes(a, b); !bytes.Equal(a, want) {
			t.Fatalf("%d bytes: expected %x, found %x", n, want, a)
		}
	}
}

var errDevice = errors.New("device is gone")

type failing struct{ after int64 }

func (f failing) ReadAt(b []byte, off int64) (int, error) { return 0, errDevice }

func (f *failing) Write(b []byte) (int, error) {
	if f.after -= int64(len(b)); f.after < 0 {
		return 0, errDevice
	}
	return len(b), nil
}

// breaks is a reader that fails from a byte on.
type breaks struct {
	b    []byte
	from int64
}

func (r breaks) ReadAt(b []byte, off int64) (int, error) {
	if off+int64(len(b)) > r.from {
		return 0, errDevice
	}
	return bytes.NewReader(r.b).ReadAt(b, off)
}

// Errors of the readers and the writer come out as they are, and are not taken
// for damage.
func TestIOErrors(t *testing.T) {
	source, target := pairOf(rand.New(rand.NewPCG(8, 9)), 200000)
	patch := create(t, source, target, Options{BrotliQuality: 1})
	p, err := Open(bytes.NewReader(patch), int64(len(patch)))
	if err != nil {
		t.Fatal(err)
	}
	check := func(name string, err error) {
		t.Helper()
		if !errors.Is(err, errDevice) || errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: expected %v, found %v", name, errDevice, err)
		}
	}
	check("source", p.Apply(io.Discard, failing{}, int64(len(source))))
	check("target", p.Apply(&failing{after: 100000}, bytes.NewReader(source), int64(len(source))))
	p, err = Open(breaks{patch, 5000}, int64(len(patch)))
	if err != nil {
		t.Fatal(err)
	}
	check("patch", p.Apply(io.Discard, bytes.NewReader(source), int64(len(source))))
	_, err = Open(failing{}, 100)
	check("header", err)
	check("create", Create(&failing{after: 100}, source, target, Options{BrotliQuality: 1}))
	if err := Create(io.Discard, nil, nil, Options{BrotliQuality: 12}); err == nil {
		t.Error("brotli quality 12: expected an error, found none")
	}
	if err := Create(io.Discard, nil, nil, Options{Algorithms: []Algorithm{3}}); !errors.Is(err, ErrAlgorithm) {
		t.Errorf("algorithm 3: expected %v, found %v", ErrAlgorithm, err)
	}
}

// Local leaves out short matches that are far away, and no others.
func TestLocal(t *testing.T) {
	r := rand.New(rand.NewPCG(16, 16))
	source := make([]byte, far+4096)
	for i := range source {
		source[i] = byte(r.Uint32())
	}
	target := bytes.Clone(source[:3000])
	copy(target[1000:], source[far+2000:][:20])
	copy(target[2000:], source[far+3000:][:100])
	moves := func(o Options) (n int) {
		o.Algorithms = []Algorithm{None}
		b := create(t, source, target, o)
		if got, err := apply(b, source); err != nil || !bytes.Equal(got, target) {
			t.Fatal("the target is not reproduced", err)
		}
		for c := b[HeaderSize:][:parseInt(b[8:])]; len(c) > 0; c = c[24:] {
			if z := parseInt(c[16:]); z > far {
				n++
			}
		}
		return n
	}
	if free, local := moves(Options{}), moves(Options{Local: true}); free != 2 || local != 1 {
		t.Errorf("expected 2 far moves and 1, found %d and %d", free, local)
	}
}

// Memory does not grow with source and target.
func TestMemory(t *testing.T) {
	const size = 24 << 20
	o := Options{BrotliQuality: 1}
	streams := [3][]byte{raw(0, [][3]int64{{size, 0, 0}}, "", "")[HeaderSize:], make([]byte, size), nil}
	o.Algorithms = []Algorithm{Brotli}
	var patch bytes.Buffer
	if err := o.write(&patch, size, streams); err != nil {
		t.Fatal(err)
	}
	streams = [3][]byte{}
	p, err := Open(bytes.NewReader(patch.Bytes()), int64(patch.Len()))
	if err != nil {
		t.Fatal(err)
	}
	w := peak{start: heap()}
	if err := p.Apply(&w, zeros{}, 1<<40); err != nil || w.n != size {
		t.Fatalf("%d bytes, %v", w.n, err)
	}
	if grown := int64(w.most) - int64(w.start); grown > 8<<20 {
		t.Errorf("expected less than 8 MiB, found %d", grown)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// peak is a target that looks at the heap every 4 MiB.
type peak struct {
	start, most uint64
	n, next     int64
}

func (p *peak) Write(b []byte) (int, error) {
	if p.n += int64(len(b)); p.n >= p.next {
		p.most = max(p.most, heap())
		p.next += 4 << 20
	}
	return len(b), nil
}

type zeros struct{}

func (zeros) ReadAt(b []byte, off int64) (int, error) {
	clear(b)
	return len(b), nil
}

// A flipped bit never panics, and is always noticed where bzip2 has a checksum:
// anywhere but in the size of the target, which would then be too short for the
// streams or too long.
func TestFlips(t *testing.T) {
	r := rand.New(rand.NewPCG(10, 11))
	for _, o := range []Options{{Legacy: true}, {Algorithms: []Algorithm{Brotli}, BrotliQuality: 5}, {Algorithms: []Algorithm{None}}} {
		source, target := pairOf(r, 500)
		patch := create(t, source, target, o)
		for bit := range 8 * len(patch) {
			if bit > 8*HeaderSize && bit%11 != 0 {
				continue
			}
			b := bytes.Clone(patch)
			b[bit/8] ^= 1 << (bit % 8)
			got, err := apply(b, source)
			if err == nil && o.Legacy && !bytes.Equal(got, target) {
				t.Fatalf("bit %d flipped: expected an error or the target, found %d bytes", bit, len(got))
			}
		}
	}
}
