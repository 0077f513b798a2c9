package cow

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"

	"cowbird/formats/compress"
	"cowbird/formats/cowfile"

	"pgregory.net/rapid"
)

// A history is what an update does to a base, in words that no format knows. All
// the ways from it to bytes – written as this version or that, compressed so or
// so, in units of any size; read, merged, or merged through a power cut – must
// give the same target. No way is the reference: they are compared with what the
// history says directly.
type history struct {
	blocks int    // of the base
	grown  int    // blocks behind its end
	steps  []step // ordered ones first, valid as a merge order
}

// step says what becomes of a block, or of some consecutive ones.
type step struct {
	op     cowfile.OpType
	block  int
	count  int    // of blocks; 1 for an ordered step
	source int    // byte offset
	seed   uint64 // of the new contents, or of the difference
}

func (s step) String() string {
	return fmt.Sprintf("{%v %d+%d from %d, %d}", s.op, s.block, s.count, s.source, s.seed)
}

// data are the contents that a seed stands for; some compress, some do not.
func (s step) data() []byte {
	r := rand.New(rand.NewPCG(s.seed, 6))
	b := make([]byte, s.count*blockSize)
	for i, every := 0, []int{1, 3, 100}[s.seed%3]; i < len(b); i += every {
		b[i] = byte(r.Uint32())
	}
	return b
}

func (h history) base() []byte {
	return step{count: h.blocks, seed: 3}.data()
}

func (h history) target() []byte {
	base := h.base()
	target := append(bytes.Clone(base), make([]byte, h.grown*blockSize)...)
	for _, s := range h.steps {
		copy(target[s.block*blockSize:], s.contents(base))
	}
	return target
}

// contents are the new ones of the step's blocks.
func (s step) contents(base []byte) []byte {
	switch s.op {
	case cowfile.OpCopy:
		return base[s.source : s.source+blockSize]
	case cowfile.OpXor:
		b := s.data()
		xorBytes(b, base[s.source:])
		return b
	case cowfile.OpZero:
		return make([]byte, s.count*blockSize)
	}
	return s.data()
}

// drawHistory draws a history. What shrinks is the number of its steps, the
// size of the base and the numbers in a step.
func drawHistory(t *rapid.T) history {
	h := history{blocks: rapid.IntRange(1, 48).Draw(t, "blocks"), grown: rapid.IntRange(0, 5).Draw(t, "grown")}
	all := h.blocks + h.grown
	used, written := make([]bool, all+64), make([]bool, all+1)
	for _, s := range rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step { return drawOrdered(t, h) }), 0, 60).Draw(t, "ordered") {
		first, last := s.source/blockSize, (s.source+blockSize-1)/blockSize
		if used[s.block] || written[first] || written[last] || first == s.block || last == s.block {
			continue
		}
		used[s.block], written[s.block] = true, true
		h.steps = append(h.steps, s)
	}
	for _, s := range rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step { return drawUnordered(t, all) }), 0, 12).Draw(t, "unordered") {
		n := 0
		for n < s.count && s.block+n < all && !used[s.block+n] {
			used[s.block+n] = true
			n++
		}
		if s.count = n; n > 0 {
			h.steps = append(h.steps, s)
		}
	}
	return h
}

func drawOrdered(t *rapid.T, h history) step {
	s := step{op: cowfile.OpCopy, count: 1, block: rapid.IntRange(0, h.blocks+h.grown-1).Draw(t, "block")}
	s.source = rapid.IntRange(0, h.blocks-1).Draw(t, "source") * blockSize
	if rapid.Bool().Draw(t, "xor") {
		s.op, s.seed = cowfile.OpXor, rapid.Uint64Range(0, 99).Draw(t, "seed")
		inner := rapid.IntRange(0, blockSize-1).Draw(t, "inner")
		if s.source+inner+blockSize <= h.blocks*blockSize {
			s.source += inner
		}
	}
	return s
}

