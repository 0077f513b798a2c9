// Package cowfile reads and writes Android's copy-on-write image, the file that
// holds the difference between an old partition and its update.
//
// A COW is a list of ops in front of (version 3) or between (version 2) their
// data. Each op says where the contents of one or more blocks of the target
// come from:
//
//	copy     another block of the source
//	xor      4096 bytes anywhere in the source, XOR the op's data
//	replace  the op's data; in version 3 one unit of 1 to 64 blocks
//	zero     nothing but zeros
//
// A block without an op keeps the contents of the base. Copy and xor ops are
// ordered ops: the base is overwritten in place, so they must be merged before
// another op destroys what they read. The merge order follows from the file
// (File.Merge) and is checked when the file is opened.
//
//	f, err := cowfile.Open(r, size, nil)
//	f.Op(i)              // the i-th data op, in the order of the file
//	f.Lookup(&hint, b)   // the op that serves block b
//	f.Merge(from)        // ops in merge order
//	cowfile.Decode(op.Compression, unit, stored)
//
// and, to write one that can be continued at its labels,
//
//	w, err := cowfile.NewWriter(d, opts)   // or OpenWriter, at a label
//	w.Add(op, stored)
//	w.Label(7)                             // durable
//	w.Finish()
//
// The package is pure: it reads through io.ReaderAt and writes through a small
// interface (Device), and keeps no goroutine and no file.
// Memory per op is 16 bytes for a version 2 file, whose ops are scattered;
// nothing for a version 3 file when Options.Map lends the op table; and in both
// cases 12 bytes for each run of consecutive blocks (see Lookup). Options.Alloc
// lets the caller keep these off the heap.
//
// Input is either understood completely or refused: with an *Error that tells
// what was expected, what was found and where. Where Android's own reader lets
// a damaged file through (reserved bits, unknown types, an unsafe merge order,
// ops past op_count_max, data outside the file, a block with two ops), this one
// does not.
//
// A File is immutable after Open and safe for concurrent use.
package cowfile
