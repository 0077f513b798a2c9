package cow

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"cowbird/formats/compress"
	"cowbird/formats/cowfile"
	"cowbird/tools/fixture"
)

// form is what a COW can be converted to.
type form struct {
	version int
	comp    cowfile.Compression
	unit    int
}

func (f form) String() string { return fmt.Sprintf("v%d_%v_%dK", f.version, f.comp, f.unit>>10) }

func (f form) options() ConvertOptions {
	return ConvertOptions{Version: f.version, Compression: &f.comp, MaxUnit: f.unit, NewCompressor: quickCompressor}
}

// quickCompressor does not try hard.
func quickCompressor(c cowfile.Compression, maxUnit int) (func(dst, unit []byte) ([]byte, error), error) {
	return compress.New(c.String(), min(c.DefaultLevel(), 3), maxUnit)
}

func allForms(units ...int) (all []form) {
	for comp := cowfile.None; comp <= cowfile.Zstd; comp++ {
		all = append(all, form{2, comp, blockSize})
		for _, u := range units {
			all = append(all, form{3, comp, u})
		}
	}
	return all
}

func convert(t testing.TB, cow []byte, o ConvertOptions) ([]byte, ConvertStats) {
	t.Helper()
	out, stats, err := tryConvert(cow, o)
	if err != nil {
		t.Fatal(err)
	}
	if sum := stats.HeaderBytes + stats.OpBytes + stats.XorBytes + stats.ReplaceBytes; sum != stats.CowSize || sum != int64(len(out)) {
		t.Errorf("bytes do not add up: %+v, %d written", stats, len(out))
	}
	return out, stats
}

func tryConvert(cow []byte, o ConvertOptions) ([]byte, ConvertStats, error) {
	out := &growMem{}
	o.Cow = newMem(cow)
	if o.NewCompressor == nil {
		o.NewCompressor = quickCompressor
	}
	stats, err := Convert(context.Background(), out, o)
	return out.b, stats, err
}

