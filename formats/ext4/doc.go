// Package ext4 tells where the files of an ext4 image are: which bytes of the
// image hold which bytes of which file. It reads no contents and writes nothing.
//
//	superblock ─► group descriptors ─► inode tables ─► inode
//	                                                     │ extent tree, or block pointers
//	root directory, inode 2 ─► names ─► inodes           ▼
//	                                        Extent{Logical, Physical, Length}
//
//	fs, err := ext4.Open(image, size)
//	err = fs.Walk(func(f ext4.File) error { … f.Path, f.Size, f.Extents … })
//
// Walk goes through the directories as they are on the disk, the root first, and
// visits regular files. Ext2 and ext3 images are read as well.
//
// What is not on the disk as the file has it has no extent: holes, extents that
// are allocated but not written, and the contents of files that lie in their
// inode. The last extent may reach beyond the file's size, to the end of its
// block. In images with shared blocks two files may have the same extents.
//
// An image that is damaged is refused where that is noticed: counts, offsets and
// the order of extents are checked, checksums are not. A directory that appears
// twice, more directory blocks or tree blocks than the image has blocks, and
// paths of more than MaxPath bytes are refused too, so that time and memory are
// bounded by the image: Walk holds one block for each level, a bit for each
// inode, the names of files with several links, and the extents of one file.
// Features that are not understood are ErrUnsupported: encrypted names, several
// mount protection and the like, directories inside an inode, descriptors spread
// by meta_bg, and a journal that has not been replayed.
//
// An FS is for one goroutine; several may read the same image.
//
// Source: the kernel's documentation, filesystems/ext4.
package ext4
