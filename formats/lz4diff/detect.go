package lz4diff

import "bytes"

// encoders are those that Detect tries, the likely ones first.
var encoders = []File{
	{Algorithm: LZ4HC, Level: 9}, {Algorithm: LZ4HC, Level: 12}, {Algorithm: LZ4}, {Algorithm: LZ4HC, Level: 8},
	{Algorithm: LZ4HC, Level: 7}, {Algorithm: LZ4HC, Level: 6}, {Algorithm: LZ4HC, Level: 5}, {Algorithm: LZ4HC, Level: 4},
	{Algorithm: LZ4HC, Level: 3}, {Algorithm: LZ4HC, Level: 10}, {Algorithm: LZ4HC, Level: 11},
}

// sampled is how many clusters Detect compresses, at most.
const sampled = 8

// Detect finds out how a file is compressed: it sets Algorithm and Level to those
// with which most of some clusters become what they are in the file. contents is the
// file's, from Contents. Without a compressed cluster f stays as it is.
func (f *File) Detect(file, contents []byte) error {
	some := f.sample(file)
	best := -1
	for _, e := range encoders {
		e.ZeroPadding = f.ZeroPadding
		n, err := e.reproduces(some, contents)
		if err != nil {
			return err
		}
		if n > best && len(some) > 0 {
			f.Algorithm, f.Level, best = e.Algorithm, e.Level, n
		}
		if n == len(some) {
			return nil
		}
	}
	return nil
}

// piece is a compressed cluster, and where its contents begin.
type piece struct {
	stored []byte
	offset int64
}

// sample takes compressed clusters from all over a file.
func (f *File) sample(file []byte) (some []piece) {
	var offset, at int64
	for i := range f.Clusters {
		c := &f.Clusters[i]
		if c.compressed() {
			some = append(some, piece{file[at : at+c.Stored], offset})
		}
		offset, at = offset+c.Length, at+c.Stored
	}
	if n := len(some); n > sampled {
		for i := range sampled {
			some[i] = some[i*(n-1)/(sampled-1)]
		}
		some = some[:sampled]
	}
	return some
}

// reproduces counts the pieces that are made again.
func (f *File) reproduces(some []piece, contents []byte) (n int, err error) {
	e, err := f.encoder()
	if err != nil {
		return 0, err
	}
	for _, p := range some {
		made := make([]byte, len(p.stored))
		if err := f.fill(e, made, contents[p.offset:]); err != nil {
			return 0, err
		}
		if bytes.Equal(made, p.stored) {
			n++
		}
	}
	return n, nil
}
