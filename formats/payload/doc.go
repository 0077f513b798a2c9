// Package payload reads and writes the container of A/B updates, payload.bin.
//
//	 0  magic "CrAU"
//	 4  version, 8 bytes, 2                    all of these big-endian
//	12  length M of the manifest, 8 bytes
//	20  length S of the metadata signature, 4 bytes
//	24  manifest        (protobuf: package pb)     ┐ signed by the metadata
//	    metadata signature  (protobuf, S bytes)    ┘ signature: [0, 24+M)
//	    blobs               one after another, in the order of the manifest
//	    payload signature   signed: [0, 24+M) and the blobs
//
// The manifest lists partitions, and for each the operations that make its new
// contents: out of a blob, out of blocks of the old partition, or both. Offsets of
// blobs count from the end of the metadata signature. A reader needs the stream
// only once and from its beginning: [Read] takes the metadata, and then the blobs
// follow as [Check] has found them in order.
//
//	m, err := payload.Read(r, size, payload.Limits{})
//	err = m.Check()
//	for _, p := range m.Manifest.GetPartitions() { … p.GetOperations() … }
//
// Check is strict: what it lets pass can be applied without looking at offsets and
// lengths again. What an operation's blob means is not known here; see packages
// bsdiff, puffin, zucchini and lz4diff.
//
// Around a payload there are [Properties], a text file that tells lengths and
// hashes before the download, and the OTA zip in which both lie uncompressed:
// [InZip] finds the payload's bytes in it. The source of all of this is
// specs/payload.md 1 to 6.
package payload
