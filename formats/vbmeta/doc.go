// Package vbmeta reads, verifies, signs and writes the metadata of Android
// Verified Boot: what says which partitions a device may start, and who says so.
//
//	header 256 bytes │ authentication │ auxiliary
//	what is where    │ hash           │ descriptors
//	rollback index   │ signature      │ public key, key metadata
//	└───────┬────────┘                └─────┬────┘
//	        └────── hashed and signed ──────┘
//
// It lies at the start of a partition of its own (vbmeta), or behind the contents of
// the partition that it is about, where a footer in the last 64 bytes tells of it:
//
//	│ image │ hash tree │ error correction │ vbmeta │ … │ footer │
//
// Descriptors say what is to be verified: a Hash of a whole partition, a Hashtree
// for dm-verity, a ChainPartition that has metadata by another key. A Property
// and a KernelCmdline are just signed together with them. Descriptors of other
// tags are kept as they are.
//
//	v, err := vbmeta.FromPartition(file, size)
//	err = v.Verify(key)                       // or v.VerifyEmbedded()
//	chain, err := vbmeta.VerifyChain(open, key)
//	b, err := vbmeta.Sign(&vbmeta.VBMeta{…}, privateKey, vbmeta.SHA256RSA4096)
//	footer, err := vbmeta.AppendFooter(file, layout, b, partitionSize)
//
// Parsing does not verify anything: the contents of a VBMeta are worth what
// Verify says. A signature by the embedded key proves only that the metadata
// is whole, as anybody can embed a key.
//
// Reading is stricter than a bootloader's. What is reserved or padding has to be
// zero, numbers are within what dm-verity takes, and names are such that they can be
// files and words of a device-mapper table. So what is parsed and marshalled
// again has the same descriptors, byte for byte. Metadata have at most 64 KiB.
//
// The package does not compute hash trees: formats/verity does. Nothing is kept
// between calls, and what is parsed can be read by any number of goroutines.
//
// Source: specs/snapshot-manager.md 13.
package vbmeta
