package generate

import (
	"bytes"
	"io"

	"github.com/dsnet/compress/bzip2"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"cowbird/formats/payload/pb"
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

// replace finds the smallest form of new data.
func (o *Options) replace(data []byte) (encoding, error) {
	best := encoding{pb.InstallOperation_REPLACE, data}
	quick, err := packZstd(data, zstd.SpeedFastest)
	if err != nil {
		return best, err
	}
	if len(quick) > len(data)/100*98 { // compressed already
		return best, nil
	}
	packs := o.packers()
	if len(packs) > 1 && o.Effort == Default && len(data) > sample {
		if packs, err = o.better(packs, data[len(data)/2-sample/2:][:sample]); err != nil {
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
func (o *Options) better(packs []packer, data []byte) ([]packer, error) {
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

func (o *Options) packers() []packer {
	packs := []packer{{pb.InstallOperation_REPLACE_BZ, packBzip2}}
	if o.Effort != Fast {
		packs = append([]packer{{pb.InstallOperation_REPLACE_XZ, packXZ}}, packs...)
	}
	if o.Zstd {
		best := packer{pb.InstallOperation_REPLACE_ZSTD, func(b []byte) ([]byte, error) { return packZstd(b, zstd.SpeedBestCompression) }}
		if packs = append(packs, best); o.Effort == Fast {
			packs = []packer{best}
		}
	}
	return packs
}

func packBzip2(data []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := bzip2.NewWriter(&b, &bzip2.WriterConfig{Level: bzip2.BestCompression})
	return packed(&b, w, err, data)
}

// packXZ makes one block with CRC-32, as producers of payloads do (specs/payload.md 6).
func packXZ(data []byte) ([]byte, error) {
	var b bytes.Buffer
	c := xz.WriterConfig{DictCap: max(4096, len(data)), CheckSum: xz.CRC32}
	w, err := c.NewWriter(&b)
	return packed(&b, w, err, data)
}

func packZstd(data []byte, level zstd.EncoderLevel) ([]byte, error) {
	w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(zstdWindow(len(data))), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, err
	}
	return w.EncodeAll(data, nil), nil
}

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