func drawUnordered(t *rapid.T, all int) step {
	s := step{op: cowfile.OpReplace, block: rapid.IntRange(0, all-1).Draw(t, "block"), count: rapid.IntRange(1, 64).Draw(t, "count")}
	if rapid.Bool().Draw(t, "zero") {
		s.op = cowfile.OpZero
	} else {
		s.seed = rapid.Uint64Range(0, 99).Draw(t, "seed")
	}
	return s
}

// format is how a history is written.
type format struct {
	version int
	comp    cowfile.Compression
	unit    int // bytes, the largest
}

func (f format) String() string { return fmt.Sprintf("v%d/%v/%dK", f.version, f.comp, f.unit>>10) }

func formats() (all []format) {
	for _, comp := range []cowfile.Compression{cowfile.None, cowfile.GZ, cowfile.Brotli, cowfile.LZ4, cowfile.Zstd} {
		all = append(all, format{2, comp, blockSize})
		for unit := blockSize; unit <= cowfile.MaxUnit; unit *= 2 {
			all = append(all, format{3, comp, unit})
		}
	}
	return all
}

// fatal is what rapid's and testing's T share.
type fatal interface {
	Helper()
	Fatalf(format string, args ...any)
}

// cowOf writes a history.
func (h history) cowOf(t fatal, f format, enc *cowfile.Encoder) []byte {
	t.Helper()
	mem := &growMem{}
	opts := cowfile.WriterOptions{Version: f.version, Compression: f.comp, OpCountMax: uint32(h.blocks + h.grown)}
	if f.version == 3 {
		opts.MaxUnit = f.unit
	}
	w, err := cowfile.NewWriter(cowfile.WriteOnly(mem), opts)
	if err != nil {
		t.Fatalf("%v: %v", f, err)
	}
	for _, s := range h.steps {
		if err := s.addTo(w, f, enc); err != nil {
			t.Fatalf("%v: %v: %v", f, s, err)
		}
	}
	if _, err := w.Finish(); err != nil {
		t.Fatalf("%v: %v", f, err)
	}
	return mem.b
}

