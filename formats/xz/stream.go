package xz

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"
)

// Level says how hard an Encoder tries.
type Level int

const (
	Fast Level = iota
	Best
)

// MaxDictionary is the longest dictionary, in bytes: what decoders of payloads allow
// (specs/payload.md 6). MaxData is how long data may be.
const (
	MaxDictionary = 64 << 20
	MaxData       = 1<<31 - 1 - maxMatch
)

// Encoder keeps the tables that encoding needs. The zero value is ready. It is not safe
// for concurrent use.
type Encoder struct {
	m     model
	rc    rangeCoder
	f     finder
	p     prices
	nodes []node
	path  []choice
	data  []byte
	done  int // bytes of data that are coded
	dst   []byte
}

const checkCRC32 = 1

// Append appends data as an .xz stream to dst. Data longer than MaxData are refused by a
// panic, as an index out of range would be.
func (e *Encoder) Append(dst, data []byte, level Level) []byte {
	if len(data) > MaxData {
		panic("xz: more data than MaxData")
	}
	dictionary := dictionaryByte(min(len(data), MaxDictionary))
	dst = appendHeader(dst)
	start := len(dst)
	dst = appendBlockHeader(dst, dictionary)
	dst = e.lzma2(dst, data, dictionarySize(dictionary), level)
	unpadded := len(dst) - start
	dst = pad(dst, start)
	dst = binary.LittleEndian.AppendUint32(dst, crc32.ChecksumIEEE(data))
	return appendIndex(dst, uint64(unpadded+crc32.Size), uint64(len(data)))
}

// dictionarySize is what a byte of a block header stands for: 2 or 3 times a power of 2.
func dictionarySize(b byte) int { return int(dictionaryBytes(b)) }

// dictionaryBytes is that as a number that holds all there are.
func dictionaryBytes(b byte) int64 { return (2 | int64(b)&1) << (b/2 + 11) }

// dictionaryByte is the least that is at least n.
func dictionaryByte(n int) (b byte) {
	for dictionarySize(b) < n {
		b++
	}
	return b
}

var streamFlags = []byte{0, checkCRC32}

func appendHeader(b []byte) []byte {
	b = append(b, 0xfd, '7', 'z', 'X', 'Z', 0)
	b = append(b, streamFlags...)
	return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(streamFlags))
}

func appendBlockHeader(b []byte, dictionary byte) []byte {
	const lzma2, words = 0x21, 3
	start := len(b)
	b = append(b, words-1, 0, lzma2, 1, dictionary, 0, 0, 0)
	return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b[start:]))
}

// appendIndex appends what comes behind the only block.
func appendIndex(b []byte, unpadded, size uint64) []byte {
	start := len(b)
	b = append(b, 0, 1)
	b = binary.AppendUvarint(binary.AppendUvarint(b, unpadded), size)
	b = pad(b, start)
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b[start:]))
	words := uint32(len(b)-start)/4 - 1
	footer := append(binary.LittleEndian.AppendUint32(nil, words), streamFlags...)
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(footer))
	return append(append(b, footer...), "YZ"...)
}

// pad appends zeros until what begins at start has whole words.
func pad(b []byte, start int) []byte {
	for (len(b)-start)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// log2 is the number of bits that n takes, less one.
func log2(n int) int { return bits.Len(uint(n)) - 1 }
