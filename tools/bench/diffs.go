package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/dsnet/compress/bzip2"

	"cowbird/formats/bsdiff"
	"cowbird/formats/puffin"
)

// diffs compares applying patches with decoding the streams that they take.
func (b *bench) diffs() error {
	for _, mib := range b.diffSizes() {
		old, next, err := b.slices(mib << 20)
		if err != nil {
			return err
		}
		if err := b.bsdiffRow(mib, old, next); err != nil {
			return err
		}
		if err := b.puffdiffRow(mib, old, next); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) diffSizes() []int {
	if b.quick {
		return []int{8}
	}
	return []int{8, 64}
}

// slices are the same stretch of both images.
func (b *bench) slices(n int) (old, next []byte, err error) {
	read := func(path string) []byte {
		p := make([]byte, n)
		f, e := os.Open(path)
		if e == nil {
			_, e = f.ReadAt(p, b.size/4)
			e = errors.Join(e, f.Close())
		}
		err = errors.Join(err, e)
		return p
	}
	return read(b.base), read(b.target), err
}

func (b *bench) bsdiffRow(mib int, old, next []byte) error {
	progress("  a bsdiff patch of %d MiB", mib)
	var patch bytes.Buffer
	if err := bsdiff.Create(&patch, old, next, bsdiff.Options{Algorithms: []bsdiff.Algorithm{bsdiff.Brotli}, BrotliQuality: 9}); err != nil {
		return err
	}
	apply := func() error {
		p, err := bsdiff.Open(bytes.NewReader(patch.Bytes()), int64(patch.Len()))
		if err != nil {
			return err
		}
		return p.Apply(io.Discard, bytes.NewReader(old), int64(len(old)))
	}
	decode := func() error { return decodeStreams(patch.Bytes()) }
	return b.diffRow(fmt.Sprintf("apply a brotli bsdiff of %d MiB, against decoding its streams", mib), apply, decode)
}

// puffdiffRow is about gzip files, whose deflates of both sides are decoded as well.
func (b *bench) puffdiffRow(mib int, old, next []byte) error {
	progress("  a puffdiff patch of %d MiB", mib)
	source, err := gzipped(old)
	if err != nil {
		return err
	}
	target, err := gzipped(next)
	if err != nil {
		return err
	}
	var patch bytes.Buffer
	if err := puffin.Create(&patch, source, target, puffin.Options{}); err != nil {
		return err
	}
	apply := func() error {
		p, err := puffin.Open(bytes.NewReader(patch.Bytes()), int64(patch.Len()))
		if err != nil {
			return err
		}
		return p.Apply(io.Discard, bytes.NewReader(source.Data), int64(len(source.Data)), puffin.ApplyOptions{})
	}
	inner := patch.Bytes()[bytes.Index(patch.Bytes(), []byte("BSDF2")):]
	decode := func() error {
		for _, e := range source.Deflates {
			if _, err := puffin.Puff(nil, source.Data, e); err != nil {
				return err
			}
		}
		return decodeStreams(inner)
	}
	what := "apply a puffdiff between gzip files of %d MiB of contents, against decoding its streams and the source's"
	return b.diffRow(fmt.Sprintf(what, mib), apply, decode)
}

func gzipped(data []byte) (puffin.File, error) {
	cmd := exec.Command("gzip", "-n", "-6", "-c")
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	return puffin.File{Data: out, Deflates: puffin.Find("x.gz", out)}, err
}

// decodeStreams decodes the three streams of a BSDF2 patch.
func decodeStreams(patch []byte) error {
	control, diff := binary.LittleEndian.Uint64(patch[8:]), binary.LittleEndian.Uint64(patch[16:])
	kinds, body := patch[5:8], patch[bsdiff.HeaderSize:]
	for i, s := range [][]byte{body[:control], body[control:][:diff], body[control+diff:]} {
		var r io.Reader = bytes.NewReader(s)
		switch bsdiff.Algorithm(kinds[i]) {
		case bsdiff.Bzip2:
			z, err := bzip2.NewReader(r, nil)
			if err != nil {
				return err
			}
			r = z
		case bsdiff.Brotli:
			r = brotli.NewReader(r)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) diffRow(what string, apply, decode func() error) error {
	timed := func(f func() error) func() (float64, error) {
		return func() (float64, error) {
			start := time.Now()
			err := f()
			return time.Since(start).Seconds() * 1e3, err
		}
	}
	got, err := alternate(b.repeats, timed(apply), timed(decode))
	if err != nil {
		return err
	}
	b.table.ratio(what, spread(got[0], "%.0f")+" ms", spread(got[1], "%.0f")+" ms", median(got[0])/median(got[1]), atMost(2, "×"))
	return nil
}
