package vbmeta

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// Sizes in bytes.
const (
	HeaderSize = 256
	MaxSize    = 64 << 10 // of metadata

	blockAlign  = 64
	releaseSize = 48
	magic       = "AVB0"
)

// The newest version whose metadata can be read.
const (
	major = 1
	minor = 3
)

// area is a piece of one of the two blocks.
type area struct{ offset, size uint64 }

// of gives the bytes of an area, which must lie in the block.
func (a area) of(block []byte, what string) ([]byte, error) {
	n := uint64(len(block))
	if a.offset > n || a.size > n-a.offset {
		return nil, refuse(ErrCorrupt, what, fmt.Sprintf("to lie in %d bytes", n), fmt.Sprintf("%d bytes at %d", a.size, a.offset))
	}
	return block[a.offset:][:a.size], nil
}

// header is the first 256 bytes.
type header struct {
	major, minor              uint32
	authentication, auxiliary uint64 // sizes
	algorithm                 Algorithm
	hash, signature           area // in the authentication block
	key, metadata             area // in the auxiliary block
	descriptors               area
	rollbackIndex             uint64
	flags                     Flags
	rollbackLocation          uint32
	release                   string
}

func (h *header) size() int64 { return HeaderSize + int64(h.authentication) + int64(h.auxiliary) }

// parseHeader reads 256 bytes. With no error the size is at most MaxSize.
func parseHeader(b []byte) (*header, error) {
	if len(b) < len(magic) || string(b[:len(magic)]) != magic {
		return nil, refuse(ErrNotVBMeta, "magic", fmt.Sprintf("%q", magic), fmt.Sprintf("%q", b[:min(len(magic), len(b))]))
	}
	if len(b) < HeaderSize {
		return nil, refuse(ErrTruncated, "bytes of the header", HeaderSize, len(b))
	}
	h := decodeHeader(b)
	if h.major != major || h.minor > minor {
		return nil, refuse(ErrVersion, "required version", fmt.Sprintf("%d.0 to %d.%d", major, major, minor), fmt.Sprintf("%d.%d", h.major, h.minor))
	}
	if err := h.checkSizes(); err != nil {
		return nil, err
	}
	if len(h.release) == releaseSize {
		return nil, refuse(ErrCorrupt, "release string", fmt.Sprintf("at most %d bytes", releaseSize-1), "no end")
	}
	if !bytes.Equal(h.encode(), b[:HeaderSize]) {
		return nil, refuse(ErrCorrupt, "header", "zeros behind the release string and where it is reserved", "other bytes")
	}
	return h, nil
}

func decodeHeader(b []byte) *header {
	be := binary.BigEndian
	at := func(o int) area { return area{be.Uint64(b[o:]), be.Uint64(b[o+8:])} }
	release, _, _ := bytes.Cut(b[128:][:releaseSize], []byte{0})
	return &header{
		major: be.Uint32(b[4:]), minor: be.Uint32(b[8:]),
		authentication: be.Uint64(b[12:]), auxiliary: be.Uint64(b[20:]),
		algorithm: Algorithm(be.Uint32(b[28:])),
		hash:      at(32), signature: at(48), key: at(64), metadata: at(80), descriptors: at(96),
		rollbackIndex: be.Uint64(b[112:]), flags: Flags(be.Uint32(b[120:])), rollbackLocation: be.Uint32(b[124:]),
		release: string(release),
	}
}

func (h *header) encode() []byte {
	be := binary.BigEndian
	b := make([]byte, HeaderSize)
	copy(b, magic)
	be.PutUint32(b[4:], h.major)
	be.PutUint32(b[8:], h.minor)
	be.PutUint64(b[12:], h.authentication)
	be.PutUint64(b[20:], h.auxiliary)
	be.PutUint32(b[28:], uint32(h.algorithm))
	for i, a := range []area{h.hash, h.signature, h.key, h.metadata, h.descriptors} {
		be.PutUint64(b[32+16*i:], a.offset)
		be.PutUint64(b[40+16*i:], a.size)
	}
	be.PutUint64(b[112:], h.rollbackIndex)
	be.PutUint32(b[120:], uint32(h.flags))
	be.PutUint32(b[124:], h.rollbackLocation)
	copy(b[128:][:releaseSize], h.release)
	return b
}

func (h *header) checkSizes() error {
	for _, block := range []struct {
		name string
		size uint64
	}{{"authentication block", h.authentication}, {"auxiliary block", h.auxiliary}} {
		if block.size%blockAlign != 0 {
			return refuse(ErrCorrupt, block.name, fmt.Sprintf("a multiple of %d bytes", blockAlign), block.size)
		}
		if block.size > MaxSize {
			return refuse(ErrTooLarge, block.name, fmt.Sprintf("at most %d bytes", MaxSize), block.size)
		}
	}
	if h.size() > MaxSize {
		return refuse(ErrTooLarge, "metadata", fmt.Sprintf("at most %d bytes", MaxSize), h.size())
	}
	f, err := h.algorithm.facts()
	if err != nil {
		return err
	}
	for _, part := range []struct {
		name  string
		found uint64
		want  int
	}{{"bytes of the hash", h.hash.size, f.hashSize()}, {"bytes of the signature", h.signature.size, f.signatureSize()}} {
		if part.found != uint64(part.want) {
			return refuse(ErrCorrupt, part.name, part.want, part.found)
		}
	}
	if f.bits > 0 && h.key.size != uint64(f.keySize()) {
		return refuse(ErrCorrupt, "bytes of the public key", f.keySize(), h.key.size)
	}
	return nil
}
