// Package loaderentry is the boot counting that stands in the names of boot loader
// entries, as systemd-boot does it.
//
//	system.conf        good: not counted, or counted no more
//	system+3.conf      three boots may fail
//	system+2-1.conf    one has begun, two are left
//	system+0-3.conf    bad: only booted when nothing else is left
//
// The boot loader renames an entry before it boots it, the system renames it again when
// all is well. That is all there is to it: a name is changed in one step on most file
// systems, and needs no room. Entries are .conf files or unified kernels, .efi.
//
// Which entry is booted: those that are bad come last; the others by the keys within
// the files, and then by name without counters, numbers by their value and the highest first.
//
// The package is pure and only about names. Source: the Boot Loader Specification, and
// systemd's Automatic Boot Assessment.
package loaderentry
