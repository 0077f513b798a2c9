package puffin

import (
	"encoding/binary"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
)

const (
	magic     = "PUF1"
	version   = 1
	fixedSize = 8 // magic and length of the header

	// maxHeader is far more than any known patch has: some 30 bytes a deflate.
	maxHeader = 16 << 20
)

// Inner is the format of the patch between the puffed files.
type Inner uint8

// The inner formats, by their numbers.
const (
	Bsdiff Inner = iota
	Zucchini
)

func (i Inner) String() string {
	switch i {
	case Bsdiff:
		return "bsdiff"
	case Zucchini:
		return "zucchini"
	}
	return fmt.Sprintf("inner patch %d", uint8(i))
}

// readHeader returns the bytes of the PatchHeader message.
func readHeader(r io.ReaderAt, size int64) ([]byte, error) {
	if size < fixedSize {
		return nil, refuse(ErrCorrupt, "size of the patch", fmt.Sprintf("at least %d", fixedSize), size)
	}
	var b [fixedSize]byte
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, fixedSize), b[:]); err != nil {
		return nil, fmt.Errorf("header of a puffin patch: %w", err)
	}
	if string(b[:4]) != magic {
		return nil, refuse(ErrNotPatch, "magic at byte 0", magic, fmt.Sprintf("%q", b[:4]))
	}
	n := int64(binary.BigEndian.Uint32(b[4:]))
	if limit := min(size-fixedSize, maxHeader); n > limit {
		return nil, refuse(ErrCorrupt, "length of the header at byte 4", fmt.Sprintf("at most %d", limit), n)
	}
	h := make([]byte, n)
	if _, err := io.ReadFull(io.NewSectionReader(r, fixedSize, n), h); err != nil {
		return nil, fmt.Errorf("header of a puffin patch: %w", err)
	}
	return h, nil
}

// header is the PatchHeader message (specs/payload.md 8.1).
type header struct {
	version, inner uint64
	source, target streamInfo
}

type streamInfo struct {
	deflates, puffs []BitExtent
	puffLength      uint64
}

// eachField calls f with the fields of a message, the number or the bytes of
// each. Fields of other kinds are unknown ones, and skipped.
func eachField(b []byte, f func(n protowire.Number, v uint64, b []byte) error) error {
	for total := len(b); len(b) > 0; {
		at := total - len(b)
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return refuse(ErrCorrupt, fmt.Sprintf("message at byte %d", at), "a field", protowire.ParseError(size))
		}
		b = b[size:]
		var v uint64
		var inner []byte
		switch kind {
		case protowire.VarintType:
			v, size = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			inner, size = protowire.ConsumeBytes(b)
		default:
			n, size = 0, protowire.ConsumeFieldValue(n, kind, b)
		}
		if size < 0 {
			return refuse(ErrCorrupt, fmt.Sprintf("message at byte %d", at), "a field", protowire.ParseError(size))
		}
		b = b[size:]
		if err := f(n, v, inner); err != nil {
			return err
		}
	}
	return nil
}

func parseHeader(b []byte) (h header, err error) {
	err = eachField(b, func(n protowire.Number, v uint64, b []byte) error {
		switch n {
		case 1:
			h.version = v
		case 2:
			return h.source.parse(b)
		case 3:
			return h.target.parse(b)
		case 4:
			h.inner = v
		}
		return nil
	})
	switch {
	case err != nil:
	case h.version != version:
		err = refuse(ErrUnsupported, "version", version, h.version)
	case h.inner > uint64(Zucchini):
		err = refuse(ErrUnsupported, "type", "0 (bsdiff) or 1 (zucchini)", h.inner)
	}
	return h, err
}

func (s *streamInfo) parse(b []byte) error {
	return eachField(b, func(n protowire.Number, v uint64, b []byte) (err error) {
		var e BitExtent
		switch n {
		case 1:
			e, err = parseExtent(b)
			s.deflates = append(s.deflates, e)
		case 2:
			e, err = parseExtent(b)
			s.puffs = append(s.puffs, e)
		case 3:
			s.puffLength = v
		}
		return err
	})
}

func parseExtent(b []byte) (e BitExtent, err error) {
	if len(b) == 0 {
		// A message of nothing is no deflate, and a header full of them a way to
		// fill memory.
		return e, refuse(ErrCorrupt, "extent", "offset or length", "an empty message")
	}
	err = eachField(b, func(n protowire.Number, v uint64, _ []byte) error {
		switch n {
		case 1:
			e.Offset = v
		case 2:
			e.Length = v
		}
		return nil
	})
	return e, err
}

func appendHeader(b []byte, inner Inner, source, target *layout) []byte {
	b = appendNumber(b, 1, version)
	b = appendMessage(b, 2, appendStream(nil, source))
	b = appendMessage(b, 3, appendStream(nil, target))
	return appendNumber(b, 4, uint64(inner))
}

func appendStream(b []byte, l *layout) []byte {
	for _, d := range l.deflates {
		b = appendExtent(b, 1, d.Offset, d.Length)
	}
	for _, p := range l.puffs {
		b = appendExtent(b, 2, uint64(p.offset)*8, uint64(p.length)*8)
	}
	return appendNumber(b, 3, uint64(l.puffedSize))
}

func appendExtent(b []byte, n protowire.Number, offset, length uint64) []byte {
	var e [24]byte
	return appendMessage(b, n, appendNumber(appendNumber(e[:0], 1, offset), 2, length))
}

func appendMessage(b []byte, n protowire.Number, m []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), m)
}

// appendNumber leaves out zero, as proto3 does.
func appendNumber(b []byte, n protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
}
