// Package lpmeta is the metadata of Android's super partition (liblp): which
// logical partitions there are, and of which pieces of which device each is made.
//
//	0      4096       8192      12288             12288+S·M           first sector
//	│ zeros │ geometry │ geometry │ slot 0 │ … S-1 │ slot 0 │ … S-1 │ … │ data …
//	           primary    backup   └── primary ──┘   └── backup ──┘
//
// Of everything there are two copies, and a reader takes the backup where the
// primary is damaged. Each of the S slots has metadata of its own, of at most M
// bytes: a header, then tables of partitions, extents, groups and block devices.
// In Virtual A/B both slots may point to the same sectors; within one slot no two
// partitions may.
//
//	m, err := lpmeta.Read(super, 0)
//	for _, line := range m.Table(m.Partition("system_a")) { … }  // as dm-linear has it
//
//	b, err := lpmeta.ForUpdate(m, "_a", "_b")                    // in place, as Virtual A/B does
//	err = b.Apply(groups)
//	next, err := b.Export()
//	err = lpmeta.Update(super, 1, next)
//
// Update keeps one good copy at every moment: it first brings the two copies into
// agreement, then writes the primary, syncs, and writes the backup. A reader
// after a power cut finds the old metadata or the new, complete. Flash writes
// everything, and only it may change the geometry; it cannot be interrupted.
//
// An image file (super_empty.img, old-partition-metadata) is a geometry and one
// slot's metadata without copies: ReadImage, WriteImage. Such metadata may leave
// the slot open (SlotSuffixed); Read resolves that for the slot it reads.
//
// Units: sizes are bytes unless a name or comment says sectors, of 512 bytes.
//
// What is read is checked completely: checksums, bounds, indices, names, that
// extents lie inside their devices and behind the metadata, and that none
// overlap. Real metadata have extents in any order, with gaps, and with "-" in
// names; those are fine. Limits are MaxMetadataSize and MaxSlots, far above what
// exists. Padding and reserved bytes are not looked at.
//
// An alignment offset is kept and shown, but decides nothing, as in Android since
// version 11. Values that are handed out are the caller's; nothing here is safe
// for concurrent use while it is changed.
//
// Source: specs/snapshot-manager.md 12 and 5.2.
package lpmeta
