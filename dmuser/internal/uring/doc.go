// Package uring is as much of io_uring as a server of block devices needs: a ring
// of its own for each thread that serves, commands to a driver, reads of files.
//
//	Next ── fill ──► submission queue ──┐
//	  ▲                                 │ Enter: one system call submits what was
//	  │                                 ▼ filled, and waits
//	Done ◄── look ── completion queue ◄─┘
//
// A ring belongs to one goroutine, which has locked its thread if the ring is
// Exclusive. Memory that an entry points to must stay where it is until the
// entry's completion has been seen: memory that was mapped, or on the heap.
//
// Caveats: the preemption signals of the Go runtime end Enter early, so that it
// may return with no completion. When the thread that submitted a command exits,
// the kernel cancels the command.
package uring
