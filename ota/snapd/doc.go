// Package snapd is the server in snapuserd: it opens snapshots, has them served
// as block devices, merges them, and obeys clients on the control socket
// (package control).
//
//	control socket ──► client ──► request ──► Server ──► snap ──► cow.Snapshot
//	                                            │         ▲            ▲
//	                                     merge queue ─────┘            │ ReadAt
//	                                                     carrier ──► backend
//
// One mutex, Server.mu, guards the table of snapshots, the merge queue and the
// small state of each snapshot. It is never held across anything that waits:
// opening, attaching, closing and merging are done under the snapshot's own op
// lock, so that a client which waits for one snapshot keeps nobody else.
//
// # Without a socket
//
// At the boot of an Android device snapshots must be served before there can be a
// socket. Then Map opens and starts them, and Config.Later brings the socket when
// there is one.
//
// # Nothing happens while nothing happens
//
// The server has no ticker. While idle its goroutines are parked: one on the
// listening socket, one for each client, one for each device, and these cost no
// thread. Two seconds after the last request (of the control socket or of a
// device) and the last merge, memory goes back to the kernel and the garbage
// collector is told to stay away; a moment after the next request it is woken, which
// that request does not wait for. Threads that a busy time has left are ended, too
// (quiet.go).
//
// # Caveats
//
// A snapshot is merged in this process only while it has a block device, as
// Android's daemon does it. A base or COW that cannot be opened for writing can
// still be served; its merge is refused.
package snapd
