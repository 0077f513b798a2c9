package lz4diff_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/andybalholm/brotli"

	"cowbird/formats/lz4"
	"cowbird/formats/lz4diff"
	"cowbird/tools/fixture/payloadops"
)

// plainDiff is a bsdiff patch without any search.
func plainDiff(source, target []byte) ([]byte, error) {
	n := min(len(source), len(target))
	diff := bytes.Clone(target[:n])
	for i := range diff {
		diff[i] -= source[i]
	}
	control := make([]byte, 24)
	binary.LittleEndian.PutUint64(control, uint64(n))
	binary.LittleEndian.PutUint64(control[8:], uint64(len(target)-n))
	var streams [3]bytes.Buffer
	for i, b := range [][]byte{control, diff, target[n:]} {
		w := brotli.NewWriterLevel(&streams[i], 5)
		if _, err := w.Write(b); err != nil {
			return nil, err
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
	}
	patch := append([]byte("BSDF2"), 2, 2, 2)
	for _, n := range []int{streams[0].Len(), streams[1].Len(), len(target)} {
		patch = binary.LittleEndian.AppendUint64(patch, uint64(n))
	}
	for i := range streams {
		patch = append(patch, streams[i].Bytes()...)
	}
	return patch, nil
}

var differs = lz4diff.Differs{BSDiff: plainDiff, Postfix: plainDiff}

// words gives text that compresses.
func words(r *rand.Rand, n int) []byte {
	var b []byte
	for len(b) < n {
		b = fmt.Appendf(b, "%d/%s ", r.IntN(300), []string{"vendor", "lib64", "etc", "bin"}[r.IntN(4)])
	}
	return b[:n]
}

// pack cuts contents into clusters of 4096 bytes as EROFS does, with the last one
// as it is.
func pack(t testing.TB, contents []byte, f lz4diff.File) ([]byte, lz4diff.File) {
	t.Helper()
	e, err := lz4.NewFast(1)
	if f.Algorithm == lz4diff.LZ4HC {
		e, err = lz4.NewHigh(int(f.Level))
	}
	if err != nil {
		t.Fatal(err)
	}
	var file []byte
	for len(contents) > 4096 {
		cluster := make([]byte, 4096)
		taken, n, err := e.Fill(cluster, contents)
		if err != nil || taken <= 4096 {
			t.Fatalf("%d bytes of contents in a cluster, %v", taken, err)
		}
		if f.ZeroPadding {
			copy(cluster[4096-n:], cluster[:n])
			clear(cluster[:4096-n])
		} else {
			clear(cluster[n:])
		}
		file = append(file, cluster...)
		f.Clusters = append(f.Clusters, lz4diff.Cluster{Length: int64(taken), Stored: 4096})
		contents = contents[taken:]
	}
	if n := len(contents); n > 0 {
		file = append(file, contents...)
		f.Clusters = append(f.Clusters, lz4diff.Cluster{Length: int64(n), Stored: int64(n)})
	}
	return file, f
}

type pair struct {
	source, target         []byte
	sourceFile, targetFile lz4diff.File
}

func makePair(t testing.TB, n int, f lz4diff.File) pair {
	r := rand.New(rand.NewPCG(uint64(n), 7))
	a := words(r, n)
	b := append(append(bytes.Clone(a[:n/3]), "something else entirely"...), a[n/2:]...)
	var p pair
	p.source, p.sourceFile = pack(t, a, f)
	p.target, p.targetFile = pack(t, b, f)
	p.target = append(p.target, "behind the clusters"...)
	return p
}

func TestRoundTrip(t *testing.T) {
	for _, f := range []lz4diff.File{
		{Algorithm: lz4diff.LZ4, ZeroPadding: true}, {Algorithm: lz4diff.LZ4},
		{Algorithm: lz4diff.LZ4HC, Level: 9, ZeroPadding: true}, {Algorithm: lz4diff.LZ4HC, Level: 12},
	} {
		p := makePair(t, 90000, f)
		for _, declared := range []lz4diff.File{f, {Algorithm: lz4diff.LZ4HC, Level: 4, ZeroPadding: f.ZeroPadding}} {
			target := p.targetFile
			target.Algorithm, target.Level = declared.Algorithm, declared.Level
			patch, err := lz4diff.Create(p.source, p.target, p.sourceFile, target, differs)
			if err != nil {
				t.Fatal(err)
			}
			fixed := 0
			for _, c := range patch.Target.Clusters {
				if len(c.Postfix) > 0 {
					fixed++
				}
			}
			if same := declared.Level == f.Level && declared.Algorithm == f.Algorithm; same != (fixed == 0) {
				t.Errorf("%v at %d as %v at %d: %d postfix patches", f.Algorithm, f.Level, declared.Algorithm, declared.Level, fixed)
			}
			checkApplies(t, patch, p)
		}
	}
}

func checkApplies(t testing.TB, patch *lz4diff.Patch, p pair) []byte {
	t.Helper()
	b, err := patch.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := lz4diff.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	target, err := parsed.Apply(p.source, int64(len(p.target)), options)
	if err != nil || !bytes.Equal(target, p.target) {
		t.Fatalf("target of %d bytes became %d, %v", len(p.target), len(target), err)
	}
	return b
}

// The patches that Android's tools have made can be made again, but for what is
// inside.
func TestCreateAsFixtures(t *testing.T) {
	for _, p := range payloadops.All(t, payloadops.LZ4DiffBSDiff) {
		for i := range p.Ops {
			o := &p.Ops[i]
			if o.Type != payloadops.LZ4DiffBSDiff || len(o.Blob) > 20000 {
				continue
			}
			patch, err := lz4diff.Parse(o.Blob)
			if err != nil {
				t.Fatal(err)
			}
			target, err := patch.Apply(o.Source, o.Size(), options)
			if err != nil {
				t.Fatal(err)
			}
			again, err := lz4diff.Create(o.Source, target, patch.Source, patch.Target, differs)
			if err != nil {
				t.Fatal(err)
			}
			for j, c := range again.Target.Clusters {
				want := patch.Target.Clusters[j]
				if !bytes.Equal(c.Hash, want.Hash) || (len(c.Postfix) > 0) != (len(want.Postfix) > 0) {
					t.Fatalf("%s op %d cluster %d: other hash or postfix", p.Payload, i, j)
				}
			}
			checkApplies(t, again, pair{source: o.Source, target: target})
		}
	}
}

func TestChoosesSmallerPatch(t *testing.T) {
	p := makePair(t, 9000, lz4diff.File{Algorithm: lz4diff.LZ4})
	d := differs
	small := []byte("PUF1")
	d.PuffDiff = func(_, _ []byte) ([]byte, error) { return small, nil }
	for want, patch := range map[lz4diff.Inner][]byte{lz4diff.PuffDiff: small, lz4diff.BSDiff: nil} {
		small = patch
		made, err := lz4diff.Create(p.source, p.target, p.sourceFile, p.targetFile, d)
		if err != nil || made.Inner != want {
			t.Errorf("expected %v, found %v, %v", want, made.Inner, err)
		}
	}
}

// A puffdiff inside is handed to the function for it, with what it may make.
func TestPuffDiffInside(t *testing.T) {
	p := makePair(t, 30000, lz4diff.File{Algorithm: lz4diff.LZ4, ZeroPadding: true})
	patch, err := lz4diff.Create(p.source, p.target, p.sourceFile, p.targetFile, differs)
	if err != nil {
		t.Fatal(err)
	}
	patch.Inner = lz4diff.PuffDiff
	if _, err := patch.Apply(p.source, int64(len(p.target)), options); !errors.Is(err, lz4diff.ErrUnsupported) {
		t.Fatalf("expected ErrUnsupported, found %v", err)
	}
	got, err := patch.Apply(p.source, int64(len(p.target)), lz4diff.Options{PuffDiff: payloadops.BSPatch})
	if err != nil || !bytes.Equal(got, p.target) {
		t.Fatalf("other target, %v", err)
	}
}

func TestRefuses(t *testing.T) {
	p := makePair(t, 30000, lz4diff.File{Algorithm: lz4diff.LZ4HC, Level: 9, ZeroPadding: true})
	made, err := lz4diff.Create(p.source, p.target, p.sourceFile, p.targetFile, differs)
	if err != nil {
		t.Fatal(err)
	}
	size := int64(len(p.target))
	for _, c := range []struct {
		name  string
		want  error
		spoil func(p *lz4diff.Patch, source []byte, size *int64, o *lz4diff.Options) []byte
	}{
		{"short source", lz4diff.ErrSource, func(_ *lz4diff.Patch, s []byte, _ *int64, _ *lz4diff.Options) []byte { return s[1:] }},
		{"other source", lz4diff.ErrSource, func(_ *lz4diff.Patch, s []byte, _ *int64, _ *lz4diff.Options) []byte {
			return bytes.Repeat([]byte{255}, len(s))
		}},
		{"small target", lz4diff.ErrCorrupt, func(_ *lz4diff.Patch, s []byte, n *int64, _ *lz4diff.Options) []byte { *n = 4095; return s }},
		{"limit", lz4diff.ErrTooLong, func(_ *lz4diff.Patch, s []byte, _ *int64, o *lz4diff.Options) []byte { o.Limit = 20000; return s }},
		{"other encoder", lz4diff.ErrEncoder, func(p *lz4diff.Patch, s []byte, _ *int64, _ *lz4diff.Options) []byte {
			p.Target.Algorithm = lz4diff.LZ4
			return s
		}},
		{"level of nobody", lz4diff.ErrUnsupported, func(p *lz4diff.Patch, s []byte, _ *int64, _ *lz4diff.Options) []byte {
			p.Target.Level = 2
			return s
		}},
	} {
		patch, source, n, o := *made, p.source, size, options
		source = c.spoil(&patch, source, &n, &o)
		if _, err := patch.Apply(source, n, o); !errors.Is(err, c.want) {
			t.Errorf("%s: expected %v, found %v", c.name, c.want, err)
		}
	}
}

func TestRefusesToParse(t *testing.T) {
	p := makePair(t, 30000, lz4diff.File{Algorithm: lz4diff.LZ4, ZeroPadding: true})
	made, err := lz4diff.Create(p.source, p.target, p.sourceFile, p.targetFile, differs)
	if err != nil {
		t.Fatal(err)
	}
	good := checkApplies(t, made, p)
	change := func(at int, v ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], v)
		return b
	}
	with := func(f func(p *lz4diff.Patch)) []byte {
		q := *made
		q.Source.Clusters = append([]lz4diff.Cluster(nil), q.Source.Clusters...)
		f(&q)
		b, err := q.AppendTo(nil)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, c := range []struct {
		name  string
		want  error
		patch []byte
	}{
		{"nothing", lz4diff.ErrNotPatch, nil},
		{"magic", lz4diff.ErrNotPatch, change(0, 'l')},
		{"short", lz4diff.ErrCorrupt, good[:15]},
		{"version", lz4diff.ErrUnsupported, change(7, 0, 0, 0, 2)},
		{"header length", lz4diff.ErrCorrupt, change(11, 127)},
		{"byte 15", lz4diff.ErrCorrupt, change(15, 1)},
		{"field", lz4diff.ErrUnsupported, change(16, 0x3a)},
		{"type of a field", lz4diff.ErrCorrupt, change(16, 0x08)},
		{"inner", lz4diff.ErrUnsupported, with(func(p *lz4diff.Patch) { p.Inner = 2 })},
		{"algorithm", lz4diff.ErrUnsupported, with(func(p *lz4diff.Patch) { p.Source.Algorithm = 3 })},
		{"stored but short", lz4diff.ErrCorrupt, with(func(p *lz4diff.Patch) { p.Source.Algorithm = lz4diff.Stored })},
		{"bomb", lz4diff.ErrCorrupt, with(func(p *lz4diff.Patch) { p.Source.Clusters[0].Length = 4096*255 + 1 })},
		{"longer than its contents", lz4diff.ErrCorrupt, with(func(p *lz4diff.Patch) { p.Source.Clusters[0].Stored = 1 << 20 })},
		{"empty cluster", lz4diff.ErrCorrupt, with(func(p *lz4diff.Patch) { p.Source.Clusters[0] = lz4diff.Cluster{} })},
	} {
		if _, err := lz4diff.Parse(c.patch); !errors.Is(err, c.want) {
			t.Errorf("%s: expected %v, found %v", c.name, c.want, err)
		}
	}
}

