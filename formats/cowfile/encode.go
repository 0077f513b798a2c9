package cowfile

import (
	"bytes"
	"fmt"
	"io"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Encoder compresses units for one file. It belongs to one goroutine; equal
// units give equal bytes, whatever was encoded before.
type Encoder struct {
	c       Compression
	version int
	encode  func(dst, unit []byte) ([]byte, error)
	buf     []byte
}

// NewEncoder returns an encoder for a file of the given version whose units
// have at most maxUnit bytes.
func NewEncoder(version int, c Compression, level, maxUnit int) (*Encoder, error) {
	e := &Encoder{c: c, version: version}
	var err error
	switch c {
	case None:
	case LZ4:
		e.encode = lz4Encoder(level, maxUnit)
	case Zstd:
		e.encode, err = zstdEncoder(level, maxUnit)
	case GZ:
		e.encode, err = streamEncoder(func(w io.Writer) (resetWriter, error) { return zlib.NewWriterLevel(w, level) })
	case Brotli:
		e.encode, err = streamEncoder(func(w io.Writer) (resetWriter, error) {
			return brotli.NewWriterOptions(w, brotli.WriterOptions{Quality: level, LGWin: 22}), nil
		})
	default:
		err = fmt.Errorf("expected a compression from 0 to 4, found %d", uint32(c))
	}
	if err != nil {
		return nil, fmt.Errorf("%v level %d: %w", c, level, err)
	}
	return e, nil
}

// Encode returns what the file stores for unit, and with which compression:
// None when the unit is stored as it is (section 5.1). The result is valid
// until the next call.
func (e *Encoder) Encode(unit []byte) (stored []byte, c Compression, err error) {
	if e.c == None {
		return unit, None, nil
	}
	if e.buf, err = e.encode(e.buf[:0], unit); err != nil {
		return nil, None, fmt.Errorf("%v: %w", e.c, err)
	}
	// Version 2 has no way to mark a raw block under these two.
	alwaysStream := e.version < 3 && (e.c == GZ || e.c == Brotli)
	if len(e.buf) >= len(unit) && !alwaysStream {
		return unit, None, nil
	}
	return e.buf, e.c, nil
}

// lz4Fast is the highest level that means the fast search. Android ignores the
// level; here those above it ask for the high-compression search.
const lz4Fast = 2

func lz4Encoder(level, maxUnit int) func(dst, unit []byte) ([]byte, error) {
	bound := lz4.CompressBlockBound(maxUnit)
	compress := new(lz4.Compressor).CompressBlock
	if level > lz4Fast {
		depth := lz4.CompressionLevel(1 << (8 + min(level, 9)))
		compress = (&lz4.CompressorHC{Level: depth}).CompressBlock
	}
	return func(dst, unit []byte) ([]byte, error) {
		if cap(dst) < bound {
			dst = make([]byte, bound)
		}
		n, err := compress(unit, dst[:bound])
		if n == 0 && err == nil { // not compressible
			n = len(unit)
		}
		return dst[:n], err
	}
}

func zstdEncoder(level, maxUnit int) (func(dst, unit []byte) ([]byte, error), error) {
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

func streamEncoder(open func(io.Writer) (resetWriter, error)) (func(dst, unit []byte) ([]byte, error), error) {
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
