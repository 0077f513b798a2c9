// Package userstream speaks the protocol of device-mapper's target dm-user, from
// the side of the process that answers. It is read-only.
//
//	channel ──► header ──► Session ──► Backend.ReadAt
//	   ▲                      │
//	   └── header, payload ◄──┘   in any order, each once
//
// A [Channel] is an open file of a target's node, or anything that behaves like
// one. Requests and responses begin with a header of 40 bytes in the machine's
// byte order: a number, which the response repeats, the operation or the result,
// flags, the place in sectors of 512 bytes, and a length. The payload of a write
// follows its request, that of a read its response. Neither reads nor writes of
// the file need to begin or end where a message does.
//
// # What is answered
//
// A read is served. A flush succeeds, for there is nothing to flush: it comes as
// such or as a write without a payload. Writes, discards, erasures, writes of
// zeros, all that concerns zones and whatever else there may be is unsupported,
// which the kernel turns into EIO; the payload of a write is passed over, however
// long. Then the session goes on.
//
// # Long reads
//
// A request may be of any length, and a response that says success cannot be
// taken back. So all of the data is read before the header goes out, into one
// buffer. The other way, to read everything twice and keep the second pass, fails
// a request in the midst of its payload if the second pass does; then nothing is
// left but to close the channel, which fails whatever else it has under way and
// cannot be done while somebody waits in its read. What a buffer of [MaxRequest]
// cannot hold is answered with an error.
//
// # Limits
//
// While nothing is asked a session holds a goroutine in a read, and its thread.
// While it serves it holds a buffer for each request, up to a number of them, and
// 4 KiB more once somebody has tried to write.
//
// # Concurrency
//
// See package turns. At any time one goroutine reads from the channel, and one
// writes to it.
package userstream
