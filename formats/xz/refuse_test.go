package xz

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"
)

// fixSums makes the checksums right of the stream header and of the first block's.
func fixSums(packed []byte) {
	binary.LittleEndian.PutUint32(packed[8:], crc32.ChecksumIEEE(packed[6:8]))
	if end := 12 + int(packed[12])*4; end+4 <= len(packed) {
		binary.LittleEndian.PutUint32(packed[end:], crc32.ChecksumIEEE(packed[12:end]))
	}
}

// stream is the beginning of one with a block header of 16 bytes, and what follows.
func stream(flags byte, filters []byte, rest ...byte) []byte {
	b := appendBlockHeader(appendHeader(nil), 0)
	b = append(b[:12], make([]byte, 20)...)
	b[12], b[13] = 4, flags
	copy(b[14:], filters)
	fixSums(b)
	return append(b, rest...)
}

func TestRefused(t *testing.T) {
	whole := func(change func(b []byte)) []byte {
		b := new(Encoder).Append(nil, []byte("abcabcabcabc"), Fast)
		change(b)
		fixSums(b)
		return b
	}
	lzma2 := []byte{0x21, 1, 0}
	for name, c := range map[string]struct {
		in   []byte
		want error
	}{
		"magic":                  {whole(func(b []byte) { b[0] = 'x' }), ErrNotXZ},
		"flags":                  {whole(func(b []byte) { b[6] = 1 }), ErrUnsupported},
		"check":                  {whole(func(b []byte) { b[7] = 2 }), ErrUnsupported},
		"flags of a block":       {stream(4, lzma2), ErrUnsupported},
		"delta":                  {stream(1, []byte{3, 1, 0, 0x21, 1, 0}), ErrUnsupported},
		"PowerPC":                {stream(1, []byte{5, 0, 0x21, 1, 0}), ErrUnsupported},
		"two for programs":       {stream(2, []byte{4, 0, 4, 0, 0x21, 1, 0}), ErrUnsupported},
		"LZMA2 first":            {stream(1, []byte{0x21, 1, 0, 4, 0}), ErrUnsupported},
		"odd start":              {stream(1, []byte{7, 4, 2, 0, 0, 0, 0x21, 1, 0}), ErrUnsupported},
		"start of three bytes":   {stream(1, []byte{4, 3, 0, 0, 0, 0x21, 1, 0}), ErrUnsupported},
		"behind the filters":     {stream(0, []byte{0x21, 1, 0, 1}), ErrUnsupported},
		"dictionary":             {stream(0, []byte{0x21, 1, 41}), ErrCorrupt},
		"properties of no bytes": {stream(0, []byte{0x21, 0}), ErrCorrupt},
		"properties beyond":      {stream(0, []byte{0x21, 99}), ErrCorrupt},
		"long integer":           {stream(0, []byte{0xa1, 0}), ErrCorrupt},
		"compressed size":        {stream(0x40, append([]byte{9}, lzma2...), 1, 0, 0, 'a', 0), ErrCorrupt},
		"size":                   {stream(0x80, append([]byte{9}, lzma2...), 1, 0, 0, 'a', 0), ErrCorrupt},
		"more than the size":     {stream(0x80, append([]byte{0}, lzma2...), 1, 0, 0, 'a', 0), ErrCorrupt},
		"padding":                {stream(0, lzma2, 0, 1), ErrCorrupt},
		"control":                {stream(0, lzma2, 3), ErrCorrupt},
		"stored, no reset":       {stream(0, lzma2, 2, 0, 0, 'a'), ErrCorrupt},
		"coded, no reset":        {stream(0, lzma2, 0xc0, 0, 0, 0, 9, 0), ErrCorrupt},
		"no properties":          {stream(0, lzma2, 1, 0, 0, 'a', 0xa0, 0, 0, 0, 9), ErrCorrupt},
		"lc and lp":              {stream(0, lzma2, 0xe0, 0, 0, 0, 9, 3+2*9), ErrCorrupt},
		"four bytes":             {stream(0, lzma2, 0xe0, 0, 0, 0, 3, 0x5d), ErrCorrupt},
		"first coded byte":       {stream(0, lzma2, 0xe0, 0, 0, 0, 4, 0x5d, 1, 0, 0, 0, 0), ErrCorrupt},
		"nothing to repeat":      {stream(0, lzma2, 0xe0, 0, 0, 0, 4, 0x5d, 0, 0xff, 0xff, 0xff, 0xfe), ErrCorrupt},
		"end of a chunk":         {stream(0, lzma2, 0xe0, 0, 0, 0, 6, 0x5d, 0, 0, 0, 0, 0, 0, 0), ErrCorrupt},
	} {
		if _, _, err := unpack(c.in); !errors.Is(err, c.want) {
			t.Errorf("%s: expected %v, found %v", name, c.want, err)
		}
	}
}

// What is behind the blocks agrees with them.
func TestRefusedIndex(t *testing.T) {
	good := new(Encoder).Append(nil, []byte("abcabcabcabc"), Fast)
	from := bytes.LastIndex(good, []byte{0, 1}) // the index: 2, two sizes, padding, CRC-32
	for name, change := range map[string]func(b []byte){
		"blocks":   func(b []byte) { b[1] = 2 },
		"unpadded": func(b []byte) { b[2]++ },
		"size":     func(b []byte) { b[3]++ },
		"backward": func(b []byte) { b[12]++ },
		"check":    func(b []byte) { b[17] = 4 },
		"magic":    func(b []byte) { b[19] = 'z' },
	} {
		b := bytes.Clone(good)
		change(b[len(b)-20:])
		i := b[len(b)-20:]
		binary.LittleEndian.PutUint32(i[4:], crc32.ChecksumIEEE(i[:4]))
		binary.LittleEndian.PutUint32(i[8:], crc32.ChecksumIEEE(i[12:18]))
		if _, _, err := unpack(b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s (index at %d): expected %v, found %v", name, from, ErrCorrupt, err)
		}
	}
}
