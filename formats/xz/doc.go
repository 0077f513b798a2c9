// Package xz makes and reads .xz streams, for payloads (specs/payload.md 6). It makes one
// block of LZMA2 with a CRC-32, as decoders of payloads want it.
//
//	data ─► finder ─► parser ─► symbols ─► model ─► range coder ─► chunks ─► block ─► stream
//	        matches   which of   literal,   adaptive   bits          at most
//	                  them       match,     probabil-                64 KiB
//	                             repeat     ities
//
// LZMA codes a byte as a literal, or a string as a match: a length and a distance into
// what came before, new or one of the last four. Each decision is a bit that is coded by
// how often it came out so in the same context. What decides about size and speed is
// which matches are looked for, and which are taken:
//
//	xz.Fast   chains of a few places with the same four bytes; a match is taken unless
//	          the next byte has a better one
//	xz.Best   chains of many; what the symbols will cost is computed ahead, and the
//	          cheapest way through some thousand bytes is taken
//
//	var e xz.Encoder
//	out := e.Append(nil, data, xz.Best)
//
// The dictionary is as long as the data, up to MaxDictionary, and so is what a decoder
// has to hold. An Encoder holds 4 bytes for each byte of the longest data it has seen and
// tables of up to as much again, besides some 200 KiB; data themselves are not copied. It
// belongs to one goroutine. Output depends on nothing but data and level.
//
// A Reader goes the same way back:
//
//	stream ─► blocks ─► chunks ─► range decoder ─► symbols ─► ring ─► filter ─► data
//	                                                          the latest   branches of
//	                                                          data         programs
//
//	z, err := xz.NewReader(r, xz.MaxDictionary)
//	_, err = io.Copy(w, z)
//	_, err = r.ReadByte() // io.EOF if nothing is behind the stream
//
// It takes one stream of any number of blocks, with LZMA2 of any properties, alone or
// behind a filter for x86, ARM, Thumb or ARM64, and with any of the format's checks. What
// no payload has is refused: filters for other processors, the delta filter, several
// filters, more streams and padding between them (of which it reads nothing). A Reader
// holds some 100 KiB and the data as far back as the dictionary goes: at first 64 KiB,
// twice as much whenever these are full. What Read has given has been checked only when
// it gives io.EOF. Data are decoded without branches where the next bit is not foreseen
// ([rangeDecoder.cut]), and a chunk is read as a whole, so that nothing waits for input.
package xz
