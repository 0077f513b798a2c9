package generate

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"cowbird/cow/filemap"
	"cowbird/formats/payload/pb"
	"cowbird/tools/fixture"
)

// erofsImage makes an image of files, compressed as told.
func erofsImage(t *testing.T, files map[string][]byte, flags ...string) []byte {
	t.Helper()
	mkfs, err := exec.LookPath("mkfs.erofs")
	if err != nil {
		fixture.Missing(t, "mkfs.erofs is not installed (Debian: erofs-utils)")
	}
	tree, img := t.TempDir(), filepath.Join(t.TempDir(), "image")
	for name, b := range files {
		must(t, os.WriteFile(filepath.Join(tree, name), b, 0o600))
	}
	args := append(flags, "-T1700000000", "-U11111111-2222-3333-4444-555555555555", img, tree)
	if out, err := exec.Command(mkfs, args...).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v\n%s", err, out)
	}
	b, err := os.ReadFile(img)
	must(t, err)
	return append(b, make([]byte, -len(b)&(blockSize-1))...)
}

// text is something that compresses, some of which another seed changes.
func text(n int, changed ...int) []byte {
	r := rand.New(rand.NewPCG(uint64(n), 1))
	var b []byte
	for i := 0; len(b) < n; i++ {
		if slices.Contains(changed, i) {
			b = fmt.Appendf(b, "line %d was not there before; ", i)
		}
		b = fmt.Appendf(b, "%d/%s/%x ", r.IntN(300), []string{"vendor", "lib64", "etc", "bin"}[r.IntN(4)], r.Uint32())
	}
	return b
}

func noise(n int) []byte {
	b := make([]byte, n)
	c := rand.NewChaCha8([32]byte{7})
	_, _ = c.Read(b)
	return b
}

// trees are two versions of some files.
func trees(t *testing.T) (before, after map[string][]byte) {
	kb := 1000
	if raceDetector {
		kb = 200
	}
	zip := func(changed ...int) []byte {
		return append(zipOf(t, map[string][]byte{"a": text(300*kb, changed...)}), text(60*kb)...)
	}
	mixed := func(changed ...int) []byte {
		return slices.Concat(text(90*kb, changed...), noise(50*kb), text(120*kb, changed...))
	}
	before = map[string][]byte{"text": text(400 * kb), "mixed": mixed(), "app.zip": zip(), "same": text(70 * kb), "twin": text(70 * kb), "small": text(3000), "gone": text(5 * kb)}
	after = map[string][]byte{"text": text(400*kb, 3*kb, 9*kb), "mixed": mixed(kb), "app.zip": zip(77), "same": text(70 * kb), "twin": text(70*kb, 900), "small": text(3000, 7), "new": noise(5 * kb)}
	return before, after
}

func operations(t *testing.T, o Options) (types map[opType]int, size int) {
	t.Helper()
	b, m := payloadOf(t, o)
	follows(t, m)
	types = map[opType]int{}
	for _, op := range m.Manifest.GetPartitions()[0].GetOperations() {
		types[op.GetType()]++
	}
	return types, len(b)
}

// What erofs has compressed is compared by its contents, whatever the encoder: each
// payload is proved when it is made.
func TestErofs(t *testing.T) {
	before, after := trees(t)
	for i, flags := range [][]string{{"-zlz4hc"}, {"-zlz4hc,12"}, {"-zlz4"}, {"-zlz4hc,9", "-C65536"}, {"-zlz4hc", "-Elegacy-compress"},
		{"-zlz4hc", "-Eztailpacking"}, {"-zlz4hc", "-C65536", "-Efragments"}, {"-zlz4hc", "-Ededupe"}} {
		t.Run(fmt.Sprint(flags), func(t *testing.T) {
			if raceDetector && i > 0 {
				t.Skip("takes too long with the race detector")
			}
			t.Parallel()
			was, is := imageOf(erofsImage(t, before, flags...)), imageOf(erofsImage(t, after, flags...))
			o := Options{Partitions: []Partition{{Name: "vendor", New: is, Old: &was}}, Effort: Fast}
			types, size := operations(t, o)
			o.Minor = lz4diffMinor - 1
			without, larger := operations(t, o)
			t.Logf("%v: %d bytes; without LZ4DIFF %v: %d", types, size, without, larger)
			if types[pb.InstallOperation_LZ4DIFF_BSDIFF] == 0 || types[pb.InstallOperation_LZ4DIFF_PUFFDIFF] == 0 {
				t.Errorf("expected LZ4DIFF with both kinds of patches inside, found %v", types)
			}
			if without[pb.InstallOperation_LZ4DIFF_BSDIFF]+without[pb.InstallOperation_LZ4DIFF_PUFFDIFF] > 0 {
				t.Errorf("minor version %d: expected no LZ4DIFF, found %v", o.Minor, without)
			}
			if size > larger*6/10 {
				t.Errorf("expected at most 0.6 of the %d bytes without, found %d", larger, size)
			}
		})
	}
}

