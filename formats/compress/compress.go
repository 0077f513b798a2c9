// Package compress makes the compressors that COW builders use. It stands apart
// from package cowfile, which only decompresses, so that the daemon does not
// carry encoders: the brotli one alone brings net/http along.
package compress

import (
	"bytes"
	"fmt"
	"io"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Func appends the compressed form of unit to dst, which may be longer than
// unit. Equal units give equal bytes, whatever was compressed before. A Func
// belongs to one goroutine.
type Func func(dst, unit []byte) ([]byte, error)

// New returns a compressor for units of at most maxUnit bytes. The algorithms
// are none (nil is returned), gz (a zlib stream), brotli, lz4 (a block without
// frame) and zstd (one frame). Levels are those of the usual command-line
// tools; lz4 takes 3 to 9 for its high-compression search and less for the
// fast one.
func New(algorithm string, level, maxUnit int) (Func, error) {
	var f Func
	var err error
	switch algorithm {
	case "none":
	case "lz4":
		f = newLZ4(level, maxUnit)
	case "zstd":
		f, err = newZstd(level, maxUnit)
	case "gz":
		f, err = newStream(func(w io.Writer) (resetWriter, error) { return zlib.NewWriterLevel(w, level) })
	case "brotli":
		f, err = newStream(func(w io.Writer) (resetWriter, error) {
			return brotli.NewWriterOptions(w, brotli.WriterOptions{Quality: level, LGWin: 22}), nil
		})
	default:
		err = fmt.Errorf("expected none, gz, brotli, lz4 or zstd")
	}
	if err != nil {
		return nil, fmt.Errorf("compression %q level %d: %w", algorithm, level, err)
	}
	return f, nil
}

// lz4Fast is the highest level that means the fast search.
const lz4Fast = 2

func newLZ4(level, maxUnit int) Func {
	bound := lz4.CompressBlockBound(maxUnit)
	compress := new(lz4.Compressor).CompressBlock
	if level > lz4Fast {
		depth := lz4.CompressionLevel(1 << (8 + min(level, 9)))
		compress = (&lz4.CompressorHC{Level: depth}).CompressBlock
	}
	return func(dst, unit []byte) ([]byte, error) {
		start := len(dst)
		if cap(dst)-start < bound {
			dst = append(make([]byte, 0, start+bound), dst...)
		}
		n, err := compress(unit, dst[start:start+bound])
		if n == 0 && err == nil { // not compressible
			return append(dst, unit...), nil
		}
		return dst[:start+n], err
	}
}

func newZstd(level, maxUnit int) (Func, error) {
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true),
		zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)), zstd.WithWindowSize(max(maxUnit, zstd.MinWindowSize)))
	if err != nil {
		return nil, err
	}
	return func(dst, unit []byte) ([]byte, error) { return w.EncodeAll(unit, dst), nil }, nil
}

type resetWriter interface {
	io.WriteCloser
	Reset(io.Writer)
}

func newStream(open func(io.Writer) (resetWriter, error)) (Func, error) {
	w, err := open(io.Discard)
	return func(dst, unit []byte) ([]byte, error) {
		buf := bytes.NewBuffer(dst)
		w.Reset(buf)
		if _, err := w.Write(unit); err != nil {
			return nil, err
		}
		err := w.Close()
		return buf.Bytes(), err
	}, err
}
