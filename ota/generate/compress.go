package generate

import (
	"bytes"
	"io"
	"sync"

	"github.com/dsnet/compress/bzip2"
	"github.com/klauspost/compress/zstd"

	"cowbird/formats/payload/pb"
	"cowbird/formats/xz"
)

type opType = pb.InstallOperation_Type

// encoding is one way to have an operation's data.
type encoding struct {
	kind opType
	blob []byte
}

// smaller keeps the smaller of two, the first of equal ones.
func (e *encoding) smaller(kind opType, blob []byte) {
	if len(blob) < len(e.blob) {
		e.kind, e.blob = kind, blob
	}
}

// sample is how much of a chunk tells which compressor is the better one, in bytes.
const sample = 256 << 10

// replace finds the smallest form of new data. quick is their quickSize.
func (o *Options) replace(data []byte, quick int) (encoding, error) {
	best := encoding{pb.InstallOperation_REPLACE, data}
	if quick > len(data)/100*98 { // compressed already
		return best, nil
	}
	packs := o.packers()
	if len(packs) > 1 && o.Effort != Max && len(data) > sample {
		var err error
		if packs, err = better(packs, data[len(data)/2-sample/2:][:sample]); err != nil {
			return best, err
		}
	}
	for _, p := range packs {
		blob, err := p.pack(data)
		if err != nil {
			return best, err
		}
		best.smaller(p.kind, blob)
	}
	return best, nil
}

// better keeps the packer that makes the least of a sample.
func better(packs []packer, data []byte) ([]packer, error) {
	best, least := 0, len(data)+1
	for i, p := range packs {
		blob, err := p.pack(data)
		if err != nil {
			return nil, err
		}
		if len(blob) < least {
			best, least = i, len(blob)
		}
	}
	return packs[best : best+1], nil
}

type packer struct {
	kind opType
	pack func([]byte) ([]byte, error)
}

// packers are those that are tried. bzip2 is smaller than xz for few data, and then not
// by much.
func (o *Options) packers() (packs []packer) {
	switch {
	case o.Effort == Max:
		packs = append(packs, packer{pb.InstallOperation_REPLACE_XZ, packXZ(xz.Best)})
	case o.Effort == Default || !o.Zstd:
		packs = append(packs, packer{pb.InstallOperation_REPLACE_XZ, packXZ(xz.Fast)})
	}
	if o.Effort == Max {
		packs = append(packs, packer{pb.InstallOperation_REPLACE_BZ, packBzip2})
	}
	if o.Zstd {
		packs = append(packs, packer{pb.InstallOperation_REPLACE_ZSTD, func(b []byte) ([]byte, error) { return packZstd(b, zstd.SpeedBestCompression) }})
	}
	return packs
}

func packBzip2(data []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := bzip2.NewWriter(&b, &bzip2.WriterConfig{Level: bzip2.BestCompression})
	return packed(&b, w, err, data)
}

// mostKept is how many data an encoder has seen that is kept, in bytes: it is four times
// as large.
const mostKept = 16 << 20

var xzEncoders = sync.Pool{New: func() any { return new(xz.Encoder) }}

// packXZ makes one block with CRC-32, as decoders of payloads want it (specs/payload.md 6).
func packXZ(level xz.Level) func([]byte) ([]byte, error) {
	return func(data []byte) ([]byte, error) {
		e := xzEncoders.Get().(*xz.Encoder)
		if len(data) <= mostKept {
			defer xzEncoders.Put(e)
		}
		return e.Append(nil, data, level), nil
	}
}

func packZstd(data []byte, level zstd.EncoderLevel) ([]byte, error) {
	w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(zstdWindow(len(data))), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, err
	}
	return w.EncodeAll(data, nil), nil
}

// quickPack is what quickSize works with.
type quickPack struct {
	w   *zstd.Encoder
	out []byte
}

var quickPacks sync.Pool // of *quickPack

// quickSize is the length of data as zstd makes them quickest.
func quickSize(data []byte) (int, error) {
	q, _ := quickPacks.Get().(*quickPack)
	if q == nil {
		w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(quickWindow), zstd.WithLowerEncoderMem(true))
		if err != nil {
			return 0, err
		}
		q = &quickPack{w: w}
	}
	defer quickPacks.Put(q)
	q.out = q.w.EncodeAll(data, q.out[:0])
	return len(q.out), nil
}

const quickWindow = 1 << 20

// zstdWindow is a power of two that holds n bytes, up to 8 MiB.
func zstdWindow(n int) int {
	w := zstd.MinWindowSize
	for w < n && w < 8<<20 {
		w *= 2
	}
	return w
}

func packed(b *bytes.Buffer, w io.WriteCloser, err error, data []byte) ([]byte, error) {
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	return b.Bytes(), err
}
