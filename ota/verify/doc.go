// Package verify decides whether a payload may be installed.
//
//	keys ─▶ metadata signature ─▶ manifest ─▶ hash of each blob ─▶ data
//	                                     └──▶ hash of each partition
//
// Whoever holds a private key signs the manifest; the manifest has a hash of all data
// and of each new partition. So with the metadata signature good and a hash for each
// blob nothing is decoded that was not signed, and a payload can be applied as it
// comes. The payload signature, over everything, comes last in the file; a tool that
// has the whole file checks it too.
//
// A refusal is an [Error] with the code by which Android's client knows it
// (specs/payload.md 14 and 15), in the order in which the client looks:
//
//	size and hash of the metadata   as the properties file says
//	metadata signature              by one of the keys
//	versions                        major 2; minor 0 for full payloads, 2 to 9 for deltas
//	timestamps                      nothing older than what runs, unless told
//	security patch level            likewise
//	hashes                          one for each blob
package verify
