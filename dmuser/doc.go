// Package dmuser is how the kernel asks: it makes a block device out of
// anything that can be read at an offset, and answers for it. It knows nothing
// of snapshots.
//
// A [Carrier] is one way to do so. [Select] picks one; Attach gives a [Device],
// which is served until it is closed:
//
//	c, err := dmuser.Select(dmuser.Auto)
//	d, err := c.Attach(ctx, "system_a", backend)
//	fmt.Println(d.Path()) // /dev/loop3
//	err = d.Close()       // ErrBusy while it is mounted
//
// # The carrier "fuse"
//
// It needs /dev/fuse and the loop driver, and runs on any kernel since 4.14:
//
//	mount, reader      /dev/loop3
//	                       |         loop driver: direct I/O, read-only, autoclear
//	                   one file      the root, and the whole, of a FUSE file system
//	                       |         that is mounted nowhere
//	                   /dev/fuse
//	                       |
//	this process       leader, workers ---> Backend.ReadAt
//
// The file system is a detached mount; before Linux 5.2 it is mounted over a
// private file for a moment. Only descriptors keep any of this alive. When the
// process dies the connection ends, so that reads fail and do not hang, and the
// loop device goes as soon as nobody has it open. Sweep finds those that
// somebody still has.
//
// # The carrier "ublk"
//
// It needs the ublk driver with user recovery and user copy:
//
//	mount, reader      /dev/ublkb3
//	                       |         ublk driver: read-only, one queue
//	                   /dev/ublkc3, io_uring
//	                       |
//	this process       queue's thread, workers ---> Backend.ReadAt
//
// The queue's thread waits in io_uring, serves what is small and fast itself, and
// hands the rest to workers; data are written to the character device. The device
// outlives the process: requests, those under way as well, wait until a process
// attaches a backend of the same name and size, as the same user. It is known by
// a mark and a hash of the name that the driver keeps for its server. Sweep removes
// devices whose server is dead unless somebody has them open.
//
// # The carrier "dm-user"
//
// It needs device-mapper's target of that name: Android's kernels have it, others
// get it from tools/dm-user-kmod.
//
//	mount, reader      /dev/dm-3         cowbird-system_a, read-only
//	                       |         device-mapper: one target, "user"
//	                   /dev/dm-user/cowbird-system_a-…
//	                       |         a channel: an open file of that node
//	this process       Session ----> Backend.ReadAt
//
// What a channel says and is told is in package userstream. A channel is opened
// before the table becomes the active one, so that the driver's patience with
// servers that have not come yet is never tried. One channel does: a second one
// was measured to be little faster at best, and costs a thread.
//
// The device outlives the process. A process that attaches a backend of the same
// name and size gives the device a table of its own, with another node, whether
// the earlier server lives or not:
//
//	load ──► open a channel ──► suspend ──────────► resume
//	                            requests wait; the  the old table goes, its
//	                            old server answers  server's reads say so, and
//	                            what it has         its Device is Done
//
// Nobody who has the device open notices, if the earlier server lives to answer
// what it was asked. If it was killed, what it was asked fails with EIO when the
// kernel closes its channel, and so does, at once, all that is asked until the
// next server's table is there; then the device works again. No timeout has a say
// in this. (dm_user_daemon_timeout_msec is for tables that nobody has opened a
// channel of, which this carrier does not make active.) If the earlier server
// neither answers nor dies, Attach waits until its context ends, and leaves the
// device to that server.
//
// A device is ours if its UUID says so; it is the same as the name. Who changes
// the tables of one holds a lock, a socket of an abstract name, as long as that
// takes. Sweep removes devices without a server that nobody has open. Whether
// there is one the target tells (the number of its channels); Android's does not,
// and there a server is known by another socket's name, @cowbird-dm-user:dm-3:….
// Attach goes on with what is in use. A device of another size than the backend is
// removed if nobody serves or uses it, and is in the way otherwise.
//
// A reader that waits in a channel cannot be woken by closing it, so that a
// session ends with the target only. Abort answers all that is under way with
// errors, and then loads a table that fails everything; the device goes with its
// last user, unless somebody attaches to it before.
//
// # Tables of others
//
// Android's init and update_engine load tables with a target "user" themselves,
// and ask a daemon to serve them: there is a node of the snapshot's name then. A
// [Waiting] carrier serves that, and passes on what nobody has loaded a table for.
// Such a Device goes when its owner removes the table, or replaces it: Close waits
// for that a while, and Leave leaves it served until the process ends.
//
// # The carrier "nbd"
//
// It needs the nbd driver (the kernel loads it by itself where it can):
//
//	mount, reader      /dev/nbd3
//	                       |         nbd driver: read-only, one connection
//	                   socket pair
//	                       |
//	this process       session ----> Backend.ReadAt
//
// Generic netlink makes the device and takes it away; no descriptor of it is kept.
// So it outlives the process. Requests wait 30 seconds then for a new server. A
// process that attaches a backend of the same name and size meanwhile goes on with
// the device, and whoever has it open notices a delay at most: what was under way
// is asked again 10 seconds after it was asked first. Kernels before 5.14 do not
// tell what a device was called, and there a new one is made instead.
//
// A backend that takes longer than those 10 seconds has the driver give up the
// connection; it is given a new one, up to 4 at a time. A device is closed by
// telling the driver to disconnect it when its last opener leaves, and by being
// an opener for a moment: if it is still there afterwards, there are others.
//
// Sweep removes devices whose server is dead unless somebody has them open. A
// server's end of the socket pair has a name, @cowbird-nbd:3, by which it is known
// to be alive.
//
// # Servers that leave
//
// Device.Leave has a device outlive its server on purpose, while somebody has it
// open:
//
//	carrier   who has it open                    how long
//	ublk      waits for the next server; before  for good
//	          Linux 6.16 it is served until
//	          this process ends
//	dm-user   waits for the next server, since   for good
//	          the device is suspended
//	nbd       waits for the next server; what    30 seconds, then gets errors
//	          was under way, 10 seconds more
//	fuse      cannot be left                     -
//
// Sweep does not end that wait. Abort is the other way to end: who has the device
// open gets errors, on every carrier.
//
// # Exports
//
// [Exports] offers the same backends to NBD clients in other processes, such as
// qemu-img and nbdcopy, on connections that somebody else accepts; see package
// nbd. Exports.Carrier has each device exported as long as it exists. A client
// that reads keeps the device from being closed, as a mount does.
//
// # Who serves
//
// A few goroutines take turns at each device; see package turns. Whatever the
// carrier, an idle device costs one that waits, and its thread; with FUSE one
// thread waits for all idle devices. An NBD client of the exports costs no thread.
// No timer runs, nothing polls.
//
// While requests come the runtime should have two processors (GOMAXPROCS), also on
// a machine that has one: it takes the only one from a thread that waits in a system
// call, and wakes others to see what else there is to do.
//
// # Memory
//
// Replies are built in mappings of 1 MiB outside of the Go heap, shared by all
// devices. Once no request has come for a second those without an owner are
// unmapped; a buffer that a slow backend holds is not among them. See [OnQuiet]
// for the heap. Each device has one more mapping in reserve, with its first
// 16 KiB in memory, so that a read can be answered when nothing can be mapped, and
// a small one after a pause without touching new memory.
//
// The nbd driver is told not to ask for more than a buffer holds. If it does so
// anyway, as any NBD client may, a reply that must be sent whole has a mapping of
// its own of up to 32 MiB: one at a time for each device, and one for all
// exports. Device-mapper cannot be told, and asks for as much as a reader wants at
// once. There the same holds, and what is longer than 32 MiB fails.
//
// # Caveats
//
// A process must not read its own device, by a page fault on a mapped file
// neither, while it may die: the kernel does not close its descriptors before
// the reading thread is done, and the read is not done before the kernel closes
// /dev/fuse. Sweep, called by another process, ends such a deadlock.
//
// The logical block size is 4096 bytes if that divides the device's size, else
// 512; with dm-user it is always 512. A file system with smaller blocks cannot be
// mounted from the former.
package dmuser
