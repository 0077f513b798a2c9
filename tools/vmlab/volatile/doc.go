// Package volatile has disks for tests that forget what was not flushed when the power
// goes, as real disks with a write cache do.
//
//	guest ─ write ─► now      what reads see
//	                  │ flush
//	                  ▼
//	                durable   what is sure to be there after a power cut
//
// Between two flushes writes are remembered one by one. When the power goes, each
// sector gets what it had at the last flush or any of the writes to it since, as a seed
// decides: nothing of what was not flushed, all of it, some writes whole, or some
// sectors of each, so that a write may be torn and a later one may be there without
// an earlier one.
//
// A [Power] is shared by the disks of a machine. It counts writes and flushes, and
// goes off at one of them. [Serve] shows disks as files in a folder, by FUSE without a
// cache, to programs that want files: User-mode Linux (by hostfs; its own driver for disks, ubd,
// forgets flushes), or QEMU in a cache mode that passes flushes on. There fsync is the flush.
//
// A sector is what a disk writes as a whole. File systems rely on that for blocks of
// their own size, so a disk with ext4 on it should have sectors of 4096 bytes.
package volatile
