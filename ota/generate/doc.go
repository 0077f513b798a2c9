// Package generate makes the payload of an A/B update out of images.
//
//	old, new images ─► NewPlan ─► items ─► Run, each by itself ─► results ─┐
//	                     │                                                 ▼
//	                     └─────────────────────────────────────────────► Join ─► Payload ─► Write, signed
//
// [Create] does it all on one machine. On many, each makes the same Plan, runs some of
// its items, and one joins the results: an item's ID is the hash of all that its result
// depends on, so that results can be kept, shared and made again.
//
// Blocks of zeros are ZERO, blocks that the old partition has anywhere are SOURCE_COPY.
// What is left of a file is compared with the whole of its old version (package filemap
// pairs them); what is left of no file, with blocks around the place that its neighbours
// came from. Each is made as bsdiff, as puffdiff where deflate streams are found, as
// zucchini where both are programs, and compressed as it is, as far as that promises
// something, and the smallest is taken. Files that erofs has compressed with LZ4 are
// also compared by their contents ([Packing]), as lz4diff, in whole clusters.
//
// For devices with snapshots there is also the order in which a merge may move blocks
// (mergeOrder), and how large the COW becomes: Join installs each partition as a device
// would and tells what came out, which also proves the payload before anybody has it.
//
// Same images, same options, same bytes: neither time nor the number of workers shows.
//
// # Caveats
//
// A hash tree is data, unless Partition.Verity tells where it is. An item holds its blocks,
// and some twelve times the old ones, decompressed if they are; those run at a time that
// Options.Memory has room for.
//
// The source of all of this is specs/payload.md 12 and 13.
package generate
