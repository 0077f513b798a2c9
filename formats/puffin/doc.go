// Package puffin applies and makes patches between files that have deflate
// streams inside, such as zip and gzip archives (specs/payload.md 8).
//
// A small change before compression changes all that comes after it, so such
// files cannot be compared as they are. Nor can they be decompressed, compared
// and compressed again, as nobody knows which compressor made them. Puffing goes
// half the way: it undoes the Huffman code, but keeps the code's tables and
// which copies the compressor chose. So the way back has no choices.
//
//	source ──puff──► puffed source ─┐
//	                                ├─ inner patch ──► puffed target ──huff──► target
//	                        patch ──┘
//
// A puffed file is the file itself, in which each deflate block is replaced by
// its puff:
//
//	file     raw bytes │ deflate block, any bits │ raw bytes │ …
//	puffed   raw bytes │ puff, whole bytes       │ raw bytes │ …
//
// A byte that is only in part a deflate's leaves its other bits behind as a byte
// of the raw stretch. Where two deflates meet in the middle of a byte there is
// no stretch between them.
//
//	p, err := puffin.Open(patch, size)
//	p.TargetSize()
//	p.Apply(target, source, sourceSize, puffin.ApplyOptions{})
//
//	puffin.Create(patch, puffin.File{Data: a, Deflates: puffin.Find("a.zip", a)}, …, puffin.Options{})
//
// Apply holds no file: the source is puffed where it is read (5 MiB of puffs are
// kept), and the target is huffed as it comes, a large one by a goroutine that
// ends with Apply. It needs memory for the largest deflate of either side, which
// the patch declares and MaxPuff bounds, for the extents, 48 bytes a deflate, and
// for the inner patch. That is one of package bsdiff or, in theory more than in
// practice, a zucchini patch. This package does not know about those: whoever
// does hands in a function.
//
// A puff says 258 in one way, deflate in two. So a deflate of the target has to
// be tried before it is used, which Create does.
//
// The extents of a source or target are bits, counted from the lowest of the
// first byte, one for each block and not for each stream.
package puffin
