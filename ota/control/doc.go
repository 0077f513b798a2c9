// Package control is the language that snapuserd and its clients speak over the
// control socket: its messages, and a client.
//
// The socket is a Unix stream socket without framing. One send is one message
// of at most MaxMessage bytes: a command and its arguments, with commas between
// them and no way to escape one. A client waits for the reply before it sends
// the next message.
//
//	init,NAME,COW,SOURCE,BASE   success,SECTORS   open the snapshot (512-byte sectors)
//	start,NAME                  success           make a block device of it
//	get_device_name,NAME        success,PATH      where the block device is
//	initiate_merge,NAME         success           merge it, when its turn comes
//	getstatus,NAME              snapshot, snapshot-merge, snapshot-merge-complete
//	                            or snapshot-merge-failed (also for an unknown name)
//	merge_percent               12.500000         mean over all snapshots
//	pause_merge, resume_merge   success           all merges
//	delete,NAME                 success           close the device, forget the snapshot;
//	                            an unknown name is a success
//	query                       active, passive   passive: the daemon is leaving
//	stop                        no reply          leave now
//	detach                      no reply          leave when the devices are gone
//	supports,FEATURE            success, fail     of features there is SocketHandOff only
//	create, update-verify       fail              needs another kind of carrier or boot
//
// These are Android's. A request that cannot be done is answered with fail; so
// is one that is not understood, and then the connection is closed.
//
// # Extensions
//
// Commands that begin with "cowbird" are ours:
//
//	cowbird,list                framed            names, a line each
//	cowbird,status,NAME         framed            a Status as lines of key=value
//	cowbird,merge,NAME,RATE     success           initiate_merge at RATE bytes a second; 0: no limit
//	cowbird,pause,NAME          success           pause_merge for one snapshot
//	cowbird,resume,NAME         success           resume_merge for one snapshot
//	cowbird,reason              framed            why this connection's last request failed
//
// A framed reply is "success,N\n" and then N bytes, however long. In values,
// line feeds and backslashes are written as \n and \\.
package control
