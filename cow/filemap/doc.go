// Package filemap tells which parts of two images are versions of the same file.
//
//	base image ──► Files ─┐
//	                      ├──► Pairs ──► Kin, for cow.Build
//	target image ─► Files ┘
//
// Files recognises the file system by its superblock, and lists regular files
// with the bytes of the image that hold them. An image that is nothing known has
// none; then a delta is made without knowing files, only by contents.
//
// Pairs gives each file of the target at most one of the base: the one of the
// same path; else, in the same folder, the one whose name is the same but for the
// numbers in it (libfoo.so.1.2 and libfoo.so.1.3), the nearest version first; else
// one of the same name and of about the same size in another folder. A file of
// the base may be the origin of several. The outcome depends on paths and sizes
// alone, and not on the order in which the file system has them.
//
// What comes out only proposes: cow.Build compares bytes and sizes. So a file
// system that is damaged, or of which not all is understood, costs bytes and
// nothing else; Files says why in its error.
//
// Memory: about 100 bytes a file, its path, and 40 bytes an extent. At most
// MaxExtents are taken.
//
// Source: specs/cow-format.md 3.3 (an xor op's source is any byte of the base).
package filemap
