// Package verity builds what dm-verity checks a partition with: hash trees and
// forward error correction.
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
//
// The package is pure and keeps nothing between calls. Source: specs/payload.md 11.
package verity
