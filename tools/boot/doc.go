// Package boot tests what starts Cowbird on a device: nothing here is Go but the
// tests.
//
//	boot.sh, boot.conf   in an initramfs: maps the partitions of the running slot
//	initramfs-tools/     hook and script that put it there and call it, for Debian's
//	dracut/              the same for everybody else's
//	udev/                keeps desktops away from the parts; lets users serve with ublk
//	systemd/             in the running system: goes on, marks as successful, merges
//	dbus/                who may call the service for user interfaces, and what starts it
//	android/             the same for Android's init, the services that its own daemon has, and
//	                     what its SELinux policy needs (sepolicy/)
//
// docs/boot.md tells how to use them. Here each file is read by its own parser where
// Debian has one, and the scripts run with programs that note how they are called.
// Whether all of it boots is seen in a guest: TestBootUpdate in tools/vmlab. What a
// folder in the list needs to be installed as, its files say.
package boot
