// Package nbd is a server for the Network Block Device protocol: read-only
// exports, for any client.
//
//	connection ──► Negotiate ──► Agreement ──► Start ──► Session ──► Backend.ReadAt
//	               which export, which           requests in,
//	               kind of replies               replies out, in any order
//
// A connection is anything that can be read, written and given deadlines. The
// kernel's driver is a client that does not negotiate: its Session is started
// outright.
//
// # What is spoken
//
// Fixed newstyle negotiation with the options EXPORT_NAME, ABORT, LIST, INFO, GO,
// STRUCTURED_REPLY, LIST_META_CONTEXT and SET_META_CONTEXT; any other is answered
// as unsupported, STARTTLS among them. The empty name stands for the only export
// where there is one only. The one metadata context is base:allocation, which
// calls everything allocated: a backend does not tell where it has zeros.
//
// The requests READ, DISC, FLUSH and BLOCK_STATUS. WRITE, TRIM and WRITE_ZEROES
// fail with EPERM, after the payload has been passed over; what else there is
// fails with EINVAL.
//
// No header says success before all of the data behind it has been read. Where
// structured replies are agreed on, a long read is answered piece by piece, and
// one that fails has the good data before the first bad block, and the offset of
// that block. With simple replies a request fails as a whole.
//
// # Limits
//
// A client must have negotiated within NegotiationTime and MaxOptions options,
// none longer than MaxOption bytes. It may ask for up to MaxRequest bytes at a
// time. A reply must be taken within ReplyTime and a request, once begun, sent
// within RequestTime, unless the client is trusted. What a session holds is a
// goroutine and 4 KiB, and while it serves so many buffers of MaxPiece bytes as
// Options.Workers says, touched as far as requests are long; what a slow client
// does not take away is not read either. A simple reply of more than MaxPiece
// bytes needs a buffer of its length.
//
// # Concurrency
//
// See package turns. A reply is one write, or several for a long one; those of
// different requests may come in any order. Replies to short requests that came
// together leave in one write, of some 64 KiB: each wakes the client. None waits for
// the client to ask more, nor, for longer than a few milliseconds, for a request
// behind it.
package nbd
