// Package update is the life of one update of a device that keeps one copy of its
// system: from the room that is made for the COWs to the merge, over reboots and
// power cuts.
//
//	       old system runs                          new system runs
//	──────────────────────────────────   ─────────────────────────────────────────
//	Begin ─► Create ─► Targets ─► Finish ─► reboot ─► Boot ─► InitiateMerge ─► Process …
//	  │                (install)    │                   │           │            │
//	None ──► Initiated ─────────────┴─► Unverified ─────┴───────────┴► Merging ──┴► None
//
// Until Finish the old system is untouched, and Cancel takes everything back. After it
// the boot loader tries the new system a few times; when that fails the old one
// boots again, finds the update rolled back, and removes it. InitiateMerge is the
// point of no return.
//
// # What is where
//
// The state is in files of Android's names and formats (/metadata/ota), each
// replaced as a whole: written beside, synced, renamed, and the folder synced.
// Partitions are in a super partition: while the old system runs, the metadata of
// the other slot are made to say where the new partitions will be, and the COWs,
// which lie where neither has anything, and in files if that is too small. A device
// without super has its metadata in a file, and its partitions' block devices
// in it: see Super.
//
// For each snapshot NAME these are mapped by device-mapper:
//
//	NAME-base   where the new partition lies
//	NAME-src    the old partition, if there is one
//	NAME-cow    the COW
//	NAME        over the daemon's block device; once merged, the new partition itself
//
// so whoever has NAME mounted goes on through the merge and its end.
//
// # Order
//
// Boot markers exist before the slot is switched, and go before the state becomes
// None. The boot loader hears of "snapshotted" and "merging" before the state says
// so, and of "none" after it. A snapshot's status says that it is merged before
// its table is changed, and so on: the tests cut the power after every step
// of a whole life, with any of the changes lost that were not durable, and look
// at what boots.
//
// Every method takes the lock of the folder, shared or exclusive, as other programs
// that know it do. A Manager may be used by several goroutines; it keeps nothing in
// memory.
//
// Source: specs/snapshot-manager.md 2 to 11.
package update
