// Package ublkctl has what the kernel's ublk driver is told, and tells: the codes,
// flags and layouts of its interface as of Linux 7.3, and a Control that sends the
// commands.
//
//	ADD_DEV ──► /dev/ublkcN ──► SET_PARAMS ──► FETCH every tag ──► START_DEV ──► /dev/ublkbN
//	                                                                   │
//	DEL_DEV ◄── STOP_DEV ◄── live ◄── END_USER_RECOVERY ◄── quiesced ◄─┘ its server left
//
// What a kernel can do is asked, never guessed from its version: Features says
// what the driver knows, and the Flags that Add gives back what a device got, for
// the driver drops flags that it does not know without a word.
//
// A Control is one open file and one small io_uring. Start, Stop and Delete block
// for as long as requests are under way, so that a Control is not shared.
package ublkctl
