// Package install takes a payload onto a device: partitions that are snapshots into
// COWs, others into the slot that does not run.
//
//	Config     which partition goes where, and whose signatures are trusted
//	Source     the payload: a file, or a stream that can be asked again from a byte on
//	Run        verify the manifest ─▶ each partition in turn ─▶ State "complete"
//	                                      │
//	            killed, cut off ──────────┘  the next Run goes on
//
// Old partitions are only read. So an installation can end at any moment, and the
// device is what it was; the next Run with the same payload goes on at the last
// durable label of the COW that was being written, and asks for nothing of the
// payload that comes before. With another payload it is refused, unless it is told to
// start over. State is a small file that names the payload and the partitions that are
// complete.
//
// Slots, super partitions and the boot are not this package's: it is told files and
// block devices.
package install
