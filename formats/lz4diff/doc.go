// Package lz4diff applies and makes LZ4DIFF patches: deltas between files that
// EROFS keeps as compressed clusters.
//
// One changed byte changes everything behind it in its compressed cluster, so
// the delta is taken between the contents, and the clusters are compressed
// again on the device:
//
//	source clusters ─ decompress ─▶ contents ─ inner patch ─▶ contents ─ compress ─▶ target clusters
//	                                          (bsdiff, puffdiff)                  └─ postfix patch, where
//	                                                                                 bytes still differ
//
// The patch:
//
//	 0  7 bytes  "LZ4DIFF"
//	 7  4 bytes  version 1, big-endian
//	11  4 bytes  length of the header, big-endian
//	15  1 byte   0
//	16  …        the header, a protobuf: how both files are cut into clusters
//	 …  …        the inner patch, to the end
//
//	p, err := lz4diff.Parse(patch)
//	target, err := p.Apply(source, size, lz4diff.Options{BSDiff: …, PuffDiff: …})
//
// The inner formats have packages of their own, which the caller lends as
// functions.
//
// The second compression must give the very bytes that the producer's liblz4
// gave. Package lz4 does so; the encoder sees more than the cluster's own
// contents, up to the end of the file, and takes what fits. Android's producer
// notes the SHA-256 of every cluster, and its client looks at it only before a
// postfix patch; here every cluster that has one is checked, so that a patch made
// with another encoder, or a damaged one, is an error at once. Ours may leave it out
// where nobody looks (Differs.Terse): it is most of a small patch.
//
// To make a patch one has to know the encoder, which no image tells. Detect
// compresses some clusters with each until the bytes are the same:
//
//	contents, err := file.Contents(stored)
//	err = file.Detect(stored, contents)  // sets Algorithm and Level
//	p, err := lz4diff.Create(old, stored, oldFile, file, lz4diff.Differs{BSDiff: …, Postfix: …})
//
// Memory: besides the source and the target, which the caller holds, Apply
// takes the contents of both files, at most Options.Limit bytes, and the
// encoder's 48 to 400 KiB. A parsed header takes up to eleven times its length.
//
// The package is pure and keeps nothing between calls. A Patch may be used by
// several goroutines as long as nobody changes it.
package lz4diff