// Whatever is damaged, there is an error or the target.
func TestDamage(t *testing.T) {
	p := makePair(t, 12000, lz4diff.File{Algorithm: lz4diff.LZ4, ZeroPadding: true})
	p.target = p.target[:len(p.target)-len("behind the clusters")] // nothing checks these
	made, err := lz4diff.Create(p.source, p.target, p.sourceFile, p.targetFile, differs)
	if err != nil {
		t.Fatal(err)
	}
	good := checkApplies(t, made, p)
	r := rand.New(rand.NewPCG(1, 2))
	damage := func(b []byte, where string) {
		patch, source := good, p.source
		if where == "patch" {
			patch = b
		} else {
			source = b
		}
		parsed, err := lz4diff.Parse(patch)
		if err != nil {
			return
		}
		got, err := parsed.Apply(source, int64(len(p.target)), options)
		if err == nil && !bytes.Equal(got, p.target) {
			t.Errorf("damaged %s gave another target", where)
		}
	}
	for range 400 {
		b := bytes.Clone(good)
		b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		damage(b, "patch")
	}
	for range 60 {
		damage(good[:r.IntN(len(good))], "patch")
		b := bytes.Clone(p.source)
		b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		damage(b, "source")
	}
}

func FuzzApply(f *testing.F) {
	for _, file := range []lz4diff.File{{Algorithm: lz4diff.LZ4, ZeroPadding: true}, {Algorithm: lz4diff.LZ4HC, Level: 3}} {
		p := makePair(f, 15000, file)
		patch, err := lz4diff.Create(p.source, p.target, p.sourceFile, p.targetFile, differs)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(checkApplies(f, patch, p), p.source, int32(len(p.target)))
	}
	f.Fuzz(func(t *testing.T, patch, source []byte, size int32) {
		p, err := lz4diff.Parse(patch)
		if err != nil {
			return
		}
		if again, err := p.AppendTo(nil); err != nil {
			t.Fatal(err)
		} else if _, err := lz4diff.Parse(again); err != nil {
			t.Fatalf("not read again: %v", err)
		}
		if size < 0 || size > 1<<20 {
			return
		}
		o := options
		o.Limit = 1 << 20
		target, err := p.Apply(source, int64(size), o)
		if err == nil && len(target) != int(size) {
			t.Fatalf("expected %d bytes, found %d", size, len(target))
		}
	})
}

func BenchmarkApply(b *testing.B) {
	p := payloadops.All(b, payloadops.LZ4DiffBSDiff)[0]
	for i := range p.Ops {
		o := &p.Ops[i]
		if o.Type != payloadops.LZ4DiffBSDiff {
			continue
		}
		patch, err := lz4diff.Parse(o.Blob)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprint(i), func(b *testing.B) {
			b.SetBytes(o.Size())
			b.ReportAllocs()
			for b.Loop() {
				if _, err := patch.Apply(o.Source, o.Size(), options); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
