// Package xz makes .xz streams: one block of LZMA2 with a CRC-32, as decoders of
// payloads want them (specs/payload.md 6).
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
// There is no decoder here; formats whose blobs are .xz use one of the ecosystem's.
package xz
