package puffin

import (
	"bytes"
	"encoding/binary"
)

var pngMagic = []byte("\x89PNG\r\n\x1a\n")

// FindPNG returns the blocks of a PNG image whose pixels are one chunk, as those of most
// programs that make small ones. A stream that is cut into chunks has other bytes in
// its midst, and so no blocks.
func FindPNG(data []byte) []BitExtent {
	if !bytes.HasPrefix(data, pngMagic) {
		return nil
	}
	for at := len(pngMagic); at+8 <= len(data); {
		length := int64(binary.BigEndian.Uint32(data[at:]))
		body := int64(at) + 8
		if length > int64(len(data))-body {
			return nil
		}
		if string(data[at+4:at+8]) != "IDAT" {
			if body+length+4 > int64(len(data)) {
				return nil
			}
			at = int(body + length + 4) // behind its checksum
			continue
		}
		blocks, size, err := FindZlib(data[body : body+length])
		if err != nil || int64(size) != length {
			return nil
		}
		for i := range blocks {
			blocks[i].Offset += uint64(body) * 8
		}
		return blocks
	}
	return nil
}
