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
// # Who serves
//
// One goroutine of a device, the leader, sits in a blocking read of /dev/fuse.
// An idle device costs that one blocked thread: no timer runs, nothing polls.
//
// A small read is served by the leader itself. Waking another thread takes
// longer than a fast backend needs for 4 KiB. The leader hands the lead to a new
// goroutine first, and serves then, if
//
//   - the read is large (128 KiB), so that several copy at a time, or
//   - small reads took long lately (50 µs) and more requests are waiting.
//
// A one-shot timer, set anew by each read that the leader serves itself, takes
// the lead from it after 1 ms: so one slow read holds others back for that long
// at most, and the timer costs nothing but its setting. Up to 8 reads are served
// at a time, at most two a processor (but no less than two); if all are slow,
// the next waits for one of them. Who has served leads if nobody does, else
// ends.
//
// # Memory
//
// Replies are built in mappings of 1 MiB outside of the Go heap, shared by all
// devices. Once no request has come for a second those without an owner are
// unmapped; a buffer that a slow backend holds is not among them. See [OnQuiet]
// for the heap. Each device has one more mapping in reserve, with its first
// 16 KiB in memory, so that a read can be answered when nothing can be mapped.
//
// # Caveats
//
// A process must not read its own device, by a page fault on a mapped file
// neither, while it may die: the kernel does not close its descriptors before
// the reading thread is done, and the read is not done before the kernel closes
// /dev/fuse. Sweep, called by another process, ends such a deadlock.
//
// The logical block size is 4096 bytes if that divides the device's size, else
// 512. A file system with smaller blocks cannot be mounted from the former.
package dmuser
