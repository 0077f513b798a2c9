// Package verify decides whether an A/B update may be installed.
//
//	OTA zip ─── Zip: signature in its comment, by a trusted key
//	 └ payload.bin
//	    ├ header, manifest, metadata signature ─── Read: sizes, signature, then
//	    │                                          what the manifest says
//	    ├ blobs ─── Blob, Source: each operation, before it is done
//	    │           Sum: both hashes of the payload, while it streams
//	    └ payload signature ─── Payload: size, hash, signature of all
//	                            Partition: what has been written
//
// It installs nothing and reads nothing but what it is given. The caller streams,
// hashes and asks:
//
//	keys, err := verify.ParseKeys(otacerts)
//	policy := verify.Policy{Keys: keys, Properties: properties, Device: facts}
//	m, err := verify.Read(r, size, policy)
//	sum, err := verify.NewSum(m)
//	r = io.TeeReader(r, sum) // for the blobs, and the signature behind them
//	err = verify.Blob(partition, i, sha256.Sum256(blob))
//	err = verify.Payload(m, sum, policy)
//
// A refusal is an [*Error] with the [Code] that Android's client has for it, in the
// client's order of checks: who has tools for that client's reports can keep them.
// Policies are strict unless they say what they allow.
//
// # Caveats
//
// The payload's signature is known only when all has been written. What protects
// before is the signed manifest with its hash of each blob; so neither Metadata nor
// Blob may be left out, and nothing may start from what was written until Payload
// and Partition have passed.
//
// Certificates are envelopes of keys here: dates, names and chains do not count.
// Properties are not signed; they refuse, but they allow nothing.
//
// The source of all of this is specs/payload.md 4, 5.2, 14 and 15.
package verify
