// Package slots tells the boot loader which slot to boot: before an update that its slot
// is being written, after it that it is to be tried, and when the new system is up that
// it is good.
//
//	SetUnbootable(b)   install …   SetActive(b)   reboot   MarkSuccessful   SetMergeStatus …
//	      │                             │            │           │
//	a: active, good ──────────────▶ b: active,  b runs, its   b: good
//	b: never booted                 on trial    boots counted
//	                                    ▲            │ none left
//	                                    │            ▼
//	                                    └──────── a boots again
//
// Slots is the interface, Config says where a boot loader keeps its slots:
//
//	misc     the control block of Android's misc partition: bootloaders of phones, U-Boot
//	uboot    U-Boot's environment: BOOT_ORDER and BOOT_A_LEFT, or bootcount
//	grub     GRUB's environment block: ORDER, A_OK and A_TRY
//	entries  boot counting in the names of boot loader entries: systemd-boot
//
// Each backend reads a table, changes it in memory and writes it back in as few writes
// as its place allows; all of them pass the same tests, with a simulation of their boot loader
// and with the power cut at each of these writes, before, within and after it:
//
//	place                     a write                      torn
//	misc                      pwrite, fsync                the boot loader's defaults: a, then b
//	misc with backup          primary, then backup         the other copy
//	uboot, one copy           pwrite, fsync                the variables U-Boot was built with
//	uboot, two copies         the copy not in use          the copy in use
//	grub                      new file, fsync, rename      cannot be
//	entries                   rename, fsync of the folder  both names: the boot loader's order decides
//
// Storage writes a sector as a whole, and a control block is in one; so a torn one is
// the exception.
//
// Where the boot loader has no place for the merge status it is put beside: in the variable
// cowbird_merge, or for entries in a file; with a bootloader that does not know
// them they forbid nothing. It is kept with the slot that wrote it, since an update that was
// written but not booted counts as none.
//
// Two guards are not the boot loader's: the other slot cannot be made active while the merge
// runs, and the last bootable slot cannot be made unbootable.
//
// How to set up each boot loader is in docs/slots.md. Source: specs/snapshot-manager.md 14.
package slots