func open(t testing.TB, cow []byte) *cowfile.File {
	t.Helper()
	f, err := cowfile.Open(bytes.NewReader(cow), int64(len(cow)), nil)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// isForm checks that a file is in the form that it was converted to.
func isForm(t testing.TB, cow []byte, want form) {
	t.Helper()
	f := open(t, cow)
	h := f.Header()
	if int(h.Major) != want.version || f.MaxUnit() != want.unit || h.NumMergeOps != 0 || f.SequenceLen() != 0 {
		t.Errorf("expected %v, found %+v", want, h)
	}
	if c := f.Counts(); f.Compression() != want.comp && c.StoredCompressed > 0 {
		t.Errorf("expected %v, found %v", want.comp, f.Compression())
	}
	if h.Major > 2 && (h.OpCount != h.OpCountMax || h.ResumePointCount != 0) {
		t.Errorf("expected a table without unused slots and no resume points, found %+v", h)
	}
	largestUnits(t, f, want.unit)
}

// largestUnits checks that no two neighbours would fit into a larger unit.
func largestUnits(t testing.TB, f *cowfile.File, largest int) {
	t.Helper()
	var last cowfile.Op
	for i := range f.NumOps() {
		o := f.Op(i)
		adjacent := last.Type == cowfile.OpReplace && o.Type == cowfile.OpReplace && last.NewBlock+last.Blocks() == o.NewBlock
		if adjacent && o.Unit() >= last.Unit() && last.Unit() < largest {
			t.Errorf("op %d (%v) and the one before it (%v) could be in larger units", i, o, last)
		}
		last = o
	}
}

// gives checks that base + cow is the target, by reading and by merging.
func gives(t testing.TB, cow, base, target []byte) {
	t.Helper()
	o := CheckOptions{Cow: &memDevice{data: cow}, Base: &memDevice{data: base}, Target: bytes.NewReader(target), TargetSize: int64(len(target)), Workers: 1}
	if _, err := Check(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	merged := newMem(base)
	s, err := Open(Options{Cow: newMem(cow), Base: merged, Size: int64(max(len(base), len(target)))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Merge(context.Background(), MergeOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := merged.data[:len(target)]; !bytes.Equal(got, target) {
		t.Fatal("merged: " + firstDifference(got, target))
	}
}

// Any COW means the same in any form: generated ones, whose order needs a
// sequence or not, whose units lie anywhere and whose ops overlap heavily.
func TestConvert(t *testing.T) {
	forms := allForms(blockSize, 16<<10, 256<<10)
	seeds := uint64(40)
	if raceDetector {
		seeds = 10
	}
	for seed := range seeds {
		s := generate(t, seed, 120, true)
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			for k := range 5 {
				to := forms[(int(seed)*5+k*7)%len(forms)]
				cow, stats := convert(t, s.cow, to.options())
				isForm(t, cow, to)
				gives(t, cow, s.base, s.target)
				if f := open(t, cow); f.NumOps() != stats.Ops() || int(f.Counts().BlocksCovered) != stats.Copy+stats.Xor+stats.Zero+stats.ReplaceBlocks {
					t.Errorf("%v: numbers do not add up: %+v, %+v", to, stats, f.Counts())
				}
			}
		})
	}
}

// What Build has made is the same bytes after a conversion with the same
// options, and after one there and back; whatever the number of workers.
func TestConvertOfBuild(t *testing.T) {
	forms := allForms(blockSize, 64<<10, 256<<10)
	base, target := pair(6)
	for k, own := range forms {
		if raceDetector && k%4 > 0 {
			continue
		}
		t.Run(own.String(), func(t *testing.T) {
			t.Parallel()
			cow, built := build(t, base, target, BuildOptions{Version: own.version, Compression: own.comp, MaxUnit: own.unit})
			again, stats := convert(t, cow, own.options())
			if !bytes.Equal(again, cow) || stats.Contents != built.Contents || stats.KeptUnits != stats.Xor+stats.Replace {
				t.Errorf("same options: another file, or not all of it kept: %+v", stats)
			}
			if same, _ := convert(t, cow, ConvertOptions{Recompress: true}); !bytes.Equal(same, cow) {
				t.Error("encoded anew: another file")
			}
			there, _ := convert(t, cow, forms[(k+7)%len(forms)].options())
			for _, workers := range []int{1, 2, 5} {
				o := own.options()
				o.Workers = workers
				if back, _ := convert(t, there, o); !bytes.Equal(back, cow) {
					t.Errorf("there and back with %d workers: another file", workers)
				}
			}
		})
	}
}

// Without options, everything stays as it was.
func TestConvertDefaults(t *testing.T) {
	base, target := pair(8)
	for _, own := range []form{{2, cowfile.GZ, blockSize}, {3, cowfile.Zstd, 128 << 10}} {
		cow, _ := build(t, base, target, BuildOptions{Version: own.version, Compression: own.comp, MaxUnit: own.unit})
		if same, _ := convert(t, cow, ConvertOptions{}); !bytes.Equal(same, cow) {
			t.Errorf("%v: another file", own)
		}
	}
	cow, _ := build(t, base, target, BuildOptions{Version: 2, Compression: cowfile.GZ})
	up, _ := convert(t, cow, ConvertOptions{Version: 3})
	isForm(t, up, form{3, cowfile.GZ, 64 << 10})
}

// Version 1 has no scratch area; it becomes version 2.
func TestConvertVersion1(t *testing.T) {
	out := &growMem{}
	w, err := cowfile.NewWriter(cowfile.WriteOnly(out), cowfile.WriterOptions{Version: 2, NoScratch: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []cowfile.Op{{Type: cowfile.OpCopy, NewBlock: 1, Source: 0}, {Type: cowfile.OpZero, NewBlock: 0}} {
		if err := w.Add(o, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	const headerV1, headerV2 = 34, 38
	v1 := append(bytes.Clone(out.b[:headerV1]), out.b[headerV2:]...)
	v1[8], v1[12] = 1, headerV1
	base := bytes.Repeat([]byte("old contents of a block."), 2*blockSize/24+1)[:2*blockSize]
	up, _ := convert(t, v1, ConvertOptions{})
	isForm(t, up, form{2, cowfile.None, blockSize})
	gives(t, up, base, append(make([]byte, blockSize), base[:blockSize]...))
}

// Blocks have 32 bits, and the last of them can be in a unit.
func TestConvertLastBlocks(t *testing.T) {
	out := &growMem{}
	w, err := cowfile.NewWriter(cowfile.WriteOnly(out), cowfile.WriterOptions{Version: 3, Compression: cowfile.LZ4, MaxUnit: 32 << 10, OpCountMax: 2})
	if err != nil {
		t.Fatal(err)
	}
	unit := bytes.Repeat([]byte("last"), 32<<10/4)
	stored, c, err := encoder(t, 3, cowfile.LZ4, 0, 32<<10).Encode(unit)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []cowfile.Op{{Type: cowfile.OpReplace, NewBlock: 1<<32 - 8, Factor: 3, Compression: c}, {Type: cowfile.OpZero, NewBlock: 1<<32 - 9}} {
		if o.Type == cowfile.OpZero {
			stored = nil
		}
		if err := w.Add(o, stored); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	small, stats := convert(t, out.b, ConvertOptions{MaxUnit: blockSize})
	if f := open(t, small); stats.Zero != 1 || stats.Replace != 8 || f.Op(8).NewBlock != 1<<32-1 {
		t.Errorf("expected a zero op and 8 replace ops, found %+v", stats)
	}
	back, _ := convert(t, small, ConvertOptions{MaxUnit: 32 << 10})
	if canonical, _ := convert(t, out.b, ConvertOptions{}); !bytes.Equal(back, canonical) {
		t.Error("there and back: another file")
	}
}

// readCounter counts how often each byte is read.
type readCounter struct {
	*memDevice
	mu    sync.Mutex
	times []uint8
}

func (r *readCounter) ReadAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	for i := range p {
		r.times[int(off)+i]++
	}
	r.mu.Unlock()
	return r.memDevice.ReadAt(p, off)
}

// Units are read, and so decoded, once: also where the cuts of the new ones
// never meet those of the old ones.
func TestConvertDecodesOnce(t *testing.T) {
	const blocks = 300
	data := make([]byte, blocks*blockSize)
	for i := range data {
		data[i] = byte(i * i >> 9)
	}
	for _, comp := range []cowfile.Compression{cowfile.None, cowfile.LZ4} {
		shifted := shiftedUnits(t, comp, data)
		f := open(t, shifted)
		for _, unit := range []int{blockSize, 16 << 10, 64 << 10, 256 << 10} {
			d := &readCounter{memDevice: newMem(shifted), times: make([]uint8, len(shifted))}
			out := &growMem{}
			to := form{3, cowfile.Zstd, unit}
			o := to.options()
			o.Cow, o.Workers = d, 3
			if _, err := Convert(context.Background(), out, o); err != nil {
				t.Fatal(err)
			}
			isForm(t, out.b, to)
			gives(t, out.b, make([]byte, len(data)), data)
			for i := range f.NumOps() {
				op := f.Op(i)
				if n := d.times[op.Source]; n != 1 {
					t.Fatalf("%v, units of %d: expected the data of op %d (%v) to be read once, found %d times", comp, unit, i, op, n)
				}
			}
		}
	}
}

// shiftedUnits is a COW of units of 64 KiB behind a single block.
func shiftedUnits(t *testing.T, comp cowfile.Compression, data []byte) []byte {
	out := &growMem{}
	w, err := cowfile.NewWriter(cowfile.WriteOnly(out), cowfile.WriterOptions{Version: 3, Compression: comp, MaxUnit: 64 << 10, OpCountMax: uint32(len(data) / blockSize)})
	if err != nil {
		t.Fatal(err)
	}
	enc := encoder(t, 3, comp, 0, 64<<10)
	for at, n := 0, blockSize; at < len(data); at, n = at+n, 64<<10 {
		for at+n > len(data) {
			n /= 2
		}
		stored, c, err := enc.Encode(data[at : at+n])
		if err != nil {
			t.Fatal(err)
		}
		o := cowfile.Op{Type: cowfile.OpReplace, NewBlock: uint32(at / blockSize), Factor: cowfile.FactorOf(uint32(n / blockSize)), Compression: c}
		if err := w.Add(o, stored); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	return out.b
}

// What is decoded is let go of when the last op that is made from it has been
// encoded: no more is held than the parts of the pipeline reach over.
func TestConvertHoldsLittle(t *testing.T) {
	data := make([]byte, 24<<20)
	for i := range data {
		data[i] = byte(i >> 10)
	}
	to := form{3, cowfile.LZ4, 16 << 10}
	c := &converter{o: to.options()}
	d := newMem(shiftedUnits(t, cowfile.Zstd, data))
	c.f, c.o.Cow, c.o.Workers = open(t, d.data), d, 1
	held := 0
	c.o.OnProgress = func(done, total int64) {
		c.shared.mu.Lock()
		defer c.shared.mu.Unlock()
		held = max(held, len(c.shared.units))
	}
	if err := c.emit(context.Background(), Nowhere); err != nil {
		t.Fatal(err)
	}
	const inFlight = 6 * partOps * 16 / 64 // parts that are queued, encoded and added; units of 64 KiB
	if held == 0 || held > inFlight+2 || len(c.shared.units) != 0 {
		t.Errorf("expected 1 to %d decoded units to be held, and none in the end, found %d and %d", inFlight+2, held, len(c.shared.units))
	}
}

// Stored bytes are kept only where the new file would store the same (section
// 5.1): a zlib stream that is longer than its block has no place in version 3,
// nor has a raw block under gz in version 2.
func TestConvertRawRule(t *testing.T) {
	base, target := make([]byte, 8*blockSize), make([]byte, 8*blockSize)
	for i := range target {
		target[i] = byte((i*2654435761)>>13) ^ byte(i*i>>7)
	}
	target = append(target, bytes.Repeat([]byte("text"), blockSize)...)
	for comp := cowfile.GZ; comp <= cowfile.Zstd; comp++ {
		v2, _ := build(t, base, target, BuildOptions{Version: 2, Compression: comp, NoXor: true})
		v3, _ := build(t, base, target, BuildOptions{Version: 3, Compression: comp, MaxUnit: blockSize, NoXor: true})
		for _, from := range [][]byte{v2, v3} {
			up, kept3 := convert(t, from, form{3, comp, blockSize}.options())
			down, kept2 := convert(t, from, form{2, comp, blockSize}.options())
			if !bytes.Equal(up, v3) || !bytes.Equal(down, v2) {
				t.Errorf("%v: expected the file that Build makes", comp)
			}
			if kept2.KeptUnits == 0 || kept3.KeptUnits == 0 {
				t.Errorf("%v: expected units to be kept, found none", comp)
			}
			gives(t, up, base, target)
			gives(t, down, base, target)
		}
	}
}

// Damaged data do not go on into another file, not even those that would be
// kept.
func TestConvertRefusesDamage(t *testing.T) {
	base, target := pair(3)
	cow, _ := build(t, base, target, BuildOptions{Compression: cowfile.Zstd, NoXor: true})
	f := open(t, cow)
	for i := range f.NumOps() {
		if o := f.Op(i); o.Compression != cowfile.None {
			cow[o.Source] ^= 0xff // the frame's magic
			break
		}
	}
	for _, to := range []form{{3, cowfile.Zstd, 64 << 10}, {3, cowfile.LZ4, 64 << 10}, {3, cowfile.Zstd, blockSize}} {
		_, _, err := tryConvert(cow, to.options())
		if !errors.Is(err, cowfile.ErrDecode) || !strings.Contains(err.Error(), "op ") {
			t.Errorf("%v: expected ErrDecode and the op, found %v", to, err)
		}
	}
}

func TestConvertRefuses(t *testing.T) {
	base, target := pair(4)
	cow, _ := build(t, base, target, BuildOptions{Compression: cowfile.LZ4})
	for _, tc := range []struct {
		name string
		o    ConvertOptions
		want error
	}{
		{"unit that is no power of two", ConvertOptions{MaxUnit: 12288}, ErrSize},
		{"unit in version 2", ConvertOptions{Version: 2, MaxUnit: 65536}, ErrSize},
		{"version", ConvertOptions{Version: 4}, cowfile.ErrVersion},
		{"compression", ConvertOptions{Compression: new(cowfile.Compression(9)), NewCompressor: func(cowfile.Compression, int) (func(dst, unit []byte) ([]byte, error), error) { return nil, nil }}, cowfile.ErrVersion},
	} {
		if _, _, err := tryConvert(cow, tc.o); !errors.Is(err, tc.want) {
			t.Errorf("%s: expected %v, found %v", tc.name, tc.want, err)
		}
	}
	if _, _, err := tryConvert(base, ConvertOptions{}); !errors.Is(err, cowfile.ErrNotCOW) {
		t.Errorf("expected ErrNotCOW, found %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	o := form{3, cowfile.Zstd, 64 << 10}.options()
	o.Cow = newMem(cow)
	if _, err := Convert(ctx, Nowhere, o); !errors.Is(err, context.Canceled) {
		t.Errorf("expected context.Canceled, found %v", err)
	}
}

// A COW that a merge has touched is refused, with a way out; one that is merged
// stays so.
func TestConvertProgress(t *testing.T) {
	base, target := pair(12)
	for version := 2; version <= 3; version++ {
		cow, _ := build(t, base, target, BuildOptions{Version: version, Compression: cowfile.LZ4})
		f := open(t, cow)
		h := f.Header()
		set := func(n int, s cowfile.State) []byte {
			b := bytes.Clone(cow)
			p, off := h.AppendProgress(nil, uint64(n), s)
			copy(b[off:], p)
			return b
		}
		for _, begun := range [][]byte{set(1, cowfile.StateMerging), set(f.NumOps()-1, cowfile.StateIdle), set(0, cowfile.StateReadDone)} {
			if _, _, err := tryConvert(begun, ConvertOptions{}); !errors.Is(err, ErrProgress) {
				t.Errorf("version %d: expected ErrProgress, found %v", version, err)
			}
			if same, _ := convert(t, begun, ConvertOptions{IgnoreProgress: true}); !bytes.Equal(same, cow) {
				t.Errorf("version %d: progress was not ignored", version)
			}
		}
		if same, _ := convert(t, set(0, cowfile.StateMerging), ConvertOptions{}); !bytes.Equal(same, cow) {
			t.Errorf("version %d: the sources are intact, expected the file", version)
		}
		merged := set(f.NumOps(), cowfile.StateMerging)
		for to := 2; to <= 3; to++ {
			out, stats := convert(t, merged, ConvertOptions{Version: to})
			if g := open(t, out); !stats.Merged || g.NumMergeOps() != g.NumOps() {
				t.Errorf("version %d to %d: expected all %d ops to be merged, found %d", version, to, g.NumOps(), g.NumMergeOps())
			}
			gives(t, out, target, target)
		}
		if same, stats := convert(t, merged, ConvertOptions{IgnoreProgress: true}); !bytes.Equal(same, cow) || stats.Merged {
			t.Errorf("version %d: progress was not ignored", version)
		}
	}
}

// An op that reads its own block needs the scratch area.
func TestConvertScratch(t *testing.T) {
	out := &growMem{}
	w, err := cowfile.NewWriter(cowfile.WriteOnly(out), cowfile.WriterOptions{Version: 3, OpCountMax: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Add(cowfile.Op{Type: cowfile.OpXor, NewBlock: 1, Source: 100}, make([]byte, blockSize)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	for _, source := range []uint64{100, blockSize, blockSize + 1} {
		b := bytes.Clone(out.b)
		copy(b[2<<20+78+64+8:], []byte{byte(source), byte(source >> 8)})
		if _, _, err := tryConvert(b, ConvertOptions{NoScratch: true}); !errors.Is(err, cowfile.ErrRequest) {
			t.Errorf("source %d: expected ErrRequest, found %v", source, err)
		}
	}
	base, target := pair(5)
	cow, _ := build(t, base, target, BuildOptions{})
	small, stats := convert(t, cow, ConvertOptions{NoScratch: true})
	if len(cow)-len(small) != cowfile.DefaultScratch || stats.HeaderBytes != 78 {
		t.Errorf("expected %d bytes less, found %d", cowfile.DefaultScratch, len(cow)-len(small))
	}
	gives(t, small, base, target)
	if back, _ := convert(t, small, ConvertOptions{}); !bytes.Equal(back, cow) {
		t.Error("expected the scratch area back")
	}
}

// Every COW of Android's tools that a daemon can serve means the same in every
// form, and merges to the same. (A few forms each in a short run.)
func TestConvertFixtures(t *testing.T) {
	forms := allForms(blockSize, 64<<10, 256<<10)
	for k, c := range underRace(mergeable(t)) {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			cow := c.ReadAll(t)
			if begun(t, cow) {
				if _, _, err := tryConvert(cow, ConvertOptions{}); !errors.Is(err, ErrProgress) {
					t.Errorf("expected ErrProgress, found %v", err)
				}
				return
			}
			base := baseOf(t, c)
			target := fixtureTarget(t, c, cow, base)
			some := forms
			if raceDetector || testing.Short() {
				some = []form{forms[k%len(forms)], forms[(k+7)%len(forms)]}
			}
			for _, to := range some {
				out, stats := convert(t, cow, to.options())
				if !stats.Merged {
					isForm(t, out, to)
				}
				gives(t, out, base, target)
			}
		})
	}
}

// begun tells whether a merge of the COW has begun and not ended.
func begun(t *testing.T, cow []byte) bool {
	t.Helper()
	f := open(t, cow)
	state, err := f.ReadState(bytes.NewReader(cow))
	if err != nil {
		t.Fatal(err)
	}
	n := f.NumMergeOps()
	return n < f.NumOps() && (n > 0 || state == cowfile.StateReadDone)
}

// fixtureTarget is what the COW stands for, which is what the sidecar says.
func fixtureTarget(t *testing.T, c fixture.Cow, cow, base []byte) []byte {
	t.Helper()
	s, err := Open(Options{Cow: newMem(cow), Base: &memDevice{data: base}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	target := readWhole(t, s, c.MergedSize)
	if got := shaHex(target); got != wanted(c) {
		t.Fatalf("target: expected %s, found %s", wanted(c), got)
	}
	return target
}

// bounded is an output in memory with an end.
type bounded struct{ b []byte }

func (m bounded) Capacity() int64 { return int64(len(m.b)) }

func (m bounded) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > int64(len(m.b)) {
		return 0, io.ErrShortWrite
	}
	return copy(m.b[off:], p), nil
}

// estimated proves that an estimate is exact: the COW fits into an output of so
// many bytes; in one that lacks a byte there is no COW and the error says how
// many there should be.
func estimated(t *testing.T, into func(io.WriterAt) (Contents, error), want []byte) {
	t.Helper()
	estimate, err := into(Nowhere)
	if err != nil {
		t.Fatal(err)
	}
	if sum := estimate.HeaderBytes + estimate.OpBytes + estimate.XorBytes + estimate.ReplaceBytes; estimate.CowSize != int64(len(want)) || sum != estimate.CowSize {
		t.Errorf("estimate: expected %d bytes, found %+v", len(want), estimate)
	}
	if f := open(t, want); f.NumOps() != estimate.Ops() || f.Header().OpCountMax != estimate.OpCapacity {
		t.Errorf("estimate: expected %d ops in %d slots, found %+v", f.NumOps(), f.Header().OpCountMax, estimate)
	}
	full := bounded{bytes.Repeat([]byte{0xa5}, len(want))}
	if got, err := into(full); err != nil || got != estimate || !bytes.Equal(full.b, want) {
		t.Errorf("an output of just the size: expected the COW, found %+v, %v", got, err)
	}
	for _, less := range []int{1, len(want) / 2} {
		short := bounded{bytes.Repeat([]byte{0xa5}, len(want)-less)}
		_, err := into(short)
		if !errors.Is(err, cowfile.ErrNoSpace) || !strings.Contains(err.Error(), fmt.Sprint(len(want))) || !strings.Contains(err.Error(), fmt.Sprint(len(short.b))) {
			t.Errorf("%d bytes less: expected ErrNoSpace with both sizes, found %v", less, err)
		}
		if _, err := cowfile.ReadHeader(bytes.NewReader(short.b), int64(len(short.b))); !errors.Is(err, cowfile.ErrNotCOW) {
			t.Errorf("%d bytes less: expected no COW, found %v", less, err)
		}
	}
}

func TestEstimates(t *testing.T) {
	forms := allForms(blockSize, 64<<10)
	for k, to := range forms {
		if raceDetector && k%4 > 0 {
			continue
		}
		t.Run(to.String(), func(t *testing.T) {
			t.Parallel()
			base, target := pair(uint64(20 + k))
			o := BuildOptions{
				Base: Image{bytes.NewReader(base), int64(len(base))}, Target: Image{bytes.NewReader(target), int64(len(target))},
				Version: to.version, Compression: to.comp, MaxUnit: to.unit,
				NewCompressor: func() (func(dst, unit []byte) ([]byte, error), error) { return quickCompressor(to.comp, to.unit) },
			}
			cow, _ := build(t, base, target, o)
			estimated(t, func(out io.WriterAt) (Contents, error) {
				s, err := Build(context.Background(), out, o)
				return s.Contents, err
			}, cow)
			next := forms[(k+4)%len(forms)].options()
			next.Cow = newMem(cow)
			converted, _ := convert(t, cow, next)
			estimated(t, func(out io.WriterAt) (Contents, error) {
				s, err := Convert(context.Background(), out, next)
				return s.Contents, err
			}, converted)
		})
	}
}

// The smallest of all: no op at all.
func TestEstimateOfNothing(t *testing.T) {
	base := make([]byte, 4*blockSize)
	for version := 2; version <= 3; version++ {
		cow, _ := build(t, base, base, BuildOptions{Version: version})
		estimated(t, func(out io.WriterAt) (Contents, error) {
			s, err := Convert(context.Background(), out, ConvertOptions{Cow: newMem(cow)})
			return s.Contents, err
		}, cow)
	}
}

// The same for the pair of real images, which is large enough for many parts,
// batches and clusters.
func TestEstimatesOfImages(t *testing.T) {
	if raceDetector || testing.Short() {
		t.Skip("takes long: left to the run without the race detector")
	}
	base, target := imagePair(t)
	o := BuildOptions{Base: base, Target: target, Compression: cowfile.LZ4, NewCompressor: func() (func(dst, unit []byte) ([]byte, error), error) {
		return quickCompressor(cowfile.LZ4, 64<<10)
	}}
	out := &growMem{}
	if _, err := Build(context.Background(), out, o); err != nil {
		t.Fatal(err)
	}
	estimated(t, func(to io.WriterAt) (Contents, error) {
		s, err := Build(context.Background(), to, o)
		return s.Contents, err
	}, out.b)
	for _, to := range []form{{2, cowfile.Zstd, blockSize}, {3, cowfile.GZ, 256 << 10}} {
		next := to.options()
		next.Cow = newMem(out.b)
		converted, _ := convert(t, out.b, next)
		estimated(t, func(to io.WriterAt) (Contents, error) {
			s, err := Convert(context.Background(), to, next)
			return s.Contents, err
		}, converted)
		if back, _ := convert(t, converted, ConvertOptions{Version: 3, Compression: new(cowfile.LZ4), MaxUnit: 64 << 10}); !bytes.Equal(back, out.b) {
			t.Errorf("there and back through %v: another file", to)
		}
	}
}

// imagePair unpacks the fixtures' images.
func imagePair(t *testing.T) (base, target Image) {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("sh", filepath.Join(fixture.Dir(t), "images", "unpack.sh"), dir).CombinedOutput(); err != nil {
		fixture.Missing(t, "unpack the images: %v: %s", err, out)
	}
	image := func(name string) Image {
		d, err := OpenDevice(filepath.Join(dir, name), false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		return Image{d, d.Size()}
	}
	return image("base.ext4"), image("target.ext4")
}
