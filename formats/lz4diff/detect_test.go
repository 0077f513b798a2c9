package lz4diff_test

import (
	"bytes"
	"testing"

	"cowbird/formats/lz4diff"
)

// What compressed a file is found by doing it again.
func TestDetect(t *testing.T) {
	for _, want := range []lz4diff.File{
		{Algorithm: lz4diff.LZ4, ZeroPadding: true}, {Algorithm: lz4diff.LZ4HC, Level: 9, ZeroPadding: true},
		{Algorithm: lz4diff.LZ4HC, Level: 12}, {Algorithm: lz4diff.LZ4HC, Level: 3, ZeroPadding: true},
	} {
		p := makePair(t, 90000, want)
		f := p.sourceFile
		contents, err := f.Contents(p.source)
		if err != nil {
			t.Fatal(err)
		}
		if f.Algorithm, f.Level = lz4diff.LZ4HC, 5; f.Detect(p.source, contents) != nil || f.Algorithm != want.Algorithm || f.Level != want.Level {
			t.Errorf("expected algorithm %d, level %d, found %d, %d", want.Algorithm, want.Level, f.Algorithm, f.Level)
		}
	}
	f := lz4diff.File{Algorithm: lz4diff.LZ4, Clusters: []lz4diff.Cluster{{Length: 10, Stored: 10}}}
	if err := f.Detect(make([]byte, 10), make([]byte, 10)); err != nil || f.Algorithm != lz4diff.LZ4 {
		t.Errorf("nothing compressed: expected no change, found algorithm %d, %v", f.Algorithm, err)
	}
}

// Without hashes a patch is shorter and gives the same target.
func TestTerse(t *testing.T) {
	p := makePair(t, 90000, lz4diff.File{Algorithm: lz4diff.LZ4HC, Level: 9, ZeroPadding: true})
	sizes := map[bool]int{}
	for _, terse := range []bool{false, true} {
		d := differs
		d.Terse = terse
		made, err := lz4diff.Create(p.source, p.target, p.sourceFile, p.targetFile, d)
		if err != nil {
			t.Fatal(err)
		}
		sizes[terse] = len(checkApplies(t, made, p))
		if hash := made.Target.Clusters[0].Hash; (len(hash) == 0) != terse {
			t.Errorf("terse %v: found hash %x", terse, hash)
		}
	}
	if saved := sizes[false] - sizes[true]; saved < 34*len(p.targetFile.Clusters)/2 {
		t.Errorf("expected 34 bytes less for each cluster, found %d in all", saved)
	}
}

// What is no file of these clusters is refused.
func TestContentsRefuses(t *testing.T) {
	p := makePair(t, 9000, lz4diff.File{Algorithm: lz4diff.LZ4})
	bomb := lz4diff.File{Algorithm: lz4diff.LZ4, Clusters: []lz4diff.Cluster{{Length: 1 << 39, Stored: 4096}}}
	for what, f := range map[string]lz4diff.File{"bomb": bomb, "nothing": {}} {
		if _, err := f.Contents(p.source[:4096]); err == nil {
			t.Errorf("%s: expected an error, found none", what)
		}
	}
	if _, err := p.sourceFile.Contents(append(bytes.Clone(p.source), 0)); err == nil {
		t.Error("one byte more: expected an error, found none")
	}
}