// Programs that erofs has compressed are compared as such.
func TestErofsPrograms(t *testing.T) {
	if raceDetector {
		t.Skip("takes too long with the race detector")
	}
	p := readPair(t, "delta_m8_zucchini_arm64_none")
	name := p.metadata.Manifest.GetPartitions()[0].GetPartitionName()
	before, after := programs(t, p.old[name]), programs(t, p.new[name])
	was, is := imageOf(erofsImage(t, before, "-zlz4hc")), imageOf(erofsImage(t, after, "-zlz4hc"))
	o := Options{Partitions: []Partition{{Name: "vendor", New: is, Old: &was}}}
	types, size := operations(t, o)
	if types[pb.InstallOperation_LZ4DIFF_PUFFDIFF] == 0 {
		t.Errorf("expected LZ4DIFF_PUFFDIFF, found %v", types)
	}
	o.Effort = Fast
	without, larger := operations(t, o)
	t.Logf("%v: %d bytes; without programs %v: %d", types, size, without, larger)
	if without[pb.InstallOperation_LZ4DIFF_PUFFDIFF] > 0 || size >= larger {
		t.Errorf("expected less than %d bytes (%v), found %d", larger, without, size)
	}
}

// programs are those in an image, by the names of their files.
func programs(t *testing.T, img []byte) map[string][]byte {
	t.Helper()
	m, err := filemap.Files(bytes.NewReader(img), int64(len(img)))
	must(t, err)
	all := map[string][]byte{}
	for _, f := range m.Files {
		var b []byte
		for _, e := range f.Extents {
			b = append(b, img[e.Physical:][:e.Stored]...)
		}
		if bytes.HasPrefix(b, elf) {
			all[filepath.Base(f.Path)] = b[:min(int64(len(b)), f.Size)]
		}
	}
	return all
}

// The images may have been made by different encoders.
func TestErofsOtherEncoder(t *testing.T) {
	before, after := trees(t)
	was, is := imageOf(erofsImage(t, before, "-zlz4")), imageOf(erofsImage(t, after, "-zlz4hc,6"))
	types, size := operations(t, Options{Partitions: []Partition{{Name: "vendor", New: is, Old: &was}}, Effort: Fast})
	if n := types[pb.InstallOperation_LZ4DIFF_BSDIFF]; n < 2 || size > 100_000 {
		t.Errorf("expected LZ4DIFF_BSDIFF for each file, and little, found %v, %d bytes", types, size)
	}
}

// The same bytes come out with any number of workers, and on many machines.
func TestErofsSameBytes(t *testing.T) {
	before, after := trees(t)
	was, is := imageOf(erofsImage(t, before, "-zlz4hc")), imageOf(erofsImage(t, after, "-zlz4hc"))
	part := Partition{Name: "vendor", New: is, Old: &was}
	o := Options{Partitions: []Partition{part}, Effort: Fast}
	var first []byte
	for _, workers := range []int{1, 2, 5} {
		o.Workers = workers
		b, _ := payloadOf(t, o)
		if first == nil {
			first = b
		}
		if !bytes.Equal(b, first) {
			t.Errorf("expected the same bytes with %d workers, found others", workers)
		}
	}
	farm := farmOf(t, o, part)
	files := map[string][]byte{}
	for _, w := range farm.Work() {
		var err error
		files[w.Item.ID], err = farm.RunTask(t.Context(), w)
		must(t, err)
	}
	joined, err := farm.Join(t.Context(), func(_ context.Context, _ int, it *Item) (*Result, error) { return ReadResult(files[it.ID], it) })
	must(t, err)
	defer joined.Close()
	var b bytes.Buffer
	_, err = joined.Write(&b, nil)
	must(t, err)
	if !bytes.Equal(b.Bytes(), first) {
		t.Error("expected the joined payload to be the one of one machine")
	}
}

