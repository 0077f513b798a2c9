package cowfile

import (
	"bytes"
	"compress/zlib"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/dsnet/compress/brotli"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Decode decompresses stored into unit, which it must fill exactly. Decoder
// state is kept for the next call: some 100 KiB, with zstd 300, with brotli at
// most 512; whatever stored holds, a call takes no more than 2 MiB. It is safe
// for concurrent use. Errors wrap ErrDecode; unit is undefined then.
func Decode(c Compression, unit, stored []byte) error {
	var err error
	switch c {
	case None:
		if len(stored) == len(unit) {
			copy(unit, stored)
			return nil
		}
		err = fmt.Errorf("expected %d bytes, found %d", len(unit), len(stored))
	case LZ4:
		err = decodeLZ4(unit, stored)
	case Zstd:
		err = decodeZstd(unit, stored)
	case GZ:
		err = decodeGZ(unit, stored)
	case Brotli:
		err = decodeBrotli(unit, stored)
	default:
		err = fmt.Errorf("expected a compression from 0 to 4, found %d", uint32(c))
	}
	if err != nil {
		return fmt.Errorf("%w: %v unit of %d bytes: %w", ErrDecode, c, len(unit), err)
	}
	return nil
}

func decodeLZ4(unit, stored []byte) error {
	n, err := lz4.UncompressBlock(stored, unit)
	if err != nil {
		return err
	}
	if n != len(unit) {
		return fmt.Errorf("expected %d bytes, found %d", len(unit), n)
	}
	return nil
}

// zstdDecoders lends as many decoders as there are processors, since more could
// not work at a time: one takes about 300 KiB, and nothing once it exists.
var zstdDecoders = sync.OnceValue(func() chan *zstd.Decoder {
	n := runtime.GOMAXPROCS(0)
	c := make(chan *zstd.Decoder, n)
	for range n {
		c <- nil // made when first lent
	}
	return c
})

func newZstdDecoder() *zstd.Decoder {
	// Not the option for low memory: it allocates anew for each frame that is
	// larger than those before.
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(false),
		zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxMemory(MaxUnit))
	if err != nil {
		panic(err) // constant options
	}
	return d
}

func decodeZstd(unit, stored []byte) error {
	decoders := zstdDecoders()
	d := <-decoders
	if d == nil {
		d = newZstdDecoder()
	}
	defer func() { decoders <- d }()
	out, err := d.DecodeAll(stored, unit[:0:len(unit)])
	if err != nil {
		return err
	}
	if len(out) != len(unit) {
		return fmt.Errorf("expected %d bytes, found %d", len(unit), len(out))
	}
	return nil
}

// streamDecoder is a decoder that reads from a stream and can be used again.
type streamDecoder struct {
	src   bytes.Reader
	r     io.Reader
	reset func(*streamDecoder) error
}

var gzPool = sync.Pool{New: func() any {
	return &streamDecoder{reset: func(d *streamDecoder) error {
		if z, ok := d.r.(zlib.Resetter); ok {
			return z.Reset(&d.src, nil)
		}
		z, err := zlib.NewReader(&d.src)
		if err != nil {
			return err
		}
		d.r = z
		return nil
	}}
}}

var brotliPool = sync.Pool{New: func() any {
	return &streamDecoder{reset: func(d *streamDecoder) error {
		if b, ok := d.r.(*brotli.Reader); ok {
			return b.Reset(&d.src)
		}
		b, err := brotli.NewReader(&d.src, nil)
		if err != nil {
			return err
		}
		d.r = b
		return nil
	}}
}}

func decodeGZ(unit, stored []byte) error     { return decodeStream(&gzPool, unit, stored) }
func decodeBrotli(unit, stored []byte) error { return decodeStream(&brotliPool, unit, stored) }

// decodeStream gives a decoder back only after good data: brotli's window grows
// when a stream goes on behind the unit, each time to twice of what it was.
func decodeStream(pool *sync.Pool, unit, stored []byte) error {
	d := pool.Get().(*streamDecoder)
	d.src.Reset(stored)
	if err := d.decode(unit); err != nil {
		return err
	}
	d.src.Reset(nil) // keep the state, not the caller's bytes
	pool.Put(d)
	return nil
}

func (d *streamDecoder) decode(unit []byte) error {
	if err := d.reset(d); err != nil {
		return err
	}
	if n, err := io.ReadFull(d.r, unit); err != nil {
		return fmt.Errorf("after %d bytes: %w", n, err)
	}
	// The end of the stream carries its checksum; reading on verifies it.
	var one [1]byte
	switch n, err := d.r.Read(one[:]); {
	case n > 0:
		return fmt.Errorf("expected %d bytes, found more", len(unit))
	case err != io.EOF && err != nil:
		return err
	case err == nil:
		return io.ErrNoProgress
	}
	if d.src.Len() > 0 {
		return fmt.Errorf("expected the stream to end with the data, found %d bytes after it", d.src.Len())
	}
	return nil
}
