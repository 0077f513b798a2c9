// Package resident makes a process fit to serve the device that it runs from, and
// takes away from it what serving does not need.
//
//	Settle ── out of memory? others go first        (oom score)
//	   │  ─── our program needs no disk any more     (ServesRoot: locked)
//	   └───── nothing but serving                    (capabilities, system calls)
//
// When the root file system lies on a device that this process serves, a page of
// its program that the kernel has dropped could be read back by this process only,
// which waits for that page. So the pages of the program's file are locked, and
// only those: what has no file behind it does not depend on the device, nor does
// what is mapped of a COW, which lies elsewhere.
//
// The process is not made an I/O flusher (PR_SET_IO_FLUSHER), as servers of
// writable devices have to be: they must not wait for their own dirty pages when
// they ask for memory. Ours are read-only, so that there are none. And a flusher
// may not have the kernel end another process when nothing else gives memory back:
// with that process waiting for a page of our device, and us for memory to send it
// with, tests saw both wait until the nbd driver gave up.
//
// What is given up is all that an intruder would ask for first: to run another
// program, to look into other processes, to load code into the kernel, and the
// capabilities that no carrier needs. It is a list of what is refused, not of what
// is allowed: carriers and the Go runtime use other system calls on other kernels,
// and a daemon without which the root cannot be read must not die of a new one.
package resident
