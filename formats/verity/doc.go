// Package verity builds what dm-verity checks a partition with: hash trees and
// forward error correction. It also does what dm-verity does with them: finds the
// blocks that are damaged, and repairs them.
//
// A tree has a hash of each block of the data, then a hash of each block of those
// hashes, and so on until one block is left:
//
//	data    │ block │ block │ block │ …
//	            └───┬───┴───┬───┘
//	level 0     │ hashes │ hashes │ …      a hash of salt and block each,
//	                └───┬────┘             padded to a power of two
//	level 1         │ hashes │
//
// It is stored from the top level down. The hash of the top block, the root, is
// what the kernel has to be told; it is kept somewhere else, and signed.
//
// Error correction are parities of a Reed-Solomon code of 255 bytes, so many of
// which (the roots) are parity. The data bytes of a code word are far apart: with R
// rounds, those of round i are byte k of the blocks i, i+R, i+2R, …
//
//	tree, err := verity.NewTree("sha256", salt, blockSize)
//	root, err := tree.Build(data, dataSize, out)
//	err = verity.FEC{Roots: 2, BlockSize: 4096}.Build(data, dataSize, out)
//	damage, err := tree.Check(data, dataSize, treeReader, root)
//	repaired, left, err := (&verity.Protected{…}).Repair(area)
//
// So R neighbours are in different code words, and twice as many blocks in a row can
// be repaired with two roots: the tree says which they are, so that each costs one
// parity byte. Without that it would be two. Repair writes nothing but blocks that the
// root proves.
//
// Sizes are believed: a caller who has them from somebody else's file compares them
// with what is there first.
//
// The package is pure and keeps nothing between calls. Source: specs/payload.md 11,
// specs/snapshot-manager.md 13.
package verity
