// Package cow is the snapshot: base + cow, read as one device and merged.
//
//	Build   base image + target image → COW file
//	Convert COW file → COW file of another form
//	Writer  requests of an installer → COW file, continued after a crash
//	Open    base + COW → Snapshot: ReadAt gives the target's contents
//	Merge   writes the target into the base, through any number of power cuts
//	Check   proves that a COW can be served and merged, and what comes out
//
// # The picture
//
//	       ReadAt(block)                       Merge
//	            │                                │ next batch
//	            ▼                                ▼
//	no op, or op is merged ───► base ◄─── write ─┤
//	zero ─────────────────────► zeros            │
//	replace ──────────────────► cow ─── decode ──┤
//	copy, xor ────────────────► source ── read ──┘
//	copy, xor in the window ──► cow (scratch area)
//
// The source is the base itself as it was before the merge. That is the whole
// difficulty: the merge destroys what copy and xor ops read. Three rules make
// it safe, and each can be read off one file.
//
//  1. Order. An op never reads a block that an earlier op has overwritten.
//     Checked once, at Open (package cowfile).
//  2. Batches (plan.go). A batch of ordered ops none of which writes a block
//     that an op of the batch reads can be redone from its start: its sources
//     are intact. What cannot be batched so goes through the COW's scratch
//     area first, as Android's daemon does it. Either daemon can finish what
//     the other began.
//  3. One lock (snapshot.go). Readers hold it shared across a whole request;
//     the merge takes it for the moment in which a batch becomes "merged", and
//     only then goes on to overwrite what the batch's ops had read.
//
// # Memory
//
// An open snapshot holds the index of package cowfile, one bit an op when the
// merge order is not the table's, and nothing else. The op table of a version
// 3 file is mapped. Work buffers are mapped when a request needs them and
// unmapped by Trim; none is ever freed while a request owns it. A merge maps
// about 4.5 MiB while it runs, and two bits a block of the source.
//
// # Caveats
//
// A file without a scratch area is merged in conflict-free batches, which is as
// safe. An op that reads the very block that it writes goes through a journal
// behind the end of the COW (journal.go), which only this package knows.
package cow
