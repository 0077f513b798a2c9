// Package lz4 encodes LZ4 blocks, byte for byte as the C library liblz4 does.
//
// A block is a list of sequences without frame, length or checksum:
//
//	token     1 byte   literals << 4 | match length - 4, each at most 15
//	length    0…n      if literals is 15: the rest, as bytes of 255 and one below
//	literals  0…n      bytes to copy from here
//	offset    2 bytes  how far back the match is, little-endian, 1 to 65535
//	length    0…n      if the match length is 15 + 4: the rest, likewise
//
// The last sequence ends with its literals. By the format's rules these are at
// least five, and no match starts in the last twelve bytes, so that decoders
// can copy carelessly.
//
//	e, err := lz4.NewFast(1)           // or NewHigh(9)
//	block, err := e.Encode(nil, unit)  // one block, with everything in it
//	taken, n, err := e.Fill(dst, data) // a block of a given size, with what fits
//
// Which matches an encoder takes is its own affair, but two things speak for
// doing exactly what liblz4 does. Size decides whether an update fits on a
// device, and there liblz4 is hard to beat at its speed. And a delta between two
// files that are compressed inside is best made between their contents; the
// device then has to compress again to the very same bytes.
//
// So each search has its counterpart:
//
//	NewFast(1)       LZ4_compress_default     one candidate a position, steps that grow
//	NewFast(n)       LZ4_compress_fast        the same with larger steps
//	NewHigh(3 to 9)  LZ4_compress_HC          chains of candidates, three overlapping matches weighed
//	NewHigh(10 …12)  LZ4_compress_HC          chains, the cheapest of all ways priced
//	Fill             LZ4_compress_destSize, LZ4_compress_HC_destSize
//
// The bytes are those of a 64-bit little-endian machine, on every machine:
// liblz4 itself has other ones on 32 bits, where it hashes fewer bytes. Versions
// 1.9.4 and 1.10.0 of liblz4 agree, and were compared with.
//
// The package has no decoder. It is pure, keeps only tables between calls, and
// equal input gives equal bytes whatever was encoded before.
package lz4
