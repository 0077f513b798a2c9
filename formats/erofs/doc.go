// Package erofs tells where the files of an erofs image are: which bytes of the
// image hold which bytes of which file, compressed or not. It reads no contents
// and writes nothing.
//
//	superblock ─► root directory ─► names ─► inodes
//	                                           │ flat, in chunks, or compressed clusters
//	                                           ▼
//	                 Extent{Logical, Length, Physical, Stored, Compressed, Algorithm}
//
//	fs, err := erofs.Open(image, size)
//	err = fs.Walk(func(f erofs.File) error { … f.Path, f.Size, f.Extents … })
//
// A compressed extent is one physical cluster: Stored bytes of the image that
// decompress to at least Length bytes. With Padded, LZ4 data end where the
// cluster ends, and zeros come before them. Uncompressed neighbours are one extent.
//
// What is not in blocks of its own has no extent: holes, tails that lie beside
// their inode, or with others in the packed inode.
//
// Inodes of both sizes, flat, inline and chunked files, and both kinds of cluster
// indexes, with clusters of one block or more, are understood. Other devices,
// images beyond 32-bit block numbers and later features are ErrUnsupported. An
// image that is damaged is refused where that is noticed; checksums are not
// looked at. Time and memory are bounded by the image: a directory is read once,
// index entries and directory bytes are no more than the image has bytes, and
// what is held is a window of 64 KiB, a directory block for each level, the number
// and path of each file, and the extents of one.
//
// An FS is for one goroutine; several may read the same image.
//
// Source: the kernel's documentation, filesystems/erofs, and fs/erofs/erofs_fs.h.
package erofs
