package cow

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"cowbird/formats/cowfile"
	"cowbird/tools/fixture"
)

// A recipe is the list of requests that Android's writer made a fixture from.
type recipe struct {
	lines        []string
	base, target []byte
}

func recipeOf(t *testing.T, c fixture.Cow) recipe {
	t.Helper()
	text := strings.TrimSpace(string(c.Bytes(t, c.Recipe)))
	return recipe{strings.Split(text, "\n"), c.Bytes(t, c.Base), targetOf(t, c)}
}

// from returns the lines behind a label.
func (r recipe) from(t *testing.T, label uint64) recipe {
	t.Helper()
	for i, l := range r.lines {
		if l == fmt.Sprintf("LABEL %d", label) {
			r.lines = r.lines[i+1:]
			return r
		}
	}
	t.Fatalf("label %d is not in the recipe", label)
	return r
}

// replay makes the requests. It returns false where the recipe breaks off.
func (r recipe) replay(t *testing.T, w *Writer) bool {
	t.Helper()
	for _, line := range r.lines {
		kind, rest, _ := strings.Cut(line, " ")
		if kind == "ABORT" {
			return false
		}
		var n []uint64
		for _, f := range strings.Fields(rest) {
			v, err := strconv.ParseUint(f, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			n = append(n, v)
		}
		if err := r.request(w, kind, n); err != nil {
			t.Fatalf("%.60s: %v", line, err)
		}
	}
	return true
}

func (r recipe) request(w *Writer, kind string, n []uint64) error {
	switch kind {
	case "COPY":
		return w.Copy(n[0], n[1], n[2])
	case "ZERO":
		return w.Zero(n[0], n[1])
	case "RAW":
		return w.Replace(n[0], r.target[n[0]*blockSize:(n[0]+n[1])*blockSize])
	case "XOR":
		delta := append([]byte(nil), r.target[n[0]*blockSize:(n[0]+n[3])*blockSize]...)
		xorBytes(delta, r.base[n[1]*blockSize+n[2]:])
		return w.Xor(n[0], delta, n[1], n[2])
	case "SEQ":
		var blocks []uint32
		for _, b := range n {
			blocks = append(blocks, uint32(b))
		}
		return w.Sequence(blocks)
	case "LABEL":
		return w.Label(n[0])
	case "FINALIZE":
		_, err := w.Finish()
		return err
	}
	return fmt.Errorf("request %q is not known", kind)
}

// targetOf is the image that a fixture stands for, read through a finished COW.
func targetOf(t *testing.T, c fixture.Cow) []byte {
	t.Helper()
	for _, o := range mergeable(t) {
		if o.TargetSHA256 != c.TargetSHA256 || o.PartialBase != nil || o.Handler != c.TargetSHA256 {
			continue
		}
		s, err := Open(Options{Cow: newMem(o.ReadAll(t)), Base: newMem(o.Bytes(t, o.Base)), Size: o.MergedSize})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		target := make([]byte, o.MergedSize)
		if err := readFull(s, target, 0); err != nil {
			t.Fatal(err)
		}
		if got := shaHex(target); got != c.TargetSHA256 {
			t.Fatalf("target: expected %s, found %s", c.TargetSHA256, got)
		}
		return target
	}
	t.Fatal("no finished COW for this target")
	return nil
}

// oracle compresses by looking up what Android's writer stored for a unit, so
// that everything else can be compared byte by byte.
type oracle map[[32]byte][]byte

func oracleOf(t *testing.T, cows ...[]byte) oracle {
	t.Helper()
	o := oracle{}
	for _, b := range cows {
		f, err := cowfile.Open(bytes.NewReader(b), int64(len(b)), nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range f.NumOps() {
			op := f.Op(i)
			if op.DataLength == 0 {
				continue
			}
			unit := make([]byte, op.Unit())
			off := f.DataOffset(i, op)
			stored := b[off : off+int64(op.DataLength)]
			if err := cowfile.Decode(op.Compression, unit, stored); err != nil {
				t.Fatal(err)
			}
			o[sha256.Sum256(unit)] = stored
		}
	}
	return o
}

func (o oracle) compressor() (func(dst, unit []byte) ([]byte, error), error) {
	return func(dst, unit []byte) ([]byte, error) {
		stored, ok := o[sha256.Sum256(unit)]
		if !ok {
			return nil, errors.New("Android's writer never stored this unit")
		}
		return append(dst, stored...), nil
	}, nil
}

func writerOptionsOf(t *testing.T, c fixture.Cow) WriterOptions {
	t.Helper()
	number := func(name string, otherwise int) int {
		n, err := strconv.Atoi(c.Option(name, strconv.Itoa(otherwise)))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	comp, _, err := cowfile.ParseCompression(c.Compression)
	if err != nil {
		t.Fatal(err)
	}
	o := WriterOptions{
		Version: c.Version, Compression: comp, MaxUnit: number("factor", blockSize), ClusterOps: number("cluster_ops", 1024),
		NoScratch: c.Option("scratch", "true") == "false", Batch: c.Option("batch", "") == "true", Workers: number("threads", 0),
		MaxBlocks: uint64(c.MergedSize / blockSize), OpCountMax: uint32(number("op_count_max", 0)),
	}
	if o.ClusterOps == 0 {
		o.ClusterOps = cowfile.Unclustered
	}
	return o
}

// memFile is a regular file in memory, to which a COW is written.
type memFile struct{ growMem }

func (f *memFile) ReadAt(p []byte, off int64) (int, error) { return readAtBytes(f.b, p, off) }
func (f *memFile) Sync() error                             { return nil }
func (f *memFile) Truncate(size int64) error {
	f.b = append(f.b, make([]byte, max(0, size-int64(len(f.b))))...)[:size]
	return nil
}

func sameBytes(t *testing.T, want, got []byte) {
	t.Helper()
	if len(want) != len(got) {
		t.Errorf("size: expected %d, found %d", len(want), len(got))
	}
	for i := range min(len(want), len(got)) {
		if want[i] != got[i] {
			t.Fatalf("byte %d: expected % x…, found % x…", i, want[i:min(i+40, len(want))], got[i:min(i+40, len(got))])
		}
	}
}

func newMemWriter(t *testing.T, o WriterOptions, from oracle) (*memFile, *Writer) {
	t.Helper()
	o.NewCompressor = from.compressor
	f := &memFile{}
	w, err := NewWriter(f, o)
	if err != nil {
		t.Fatal(err)
	}
	return f, w
}

// COW-004, COW-012, COW-013, COW-021, COW-028, COW-033 to COW-036, COW-108, COW-126, COW-128, COW-129: Android's requests
// give Android's bytes, with batches and workers or without; but for the
// compressor, whose work is taken over from Android's.
func TestRecipes(t *testing.T) {
	replayed := 0
	for _, c := range underRace(fixture.Cows(t, false)) {
		if c.Recipe == "" || !strings.Contains(c.ParseNoLabel, "ok") || strings.Contains(c.Name, "_cut") {
			continue
		}
		replayed++
		t.Run(c.Name, func(t *testing.T) {
			want := c.ReadAll(t)
			from, r := oracleOf(t, want), recipeOf(t, c)
			o := writerOptionsOf(t, c)
			for _, v := range []struct {
				batch   bool
				workers int
			}{{o.Batch, o.Workers}, {!o.Batch, 3}} {
				o.Batch, o.Workers = v.batch, v.workers
				f, w := newMemWriter(t, o, from)
				if !r.replay(t, w) {
					t.Fatal("the recipe breaks off")
				}
				sameBytes(t, want, f.b)
				if size := w.Size().Bytes; size != int64(len(want)) {
					t.Errorf("size query: expected %d, found %d", len(want), size)
				}
			}
		})
	}
	if replayed < 14 {
		t.Errorf("only %d recipes", replayed)
	}
}

// With a compressor of our own everything but the stored bytes is Android's:
// which ops there are, what they cover and read, and what comes out.
func TestRecipesOwnCompression(t *testing.T) {
	for _, c := range underRace(fixture.Cows(t, false)) {
		if c.Recipe == "" || c.Compression == "none" || c.Compression == "brotli" || strings.Contains(c.Name, "_cut") {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			o, r := writerOptionsOf(t, c), recipeOf(t, c)
			o.NewCompressor = func() (func(dst, unit []byte) ([]byte, error), error) {
				return compressor(t, o.Compression, min(o.Compression.DefaultLevel(), 6), o.MaxUnit), nil
			}
			f := &memFile{}
			w, err := NewWriter(f, o)
			if err != nil {
				t.Fatal(err)
			}
			r.replay(t, w)
			sameFacts(t, c.ReadAll(t), f.b)
			s, err := Open(Options{Cow: newMem(f.b), Base: newMem(r.base), Size: c.MergedSize})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			got := make([]byte, c.MergedSize)
			if err := readFull(s, got, 0); err != nil || !bytes.Equal(got, r.target) {
				t.Errorf("other contents, %v", err)
			}
		})
	}
}

// sameFacts compares two COWs but for how units were compressed.
func sameFacts(t *testing.T, want, got []byte) {
	t.Helper()
	open := func(b []byte) *cowfile.File {
		f, err := cowfile.Open(bytes.NewReader(b), int64(len(b)), nil)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	a, b := open(want), open(got)
	if a.Header() != b.Header() {
		t.Errorf("header: expected %+v, found %+v", a.Header(), b.Header())
	}
	if a.NumOps() != b.NumOps() || a.SequenceLen() != b.SequenceLen() {
		t.Fatalf("expected %d ops, %d in the sequence; found %d, %d", a.NumOps(), a.SequenceLen(), b.NumOps(), b.SequenceLen())
	}
	for i := range a.NumOps() {
		if x, y := fact(a.Op(i)), fact(b.Op(i)); x != y {
			t.Fatalf("op %d: expected %v, found %v", i, x, y)
		}
	}
	x, y := a.Merge(0), b.Merge(0)
	for range a.NumOps() {
		i, _ := x.Next()
		if k, _ := y.Next(); i != k {
			t.Fatalf("merge position %d: expected op %d, found %d", x.Pos(), i, k)
		}
	}
	if a.Header().Major == 3 {
		p, err := cowfile.ReadResumePoints(bytes.NewReader(want), a.Header())
		q, err2 := cowfile.ReadResumePoints(bytes.NewReader(got), b.Header())
		if err != nil || err2 != nil || fmt.Sprint(p) != fmt.Sprint(q) {
			t.Errorf("resume points: expected %v, found %v; %v, %v", p, q, err, err2)
		}
		return
	}
	if p, q := rawFacts(t, want), rawFacts(t, got); fmt.Sprint(p) != fmt.Sprint(q) {
		t.Error("labels, clusters or the footer are elsewhere")
	}
}

// fact is an op without what depends on the compressor.
func fact(o cowfile.Op) cowfile.Op {
	o.DataLength, o.Compression = 0, cowfile.None
	if o.Type == cowfile.OpReplace {
		o.Source = 0
	}
	return o
}

func rawFacts(t *testing.T, b []byte) (facts []string) {
	t.Helper()
	err := cowfile.WalkRaw(bytes.NewReader(b), int64(len(b)), func(o cowfile.RawOp) bool {
		fact := fmt.Sprint(o.Type, o.NewBlock)
		if o.Type == cowfile.OpLabel || o.Type == cowfile.OpFooter {
			fact += fmt.Sprint(" ", o.Source)
		}
		facts = append(facts, fact)
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return facts
}

func fixtureNamed(t *testing.T, name string) fixture.Cow {
	t.Helper()
	for _, c := range fixture.Cows(t, false) {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no fixture %s", name)
	return fixture.Cow{}
}

// COW-022, COW-024 to COW-027, COW-031, COW-034, COW-035, COW-039: what Android's
// writer left behind when it was cut off, or had finished, is continued at each
// label to the end that Android's writer came to.
func TestResumeAndroid(t *testing.T) {
	for _, tc := range []struct {
		cut, end string
		labels   []uint64
		recipe   string // of the whole; that of end, if empty
		counts   map[uint64]uint32
	}{
		{cut: "g_v2_gz_cut_c0", end: "g_v2_gz_labels5_cluster0", labels: []uint64{1, 2, 3}},
		{cut: "g_v2_gz_cut_c1024", end: "g_v2_gz_labels5", labels: []uint64{1, 2, 3}},
		{cut: "g_v2_gz_labels5", end: "g_v2_gz_labels5", labels: []uint64{1, 2, 3, 4, 5}},
		{cut: "g_v2_gz_labels5_cluster0", end: "g_v2_gz_labels5_cluster0", labels: []uint64{1, 2, 3, 4, 5}},
		{cut: "g_v2_gz_resumed_earlier", end: "g_v2_gz_resumed_earlier", labels: []uint64{1, 2, 3, 4, 5}, recipe: "g_v2_gz_labels5"},
		// A resume point made again is counted again (section 6.4).
		{cut: "g_v3_lz4_cut", end: "g_v3_lz4_labels3", labels: []uint64{1, 2}, counts: map[uint64]uint32{1: 4, 2: 3}},
		{cut: "g_v3_lz4_labels3", end: "g_v3_lz4_resumed_earlier", labels: []uint64{1}},
		{cut: "g_v3_lz4_labels6", end: "g_v3_lz4_labels6", labels: []uint64{3, 4, 5, 6}, counts: map[uint64]uint32{3: 9, 4: 8, 5: 7, 6: 6}},
	} {
		for _, label := range tc.labels {
			t.Run(fmt.Sprint(tc.cut, "/", label), func(t *testing.T) {
				cut, end := fixtureNamed(t, tc.cut), fixtureNamed(t, tc.end)
				whole := end
				if tc.recipe != "" {
					whole = fixtureNamed(t, tc.recipe)
				} else if whole.Recipe == "" {
					whole = cut
				}
				want := end.ReadAll(t)
				if n, ok := tc.counts[label]; ok {
					want[46] = byte(n)
				}
				f := &memFile{growMem{cut.ReadAll(t)}}
				o := writerOptionsOf(t, whole)
				o.NewCompressor = oracleOf(t, end.ReadAll(t)).compressor
				w, err := OpenWriter(f, int64(len(f.b)), label, o)
				if err != nil {
					t.Fatal(err)
				}
				recipeOf(t, whole).from(t, label).replay(t, w)
				sameBytes(t, want, f.b)
			})
		}
	}
}

// COW-023: a label that is not there, or not any more, and a file cut off
// before its first one.
func TestResumeAndroidRefused(t *testing.T) {
	for name, labels := range map[string][]uint64{"g_v2_gz_cut_c0": {0, 4}, "g_v2_gz_cut_c1024": {4, 5}, "g_v3_lz4_cut": {0, 3}, "g_v3_lz4_labels6": {0, 1, 2, 7}, "g_v3_lz4_noscratch": {0}} {
		c := fixtureNamed(t, name)
		for _, label := range labels {
			f := &memFile{growMem{c.ReadAll(t)}}
			o := writerOptionsOf(t, c)
			o.NewCompressor = oracle(nil).compressor
			if _, err := OpenWriter(f, int64(len(f.b)), label, o); !errors.Is(err, cowfile.ErrNoLabel) {
				t.Errorf("%s, label %d: expected ErrNoLabel, found %v", name, label, err)
			}
			sameBytes(t, c.ReadAll(t), f.b)
		}
	}
}

// An interrupted recipe leaves the bytes that Android's writer left, as far as
// it had written them.
func TestRecipesCutOff(t *testing.T) {
	for cutName, endName := range map[string]string{"g_v2_gz_cut_c0": "g_v2_gz_labels5_cluster0", "g_v2_gz_cut_c1024": "g_v2_gz_labels5", "g_v3_lz4_cut": "g_v3_lz4_labels3"} {
		t.Run(cutName, func(t *testing.T) {
			cut, end := fixtureNamed(t, cutName), fixtureNamed(t, endName)
			f, w := newMemWriter(t, writerOptionsOf(t, cut), oracleOf(t, end.ReadAll(t)))
			if recipeOf(t, cut).replay(t, w) {
				t.Fatal("the recipe does not break off")
			}
			want := cut.ReadAll(t)
			sameBytes(t, want, f.b[:len(want)])
			if behind := f.b[len(want):]; len(behind) > 20 || bytes.Count(behind, []byte{0}) != len(behind) {
				t.Errorf("behind the end: expected an empty slot at most, found % x", behind)
			}
		})
	}
}