// addTo writes the ops of a step, replace ops in the largest units.
func (s step) addTo(w cowfile.Writer, f format, enc *cowfile.Encoder) error {
	data := s.data()
	for done, n := 0, 0; done < s.count; done += n {
		o := cowfile.Op{Type: s.op, NewBlock: uint32(s.block + done)}
		n = 1
		var err error
		var stored []byte
		switch s.op {
		case cowfile.OpCopy:
			o.Source = uint64(s.source / blockSize)
		case cowfile.OpXor:
			o.Source = uint64(s.source)
			stored, o.Compression, err = enc.Encode(data)
		case cowfile.OpReplace:
			for 2*n <= s.count-done && 2*n*blockSize <= f.unit {
				n *= 2
			}
			o.Factor = cowfile.FactorOf(uint32(n))
			stored, o.Compression, err = enc.Encode(data[done*blockSize : (done+n)*blockSize])
		}
		if err == nil {
			err = w.Add(o, stored)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// way is a way from a history to the bytes of its target, by means of a COW.
//
// A converter from one format to another is one more: a format from which it
// starts, and one to which it goes, in transforms.
type way struct {
	name string
	run  func(c sample, cut int) ([]byte, error)
}

var ways = []way{
	{"view", func(c sample, _ int) ([]byte, error) {
		s, err := newRecorder(storageOf(c)).open(c)
		if err != nil {
			return nil, err
		}
		defer s.Close()
		got := make([]byte, len(c.target))
		return got, readFull(s, got, 0)
	}},
	{"merge", func(c sample, _ int) ([]byte, error) { return merged(storageOf(c), c, -1) }},
	{"merge cut and resumed", func(c sample, cut int) ([]byte, error) { return merged(storageOf(c), c, cut) }},
}

// merged merges, at first with the power cut at a step, or with none if cut is
// negative, and returns the base.
func merged(st storage, c sample, cut int) ([]byte, error) {
	r := newRecorder(st)
	r.before = func(event) error {
		if cut >= 0 && len(r.events) >= cut {
			return errPowerCut
		}
		return nil
	}
	s, err := r.open(c)
	if err != nil {
		return nil, err
	}
	_, err = s.Merge(context.Background(), MergeOptions{limits: inSteps})
	s.Close()
	if err != nil && cut >= 0 {
		return merged(r.held.survivor(nil, nil), c, -1)
	}
	return r.cache[baseDisk].bytes(), err
}

// transforms turn a COW into another one for the same history. Each is tried on
// every format. Converters belong here.
var transforms = []struct {
	name  string
	apply func(cow []byte, f format) ([]byte, error)
}{
	{"as written", func(cow []byte, _ format) ([]byte, error) { return cow, nil }},
	{"converted", func(cow []byte, f format) ([]byte, error) {
		comp := (f.comp + 1) % (cowfile.Zstd + 1)
		out := &growMem{}
		_, err := Convert(context.Background(), out, ConvertOptions{
			Cow: newMem(cow), Version: 5 - f.version, Compression: &comp, Workers: 1,
			NewCompressor: func(c cowfile.Compression, maxUnit int) (func(dst, unit []byte) ([]byte, error), error) {
				return compress.New(c.String(), min(c.DefaultLevel(), 5), maxUnit)
			},
		})
		return out.b, err
	}},
}

// checkWays takes all the ways over one format.
func (h history) checkWays(t fatal, f format, enc *cowfile.Encoder, cut int) {
	t.Helper()
	want := h.target()
	sum, written := shaHex(want), h.cowOf(t, f, enc)
	for _, tr := range transforms {
		cow, err := tr.apply(written, f)
		if err != nil {
			t.Fatalf("%v, %s: %v", f, tr.name, err)
		}
		c := sample{cow: cow, base: h.base(), target: want}
		for _, w := range ways {
			if got, err := w.run(c, cut); err != nil || shaHex(got) != sum {
				t.Fatalf("%v, %s, %s: %v, %s", f, tr.name, w.name, err, firstDifference(got, want))
			}
		}
	}
}

// SNU-002, SNU-004, SNU-007, SNU-017: one history, some formats, all ways: one
// checksum. rapid prints the seed of a failure, the smallest history that it
// finds for it and one format.
func TestMetamorphic(t *testing.T) {
	all, encoders := formats(), map[format]*cowfile.Encoder{}
	encoderOf := func(f format) *cowfile.Encoder {
		if encoders[f] == nil {
			encoders[f] = encoder(t, f.version, f.comp, f.comp.DefaultLevel(), f.unit)
		}
		return encoders[f]
	}
	checks := flag.Lookup("rapid.checks").Value
	if raceDetector && checks.String() == "100" { // the default
		defer func() { _ = checks.Set("100") }()
		_ = checks.Set("10")
	}
	most := few(len(all), 4)
	rapid.Check(t, func(t *rapid.T) {
		h := drawHistory(t)
		cut := rapid.IntRange(0, 60).Draw(t, "cut at step")
		for _, f := range rapid.SliceOfNDistinct(rapid.SampledFrom(all), 1, most, rapid.ID).Draw(t, "formats") {
			h.checkWays(t, f, encoderOf(f), cut)
		}
	})
}

// The same for all formats, with histories that are always the same ones.
func TestMetamorphicEveryFormat(t *testing.T) {
	for k := range few(8, 1) {
		h := rapid.Custom(drawHistory).Example(k)
		t.Run(fmt.Sprintf("%d_blocks/%d_steps", h.blocks+h.grown, len(h.steps)), func(t *testing.T) {
			t.Parallel()
			for i, f := range formats() {
				if i%few(1, 7) != 0 {
					continue
				}
				h.checkWays(t, f, encoder(t, f.version, f.comp, f.comp.DefaultLevel(), f.unit), i)
			}
		})
	}
}
