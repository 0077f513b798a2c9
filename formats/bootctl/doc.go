// Package bootctl is what the misc partition tells a bootloader: which slot to boot,
// how often it may fail, and whether a merge forbids changing any of that.
//
//	    0 ┌────────────────────┐
//	      │ Message, 2048      │  a command for the bootloader, arguments for recovery
//	 2048 ├────────────────────┤
//	      │ Control, 32        │  slots: priority, tries, successful
//	      ├────────────────────┤
//	      ┊ the vendor's       ┊
//	32768 ├────────────────────┤
//	      │ VirtualAB, 64      │  merge status, and the slot that wrote it
//	      └────────────────────┘
//
// A slot's life in Control, where priority 15 is the highest:
//
//	SetActive(b)       b: priority 15, tries 6, not successful; a: priority 14
//	Choose             the bootloader: b, and tries 5; after a failed boot tries 4, …
//	MarkSuccessful(b)  b: its tries are counted no more
//	  or tries 0       b is not bootable: Choose falls back to a
//	SetUnbootable(b)   at once
//
// There are two well-known readers, Android's boot control library and U-Boot, and
// they differ in details. Both refuse a slot without tries, even one that was
// successful, therefore MarkSuccessful leaves one try. U-Boot also passes over a slot whose
// verity is corrupted and, of equal priorities, prefers one that was successful, then one with
// more tries, then the first; Choose does as U-Boot does, being what boots. The
// library never clears "successful" in SetActive, but only in SetUnbootable, which an
// update calls first; here SetActive clears it for any slot but the running one, as
// the interface asks, so a new system is always on trial. Neither library looks at priority 0,
// which other bootloaders take for unbootable; SetUnbootable sets that too.
//
// A block with a wrong checksum is made anew by both. Parse reports it (ErrChecksum, ErrBlank)
// and leaves that to the caller, with Default.
//
// The package is pure: bytes in, bytes out, no I/O. Bits whose meaning is not known stay
// as they are. Source: specs/snapshot-manager.md 14.
package bootctl
