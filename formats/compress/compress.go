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

	"cowbird/formats/lz4"
)

// Func appends the compressed form of unit to dst, which may be longer than
// unit. Equal units give equal bytes, whatever was compressed before. A Func
// belongs to one goroutine.
type Func func(dst, unit []byte) ([]byte, error)

// New returns a compressor for units of at most maxUnit bytes. The algorithms
// are none (nil is returned), gz (a zlib stream), brotli, lz4 (a block without
// frame) and zstd (one frame). Levels are those of the usual command-line
// tools; for lz4, 3 to 12 are those of its high-compression search, 0 to 2 mean
// the fast one, and with less that skips more: -1 has an acceleration of 2.
func New(algorithm string, level, maxUnit int) (Func, error) {
	var f Func
	var err error
	switch algorithm {
	case "none":
	case "lz4":
		f, err = newLZ4(level)
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

func newLZ4(level int) (f Func, err error) {
	var e *lz4.Encoder
	if level >= lz4.MinHigh {
		e, err = lz4.NewHigh(level)
	} else {
		e, err = lz4.NewFast(1 - min(level, 0))
	}
	if err != nil {
		return nil, err
	}
	return e.Encode, nil
}

func newZstd(level, maxUnit int) (Func, error) {
	// Bytes without matches are coded as well: contents that are compressed inside, as
	// files of erofs, have little else to give.
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true),
		zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)), zstd.WithWindowSize(max(maxUnit, zstd.MinWindowSize)),
		zstd.WithAllLitEntropyCompression(true))
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

// Smallest returns a compressor that tries all of some, and takes the shortest
// outcome, the first one among equals.
func Smallest(all ...Func) Func {
	if len(all) == 1 {
		return all[0]
	}
	var spare []byte
	return func(dst, unit []byte) ([]byte, error) {
		start := len(dst)
		for k, f := range all {
			out, err := f(spare[:0], unit)
			if err != nil {
				return nil, err
			}
			if spare = out; k == 0 || len(out) < len(dst)-start {
				dst = append(dst[:start], out...)
			}
		}
		return dst, nil
	}
}
