// Package fetch reads a file from an http or https URL as an installation does: once,
// from front to back, over a line that may be cut at any byte.
//
//	Open ─▶ size, validator        (one request of a byte)
//	From(off) ─▶ Range: bytes=off- ──┐
//	               ▲                 │ cut off, too slow, 5xx
//	               └── back-off ─────┘ at the byte where it was
//
// The file must not change meanwhile: each request names the validator that the first
// answer had (a strong ETag, or else the date), and what comes back is compared with
// it and with the size. A server without ranges sends all again, and what is there
// already is dropped.
//
// [Source.ReadAt] reads small pieces, so that a zip's directory can be looked at and
// the payload in it be found; that needs a server with ranges.
package fetch
