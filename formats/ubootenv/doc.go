// Package ubootenv is the environment of U-Boot as it lies on a disk: variables, among
// which its scripts keep what is known of slots.
//
//	 one copy                        two copies, each
//	┌──────────┬─────────────────┐  ┌──────────┬──────┬──────────────────┐
//	│ CRC32  4 │ data            │  │ CRC32  4 │ flag │ data             │
//	└──────────┴─────────────────┘  └──────────┴──────┴──────────────────┘
//	data: a=1 NUL bootcmd=run x NUL NUL, filled up to the size U-Boot was built for
//
// The checksum covers all of data, the filling too, but not the flag. So the size must
// be known; it is the one of fw_env.config. With two copies a writer takes the one
// that is not in use, with a flag one higher, and a reader the one with the higher
// flag of those whose checksum is right (255 is before 0): a write that is torn leaves the
// other. With one copy a torn write leaves nothing, and U-Boot goes on with the variables
// that were compiled in.
//
// Flash that is erased by blocks has boolean flags instead, 1 for the copy in use and 0
// for the other. Choose reads those as well, since 1 is more than 0; Next makes what
// fw_setenv makes on files and block devices.
//
// Variables stay in the order found, new ones come last: U-Boot and the tools read any
// order. Of a name that occurs twice the last one counts. What is behind the end of the
// variables is not kept.
//
// The package is pure and does no I/O. U-Boot on big-endian machines writes the checksum
// the other way round; that is not supported.
package ubootenv
