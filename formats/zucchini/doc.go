// Package zucchini applies and makes zucchini patches, deltas between programs.
//
// When a function grows, everything behind it moves, and every jump and pointer
// across it changes, all over the file. A delta of bytes has to spell out each.
// Zucchini knows where an image keeps such references and what they point to:
// what moved is projected from source to target, and the patch tells only where
// that guess is wrong.
//
//	source ──┬─ equivalences: copy ──▶ target, with gaps
//	         │                           ├─ extra data fill the gaps
//	         │                           ├─ raw deltas correct bytes
//	         └─ references ─ project ──▶ └─ nearest target in the pool + reference delta
//
// A pool is the sorted list of all places that references of some types point
// to: those of the source, as far as equivalences cover them, projected; and the
// extra targets that the patch adds. A reference is an index into it.
//
// A patch consists of elements, each for a region of the target: an ELF image of
// x86, x64, ARM or AArch64, a DEX image, zucchini's own text format, or raw
// bytes (NoOp), which have no references. Those of Windows, which are not made
// for Android, are refused.
//
//	patch, err := zucchini.Unpack(blob, limit)  // payloads keep them in a brotli stream
//	p, err := zucchini.Parse(patch)
//	target, err := p.Apply(source, size)
//
// Source and target have CRC-32s, and both are checked.
//
// # Ties
//
// Equivalences may copy the same bytes of the source to several places. One of
// them decides how offsets are projected, and where several are equally long it
// is the one that the producer's sort happened to put first, which the format
// leaves open. Apply takes them in the order of the target and, if the checksum
// says that the producer did not, in the orders that the C++ libraries in use
// are known to come up with. If none is right, the error is ErrTarget and
// nothing is lost: patches that Create makes hold with any order.
//
// # Memory
//
// Images have to be in memory as a whole: source and target, which the caller
// holds. Apply takes, besides, 8 bytes for each reference of the source and 12
// for each equivalence and sort. A reference takes at least 4 bytes of ELF or 2
// of Thumb, bytecode or lists of DEX, so that this is at most some ten times the
// source, for what is all references; for real programs it is less than one
// time. With ties the target is kept twice. What a patch claims is not allocated
// before it has been compared with the size that the caller expects, or with
// what follows.
//
// The package is pure and keeps nothing between calls.
package zucchini
