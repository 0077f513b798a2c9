package puffin

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"path"
	"strings"
)

// FindRaw returns the Huffman-coded blocks of the raw deflate stream at the
// beginning of data, and the number of bytes that the stream takes. Stored blocks
// are not listed: as raw bytes they are better off.
func FindRaw(data []byte) (blocks []BitExtent, size int, err error) {
	var f finder
	return f.stream(nil, data, 0)
}

// finder is what the functions of this file share.
type finder struct{ puffer puffer }

// stream appends the blocks of the stream at byte off, and returns its end.
func (f *finder) stream(blocks []BitExtent, data []byte, off int) ([]BitExtent, int, error) {
	if off > len(data) {
		return blocks, off, refuse(ErrDeflate, "stream", fmt.Sprintf("a start before byte %d", len(data)), off)
	}
	p := &f.puffer
	p.start(p.out[:0], data, uint64(off)*8, MaxPuff)
	for {
		p.out = p.out[:0]
		from := p.r.at()
		final, stored, err := p.block()
		if err != nil {
			return blocks, off, err
		}
		if !stored {
			blocks = append(blocks, BitExtent{from, p.r.at() - from})
		}
		if final {
			return blocks, int((p.r.at() + 7) / 8), nil
		}
	}
}

// FindZlib returns the blocks of the zlib stream (RFC 1950) at the beginning of
// data, and the number of bytes that it takes.
func FindZlib(data []byte) (blocks []BitExtent, size int, err error) {
	if len(data) < 2 || data[0]&15 != 8 || data[0]>>4 > 7 || binary.BigEndian.Uint16(data)%31 != 0 {
		return nil, 0, refuse(ErrDeflate, "zlib header", "method 8 and a check value", fmt.Sprintf("% x", data[:min(len(data), 2)]))
	}
	off := 2
	if data[1]&0x20 != 0 {
		off += 4 // identifies a dictionary
	}
	var f finder
	if blocks, size, err = f.stream(nil, data, off); err != nil {
		return nil, 0, err
	}
	if size += 4; size > len(data) {
		return nil, 0, refuse(ErrDeflate, "zlib stream", "a checksum", "the end")
	}
	return blocks, size, nil
}

// FindGzip returns the blocks of all members (RFC 1952) from the beginning of
// data on. What follows the last one does not matter. Without any it fails.
func FindGzip(data []byte) (blocks []BitExtent, err error) {
	var f finder
	for off := 0; ; {
		body, ok := gzipBody(data, off)
		if !ok {
			if off == 0 {
				err = refuse(ErrDeflate, "gzip header", "1f 8b 08", fmt.Sprintf("% x", data[:min(len(data), 3)]))
			}
			return blocks, err
		}
		more, end, err := f.stream(blocks, data, body)
		if err == nil && len(data)-end < 8 {
			err = refuse(ErrDeflate, "gzip member", "a checksum and length", "the end")
		}
		if err != nil {
			if off > 0 {
				return blocks, nil // whatever it was, the members before it are fine
			}
			return nil, err
		}
		blocks, off = more, end+8
	}
}

// gzipBody is where the deflate stream of the member at off begins.
func gzipBody(data []byte, off int) (int, bool) {
	const extra, name, comment, checksum = 4, 8, 16, 2
	if len(data)-off < 10 || data[off] != 0x1f || data[off+1] != 0x8b || data[off+2] != 8 {
		return 0, false
	}
	flags := data[off+3]
	off += 10
	if flags&extra != 0 {
		if len(data)-off < 2 {
			return 0, false
		}
		off += 2 + int(binary.LittleEndian.Uint16(data[off:]))
	}
	for _, f := range []byte{name, comment} {
		if flags&f == 0 {
			continue
		}
		n := bytes.IndexByte(data[min(off, len(data)):], 0)
		if n < 0 {
			return 0, false
		}
		off += n + 1
	}
	if flags&checksum != 0 {
		off += 2
	}
	return off, off <= len(data)
}

// FindZip returns the blocks of all deflated entries of a zip archive. It goes
// by the headers in front of the entries, whose sizes may be missing, and so
// finds the entries of archives within data as well. Damaged ones are left out.
func FindZip(data []byte) (blocks []BitExtent) {
	const header, deflated = 30, 8
	var f finder
	for off := 0; ; {
		n := bytes.Index(data[off:], []byte("PK\x03\x04"))
		if n < 0 || len(data)-off-n < header {
			return blocks
		}
		off += n
		h := data[off:]
		body := off + header + int(binary.LittleEndian.Uint16(h[26:])) + int(binary.LittleEndian.Uint16(h[28:]))
		if binary.LittleEndian.Uint16(h[8:]) == deflated {
			if more, end, err := f.stream(blocks, data, body); err == nil {
				blocks, off = more, end
				continue
			}
		}
		off += 4
	}
}

// Find returns the blocks in a file, by the end of its name: .gz, .gzip and .tgz
// as well as .zip and its many disguises. Another file has none, nor has one
// that is not what it is called.
func Find(name string, data []byte) []BitExtent {
	switch ext := strings.ToLower(path.Ext(name)); ext {
	case ".gz", ".gzip", ".tgz":
		blocks, _ := FindGzip(data)
		return blocks
	case ".apk", ".zip", ".jar", ".zvoice", ".apex", ".capex":
		return FindZip(data)
	}
	return nil
}

// Within returns the blocks that lie completely in length bytes from offset on,
// counted from there: what remains when a file is cut into pieces.
func Within(blocks []BitExtent, offset, length int64) (inside []BitExtent) {
	from, to := uint64(offset)*8, uint64(offset+length)*8
	for _, b := range blocks {
		if b.Offset >= from && b.End() <= to {
			inside = append(inside, BitExtent{b.Offset - from, b.Length})
		}
	}
	return inside
}
