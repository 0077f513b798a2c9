// Package bsdiff applies and makes binary patches in the formats BSDIFF40 and
// BSDF2 (specs/payload.md 7).
//
// A patch rebuilds the target from front to back out of three streams, each
// compressed by itself:
//
//	header   32 bytes   magic, length of control, length of diff, size of the target
//	control  triples    x, y, z
//	diff     bytes      what to add to the source
//	extra    bytes      what the source has nothing like
//
//	          ┌──── x ────┐┌─ y ─┐┌──── x ────┐┌─ y ─┐
//	target    │source+diff││extra││source+diff││extra│ …
//	               ▲                   ▲
//	source    ─────┴───────────── z ───┴─────
//
// A triple says: x bytes, each the sum of a byte of the source and one of diff;
// then y bytes of extra; then move by z in the source, which may be backwards.
// Matches that differ in a few bytes (addresses that moved) make a diff that
// is nearly all zeros and compresses to nearly nothing.
//
//	p, err := bsdiff.Open(patch, size)
//	p.TargetSize()
//	p.Apply(target, source, sourceSize)
//
//	bsdiff.Create(patch, source, target, bsdiff.Options{})
//
// Apply streams: it holds neither source nor target nor patch, but three
// decoders and up to eight buffers of 64 KiB. Long streams are decompressed by
// goroutines that end with Apply. A bzip2 decoder needs 4 MB, a brotli
// decoder at most 16 MiB and as a rule 1 MB, since encoders take a window of
// 20 bits.
//
// What lies outside of the source reads as zero. This is the rule of the
// original bsdiff. Android's bspatch follows it for ranges that begin in the
// source and run over its end, and fails on ranges that begin outside; so Create
// makes neither.
//
// Android reads the streams only as far as it must. Apply wants each to end
// where the target is complete: this brings the checksums of bzip2 to bear, and
// no known encoder has more. A brotli stream has no checksum. So a damaged
// patch can give a wrong target of the right size, and whoever applies one
// should know the checksum of either.
//
// Create holds source and target, a suffix array of 4 bytes for each byte of
// the source (8 from 2 GiB on), and the streams. With Options.Quick it is a table of
// as many bytes, and some 8 for each byte of the target; such tables and the encoders
// are kept for the next call. Output depends on nothing but input.
package bsdiff