// An item's ID and a plan's check know the clusters.
func TestErofsPlan(t *testing.T) {
	before, after := trees(t)
	was, is := imageOf(erofsImage(t, before, "-zlz4hc")), imageOf(erofsImage(t, after, "-zlz4hc"))
	part := Partition{Name: "vendor", New: is, Old: &was}
	o := Options{Partitions: []Partition{part}}
	plan, err := NewPlan(t.Context(), o)
	must(t, err)
	i := slices.IndexFunc(plan.Partitions[0].Items, func(it Item) bool { return it.packed() })
	if i < 0 {
		t.Fatal("expected an item with clusters, found none")
	}
	it := &plan.Partitions[0].Items[i]
	for what, change := range map[string]func(p *Packing){
		"length": func(p *Packing) { p.Clusters[0].Length++ }, "padding": func(p *Packing) { p.Padded = !p.Padded },
	} {
		for _, p := range []*Packing{it.New, it.Old} {
			kept := *p
			p.Clusters = slices.Clone(p.Clusters)
			change(p)
			if id, _, err := plan.o.id(it, part.hashes(nil)); err != nil || id == it.ID {
				t.Errorf("%s: expected another ID, found the same, %v", what, err)
			}
			*p = kept
		}
	}
	for what, bad := range map[string]Cluster{"no blocks": {0, 4096}, "more blocks": {99, 1 << 20}, "short": {1, 4095}, "long": {1, largestDiff}} {
		p := Packing{Clusters: append([]Cluster{bad}, it.New.Clusters[1:]...)}
		if err := p.check(it.File); err == nil {
			t.Errorf("%s: expected an error, found none", what)
		}
	}
}

func TestPackingText(t *testing.T) {
	for _, want := range []Packing{{Padded: true, Clusters: []Cluster{{1, 8123}, {5, 20480}}}, {Clusters: []Cluster{{16, 99999}}}} {
		b, err := want.MarshalText()
		must(t, err)
		var got Packing
		must(t, got.UnmarshalText(b))
		if got.Padded != want.Padded || !slices.Equal(got.Clusters, want.Clusters) {
			t.Errorf("%s: expected %+v, found %+v", b, want, got)
		}
	}
	for _, bad := range []string{"1", "padded x:1", "1:2:3", "-1:2", "1:99999999999999999999"} {
		if err := new(Packing).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q: expected an error, found none", bad)
		}
	}
}

// An item makes some clusters of a file; a plain one may be cut.
func TestPackingMade(t *testing.T) {
	p := Packing{Clusters: []Cluster{{2, 30000}, {3, 3 * blockSize}, {1, 9000}}}
	for what, c := range map[string]struct {
		in        []int
		clusters  []Cluster
		stretches []stretch
	}{
		"all":           {[]int{0, 1, 2, 3, 4, 5}, p.Clusters, []stretch{{0, 0, 39000 + 3*blockSize}}},
		"one":           {[]int{-1, -1, -1, -1, -1, 0}, p.Clusters[2:], []stretch{{30000 + 3*blockSize, 0, 9000}}},
		"plain pieces":  {[]int{0, 1, 2, -1, 3, -1}, []Cluster{{2, 30000}, {2, 2 * blockSize}}, []stretch{{0, 0, 30000 + blockSize}, {30000 + 2*blockSize, 30000 + blockSize, blockSize}}},
		"a half":        {[]int{0, -1, -1, -1, -1, -1}, nil, nil},
		"another order": {[]int{1, 0, -1, -1, -1, -1}, nil, nil},
		"nothing":       {[]int{-1, -1, -1, -1, -1, -1}, nil, nil},
	} {
		got, stretches, ok := p.made(c.in)
		if ok != (c.clusters != nil) || ok && (!slices.Equal(got.Clusters, c.clusters) || !slices.Equal(stretches, c.stretches)) {
			t.Errorf("%s: expected %v, %v, found %v, %v, %v", what, c.clusters, c.stretches, got.Clusters, stretches, ok)
		}
	}
}

// What is read as a packing is written as it was read, and checked without overflow.
func FuzzPacking(f *testing.F) {
	for _, s := range []string{"padded 1:8123 5:20480", "16:99999", "", "padded", "4294967295:4294967295 1:1", "1:"} {
		f.Add([]byte(s), uint64(21))
	}
	f.Fuzz(func(t *testing.T, b []byte, blocks uint64) {
		var p, again Packing
		if p.UnmarshalText(b) != nil {
			return
		}
		text, err := p.MarshalText()
		must(t, err)
		must(t, again.UnmarshalText(text))
		if again.Padded != p.Padded || !slices.Equal(again.Clusters, p.Clusters) {
			t.Errorf("%q: expected %+v, found %+v", text, p, again)
		}
		if p.check([]Range{{0, blocks}}) == nil && (p.length() > largestDiff || p.length() < 0) {
			t.Errorf("%q: expected it to be refused", text)
		}
	})
}
