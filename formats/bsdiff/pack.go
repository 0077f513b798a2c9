package bsdiff

import (
	"bytes"
	"io"
	"sync"

	"github.com/andybalholm/brotli"
	"github.com/dsnet/compress/bzip2"
)

// Android's encoder has a window of 20 bits, so its decoder needs little memory.
const brotliWindow = 20

// encoder is what a stream is compressed by. Its tables, for brotli some hundred
// kilobytes, take longer to make than most streams to compress, so it is kept.
type encoder interface {
	io.WriteCloser
	Reset(io.Writer)
}

// encoders are kept by what they are set to. The brotli encoder chooses its tables by
// the length of the first stream, at largeStream, and they show in what comes out.
var encoders sync.Map // of *sync.Pool, by encoderKind

type encoderKind struct {
	algorithm Algorithm
	quality   int
	large     bool
}

const largeStream = 1 << 20

func (o *Options) pack(a Algorithm, stream []byte) ([]byte, error) {
	if a == None {
		return stream, nil
	}
	kind := encoderKind{algorithm: a}
	if a == Brotli {
		kind.quality, kind.large = o.BrotliQuality, len(stream) >= largeStream
	}
	pool, _ := encoders.LoadOrStore(kind, new(sync.Pool))
	w, _ := pool.(*sync.Pool).Get().(encoder)
	if w == nil {
		var err error
		if w, err = kind.open(); err != nil {
			return nil, err
		}
	}
	var buf bytes.Buffer
	w.Reset(&buf)
	if _, err := w.Write(stream); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	w.Reset(io.Discard)
	pool.(*sync.Pool).Put(w)
	return buf.Bytes(), nil
}

func (k encoderKind) open() (encoder, error) {
	if k.algorithm == Brotli {
		return brotli.NewWriterOptions(io.Discard, brotli.WriterOptions{Quality: k.quality, LGWin: brotliWindow}), nil
	}
	w, err := bzip2.NewWriter(io.Discard, &bzip2.WriterConfig{Level: bzip2.BestCompression})
	return bzip2Encoder{w}, err
}

// bzip2Encoder is one whose Reset cannot fail.
type bzip2Encoder struct{ *bzip2.Writer }

func (e bzip2Encoder) Reset(w io.Writer) { _ = e.Writer.Reset(w) }
