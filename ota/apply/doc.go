// Package apply makes new partitions out of a payload and the old ones.
//
//	                    ┌─ blob ───┐
//	payload ─▶ manifest │ checked  ├─▶ operation ─▶ its blocks of the new partition
//	                    │ source   │   (decoder)
//	old partition ──────┴─ checked ┘
//
// An operation reads a blob of the payload, blocks of the old partition, or both,
// and writes blocks that no other one writes. Old partitions are never written to. So
// operations can be done in any order and all at once. [Images] does so for files on a
// host, a worker for each processor, whichever partition the work is in, and [Direct]
// for a partition of the other slot. [Cow] decodes ahead on all processors and writes
// in order, since a COW is continued at labels.
//
// Nothing is read before its hash has been compared: not a blob, not the blocks of a
// source. Whether the manifest that holds those hashes may be trusted is a question
// for package verify, and whether the result is the right one is answered by the
// partition's hash at the end.
//
// # Memory
//
// Operations stream. What one holds besides is told by [Need]: nothing that grows
// with it for copies, zeros, uncompressed data, bsdiff and puffdiff; the
// dictionary of an xz stream, as far as it is filled; source and target of a
// zucchini patch; those and their contents for lz4diff. [Memory] bounds what those
// that run at once hold together; what needs more by itself runs alone and, if that
// was asked for, spills.
package apply
