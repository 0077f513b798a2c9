package xz

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/mikelolasagasti/xz"
)

const fuzzLimit = 1 << 20 // bytes of a dictionary

// theirs decodes with the module that Android's decoder was taken from.
func theirs(in []byte) ([]byte, error) {
	z, err := xz.NewReader(bytes.NewReader(in), fuzzLimit)
	if err != nil {
		return nil, err
	}
	z.Multistream(false)
	return io.ReadAll(io.LimitReader(z, 4*fuzzLimit))
}

func ours(in []byte) ([]byte, error) {
	z, err := NewReader(bytes.NewReader(in), fuzzLimit)
	if err != nil {
		return nil, err
	}
	got, err := io.ReadAll(io.LimitReader(z, 4*fuzzLimit))
	if most := full(fuzzLimit); cap(z.chunks.w.buf) > most {
		panic("a ring that is longer than its dictionary")
	}
	return got, err
}

// FuzzReader decodes any bytes, with the checksums of the first headers made right. What
// the other decoder takes as well has the same data.
func FuzzReader(f *testing.F) {
	files, err := filepath.Glob("testdata/*.xz")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		packed, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packed)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 1<<16 {
			return
		}
		if len(in) > 16 {
			fixSums(in)
		}
		got, err := ours(in)
		want, theirErr := theirs(in)
		if err == nil && theirErr == nil && !bytes.Equal(got, want) {
			t.Errorf("expected %d bytes, found %d others", len(want), len(got))
		}
	})
}

// FuzzChunks decodes any chunks, behind headers that are right: as far as both decoders
// come, they give the same data.
func FuzzChunks(f *testing.F) {
	var e Encoder
	f.Add(e.lzma2(nil, []byte("abcabcabcabcabc, abcabc"), 4096, Best), byte(0), byte(0))
	f.Add(e.lzma2(nil, code()[:3000], 4096, Best), byte(0), byte(4))
	f.Add(e.lzma2(nil, code()[:3000], 4096, Fast), byte(1), byte(7))
	f.Add([]byte{1, 0, 2, 'a', 'b', 'c', 2, 0, 0, 'd', 0}, byte(0), byte(8))
	f.Fuzz(func(t *testing.T, chunks []byte, dictionary, filter byte) {
		in := stream(0, []byte{filterLZMA2, 1, dictionary}, chunks...)
		if filter == 4 || filter == 7 || filter == 8 {
			in = stream(1, []byte{filter, 0, filterLZMA2, 1, dictionary}, chunks...)
		}
		got, _ := ours(in)
		want, _ := theirs(in)
		if n := min(len(got), len(want)); !bytes.Equal(got[:n], want[:n]) {
			t.Errorf("expected the same %d bytes", n)
		}
	})
}
