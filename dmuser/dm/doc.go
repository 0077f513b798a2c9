// Package dm speaks to device-mapper, the part of Linux that makes a block
// device out of a table: which target serves which sectors.
//
//	Create ──► Load ──► Resume ──► (Suspend ──► Resume) ──► Remove
//	no table   inactive  active     no requests in flight
//
// A device has two places for a table. Load fills the inactive one; Resume makes
// it the active one, and the table that was active goes. So a table is replaced
// by Load, Suspend and Resume, and requests wait meanwhile.
//
// Every call is one ioctl on the control file, and needs to be root. Lengths and
// positions are in sectors of 512 bytes. A Control is safe for concurrent use.
//
// Caveats: device-mapper removes a device only when nobody has it open. The
// node /dev/dm-N is the kernel's; the names below /dev/mapper are made by udev,
// which gets no cookie from here, and may make none. Arguments of a target are
// given as they are: a blank or backslash within one must be escaped with a
// backslash by the caller.
package dm
